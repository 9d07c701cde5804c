/* A small TLB for the monitor's own accesses to guest memory: a linear page to where it is in this process. Filled by access.c, emptied by whatever
 * drops entries of the processor's TLB (shadow.c), and when the runner has had its turn. */
#ifndef HV_LOOKASIDE_H
#define HV_LOOKASIDE_H

#include <stdbool.h>
#include <stdint.h>

enum hv_access { HV_READ, HV_WRITE /* dirty, RAM, and nobody wants to hear of it */, HV_FETCH, HV_ACCESSES };
#define HV_LOOKASIDE_ROWS 128u

struct hv_lookaside {
    uint32_t page, generation; /* linear page number */
    uint8_t *at;
};
extern struct hv_lookaside hv_lookaside[HV_ACCESSES][2][HV_LOOKASIDE_ROWS]; /* 1 = with the rights of programs */
extern uint32_t hv_lookaside_generation;

static inline void hv_lookaside_empty(void) { hv_lookaside_generation++; }

/* NULL: not known, or not within one page. */
static inline uint8_t *hv_lookaside_find(enum hv_access access, bool user, uint32_t linear, unsigned size)
{
    const struct hv_lookaside *row = &hv_lookaside[access][user][linear / 4096 % HV_LOOKASIDE_ROWS];
    if (row->page != linear / 4096 || row->generation != hv_lookaside_generation || linear % 4096 + size > 4096)
        return 0;
    return row->at + linear % 4096;
}

static inline void hv_lookaside_add(enum hv_access access, bool user, uint32_t linear, uint8_t *at)
{
    hv_lookaside[access][user][linear / 4096 % HV_LOOKASIDE_ROWS] = (struct hv_lookaside){linear / 4096, hv_lookaside_generation, at - linear % 4096};
}

#endif
