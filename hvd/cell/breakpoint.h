/* Rewriting's engine `breakpoint` (breakpoint.c). */
#ifndef HV_BREAKPOINT_H
#define HV_BREAKPOINT_H

#include "cell.h"

bool hv_breakpoint_init(void); /* false: errno */
/* Kernel code is about to run at EIP. True: it may, natively, up to the breakpoint that is set now; false: its instruction was executed. */
bool hv_breakpoint_prepare(void);
bool hv_is_slow(void); /* the guest executes some 100 000 instructions a second: this engine, or a debugger has breakpoints */
/* In a handler, or soon after it: does the next tick have its turn? Before each of the guest's instructions that the monitor sees. */
void hv_breakpoint_pace(void);

#endif
