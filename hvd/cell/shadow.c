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
#include "mappings.h"

#include "runs.h"
#include "sites.h"
#include "translate.h"

#define UNPAGED_CHUNK 1024u /* pages that are mapped at once without paging */
#define CODE_RUNS 16u       /* of code, that a mapping goes across */

static bool user_runs;

static bool has_sites(void) { return hv_has_window() || hv_paravirtual(); }

uint64_t hv_wanted_mapping(uint32_t slot, const struct hv_walk *walk, bool write, bool user, const struct hv_cell_region *region)
{
    if (!region || region->kind == HV_REGION_MMIO)
        return 0;
    uint64_t frame = (region->file_offset + (walk->physical - region->start)) / PAGE;
    bool by_supervisor = write && !user && !(HV_CPU->cr0 & HV_CR0_WP);
    bool writable = (walk->writable || by_supervisor) && (walk->dirty || write) && region->kind == HV_REGION_RAM;
    if (frame < HV_FRAMES && hv_code_frames[frame])
        writable = false;
    bool kernel_only = !hv_has_window() && (!walk->user || (writable && !walk->writable));
    bool executable = !walk->no_execute && !(slot & PAGES);
    bool copy = has_sites() && executable && frame < HV_FRAMES && hv_code_frames[frame] & HV_FRAME_SITES && (walk->user || hv_sites_of_kernel(slot, frame));
    return walk->physical / PAGE << 8 | MAPPED | (writable ? WRITABLE : 0) | (walk->user ? USER : 0) | (kernel_only ? KERNEL_ONLY : 0) |
           (walk->global ? GLOBAL : 0) | (executable ? EXECUTABLE : 0) | (walk->large ? LARGE : 0) | (copy ? COPY : 0);
}

/* Would a fill of that page give the entry that continues `entry`, without changing the guest's tables? */
static bool continues(uint32_t page, uint64_t entry, bool user, const struct hv_cell_region *region)
{
    struct hv_walk walk;
    if (hv_mappings[page] || page < hv_least_page || hv_is_vcpu_page(page))
        return false;
    hv_walk(&walk, hv_linear_of(page), false, user, false, false);
    if (walk.error || !walk.accessed || walk.physical - region->start >= region->length)
        return false;
    return hv_wanted_mapping(page, &walk, entry & WRITABLE && walk.dirty, user, region) == entry;
}

/* Is a page of the same large page to be mapped as `entry`? It is not mapped yet, or read-only still. frame: its own; code: of the page that faulted. */
static bool goes_with(uint32_t page, uint64_t frame, bool code, uint64_t entry)
{
    uint64_t old = hv_mappings[page];
    return (!old || (old != entry && (old | WRITABLE) == entry)) && (frame < HV_FRAMES && hv_code_frames[frame]) == code;
}

/* From `page` on, or downwards, to `limit`, whose pages are the next ones in physical memory: how far is there nothing but what goes with it? In the window, with
 * what lies behind code that is not mapped, too: each run of that is made read-only again, which is a third of what a fill costs. */
static uint32_t reach(uint32_t page, uint32_t limit, int step, uint64_t frame, uint64_t entry)
{
    bool code = frame < HV_FRAMES && hv_code_frames[frame], crosses = page & PAGES && !code && entry & WRITABLE, in_code = false;
    unsigned runs = 0;
    uint32_t reached = page;
    while (page != limit) {
        page += (uint32_t)step;
        frame += (uint64_t)(int64_t)step;
        entry += (uint64_t)(int64_t)step << 8;
        bool is_code = frame < HV_FRAMES && hv_code_frames[frame];
        if (goes_with(page, frame, code, entry))
            reached = page;
        else if (!crosses || !is_code || hv_mappings[page] || (!in_code && ++runs > CODE_RUNS))
            break;
        in_code = is_code;
    }
    return reached;
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
        if (low < hv_least_page)
            low = hv_least_page;
        if (hv_is_vcpu_page(high - 1))
            high--;
        *first = reach(page, low, -1, frame, entry);
        *end = reach(page, high - 1, 1, frame, entry) + 1;
        return;
    }
    uint32_t per_table = HV_CPU->cr4 & HV_CR4_PAE ? 512 : 1024;
    uint32_t low = page - page % per_table, high = low + per_table;
    if (page - low > HV_AROUND)
        low = page - HV_AROUND;
    if (high - page > HV_AROUND)
        high = page + HV_AROUND;
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
    uint32_t page = hv_slot_of(linear, user);
    if (hv_is_vcpu_page(page) && !user)
        return hv_runs_show_page(page) ? HV_SHADOW_MAPPED : HV_SHADOW_EMULATE;
    if (!user && hv_mappings[page] & KERNEL_ONLY) {
        if (hv_runs_show_page(page))
            return HV_SHADOW_MAPPED;
    }
    hv_walk(walk, linear, write, user, fetch, true);
    if (walk->error)
        return HV_SHADOW_GUEST_FAULT;
    if (hv_is_vcpu_page(page)) { /* whatever the guest's tables say */
        walk->error = HV_WALK_FAULT | 5u | (write ? 2u : 0); /* present, user */
        return HV_SHADOW_GUEST_FAULT;
    }
    const struct hv_cell_region *region = hv_region_at(walk->physical);
    if (write && region && region->kind == HV_REGION_RAM) {
        if (page & PAGES && !walk->global && hv_shadow_is_code(walk->physical))
            hv_shadow_poked(page);
        hv_code_written(walk->physical, 1);
    }
    uint64_t entry = hv_wanted_mapping(page, walk, write, user, region);
    if (!entry || page < hv_least_page || (write && !(entry & WRITABLE))) {
        hv_cross_here(HV_POINT_SHADOW_EMULATE, linear, walk->physical, 0, 0);
        return HV_SHADOW_EMULATE;
    }
    bool upgrade = hv_mappings[page] != 0;
    uint32_t first, end;
    extent(page, walk, entry, user, region, &first, &end);
    if (fetch && !user)
        note_code(linear);
    entry -= (uint64_t)(page - first) << 8;
    hv_map(first, end, entry, region->file_offset + ((entry >> 8) * PAGE - region->start));
    hv_protect_code_within(first, end);
    if (upgrade) {
        cell.area->counters.shadow_upgrades++;
        hv_cross_here(HV_POINT_SHADOW_UPGRADE, linear, walk->physical, 0, 0);
    } else {
        cell.area->counters.shadow_fills++;
        hv_cross_here(HV_POINT_SHADOW_FILL, linear, walk->physical, (entry & WRITABLE) != 0, end - first);
    }
    return HV_SHADOW_MAPPED;
}

/* The mapping that a page would get now; with its neighbours, or alone; only_more: unless it is mapped already with the same rights. */
static void renew(uint32_t linear, bool user, bool around, bool only_more)
{
    uint32_t page = hv_slot_of(linear, user), first = page, end = page + 1;
    struct hv_walk walk;
    if (page < hv_least_page || hv_is_vcpu_page(page))
        return;
    hv_walk(&walk, linear, false, user, false, false);
    if (walk.error || !walk.accessed)
        return;
    const struct hv_cell_region *region = hv_region_at(walk.physical);
    uint64_t entry = hv_wanted_mapping(page, &walk, walk.dirty, user, region);
    if (!entry || (only_more && entry == hv_mappings[page]))
        return;
    if (around)
        extent(page, &walk, entry, user, region, &first, &end);
    entry -= (uint64_t)(page - first) << 8;
    hv_map(first, end, entry, region->file_offset + ((entry >> 8) * PAGE - region->start));
    hv_protect_code_within(first, end);
}

void hv_shadow_renew(uint32_t linear, bool user) { renew(linear, user, false, false); }

void hv_shadow_prefill(uint32_t linear, bool user)
{
    if (!(hv_mappings[hv_slot_of(linear, user)] & WRITABLE))
        renew(linear, user, true, true);
}

bool hv_shadow_shows_copy(uint32_t page, uint64_t *frame)
{
    *frame = hv_mappings[page] >> 8;
    return hv_mappings[page] & COPY;
}

void hv_shadow_drop_copy(uint32_t page, uint64_t frame)
{
    if (hv_mappings[page] & COPY && hv_mappings[page] >> 8 == frame)
        hv_unmap(page, page + 1);
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
