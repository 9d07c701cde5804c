/* Ticks for a processor so slow that a tick's handler takes longer than the timer's period (hvd/cell/pace.c). */
#include "board.h"

#define IRQ_PIT 0
#define PIN_PIT 2 /* of the IOAPIC */

bool hv_board_is_tick(const struct hv_board *board, uint8_t vector)
{
    if (hv_lapic_enabled(&board->lapic) && vector == (uint8_t)board->lapic.lvt[HV_LVT_TIMER])
        return true;
    if (!hv_ioapic_masked(&board->ioapic, PIN_PIT))
        return vector == hv_ioapic_vector(&board->ioapic, PIN_PIT);
    return vector == (board->pic.chip[0].vector_base | IRQ_PIT);
}

void hv_board_rest(struct hv_board *board, uint64_t until_ns)
{
    board->pit.rest_end_ns = until_ns;
    board->lapic.rest_end_ns = until_ns;
}
