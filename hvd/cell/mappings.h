/* The table of what is mapped: shadow.c fills it, drops.c empties it, mappings.c does what it says. */
#ifndef HV_MAPPINGS_H
#define HV_MAPPINGS_H

#include "cell.h"
#include "paravirt.h"
#include "slots.h"

#define HV_AROUND 64u /* pages that are looked at before and behind a 4K page */
#define HV_FRAMES (1u << 20) /* of the memory file, below 4 GiB */

/* Of a page, by its slot: physical page << 8 | these. 0 = not mapped. */
enum { MAPPED = 1, WRITABLE = 2, USER = 4, KERNEL_ONLY = 8, GLOBAL = 16, EXECUTABLE = 32, LARGE = 64, COPY = 128 /* of sites.c */ };
extern uint64_t hv_mappings[SLOTS];
extern struct page_set hv_mapped, hv_transient /* not global */;
extern uint32_t hv_least_page;
extern uint8_t hv_code_frames[HV_FRAMES]; /* enum hv_frame */

static inline uint32_t hv_linear_of(uint32_t slot) { return (slot & (PAGES - 1)) * PAGE; }
/* Under paravirt the low view's last page is the virtual processor's (paravirt.h): it is mapped for good. */
static inline bool hv_is_vcpu_page(uint32_t slot) { return hv_paravirtual() && slot == PAGES - 1; }
static inline bool hv_has_window(void) { return cell.mode == HV_MODE_REWRITING; }
static inline uint32_t hv_slot_of(uint32_t linear, bool user) { return linear / PAGE | (hv_has_window() && !user ? PAGES : 0); }
/* With whose rights is a mapping filled again? */
static inline bool hv_filled_for_user(uint32_t slot, uint64_t entry)
{
    return hv_has_window() ? !(slot & PAGES) : entry & USER && !(entry & KERNEL_ONLY);
}

/* ---- mappings.c */
/* Map first..end, whose entry for `first` is given: the following ones follow in physical memory. */
void hv_map(uint32_t first, uint32_t end, uint64_t entry, uint64_t file_offset);
void hv_protect_code_within(uint32_t first, uint32_t end); /* of pages of the window that were mapped together: those that have code are read-only */
void hv_unmap(uint32_t first, uint32_t end); /* all of it was mapped, or none of it matters */
void hv_unmap_views(void);                   /* all, but the virtual processor's page */
bool hv_mappings_are_many(unsigned more);    /* so many more could be too many for the host */

/* ---- poke.c: the window's */
void hv_shadow_poked(uint32_t slot); /* there is a store to code, through a page that is not global */
void hv_expect_poke(void);           /* CR3 was loaded, and what is mapped looked at again */

/* ---- shadow.c: what a page's mapping would be; 0 = none. write: it is being written to. */
uint64_t hv_wanted_mapping(uint32_t slot, const struct hv_walk *, bool write, bool user, const struct hv_cell_region *);

#endif
