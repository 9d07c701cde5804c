/* Periodic ticks for a processor that may be so slow that a handler takes longer than the timer's period: engine breakpoint (hvd/cell/breakpoint.c).
 * The pause that begins with the end of interrupt (board.h, of the 8254) does not help a kernel that does most of its work behind it,
 * with interrupts still disabled: it would get one instruction further between two ticks. */
#include "board.h"

void hv_board_handling(struct hv_board *board)
{
    board->lapic.handling_ns = hv_clock_now(&board->clock) | 1;
}

void hv_board_handled(struct hv_board *board, uint64_t rest_ns)
{
    board->lapic.handling_ns = 0;
    hv_board_advance(board); /* sees that the tick was taken */
    uint64_t now_ns = hv_clock_now(&board->clock);
    hv_pit_rest(&board->pit, now_ns, rest_ns);
    hv_lapic_rest(&board->lapic, now_ns, rest_ns);
}
