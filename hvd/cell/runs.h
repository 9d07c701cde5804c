/* The pages of the low view that only the guest's kernel may touch (runs.c). Pages are linear page numbers. */
#ifndef HV_RUNS_H
#define HV_RUNS_H

#include <stdbool.h>
#include <stdint.h>

void hv_runs_add(uint32_t first, uint32_t end, int protection); /* mapped and accessible now, with this protection (mmap(2)) */
void hv_runs_remove(uint32_t first, uint32_t end);              /* no longer the kernel's own, or not mapped any more */
void hv_runs_hide(uint32_t end);        /* user code comes, which reaches no page from `end` on: none of them is accessible */
void hv_runs_show(void);                /* the kernel comes: all of them are, or those that it touches will be */
bool hv_runs_show_page(uint32_t page);  /* it was hidden, and is accessible now */
bool hv_runs_full(void);                /* too many: all mappings are to be dropped, then forgotten */
void hv_runs_forget(void);

#endif
