#include "ticks.h"

static uint64_t nanoseconds_by_tick; /* << 32 */

bool hv_ticks_do(void)
{
    if (hv_clock_by_call || hv_crossings_watched(&cell.board.crossings) || !cell.area->tsc_told_hz)
        return false;
    if (!nanoseconds_by_tick)
        nanoseconds_by_tick = (1000000000ull << 32) / cell.area->tsc_told_hz;
    return true;
}

uint64_t hv_ticks_ns(uint64_t began) { return (uint64_t)((unsigned __int128)(hv_host_tsc() - began) * nanoseconds_by_tick >> 32); }
