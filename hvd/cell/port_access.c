/* IN and OUT of a byte at the C board's own devices, in the middle of a block of translated code: a kernel that writes to its console does little else. Without
 * the interpreter, without leaving the block, and with nothing settled where nothing is to be. */
#include "debug.h"
#include "paravirt.h"
#include "signals.h"
#include "translate.h"

#define BY_DX 8u /* of the opcode; otherwise by its immediate */
#define IS_OUT 2u

static bool access_device(uint16_t port, bool out)
{
    uint32_t *eax = &HV_CPU->r[HV_EAX], value;
    if (out)
        return hv_board_port_out(&cell.board, port, 1, *eax & 0xff) == HV_PORT_DONE; /* or else the console is full, and it is done again later */
    hv_board_port_in(&cell.board, port, 1, &value);
    *eax = (*eax & ~0xffu) | value;
    return true;
}

/* At CPL 0 no port is forbidden (SDM vol. 1, "I/O Privilege Level"). */
uint32_t hv_translated_access_port(uint32_t access, uint32_t eip)
{
    uint16_t port = access & BY_DX ? (uint16_t)HV_CPU->r[HV_EDX] : (uint8_t)(access >> 8);
    bool out = access & IS_OUT;
    if (cell.async || hv_watching || !hv_board_answers(port) || !hv_straight_begin())
        return HV_PORT_ACCESS_NOT_HERE;
    bool done = access_device(port, out);
    if (done)
        hv_straight_count(out ? HV_POINT_PORT_OUT : HV_POINT_PORT_IN);
    cell.began_tsc = 0;
    if (!done)
        return HV_PORT_ACCESS_NOT_HERE;
    cell.board.crossings.counters->callouts++;
    cell.pending = hv_interrupts_pending();
    HV_CPU->eip = eip + (access >> 16); /* to which it goes when a signal comes meanwhile, too */
    bool quiet = !hv_kicked() && hv_timer_is_right() && !(cell.pending && (cell.virtual_if || cell.board.lapic.nmi));
    return quiet ? HV_PORT_ACCESS_DONE : HV_PORT_ACCESS_SETTLE;
}
