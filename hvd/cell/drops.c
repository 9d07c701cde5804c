/* What drops mappings: CR3, CR0, CR4 and INVLPG. Those that would be filled again in the same way stay (shadow.c). */
#include "mappings.h"

#include "lookaside.h"
#include "runs.h"
#include "sites.h"
#include "translate.h"

#define STALE_PAGES 32u
#define ENTRY_PRESENT 1u /* of a page directory's entries (SDM vol. 3A, 4.3) */
#define ENTRY_USER 4u

void hv_shadow_flush(bool globals)
{
    hv_lookaside_empty();
    if (globals) {
        hv_unmap_views();
        hv_sites_unmapped();
        hv_runs_forget();
        if (hv_paravirtual())
            hv_paravirt_keep();
        hv_code_verify(true);
        return;
    }
    for (uint32_t page = set_next(&hv_transient, 0, SLOTS); page < SLOTS; page = set_next(&hv_transient, page, SLOTS)) {
        uint32_t end = page + 1;
        while (end % PAGES && hv_transient.words[end / 64] >> (end % 64) & 1)
            end++;
        hv_unmap(page, end);
        page = end;
        if (hv_runs_full())
            break;
    }
    if (hv_runs_full())
        hv_shadow_flush(true);
    hv_code_verify(false);
}

/* Its mapping is to be looked up anew: as for a CR3 load, what the tables map now is there at once. */
static void refill(uint32_t page)
{
    uint64_t old = hv_mappings[page];
    bool user = hv_filled_for_user(page, old);
    struct hv_walk walk;
    hv_walk(&walk, hv_linear_of(page), false, user, false, false);
    const struct hv_cell_region *region = walk.error || hv_is_vcpu_page(page) ? NULL : hv_region_at(walk.physical);
    uint64_t now = region && walk.accessed ? hv_wanted_mapping(page, &walk, walk.dirty, user, region) : 0;
    if (!now || now & LARGE)
        hv_unmap(page, page + 1);
    else if (now != old)
        hv_map(page, page + 1, now, region->file_offset + ((now >> 8) * PAGE - region->start));
}

/* Pages of the programs' view that are to be looked up anew before programs run, when what the kernel puts there is in its tables. */
static uint32_t stale_pages[STALE_PAGES], stale_count;

static bool is_for_later(uint32_t page)
{
    if (!hv_has_window() || page >= PAGES || stale_count == STALE_PAGES)
        return false;
    stale_pages[stale_count++] = page;
    return true;
}

void hv_shadow_flush_page(uint32_t linear)
{
    hv_lookaside_empty();
    if (hv_runs_full()) {
        hv_shadow_flush(true);
        return;
    }
    for (uint32_t page = linear / PAGE; page < SLOTS; page += PAGES) {
        if (hv_mappings[page] & LARGE) { /* one entry of a TLB, however many of its pages are mapped here */
            uint32_t size = HV_CPU->cr4 & HV_CR4_PAE ? 512 : 1024;
            hv_unmap(page - page % size, page - page % size + size);
        } else if (hv_mappings[page] && !is_for_later(page)) {
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
        uint32_t first = page = set_next(&hv_mapped, page, end);
        if (first >= end || hv_runs_full())
            break;
        if (hv_has_window() || hv_mappings[first] & LARGE) {
            hv_shadow_flush_page(first++ * PAGE);
            page = first;
            continue;
        }
        while (page < end && hv_mappings[page] && !(hv_mappings[page] & LARGE))
            page++;
        hv_unmap(first, page);
    }
    if (hv_runs_full())
        hv_shadow_flush(true);
}

/* A CR3 load drops what is not global, and a change of CR4.PGE all. What the tables map in the same way stays instead, as if it had been filled
 * again at once, and what they map elsewhere is replaced; only pages whose accessed (and dirty) bits the fill would not have to set. */
static struct page_set *low_is_stale; /* those of programs' pages that are to be looked at; NULL = none */
static uint32_t stale_end = PAGES;     /* which are below that page */
static uint64_t kept, dropped;

static bool is_in(const struct page_set *set, uint32_t page) { return set->words[page / 64] >> (page % 64) & 1; }

/* It stays; what is global now? */
static void keep(uint32_t page, uint64_t now)
{
    kept++;
    if (!((hv_mappings[page] ^ now) & GLOBAL))
        return;
    hv_mappings[page] ^= GLOBAL;
    if (now & GLOBAL)
        set_remove(&hv_transient, page);
    else
        set_add(&hv_transient, page);
}

/* How many pages from this one on stay as what one large page of the guest maps? Its walk gave `now`; those that are clean or have code are mapped
 * read-only. */
static uint32_t keep_large(uint32_t page, const struct hv_walk *walk, uint64_t now, uint32_t to)
{
    uint32_t size = HV_CPU->cr4 & HV_CR4_PAE ? 512 : 1024, end = page;
    const uint64_t may_differ = GLOBAL | (walk->dirty && walk->writable ? WRITABLE : 0);
    while (end < to && (end == page || end % size)) {
        uint64_t same = now + ((uint64_t)(end - page) << 8);
        if (hv_mappings[end]) {
            if ((hv_mappings[end] ^ same) & ~may_differ)
                break;
            keep(end, same);
        }
        end++;
    }
    return end - page;
}

/* What would it be mapped as now? 0 = not at once. A page of the same frame that is mapped read-only stays so until it is written: of those that lie beside
 * code (mappings.c) hardly any are, and for each run of them it would be a call of the host's. */
static uint64_t mapping_now(uint32_t page, bool user, struct hv_walk *walk, const struct hv_cell_region **region)
{
    uint64_t old = hv_mappings[page];
    hv_walk(walk, hv_linear_of(page), false, user, false, false);
    *region = walk->error ? NULL : hv_region_at(walk->physical);
    if (walk->error || !walk->accessed)
        return 0;
    if (!walk->large && old && !(old & WRITABLE) && old >> 8 == walk->physical / PAGE)
        walk->dirty = false;
    return hv_wanted_mapping(page, walk, walk->dirty && old & WRITABLE, user, *region);
}

static void look_again(struct page_set *set, uint32_t from, uint32_t to)
{
    for (uint32_t page = set_next(set, from, to); page < to;) {
        if (hv_runs_full() || hv_mappings_are_many(4)) {
            hv_shadow_flush(true);
            break;
        }
        uint64_t old = hv_mappings[page];
        bool user = hv_filled_for_user(page, old);
        struct hv_walk walk;
        const struct hv_cell_region *region;
        uint64_t now = mapping_now(page, user, &walk, &region);
        uint32_t end = page + 1, large;
        if (now & LARGE && hv_has_window() && (large = keep_large(page, &walk, now, to))) {
            end = page + large;
        } else if ((now | GLOBAL) == (old | GLOBAL)) {
            keep(page, now);
        } else if (!now) {
            dropped++;
            for (uint32_t next = end;; next = end) { /* with what is not mapped in between */
                uint32_t most = to - end < HV_AROUND ? to : end + HV_AROUND;
                next = set_next(&hv_mapped, next, most);
                if (next >= most || (next ^ page) >= PAGES)
                    break;
                if (!is_in(set, next))
                    break;
                hv_walk(&walk, hv_linear_of(next), false, false, false, false);
                if (!walk.error && walk.accessed)
                    break;
                dropped++;
                end = next + 1;
            }
            hv_unmap(page, end);
        } else if (now & LARGE) { /* of which there are too many pages to look at */
            dropped++;
            hv_unmap(page, end);
        } else {
            const struct hv_cell_region *same;
            while (!(now & COPY) && end % PAGES && is_in(set, end) && end - page < HV_AROUND && mapping_now(end, user, &walk, &same) == now + ((uint64_t)(end - page) << 8) &&
                   same == region)
                end++;
            hv_map(page, end, now, region->file_offset + ((now >> 8) * PAGE - region->start));
            dropped += end - page;
        }
        page = set_next(set, end, to);
    }
}

/* Under paravirt, where kernel and programs share the low view: does it wait until programs run, or the kernel accesses what is below their limit? It does if these tables have
 * nothing there, or it waits since such ones were loaded: they are likely to be followed by those that were in force before. Meanwhile the kernel runs beyond the limit with
 * segments that begin there (frame.c), and has no code of its own below. */
static bool low_waits(void)
{
    const struct hv_cpu *cpu = HV_CPU;
    const uint8_t *directory = hv_memory_at(cpu->cr3 & ~(PAGE - 1), false, NULL);
    if (!hv_paravirtual() || !cpu->user_limit || cpu->cpl || cpu->eip < cpu->user_limit || cpu->cr4 & HV_CR4_PAE || !directory)
        return false;
    for (uint32_t i = 0; i <= (cpu->user_limit - 1) >> 22; i++) {
        uint32_t entry;
        __builtin_memcpy(&entry, directory + 4 * i, sizeof entry);
        if (entry & ENTRY_PRESENT && (!low_is_stale || !(entry & ENTRY_USER)))
            return false;
    }
    return true;
}

uint32_t hv_shadow_stale_end(void) { return hv_paravirtual() && low_is_stale ? stale_end * PAGE : 0; }

void hv_shadow_load_cr3(void)
{
    hv_lookaside_empty();
    cell.area->counters.address_space_loads++;
    if (!(HV_CPU->cr0 & HV_CR0_PG)) {
        hv_shadow_flush(false);
        return;
    }
    if (hv_has_window() && !low_is_stale)
        low_is_stale = &hv_transient; /* nobody uses it before programs run, and by then it may be another CR3 */
    if (hv_has_window()) {
        look_again(&hv_transient, PAGES, SLOTS);
    } else if (low_waits()) {
        uint32_t limit = HV_CPU->user_limit / PAGE;
        stale_end = low_is_stale && stale_end > limit ? stale_end : limit;
        low_is_stale = &hv_transient;
        look_again(&hv_transient, stale_end, SLOTS);
    } else {
        low_is_stale = NULL;
        look_again(&hv_transient, 0, SLOTS);
    }
    hv_code_verify(false);
    hv_sites_verify();
    if (hv_has_window())
        hv_expect_poke();
    hv_cross_here(HV_POINT_SHADOW_LOAD, HV_CPU->cr3, kept, dropped, 0);
    kept = dropped = 0;
}

void hv_shadow_change_global(void)
{
    if (!hv_has_window() || !(HV_CPU->cr0 & HV_CR0_PG)) {
        hv_shadow_flush(true);
        return;
    }
    hv_lookaside_empty();
    low_is_stale = &hv_mapped;
    look_again(&hv_mapped, PAGES, SLOTS);
    hv_code_verify(true);
    hv_sites_verify();
}

void hv_shadow_enter_programs(void)
{
    if (low_is_stale)
        look_again(low_is_stale, 0, stale_end);
    low_is_stale = NULL;
    while (stale_count) {
        uint32_t page = stale_pages[--stale_count];
        if (hv_mappings[page])
            refill(page);
    }
}
