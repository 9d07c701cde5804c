/* PCI's configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), as far as it needs no trip to Python, where the functions are (hvd/board/pci): the address
 * register, what no function answers to, and reading what only lies in a function's configuration space. A kernel that looks at its bus reads
 * there hundreds of times. */
#include "board.h"

#include <string.h>

#define ENABLE 0x80000000u
#define ADDRESS_BITS 0x80fffffcu

struct hv_pci *hv_board_pci(struct hv_board *board) { return &board->pci; }
struct hv_pci_spaces *hv_board_pci_spaces(struct hv_board *board) { return &board->own_spaces; }

static bool is_address(const struct hv_board *board, uint16_t port, unsigned size) { return board->pci.bus && port == HV_PCI_ADDRESS && size == 4; }

static bool is_data(const struct hv_board *board, uint16_t port, unsigned size)
{
    return board->pci.bus && port >= HV_PCI_DATA && port + size <= HV_PCI_DATA + 4;
}

/* Is no function addressed that could answer? */
static bool is_void(const struct hv_pci *pci)
{
    bool addressed = pci->address & ENABLE && !(pci->address >> 16 & 0xff);
    return !addressed || !(pci->functions[pci->address >> 11 & 31] >> (pci->address >> 8 & 7) & 1);
}

/* Nothing in the spaces is trusted: in a cell they are in the run area. */
static bool read_space(const struct hv_board *board, unsigned at, unsigned size, uint32_t *value)
{
    const struct hv_pci_spaces *spaces = board->spaces;
    for (uint32_t i = 0; i < spaces->count && i < HV_PCI_SPACES; i++) {
        const struct hv_pci_space *space = &spaces->space[i];
        if (space->place != (board->pci.address >> 8 & 0xff))
            continue;
        if (space->asks >> at / 4 & 1)
            return false;
        *value = 0;
        memcpy(value, space->data + at, size); /* both are little-endian: this board is for x86 hosts */
        return true;
    }
    return false;
}

bool hv_pci_in(const struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (is_address(board, port, size)) {
        *value = board->pci.address;
        return true;
    }
    if (!is_data(board, port, size))
        return false;
    if (is_void(&board->pci)) {
        *value = 0xffffffffu >> (32 - 8 * size);
        return true;
    }
    return read_space(board, (board->pci.address & 0xfc) + port - HV_PCI_DATA, size, value);
}

bool hv_pci_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (is_address(board, port, size)) {
        board->pci.address = value & ADDRESS_BITS;
        return true;
    }
    return is_data(board, port, size) && is_void(&board->pci);
}
