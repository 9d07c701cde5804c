/* The paravirtual ABI (docs/paravirtualisation.md): the kernel runs natively, as under trap, but it was changed to ask the monitor.
 *
 *   paravirt.c  the page of the virtual processor, calls by trap    gate.c   from the hypercall page into the monitor, without a signal
 *   calls.c     the calls by number                                 memory.c those about page tables and descriptors
 *   straight.c  what comes by the gate most often, if all is as it usually is
 */
#ifndef HV_CELL_PARAVIRT_H
#define HV_CELL_PARAVIRT_H

#include "cell.h"
#include "hv/paravirt.h"

static inline bool hv_paravirtual(void) { return cell.mode == HV_MODE_PARAVIRT; }

/* ---- paravirt.c */
bool hv_paravirt_init(void);  /* before the low view is reserved: maps the page; false: errno */
void hv_paravirt_take(void);  /* what the guest may have written there into cell.cpu */
void hv_paravirt_give(void);  /* before its kernel runs: the reverse */
void hv_paravirt_keep(void);  /* all runs of kernel pages were forgotten: not that page */
bool hv_paravirt_trap(const struct hv_insn *); /* INT 82, INT 83 of the kernel: done */
/* A program's segments end at its limit (hv_twin_below), and it went further: what happens then in segments as they are. */
bool hv_paravirt_beyond(const struct hv_insn *);
/* An access of the monitor in the guest's name to that page; NULL = another address. */
uint8_t *hv_paravirt_at(uint32_t linear, bool user);
uint16_t hv_paravirt_selector(unsigned segment, uint16_t selector); /* with the RPL that the guest knows it by */
void hv_paravirt_loaded(unsigned segment, const uint32_t words[2]); /* the kernel has, with this descriptor */
void hv_paravirt_offer_twin(unsigned segment, uint16_t host);  /* it may load what it has loaded by itself from now on */
void hv_paravirt_forget_twin(unsigned index); /* the host's descriptor at this place is another one */
void hv_paravirt_forget_twins(void); /* the guest's GDT is another one */

/* ---- gate.c */
bool hv_gate_init(void);
bool hv_gate_is(uint64_t rip);        /* is it in the code between the hypercall page and the monitor, and back */
void hv_gate_step(void);              /* a single step there: not seen by the guest before the call is over */
void hv_gate_fill(uint8_t *page);     /* the hypercall page's entries */
bool hv_gate_interpret(void);         /* EIP is at an entry of a hypercall page: done, as by the gate */

/* ---- straight.c */
bool hv_straight_begin(void);     /* now; false: somebody looks on. From then on hv_cross_here() only counts */
void hv_straight_end(void);       /* if it was begun: the general way from here on, with cell.entry_ns */
void hv_straight_count(unsigned point);
/* false = all is as it was, and must go the general way */
bool hv_straight_interrupt(unsigned vector); /* INT of a program; EIP is behind it */
bool hv_straight_int80_entry(void);          /* of the hypercall page; ESP is as its caller's CALL has left it */
bool hv_straight_return(bool at_site);       /* IRET of the kernel */

/* ---- calls.c: with EIP behind the call already */
void hv_hypercall(void); /* by the registers */
/* Copies between guest and monitor with the kernel's rights, only from and to memory; false: EFAULT. Nothing is raised. */
bool hv_copy_in(void *to, uint32_t linear, uint32_t length);
bool hv_copy_out(uint32_t linear, const void *from, uint32_t length);

/* ---- memory.c */
#define HV_CALL(name) int64_t hv_call_##name(const uint32_t *argument)
HV_CALL(set_cr0);
HV_CALL(set_cr3);
HV_CALL(set_cr4);
HV_CALL(flush);
HV_CALL(invlpg);
HV_CALL(set_pte);
HV_CALL(set_ptes);
HV_CALL(set_gdt);
HV_CALL(set_idt);
HV_CALL(set_ldt);
HV_CALL(set_tr);
HV_CALL(set_descriptor);
HV_CALL(set_traps);
HV_CALL(set_stack);
HV_CALL(load_segment);
HV_CALL(fill_page);
HV_CALL(set_user_limit);

#endif
