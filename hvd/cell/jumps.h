/* Jumps in the private copies of programs' pages (sites.h), and the slots that they lead to, by which the monitor is called. Two kinds:
 *
 *   near.c    a near jump, of 5 bytes, to a slot in the same segment; where the kernel's pages lie in a view of their own
 *   beyond.c  a far jump, of 7, to a slot beyond the end of the program's segments; where it shares the view with its kernel, under paravirt
 *
 * A jump covers the instructions behind INT 80, too (its tail), which are executed elsewhere. Whatever jumps to one of those finds a byte of the jump's operand there,
 * and slots are placed so that this byte is an instruction that traps (HLT, CLI, IN...): the monitor sees that a site covers it.
 */
#ifndef HV_JUMPS_H
#define HV_JUMPS_H

#include "cell.h"

#define HV_SLOT_PAGES 64u /* of HV_CELL_FD_SITES, first of all */
#define HV_DEVICE_PAGES 16u /* behind them: slots of the kernel's under paravirt */
#define HV_PATCHES 1024u
#define HV_MOST_TAIL 5u /* instructions */

/* A jump in a copy, and its slot. */
struct hv_patch {
    uint32_t start, site; /* linear addresses */
    uint32_t slot;        /* linear address */
    uint32_t next;        /* of the same copy */
    uint8_t bytes;        /* of the slot */
    uint8_t covers;       /* bytes, from start: those of the jump */
    bool of_kernel;       /* its instruction is one of the kernel's that accesses a device (device_jumps.c) */
    uint8_t places;
    struct { uint8_t guest, host; } place[HV_MOST_TAIL + 1]; /* of the tail: from the site, and from the slot's or the tail's start */
    uint32_t tail;        /* linear address of the tail's code where it is not in the slot; 0 = there is none (yet) */
    uint16_t tail_cs;     /* that it was made for; 0 = not tried */
};

struct hv_jumps {
    /* A jump at the page's offset into the copy, and its slot, for patch `index`, unless it cannot be done there. file: of HV_CELL_FD_SITES. */
    bool (*make)(struct hv_patch *, uint32_t index, uint8_t *file, uint8_t *copy, const uint8_t *page, uint32_t linear, uint32_t offset);
    bool (*full)(unsigned sites);    /* there may be no room for so many more */
    void (*hide)(void);              /* the slots' pages are to be unmapped */
    void (*forget)(void);            /* all slots; they are not mapped any more */
    bool (*is_slot)(uint64_t rip, uint16_t cs);
    unsigned (*index)(uint32_t eip); /* of the patch whose slot has that offset, + 1; 0 = none */
    bool (*overlaps)(uint32_t first, uint32_t end); /* do these linear pages, with where slots are or may be? */
    /* Code that does the tail, made if need be, for a program with that code segment; false: the monitor must. NULL = slots have it. */
    bool (*tail)(struct hv_patch *, uint32_t index, uint8_t *file, uint16_t cs);
    uint16_t (*tail_selector)(void); /* with which it is executed */
    bool (*is_free)(void);           /* does the guest map nothing where slots are shown? */
};
extern const struct hv_jumps hv_near_jumps, hv_far_jumps;

/* Under paravirt, beside the far jumps: in the place of an instruction of the kernel that accesses devices' registers. Arguments as for make(). */
bool hv_device_jump(struct hv_patch *, uint32_t index, uint8_t *file, uint8_t *copy, const uint8_t *page, uint32_t linear, uint32_t offset);
#define HV_DEVICE_SLOT 32u /* bytes */
/* beyond.c: the address of a place for such a slot, which is taken for that patch: one with which the two lower bytes of the jump's displacement, from `next`,
 * trap, as far as they must. 0 = there is none. */
uint32_t hv_device_slot(uint32_t index, uint32_t next, bool first_traps, bool second_traps);
uint32_t hv_device_slots(void); /* where the file's first page is shown */

#define HV_TRAPPING_BYTES 11u
static inline bool hv_is_trapping(unsigned byte) { return (byte >= 0xe4 && byte <= 0xe7) || (byte >= 0xec && byte <= 0xef) || byte == 0xf4 || byte == 0xfa || byte == 0xfb; }
/* Linux's vDSO: there are four bytes of NOPs in front of INT 80, which make room. */
bool hv_is_vdso(const uint8_t *page, uint32_t offset);
bool hv_is_movable(const struct hv_insn *); /* does it do the same elsewhere: no use of EIP, nothing that traps by its nature? */
bool hv_is_tail(const struct hv_insn *);    /* is it one that the monitor can execute behind a far jump: such a one, a near jump or call, or INT n? */

#endif
