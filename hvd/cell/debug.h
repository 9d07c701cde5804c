/* The debugger's breakpoints, watchpoints and single steps (hvd/board/vcpu.py, set_debug). The guest's own TF is not touched by them. */
#ifndef HV_CELL_DEBUG_H
#define HV_CELL_DEBUG_H

#include <stdbool.h>
#include <stdint.h>

extern bool hv_debugging; /* something is asked for, by the runner or by DR7: every instruction is looked at before it is executed */
extern bool hv_watching;  /* watchpoints among it */

void hv_debug_changed(void); /* the runner has asked for something else */
void hv_debug_update(void);  /* DR7 may have changed */
void hv_debug_call(void);    /* the guest asks for a stop */
void hv_debug_forget(void);  /* it has changed the state: nothing has been executed */
/* An access of the guest, by instructions or by what the processor does itself (frames of exceptions). */
void hv_debug_access(uint32_t linear, unsigned size, bool write);

/* ---- for signals.c, at boundaries between instructions */
bool hv_debug_stops(void);                   /* there is a reason to stop here */
void hv_debug_leave(void);                   /* to the runner with it */
bool hv_debug_holds_interrupts(bool wanted); /* while it steps, interrupts of devices wait; not while HLT waits for them */
/* Executes the next instruction as it would be executed without a debugger. False: nothing was done, the processor itself must do it, for
 * one step (EFLAGS.TF); then hv_debug_native(flags). flags: those in the processor behind it. */
bool hv_debug_execute(void);
void hv_debug_native(uint32_t flags);
void hv_debug_executed(void); /* it has been executed */
void hv_debug_raised(void);   /* it has raised an exception, which is delivered next */

/* ---- breaks.c: the guest's own */
bool hv_breaks_enabled(void);
bool hv_breaks_watch(void);   /* accesses among it */
void hv_breaks_access(uint32_t linear, unsigned size, bool write);
void hv_breaks_port(uint16_t port, unsigned size);
void hv_breaks_execute(void); /* an instruction is about to be: raises #DB */
void hv_breaks_foresee(void); /* accesses up to here are of an instruction that is only about to be executed */
void hv_breaks_executed(void);
void hv_breaks_forget(void);  /* it was not: it raised something */
bool hv_breaks_hit(void);     /* what was executed asks for #DB, by hv_breaks_trap() */
void hv_breaks_trap(uint32_t cause); /* #DB with that and what was hit in DR6 */
void hv_breaks_trap_here(void);
void hv_breaks_detect(void);  /* debug registers are accessed: raises #DB, if the guest wants that (DR7.GD) */

#endif
