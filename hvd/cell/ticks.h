/* How long something took that is only counted, not recorded: by the time stamp counter, which is read in a third of the time that the host's
 * clock takes. */
#ifndef HV_TICKS_H
#define HV_TICKS_H

#include "cell.h"

bool hv_ticks_do(void); /* nobody wants records, which have the clock's time, and the counter can be read and is known */
uint64_t hv_ticks_ns(uint64_t began); /* since then, by hv_host_tsc() */

#endif
