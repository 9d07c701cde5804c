/* Under engine breakpoint, and under every engine while a debugger has breakpoints, the guest is some hundred times as slow as natively. A tick's
 * handler of a few thousand instructions takes milliseconds, perhaps longer than the timer's period: the next tick would be pending whenever interrupts are
 * enabled again, and the guest would do nothing but handle ticks.
 *
 * So the timers rest (hv_board_rest) from the moment at which the guest takes a tick until it has enabled interrupts again, and from then for as long
 * as they were disabled: at least half of the guest's time is its own. It is time that counts, whether interrupts are enabled in it or not: a kernel that
 * waits for a tick with interrupts disabled sees it requested soon. Nothing rests longer than MOST_NS at once, in either part, nor while the guest waits
 * in HLT. What comes due meanwhile is owed, as on a host that is too busy (board.h, of the 8254).
 */
#include "pace.h"

#include "debug.h"

#define MOST_NS 1000000000u

bool hv_pace_handling;
static uint64_t taken_ns; /* virtual time */

static bool is_slow(void) { return cell.mode == HV_MODE_BREAKPOINT || hv_debugging; }

void hv_pace_taken(uint8_t vector)
{
    if (!is_slow() || !hv_board_is_tick(&cell.board, vector))
        return;
    hv_pace_handling = true;
    taken_ns = hv_clock_now(&cell.board.clock);
    hv_board_rest(&cell.board, taken_ns + MOST_NS);
}

void hv_pace(void)
{
    bool slow = is_slow();
    if (slow && !(HV_CPU->eflags & HV_IF))
        return;
    uint64_t now_ns = hv_clock_now(&cell.board.clock), handled_ns = now_ns - taken_ns;
    hv_pace_handling = false;
    hv_board_rest(&cell.board, slow ? now_ns + (handled_ns < MOST_NS ? handled_ns : MOST_NS) : 0);
}

void hv_pace_halted(void)
{
    if (!(HV_CPU->eflags & HV_IF))
        return;
    hv_pace_handling = false;
    hv_board_rest(&cell.board, 0);
}
