/* Rewriting's engine `breakpoint` (breakpoint.c). */
#ifndef HV_BREAKPOINT_H
#define HV_BREAKPOINT_H

#include "cell.h"

bool hv_breakpoint_init(void); /* false: errno */
/* Kernel code is about to run at EIP. True: it may, natively, up to the breakpoint that is set now; false: its instruction was executed. */
bool hv_breakpoint_prepare(void);

#endif
