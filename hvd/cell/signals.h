/* From the guest into the monitor and back: what its parts share.
 *
 *   signals.c     the handler, and what each cause of a trap in native code asks for
 *   translated.c  signals in 64-bit code: translated code, stubs, the monitor itself
 *   frame.c       the guest's state in and out of a signal's frame
 *   int1.c        INT1 of programs
 *   unwind.c      faults of the guest: unwinding, double and triple faults
 *   resume.c      everything before the guest's next instruction
 */
#ifndef HV_SIGNALS_H
#define HV_SIGNALS_H

#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>

#include "cell.h"

#define HV_HOST_CODE_64 0x33
#define HV_HOST_DATA 0x2b
#define HV_ERROR_WRITE 2u /* of the host's page faults */
#define HV_ERROR_FETCH 16u

/* Why translated code is stepped through: to where an interrupt may be taken; because its block has been written over, or for the debugger. */
enum hv_step { HV_STEP_RUN, HV_STEP_TO_INTERRUPT, HV_STEP_OUT_OF_BLOCK };

/* The trap that is being handled. */
struct hv_trap {
    ucontext_t *frame; /* NULL in a callout */
    siginfo_t *info;
    uint32_t error;    /* of a page fault: the host's error code and address */
    uint64_t address;
    uint16_t expected[HV_GS + 1]; /* the host selectors that the guest was entered with */
    uint16_t live[HV_GS + 1];     /* and those that it was left with */
    uint8_t *target;   /* where to go on: translated code, NULL = native code */
    bool filled;       /* a mapping was all that was missing */
    bool stepping;     /* native code: the host's TF is ours: one instruction, then see */
    bool step_once;    /* the same, of a program whose instruction the monitor was called for and does not know */
    bool step_over;    /* of a breakpoint register that was not meant for this code */
    enum hv_step step;
    uint32_t shadow_eip; /* where cpu.interrupt_shadow holds */
};
extern struct hv_trap hv_trap;
extern const int hv_general[8]; /* the guest's general registers in the frame */

static inline greg_t *hv_frame_registers(void) { return hv_trap.frame->uc_mcontext.gregs; }

/* ---- unwind.c */
bool hv_guarded(void (*work)(void)); /* false: it was unwound; what was raised waits for hv_deliver_raised() */
bool hv_attempt(void (*work)(void)); /* within what is guarded already: false = it would have raised something, which is forgotten */
void hv_deliver_raised(void);        /* and what is raised by that */
void hv_forget_raised(void);
bool hv_was_abandoned(void);         /* since the last call: the runner has replaced the state */
bool hv_user_fault(uint32_t *linear); /* the last page fault of the guest's programs, once */
bool hv_user_faulted(void);           /* is there one still? */
bool hv_kernel_fault(uint32_t eip, uint32_t *linear); /* the last one of its kernel, if it was there, once */

/* ---- int1.c */
bool hv_int1_init(void); /* at the start, before the handlers are there for good. False: errno */
void hv_int1_trap(void); /* a program has executed it */

/* ---- frame.c */
void hv_take_state(void); /* registers, flags and segments out of the frame */
void hv_take_native(uint32_t flags); /* of it: flags, and segments from hv_trap.live */
void hv_take_program(void); /* the same from where a program's system call has left it (sites.h) */
void hv_give_state(void); /* and into it */
uint32_t hv_native_flags(void);
void hv_make_twins(void); /* selectors and mappings for the code that runs next */
void hv_load_selectors(void);
void hv_keep_flags(void); /* last of all: what a frame does not bring back */
/* Did the guest load a selector of the host's own GDT without a trap, which acts unlike its own? hv_take_state() has put that right: what
 * the guest did with it may be tried again. */
bool hv_loaded_host_selector(void);

/* What the guest executed until the monitor was entered, at cell.entry_ns; and when it goes on. A callout's own time is taken for the guest's, to spare a
 * look at the clock, but not what the runner and halts took in it. */
void hv_account_run(void);
void hv_runs_since(uint64_t ns);

/* ---- resume.c */
void hv_resume(void); /* the guest's next instruction, by the frame */

/* ---- translated.c */
bool hv_in_64_bits(int signal); /* returns whether the frame goes elsewhere: to hv_resume() */

#endif
