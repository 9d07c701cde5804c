/* The debugger's breakpoints, watchpoints and single steps (hvd/board/vcpu.py, set_debug). The guest's own TF is not touched by them. */
#ifndef HV_CELL_DEBUG_H
#define HV_CELL_DEBUG_H

#include <stdbool.h>
#include <stdint.h>

extern bool hv_debugging; /* something is asked for: every instruction is looked at before it is executed */
extern bool hv_watching;  /* watchpoints among it */

void hv_debug_changed(void); /* the runner has asked for something else */
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

#endif
