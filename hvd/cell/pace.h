/* Ticks for a guest that runs some hundred times slower than natively (pace.c). */
#ifndef HV_PACE_H
#define HV_PACE_H

#include "cell.h"

extern bool hv_pace_handling;         /* a tick was taken, and interrupts were not enabled since */
void hv_pace_taken(uint8_t vector);   /* the guest takes an interrupt of the board's */
void hv_pace(void);                   /* while hv_pace_handling: before each instruction that the monitor sees */
void hv_pace_halted(void);            /* the guest waits for an interrupt */

#endif
