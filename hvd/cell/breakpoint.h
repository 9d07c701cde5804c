/* Rewriting's engine `breakpoint` (breakpoint.c). */
#ifndef HV_BREAKPOINT_H
#define HV_BREAKPOINT_H

#include "cell.h"

bool hv_breakpoint_init(void); /* false: errno */
/* Kernel code is about to run at EIP. True: it may, natively, up to the breakpoint that is set now; false: its instruction was executed. */
bool hv_breakpoint_prepare(void);
/* The instruction at EIP has met such a page. True: it is to be tried again; false: it is the monitor's to execute. */
bool hv_breakpoint_stores(uint64_t physical);

#endif
