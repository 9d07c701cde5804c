/* Stores to the kernel's code through a page that is mapped for the moment.
 *
 * Linux patches its code through a page that it maps in an address space of its own, stores there, and unmaps it: 7800 times in a boot, when it takes
 * the LOCK prefixes out for one processor. Loading that CR3 the next time maps the page before the store comes, and drops what was translated from
 * it, as the store would.
 */
#include "mappings.h"

#include "translate.h"

static struct {
    uint32_t cr3, page;
    bool unmapped; /* when that CR3 was left, it was mapped no more */
} poked;
static uint32_t loaded_cr3;

void hv_shadow_poked(uint32_t slot)
{
    if (HV_CPU->cr3 != poked.cr3 || slot != poked.page)
        poked.unmapped = false;
    poked.cr3 = HV_CPU->cr3;
    poked.page = slot;
}

/* What did it leave? */
static void look_back(void)
{
    uint32_t cr3 = HV_CPU->cr3;
    struct hv_walk walk;
    HV_CPU->cr3 = poked.cr3;
    hv_walk(&walk, hv_linear_of(poked.page), true, false, false, false);
    HV_CPU->cr3 = cr3;
    poked.unmapped = walk.error;
}

static void map_before_the_store(void)
{
    struct hv_walk walk;
    hv_walk(&walk, hv_linear_of(poked.page), true, false, false, false);
    const struct hv_cell_region *region = walk.error ? NULL : hv_region_at(walk.physical);
    if (!region || region->kind != HV_REGION_RAM || !walk.accessed || !walk.dirty || walk.large)
        return;
    hv_code_written(walk.physical, 1);
    uint64_t entry = hv_wanted_mapping(poked.page, &walk, true, false, region);
    if (entry && entry != hv_mappings[poked.page])
        hv_map(poked.page, poked.page + 1, entry, region->file_offset + ((entry >> 8) * PAGE - region->start));
}

void hv_expect_poke(void)
{
    uint32_t left = loaded_cr3;
    loaded_cr3 = HV_CPU->cr3;
    if (left == poked.cr3 && left != HV_CPU->cr3)
        look_back();
    if (poked.unmapped && HV_CPU->cr3 == poked.cr3)
        map_before_the_store();
}
