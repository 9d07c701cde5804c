/* Mappings of the guest's pages, by mmap(2) and its like, and how many they are (mappings.h). */
#include "mappings.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "lookaside.h"
#include "runs.h"
#include "sites.h"
#include "translate.h"

uint64_t hv_mappings[SLOTS];
struct page_set hv_mapped, hv_transient;
uint32_t hv_least_page;
uint8_t hv_code_frames[HV_FRAMES];

/* Of a frame of the memory file: the slots that map it, as lists of slot + 1; only where code is translated. */
static uint32_t first_slot[HV_FRAMES], next_slot[SLOTS];

static unsigned most_mappings;
static struct edges edges; /* between mappings */

/* Of each page table of the host's: the page of it + 1 that stays mapped, inaccessible, though nothing else is; and to which frame of the file, if
 * to that. */
#define PER_TABLE 512u
struct anchor {
    uint64_t frame;
    uint16_t page;
    bool pillar; /* the page beside one, too, was made such a page once */
};
static struct anchor anchors[SLOTS / PER_TABLE];
static uint64_t used_anchors[SLOTS / PER_TABLE / 64]; /* a bit for each that is not zero */

#define CODE_RUN 32u /* pages of the window that become read-only together, when code is found in one */

static void *address_of(uint32_t slot) { return (void *)((slot & PAGES ? HV_WINDOW : 0) + hv_linear_of(slot)); }
static bool tracks_code(void) { return hv_has_window() || hv_paravirtual() || cell.mode == HV_MODE_BREAKPOINT; }

void hv_shadow_init(uint32_t least_address, unsigned most)
{
    hv_least_page = (least_address + PAGE - 1) / PAGE;
    most_mappings = most > 2048 ? most - 1024 : most / 2;
}

bool hv_mappings_are_many(unsigned more) { return edges.count + more > most_mappings; }

static int protection_of(uint64_t entry)
{
    return PROT_READ | (entry & WRITABLE ? PROT_WRITE : 0) | (entry & EXECUTABLE ? PROT_EXEC : 0);
}

static void protect(uint32_t first, uint32_t end, int protection)
{
    if (mprotect(address_of(first), (size_t)(end - first) * PAGE, protection) != 0)
        hv_fail("mprotect of %u pages at %#x: error %d", end - first, hv_linear_of(first), errno);
}

static uint64_t frame_of(uint64_t physical)
{
    const struct hv_cell_region *region = hv_region_at(physical);
    return region && region->kind != HV_REGION_MMIO ? (region->file_offset + (physical - region->start)) / PAGE : ~0ull;
}

static void list_add(uint32_t slot)
{
    uint64_t frame = frame_of((hv_mappings[slot] >> 8) * PAGE);
    if (frame >= HV_FRAMES)
        return;
    next_slot[slot] = first_slot[frame];
    first_slot[frame] = slot + 1;
}

static void list_remove(uint32_t slot)
{
    uint64_t frame = frame_of((hv_mappings[slot] >> 8) * PAGE);
    if (frame >= HV_FRAMES)
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
    hv_mappings[page] = 0;
    set_remove(&hv_mapped, page);
    set_remove(&hv_transient, page);
}

static void forget_all(uint32_t first, uint32_t end)
{
    for (uint32_t page = set_next(&hv_mapped, first, end); page < end; page = set_next(&hv_mapped, page + 1, end)) {
        forget(page);
        cell.area->counters.shadow_drops++;
        cell.board.crossings.counters->shadow_pages--;
    }
}

static struct anchor *anchor_of(uint32_t table)
{
    used_anchors[table / 64] |= 1ull << (table % 64);
    return &anchors[table];
}

static bool is_anchor(uint32_t page) { return anchors[page / PER_TABLE].page == page % PER_TABLE + 1; }

/* Of pages in one page table of the host's, which goes with the last of them and comes with the next, for more than a mapping takes: so a page that
 * nobody can access stays in it. */
static void unmap_in_table(uint32_t first, uint32_t end)
{
    uint32_t table = first / PER_TABLE, low = table * PER_TABLE, high = low + PER_TABLE, page = set_next(&hv_mapped, first, end);
    struct anchor *at = anchor_of(table);
    bool anchored = at->page && (low + at->page - 1 < first || low + at->page - 1 >= end);
    if (page >= end)
        return;
    uint64_t frame = hv_mappings[page] & COPY ? ~0ull : frame_of((hv_mappings[page] >> 8) * PAGE);
    forget_all(page, end);
    if (!anchored)
        at->page = 0;
    if (!anchored && set_next(&hv_mapped, low, high) >= high) {
        protect(page, page + 1, PROT_NONE);
        edges_span(&edges, page, page + 1);
        at->page = (uint16_t)(++page - low);
        at->frame = frame;
    }
    edges_span(&edges, page, end);
    if (page < end && munmap(address_of(page), (size_t)(end - page) * PAGE) != 0)
        hv_fail("munmap of %u pages at %#x: error %d", end - page, hv_linear_of(page), errno);
}

void hv_unmap(uint32_t first, uint32_t end)
{
    if (hv_is_vcpu_page(end - 1) && --end == first) {
        forget_all(first, first + 1);
        return;
    }
    hv_runs_remove(first, end);
    for (uint32_t next; first < end; first = next) {
        next = (first / PER_TABLE + 1) * PER_TABLE;
        unmap_in_table(first, next < end ? next : end);
    }
}

/* A whole view, of which nothing is left: a mapping where nothing is costs half of one within another mapping. */
static void unmap_view(uint32_t first)
{
    uint32_t least = first + hv_least_page, end = first + PAGES;
    forget_all(first, end);
    if (hv_is_vcpu_page(end - 1))
        end--;
    hv_runs_remove(first, end);
    if (munmap(address_of(least), (size_t)(end - least) * PAGE) != 0)
        hv_fail("munmap of the view at %p: error %d", address_of(first), errno);
}

void hv_unmap_views(void)
{
    unmap_view(0);
    if (hv_has_window())
        unmap_view(PAGES);
    edges_clear(&edges);
    for (uint32_t i = 0; i < sizeof used_anchors / sizeof *used_anchors; i++) {
        for (uint64_t rest = used_anchors[i]; rest; rest &= rest - 1)
            anchors[i * 64 + (uint32_t)__builtin_ctzll(rest)] = (struct anchor){0};
        used_anchors[i] = 0;
    }
}

/* Are the pages mapped to these frames, and is it only what may be done with them that changes? */
static bool is_mapped_to(uint32_t first, uint32_t end, uint64_t entry)
{
    for (uint32_t page = first; page < end; page++, entry += 1u << 8)
        if (!hv_mappings[page] || (hv_mappings[page] | entry) & COPY || hv_mappings[page] >> 8 != entry >> 8)
            return false;
    return true;
}

static void change_protection(uint32_t first, uint32_t end, uint64_t entry)
{
    for (uint32_t page = first; page < end; page++) {
        if (hv_mappings[page] & KERNEL_ONLY /* and may be hidden */ || protection_of(hv_mappings[page]) != protection_of(entry)) {
            protect(first, end, protection_of(entry));
            edges_span(&edges, first, end);
            return;
        }
    }
}

/* A mapping in the anchor's place would take the table with the old one: its neighbour keeps it, from now on. */
static void raise_pillar(uint32_t page, uint64_t file_offset)
{
    uint32_t beside = page ^ 1;
    struct anchor *anchor = anchor_of(page / PER_TABLE);
    if (anchor->pillar || hv_mappings[beside] || beside % PAGES < hv_least_page || hv_is_vcpu_page(beside) || hv_mappings_are_many(2))
        return;
    if (mmap(address_of(beside), PAGE, PROT_NONE, MAP_SHARED | MAP_FIXED, HV_CELL_FD_MEMORY, (off_t)file_offset) == MAP_FAILED)
        hv_fail("mmap beside a page at %#x: error %d", hv_linear_of(page), errno);
    edges_span(&edges, beside, beside + 1);
    anchor->pillar = true;
}

/* What the host has ahead of the guest's first touch it maps a whole piece at a time, as it does pages that are only read. */
static void show_taken(uint32_t first, uint32_t end, uint64_t file_offset)
{
    const struct hv_cell_area *area = cell.area;
    const uint64_t file_end = file_offset + (uint64_t)(end - first) * PAGE;
    for (uint32_t i = 0; i < area->taken_count && i < HV_AREA_TAKEN; i++) {
        uint64_t low = area->taken[i].offset, high = low + area->taken[i].length;
        if (low < file_offset)
            low = file_offset;
        if (high > file_end)
            high = file_end;
        if (low < high)
            madvise((uint8_t *)address_of(first) + (low - file_offset), high - low, MADV_POPULATE_READ);
    }
}

static void map_anew(uint32_t first, uint32_t end, uint64_t entry, uint64_t file_offset)
{
    if (end - first == 1 && is_anchor(first)) {
        struct anchor *anchor = &anchors[first / PER_TABLE];
        if (anchor->frame == file_offset / PAGE && !(entry & COPY)) {
            protect(first, end, protection_of(entry));
            anchor->page = 0;
            return;
        }
        raise_pillar(first, file_offset);
    }
    uint32_t copy = entry & COPY ? hv_sites_copy(first, entry >> 8) : 0;
    size_t length = (size_t)(end - first) * PAGE;
    int populate = end - first == 1 ? MAP_POPULATE : 0;
    void *at = mmap(address_of(first), length, protection_of(entry), MAP_SHARED | MAP_FIXED | populate, copy ? HV_CELL_FD_SITES : HV_CELL_FD_MEMORY,
                    copy ? (off_t)copy : (off_t)file_offset);
    if (at == MAP_FAILED)
        hv_fail("mmap of %u pages at %#x: error %d", end - first, hv_linear_of(first), errno);
    if (first & PAGES && !populate && entry & WRITABLE && HV_CPU->cr0 & HV_CR0_PG)
        show_taken(first, end, file_offset);
    edges_span(&edges, first, end);
    for (uint32_t table = first / PER_TABLE; table <= (end - 1) / PER_TABLE; table++)
        if (anchors[table].page && table * PER_TABLE + anchors[table].page - 1 >= first && table * PER_TABLE + anchors[table].page - 1 < end)
            anchors[table].page = 0;
}

void hv_map(uint32_t first, uint32_t end, uint64_t entry, uint64_t file_offset)
{
    if (hv_mappings_are_many(1) || hv_runs_full())
        hv_shadow_flush(true);
    hv_sites_mapped(first, end);
    if (is_mapped_to(first, end, entry))
        change_protection(first, end, entry);
    else
        map_anew(first, end, entry, file_offset);
    hv_runs_remove(first, end);
    for (uint32_t page = first; page < end; page++) {
        if (!hv_mappings[page])
            cell.board.crossings.counters->shadow_pages++;
        else if (tracks_code())
            list_remove(page);
        hv_mappings[page] = entry + ((uint64_t)(page - first) << 8);
        if (tracks_code())
            list_add(page);
        set_add(&hv_mapped, page);
        if (entry & GLOBAL)
            set_remove(&hv_transient, page);
        else
            set_add(&hv_transient, page);
    }
    if (entry & KERNEL_ONLY)
        hv_runs_add(first, end, protection_of(entry));
}

/* ---- frames that code was translated from */

/* In the window with its neighbours, which are likely to be code, too; a write there maps them again. */
static void protect_code(uint32_t slot)
{
    uint32_t first = slot, end = slot + 1, low = slot - slot % CODE_RUN, high = low + CODE_RUN;
    uint64_t entry = hv_mappings[slot];
    while (slot & PAGES && first > low && hv_mappings[first - 1] == entry - ((uint64_t)(slot - first + 1) << 8))
        first--;
    while (slot & PAGES && end < high && hv_mappings[end] == entry + ((uint64_t)(end - slot) << 8))
        end++;
    for (uint32_t page = first; page < end; page++)
        hv_mappings[page] &= ~(uint64_t)WRITABLE;
    edges_span(&edges, first, end);
    protect(first, end, protection_of(hv_mappings[slot]));
    if (entry & KERNEL_ONLY) { /* accessible now, and of another protection than its run */
        hv_runs_remove(first, end);
        hv_runs_add(first, end, protection_of(hv_mappings[slot]));
    }
}

void hv_protect_code_within(uint32_t first, uint32_t end)
{
    uint64_t frame = frame_of((hv_mappings[first] >> 8) * PAGE);
    if (!(first & PAGES) || frame >= HV_FRAMES)
        return;
    for (uint32_t page = first, next; page < end; page = next) {
        for (next = page; next < end && hv_code_frames[frame + (next - first)] && hv_mappings[next] & WRITABLE; next++)
            hv_mappings[next] &= ~(uint64_t)WRITABLE;
        if (next == page) {
            next++;
            continue;
        }
        edges_span(&edges, page, next);
        protect(page, next, protection_of(hv_mappings[page]));
    }
}

void hv_shadow_protect_frame(uint64_t physical, enum hv_frame reason)
{
    uint64_t frame = frame_of(physical);
    if (frame >= HV_FRAMES || hv_code_frames[frame] & reason)
        return;
    hv_code_frames[frame] |= (uint8_t)reason;
    hv_lookaside_empty();
    for (uint32_t slot = first_slot[frame]; slot; slot = next_slot[slot - 1])
        if (hv_mappings[slot - 1] & WRITABLE)
            protect_code(slot - 1);
}

bool hv_shadow_is_code(uint64_t physical)
{
    uint64_t frame = frame_of(physical);
    return frame < HV_FRAMES && hv_code_frames[frame];
}

void hv_shadow_release_frame(uint64_t physical, enum hv_frame reason)
{
    uint64_t frame = frame_of(physical);
    if (frame < HV_FRAMES)
        hv_code_frames[frame] &= (uint8_t)~reason;
}
