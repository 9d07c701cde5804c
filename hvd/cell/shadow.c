/* Shadow paging: the guest's pages, mapped from the memory file into this process as they are touched.
 *
 * There are two views of the guest's linear addresses: the low one, at the addresses themselves, in which code runs natively, and the
 * kernel window at HV_WINDOW, which is what translated kernel code reads and writes. Where the kernel runs natively there is only the
 * low one. A page's place in the tables below is its slot: linear page number, and 1 << 20 in the window.
 *
 * The mappings are a TLB: filled by faults, dropped by what drops a TLB's entries (CR3, CR0, CR4, INVLPG), and until then they may be
 * older than the guest's tables (SDM vol. 3A, "Caching Translation Information"). A page that is clean in the guest's tables is mapped
 * read-only, so that its first write sets the dirty bit.
 *
 * A native kernel shares the low view with its programs, both in ring 3. What only the kernel may touch is therefore made inaccessible
 * before user code runs, run by run (struct run), and accessible again when the kernel needs it.
 *
 * A frame that kernel code was translated from is mapped read-only everywhere: who writes there is heard (translate.h).
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "cell.h"
#include "lookaside.h"
#include "paravirt.h"
#include "runs.h"
#include "sites.h"
#include "slots.h"
#include "translate.h"

#define AROUND 64u            /* pages that are looked at before and behind a 4K page */
#define UNPAGED_CHUNK 1024u   /* pages that are mapped at once without paging */

/* Of a page, by linear page number: physical page << 8 | these. 0 = not mapped. */
enum { MAPPED = 1, WRITABLE = 2, USER = 4, KERNEL_ONLY = 8, GLOBAL = 16, EXECUTABLE = 32, LARGE = 64, COPY = 128 /* of sites.c */ };
static uint64_t table[SLOTS];

/* Of a frame of the memory file: the slots that map it, for those below 4 GiB, as lists of slot + 1; only where code is translated. */
#define FRAMES (1u << 20)
static uint32_t first_slot[FRAMES], next_slot[SLOTS];
static uint8_t code_frames[FRAMES];

static struct page_set mapped, transient /* not global */;

static uint32_t least_page;
static unsigned most_mappings;
static struct edges edges; /* between mappings */
static bool user_runs;

static uint32_t linear_of(uint32_t slot) { return (slot & (PAGES - 1)) * PAGE; }
static void *address_of(uint32_t slot) { return (void *)((slot & PAGES ? HV_WINDOW : 0) + linear_of(slot)); }
/* Under paravirt the low view's last page is the virtual processor's (paravirt.h): it is mapped for good. */
static bool is_vcpu(uint32_t slot) { return hv_paravirtual() && slot == PAGES - 1; }
static bool has_window(void) { return cell.mode == HV_MODE_REWRITING; }
static bool has_sites(void) { return has_window() || hv_paravirtual(); }
static bool tracks_code(void) { return has_sites() || cell.mode == HV_MODE_BREAKPOINT; }
static uint32_t slot_of(uint32_t linear, bool user) { return linear / PAGE | (has_window() && !user ? PAGES : 0); }
/* With whose rights is a mapping filled again? */
static bool for_user(uint32_t slot, uint64_t entry) { return has_window() ? !(slot & PAGES) : entry & USER && !(entry & KERNEL_ONLY); }

void hv_shadow_init(uint32_t least_address, unsigned most)
{
    least_page = (least_address + PAGE - 1) / PAGE;
    most_mappings = most > 2048 ? most - 1024 : most / 2;
}

static int protection_of(uint64_t entry)
{
    return PROT_READ | (entry & WRITABLE ? PROT_WRITE : 0) | (entry & EXECUTABLE ? PROT_EXEC : 0);
}

/* ---- mappings */

static uint64_t frame_of(uint64_t physical)
{
    const struct hv_cell_region *region = hv_region_at(physical);
    return region && region->kind != HV_REGION_MMIO ? (region->file_offset + (physical - region->start)) / PAGE : ~0ull;
}

static void list_add(uint32_t slot)
{
    uint64_t frame = frame_of((table[slot] >> 8) * PAGE);
    if (frame >= FRAMES)
        return;
    next_slot[slot] = first_slot[frame];
    first_slot[frame] = slot + 1;
}

static void list_remove(uint32_t slot)
{
    uint64_t frame = frame_of((table[slot] >> 8) * PAGE);
    if (frame >= FRAMES)
        return;
    for (uint32_t *at = &first_slot[frame]; *at; at = &next_slot[*at - 1]) {
        if (*at == slot + 1) {
            *at = next_slot[slot];
            return;
        }
    }
}

static void forget(uint32_t page)
{
    if (tracks_code())
        list_remove(page);
    table[page] = 0;
    set_remove(&mapped, page);
    set_remove(&transient, page);
}

static void forget_all(uint32_t first, uint32_t end)
{
    for (uint32_t page = set_next(&mapped, first, end); page < end; page = set_next(&mapped, page + 1, end)) {
        forget(page);
        cell.area->counters.shadow_drops++;
        cell.board.crossings.counters->shadow_pages--;
    }
}

/* All of first..end was mapped, or none of it matters. */
static void unmap(uint32_t first, uint32_t end)
{
    forget_all(first, end);
    if (is_vcpu(end - 1) && --end == first)
        return;
    hv_runs_remove(first, end);
    edges_span(&edges, first, end);
    if (munmap(address_of(first), (size_t)(end - first) * PAGE) != 0)
        hv_fail("munmap of %u pages at %#x: error %d", end - first, linear_of(first), errno);
}

/* A whole view. It is reserved again: where inaccessible mappings lie around a page, the host keeps its own page table when that one goes,
 * and has it when the next comes. */
static void unmap_view(uint32_t first)
{
    uint32_t least = first + least_page, end = first + PAGES;
    forget_all(first, end);
    if (is_vcpu(end - 1))
        end--;
    hv_runs_remove(first, end);
    if (mmap(address_of(least), (size_t)(end - least) * PAGE, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, HV_CELL_FD_MEMORY, 0) == MAP_FAILED)
        hv_fail("the view at %p cannot be reserved: error %d", address_of(first), errno);
}

void hv_shadow_flush(bool globals)
{
    hv_lookaside_empty();
    if (globals) {
        unmap_view(0);
        if (has_window())
            unmap_view(PAGES);
        memset(&edges, 0, sizeof edges);
        hv_sites_unmapped();
        hv_runs_forget();
        if (hv_paravirtual())
            hv_paravirt_keep();
        hv_code_verify(true);
        return;
    }
    for (uint32_t page = set_next(&transient, 0, SLOTS); page < SLOTS; page = set_next(&transient, page, SLOTS)) {
        uint32_t end = page + 1;
        while (end % PAGES && transient.words[end / 64] >> (end % 64) & 1)
            end++;
        unmap(page, end);
        page = end;
        if (hv_runs_full())
            break;
    }
    if (hv_runs_full())
        hv_shadow_flush(true);
    hv_code_verify(false);
}

/* Map first..end, whose entry for `first` is given: the following ones follow in physical memory. */
static void map(uint32_t first, uint32_t end, uint64_t entry, uint64_t file_offset)
{
    if (edges.count >= most_mappings || hv_runs_full())
        hv_shadow_flush(true);
    hv_sites_mapped(first, end);
    uint32_t copy = entry & COPY ? hv_sites_copy(first, entry >> 8) : 0;
    size_t length = (size_t)(end - first) * PAGE;
    int populate = end - first == 1 ? MAP_POPULATE : 0;
    void *at = mmap(address_of(first), length, protection_of(entry), MAP_SHARED | MAP_FIXED | populate, copy ? HV_CELL_FD_SITES : HV_CELL_FD_MEMORY,
                    copy ? (off_t)copy : (off_t)file_offset);
    if (at == MAP_FAILED)
        hv_fail("mmap of %u pages at %#x: error %d", end - first, linear_of(first), errno);
    edges_span(&edges, first, end);
    hv_runs_remove(first, end);
    for (uint32_t page = first; page < end; page++) {
        if (!table[page])
            cell.board.crossings.counters->shadow_pages++;
        else if (tracks_code())
            list_remove(page);
        table[page] = entry + ((uint64_t)(page - first) << 8);
        if (tracks_code())
            list_add(page);
        set_add(&mapped, page);
        if (entry & GLOBAL)
            set_remove(&transient, page);
        else
            set_add(&transient, page);
    }
    if (entry & KERNEL_ONLY)
        hv_runs_add(first, end, protection_of(entry));
}

/* What a page's mapping would be; 0 = none. write: it is being written to. */
static uint64_t wanted(uint32_t slot, const struct hv_walk *walk, bool write, bool user, const struct hv_cell_region *region)
{
    if (!region || region->kind == HV_REGION_MMIO)
        return 0;
    uint64_t frame = (region->file_offset + (walk->physical - region->start)) / PAGE;
    bool by_supervisor = write && !user && !(HV_CPU->cr0 & HV_CR0_WP);
    bool writable = (walk->writable || by_supervisor) && (walk->dirty || write) && region->kind == HV_REGION_RAM;
    if (frame < FRAMES && code_frames[frame])
        writable = false;
    bool kernel_only = !has_window() && (!walk->user || (writable && !walk->writable));
    bool executable = !walk->no_execute && !(slot & PAGES);
    bool copy = has_sites() && executable && walk->user && frame < FRAMES && code_frames[frame] & HV_FRAME_SITES;
    return walk->physical / PAGE << 8 | MAPPED | (writable ? WRITABLE : 0) | (walk->user ? USER : 0) | (kernel_only ? KERNEL_ONLY : 0) |
           (walk->global ? GLOBAL : 0) | (executable ? EXECUTABLE : 0) | (walk->large ? LARGE : 0) | (copy ? COPY : 0);
}

/* Would a fill of that page give the entry that continues `entry`, without changing the guest's tables? */
static bool continues(uint32_t page, uint64_t entry, bool user, const struct hv_cell_region *region)
{
    struct hv_walk walk;
    if (table[page] || page < least_page || is_vcpu(page))
        return false;
    hv_walk(&walk, linear_of(page), false, user, false, false);
    if (walk.error || !walk.accessed || walk.physical - region->start >= region->length)
        return false;
    return wanted(page, &walk, entry & WRITABLE && walk.dirty, user, region) == entry;
}

/* Is a page of the same large page to be mapped as `entry`? It is not mapped yet, or read-only still. frame: its own; code: of the page that faulted. */
static bool goes_with(uint32_t page, uint64_t frame, bool code, uint64_t entry)
{
    return (!table[page] || (table[page] != entry && (table[page] | WRITABLE) == entry)) && (frame < FRAMES && code_frames[frame]) == code;
}

/* How far does the mapping of `page` reach, as one piece of physical memory with the same rights? */
static void extent(uint32_t page, const struct hv_walk *walk, uint64_t entry, bool user, const struct hv_cell_region *region, uint32_t *first, uint32_t *end)
{
    *first = page;
    *end = page + 1;
    if (entry & COPY)
        return;
    uint32_t chunk = !(HV_CPU->cr0 & HV_CR0_PG) ? UNPAGED_CHUNK : walk->large ? (HV_CPU->cr4 & HV_CR4_PAE ? 512 : 1024) : 0;
    if (chunk) { /* what has code, and so is read-only, apart from what has none */
        uint64_t in_region = (walk->physical - region->start) / PAGE, frame = region->file_offset / PAGE + in_region;
        uint64_t before = page % chunk, behind = chunk - before, room_behind = region->length / PAGE - in_region;
        uint32_t low = page - (uint32_t)(before < in_region ? before : in_region), high = page + (uint32_t)(behind < room_behind ? behind : room_behind);
        if (low < least_page)
            low = least_page;
        if (is_vcpu(high - 1))
            high--;
        bool code = frame < FRAMES && code_frames[frame];
        while (*first > low && goes_with(*first - 1, frame - (page - *first + 1), code, entry - ((uint64_t)(page - *first + 1) << 8)))
            --*first;
        while (*end < high && goes_with(*end, frame + (*end - page), code, entry + ((uint64_t)(*end - page) << 8)))
            ++*end;
        return;
    }
    uint32_t per_table = HV_CPU->cr4 & HV_CR4_PAE ? 512 : 1024;
    uint32_t low = page - page % per_table, high = low + per_table;
    if (page - low > AROUND)
        low = page - AROUND;
    if (high - page > AROUND)
        high = page + AROUND;
    for (*first = page; *first > low && continues(*first - 1, entry - ((uint64_t)(page - *first + 1) << 8), user, region);)
        --*first;
    for (*end = page + 1; *end < high && continues(*end, entry + ((uint64_t)(*end - page) << 8), user, region);)
        ++*end;
}

static void note_code(uint32_t linear)
{
    struct hv_cell_code *code = &cell.area->code;
    uint32_t count = code->count;
    if (count < HV_AREA_CODE_PAGES) {
        code->entry[count] = linear;
        __atomic_store_n(&code->count, count + 1, __ATOMIC_RELEASE);
    }
}

enum hv_shadow hv_shadow_fault(uint32_t linear, bool write, bool user, bool fetch, struct hv_walk *walk)
{
    uint32_t page = slot_of(linear, user);
    if (is_vcpu(page) && !user)
        return hv_runs_show_page(page) ? HV_SHADOW_MAPPED : HV_SHADOW_EMULATE;
    if (!user && table[page] & KERNEL_ONLY) {
        if (hv_runs_show_page(page))
            return HV_SHADOW_MAPPED;
    }
    hv_walk(walk, linear, write, user, fetch, true);
    if (walk->error)
        return HV_SHADOW_GUEST_FAULT;
    if (is_vcpu(page)) { /* whatever the guest's tables say */
        walk->error = HV_WALK_FAULT | 5u | (write ? 2u : 0); /* present, user */
        return HV_SHADOW_GUEST_FAULT;
    }
    const struct hv_cell_region *region = hv_region_at(walk->physical);
    if (write && region && region->kind == HV_REGION_RAM)
        hv_code_written(walk->physical, 1);
    uint64_t entry = wanted(page, walk, write, user, region);
    if (!entry || page < least_page || (write && !(entry & WRITABLE))) {
        hv_cross_here(HV_POINT_SHADOW_EMULATE, linear, walk->physical, 0, 0);
        return HV_SHADOW_EMULATE;
    }
    bool upgrade = table[page] != 0;
    uint32_t first, end;
    extent(page, walk, entry, user, region, &first, &end);
    if (fetch && !user)
        note_code(linear);
    entry -= (uint64_t)(page - first) << 8;
    map(first, end, entry, region->file_offset + ((entry >> 8) * PAGE - region->start));
    if (upgrade) {
        cell.area->counters.shadow_upgrades++;
        hv_cross_here(HV_POINT_SHADOW_UPGRADE, linear, walk->physical, 0, 0);
    } else {
        cell.area->counters.shadow_fills++;
        hv_cross_here(HV_POINT_SHADOW_FILL, linear, walk->physical, (entry & WRITABLE) != 0, end - first);
    }
    return HV_SHADOW_MAPPED;
}

void hv_shadow_renew(uint32_t linear, bool user)
{
    uint32_t page = slot_of(linear, user);
    struct hv_walk walk;
    if (page < least_page || is_vcpu(page))
        return;
    hv_walk(&walk, linear, false, user, false, false);
    if (walk.error || !walk.accessed)
        return;
    const struct hv_cell_region *region = hv_region_at(walk.physical);
    uint64_t entry = wanted(page, &walk, walk.dirty, user, region);
    if (entry)
        map(page, page + 1, entry, region->file_offset + ((entry >> 8) * PAGE - region->start));
}

void hv_shadow_prefill(uint32_t linear, bool user)
{
    if (!table[slot_of(linear, user)])
        hv_shadow_renew(linear, user);
}

bool hv_shadow_shows_copy(uint32_t page, uint64_t *frame)
{
    *frame = table[page] >> 8;
    return table[page] & COPY;
}

void hv_shadow_drop_copy(uint32_t page, uint64_t frame)
{
    if (table[page] & COPY && table[page] >> 8 == frame)
        unmap(page, page + 1);
}

/* Its mapping is to be looked up anew: as for a CR3 load, what the tables map now is there at once. */
static void refill(uint32_t page)
{
    uint64_t old = table[page];
    bool user = for_user(page, old);
    struct hv_walk walk;
    hv_walk(&walk, linear_of(page), false, user, false, false);
    const struct hv_cell_region *region = walk.error || is_vcpu(page) ? NULL : hv_region_at(walk.physical);
    uint64_t now = region && walk.accessed ? wanted(page, &walk, walk.dirty && old & WRITABLE, user, region) : 0;
    if (!now || now & LARGE)
        unmap(page, page + 1);
    else if (now != old)
        map(page, page + 1, now, region->file_offset + ((now >> 8) * PAGE - region->start));
}

void hv_shadow_flush_page(uint32_t linear)
{
    hv_lookaside_empty();
    if (hv_runs_full()) {
        hv_shadow_flush(true);
        return;
    }
    for (uint32_t page = linear / PAGE; page < SLOTS; page += PAGES) {
        if (table[page] & LARGE) { /* one entry of a TLB, however many of its pages are mapped here */
            uint32_t size = HV_CPU->cr4 & HV_CR4_PAE ? 512 : 1024;
            unmap(page - page % size, page - page % size + size);
        } else if (table[page]) {
            refill(page);
        }
    }
    hv_code_verify_page(linear);
    hv_sites_verify_page(linear);
}

void hv_shadow_flush_pages(uint32_t linear, uint32_t count)
{
    uint32_t page = linear / PAGE, end = page + count;
    hv_lookaside_empty();
    while (page < end) {
        uint32_t first = page = set_next(&mapped, page, end);
        if (first >= end || hv_runs_full())
            break;
        if (has_window() || table[first] & LARGE) {
            hv_shadow_flush_page(first++ * PAGE);
            page = first;
            continue;
        }
        while (page < end && table[page] && !(table[page] & LARGE))
            page++;
        unmap(first, page);
    }
    if (hv_runs_full())
        hv_shadow_flush(true);
}

/* A CR3 load drops what is not global. What the new tables map in the same way stays instead, as if it had been filled again at once, and
 * what they map elsewhere is replaced; only pages whose accessed (and dirty) bits the fill would not have to set. */
static bool low_is_stale; /* only of two views */
static uint64_t kept, dropped;

static void look_again(uint32_t from, uint32_t to)
{
    for (uint32_t page = set_next(&transient, from, to); page < to;) {
        if (hv_runs_full() || edges.count >= most_mappings - 4) {
            hv_shadow_flush(true);
            break;
        }
        uint64_t old = table[page];
        bool user = for_user(page, old);
        struct hv_walk walk;
        hv_walk(&walk, linear_of(page), false, user, false, false);
        const struct hv_cell_region *region = walk.error ? NULL : hv_region_at(walk.physical);
        uint64_t now = walk.error || !walk.accessed ? 0 : wanted(page, &walk, walk.dirty && old & WRITABLE, user, region);
        uint32_t end = page + 1;
        if (now == old) {
            kept++;
        } else if (!now) {
            dropped++;
            for (uint32_t next = end;; next = end) { /* with what is not mapped in between */
                uint32_t most = to - end < AROUND ? to : end + AROUND;
                next = set_next(&mapped, next, most);
                if (next >= most || (next ^ page) >= PAGES)
                    break;
                if (!(transient.words[next / 64] >> (next % 64) & 1))
                    break;
                hv_walk(&walk, linear_of(next), false, false, false, false);
                if (!walk.error && walk.accessed)
                    break;
                dropped++;
                end = next + 1;
            }
            unmap(page, end);
        } else if (now & LARGE) { /* of which there are too many pages to look at */
            dropped++;
            unmap(page, end);
        } else {
            while (!(now & COPY) && end % PAGES && transient.words[end / 64] >> (end % 64) & 1 && end - page < AROUND) {
                hv_walk(&walk, linear_of(end), false, user, false, false);
                if (walk.error || !walk.accessed || walk.physical - region->start >= region->length)
                    break;
                if (wanted(end, &walk, walk.dirty && table[end] & WRITABLE, user, region) != now + ((uint64_t)(end - page) << 8))
                    break;
                end++;
            }
            map(page, end, now, region->file_offset + ((now >> 8) * PAGE - region->start));
            dropped += end - page;
        }
        page = set_next(&transient, end, to);
    }
}

void hv_shadow_load_cr3(void)
{
    hv_lookaside_empty();
    cell.area->counters.address_space_loads++;
    if (!(HV_CPU->cr0 & HV_CR0_PG)) {
        hv_shadow_flush(false);
        return;
    }
    low_is_stale = has_window(); /* nobody uses it before programs run, and by then it may be another CR3 */
    look_again(has_window() ? PAGES : 0, SLOTS);
    hv_code_verify(false);
    hv_sites_verify();
    hv_cross_here(HV_POINT_SHADOW_LOAD, HV_CPU->cr3, kept, dropped, 0);
    kept = dropped = 0;
}

void hv_shadow_enter_programs(void)
{
    if (low_is_stale)
        look_again(0, PAGES);
    low_is_stale = false;
}

void hv_shadow_mode(unsigned cpl)
{
    bool user = cpl == 3;
    if (user != user_runs)
        cell.area->counters.mode_switches++;
    if (user)
        hv_runs_hide(HV_CPU->user_limit ? HV_CPU->user_limit / PAGE : PAGES);
    else if (user_runs)
        hv_runs_show();
    user_runs = user;
}

void hv_shadow_physical_changed(uint64_t physical, uint64_t length)
{
    hv_code_written(physical, length); /* the pages themselves are shared: there is nothing to drop */
}

/* ---- frames that code was translated from */

void hv_shadow_protect_frame(uint64_t physical, enum hv_frame reason)
{
    uint64_t frame = frame_of(physical);
    if (frame >= FRAMES || code_frames[frame] & reason)
        return;
    code_frames[frame] |= (uint8_t)reason;
    hv_lookaside_empty();
    for (uint32_t slot = first_slot[frame]; slot; slot = next_slot[slot - 1]) {
        uint64_t *entry = &table[slot - 1];
        if (!(*entry & WRITABLE))
            continue;
        *entry &= ~(uint64_t)WRITABLE;
        edges_span(&edges, slot - 1, slot);
        if (mprotect(address_of(slot - 1), PAGE, protection_of(*entry)) != 0)
            hv_fail("mprotect of a code page at %#x: error %d", linear_of(slot - 1), errno);
        if (*entry & KERNEL_ONLY) { /* accessible now, and of another protection than its run */
            hv_runs_remove(slot - 1, slot);
            hv_runs_add(slot - 1, slot, protection_of(*entry));
        }
    }
}

bool hv_shadow_is_code(uint64_t physical)
{
    uint64_t frame = frame_of(physical);
    return frame < FRAMES && code_frames[frame];
}

void hv_shadow_release_frame(uint64_t physical, enum hv_frame reason)
{
    uint64_t frame = frame_of(physical);
    if (frame < FRAMES)
        code_frames[frame] &= (uint8_t)~reason;
}
