/* Sites: the INT 80 instructions of the guest's programs, which reach the monitor without a signal (docs/cell.md, "System calls"); and, under paravirt, the
 * instructions of its kernel that access devices' registers, and its INT n and IRET.
 *
 * The host takes INT 80 for a system call of its own, and a signal for each is dear. A page of code in which such instructions are executed
 * again and again runs from a private copy, where they are jumps: to a slot, which is a far jump into the monitor. The guest's memory stays
 * as it is: its kernel, its debugger and the monitor read INT 80 there. A write to the page ends the copy, as it does with translated code.
 */
#ifndef HV_SITES_H
#define HV_SITES_H

#include "cell.h"

bool hv_sites_init(void); /* false: no memory; then there are no copies */
void hv_sites_hit(void);  /* INT 80 at EIP has come as a signal */
void hv_sites_kernel(void); /* under paravirt: an instruction of the kernel at EIP that accesses a device, or INT n or IRET, has */
/* EIP as the guest knows it, and where its code is to be entered, which may be in a slot, by another code segment than cs. The latter also sees to it that there are no
 * copies while the guest, a debugger or the monitor single-steps programs. */
uint32_t hv_sites_guest_eip(uint32_t host_eip, uint16_t cs);
uint32_t hv_sites_enter(uint16_t *cs);
bool hv_sites_in_slot(uint64_t rip, uint16_t cs);
bool hv_sites_cover(uint32_t eip); /* do other bytes than the guest's stand there? */
bool hv_sites_interpret(void);     /* so that the monitor must execute the instruction at EIP? */
void hv_sites_covered(void);       /* it does so, and with those behind it for which the same is true; no more than a jump covers, so that interrupts are not kept waiting */

/* ---- for shadow.c and blocks.c */
bool hv_sites_of_kernel(uint32_t page, uint64_t frame); /* does its kernel run from a copy there? */
uint32_t hv_sites_copy(uint32_t page, uint64_t frame); /* its offset in HV_CELL_FD_SITES; 0 = none, map the frame itself */
void hv_sites_written(uint64_t frame);
void hv_sites_unmapped(void);  /* the whole low view was */
void hv_sites_mapped(uint32_t first, uint32_t end); /* these linear pages of the low view are about to be */
void hv_sites_verify(void);    /* mappings have changed: have programs pages where the slots are? */
void hv_sites_verify_page(uint32_t linear); /* of that page alone */
void hv_sites_give_up(void);

#endif
