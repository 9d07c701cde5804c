/* PCI as far as it needs no trip to Python, where the functions are (hvd/board/pci): configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), what no
 * function answers to, configuration spaces as the memory that they mostly are, BARs, the interrupt pins. A kernel that looks at its bus reads
 * and writes there hundreds of times. */
#include "board.h"

#include <string.h>

#define ENABLE 0x80000000u
#define ADDRESS_BITS 0x80fffffcu
#define RESET_CONTROL 0xcf9u /* a byte there is another device's (hvd/board/devices/reset_control.py) */
#define BYTES 256u
#define DEVICE 0x02u
#define FIRST_VIRTIO 0x1040u /* + virtio's number of the device */
#define COMMAND 0x04u
#define COMMAND_MEMORY 0x0002u
#define COMMAND_MASTER 0x0004u
#define COMMAND_INTX_DISABLE 0x0400u
#define STATUS 0x06u
#define STATUS_INTX 0x08u
#define BAR0 0x10u
#define BAR_ADDRESS 0xfull

struct hv_pci *hv_board_pci(struct hv_board *board) { return &board->pci; }
struct hv_pci_spaces *hv_board_pci_spaces(struct hv_board *board) { return &board->own_spaces; }

/* Nothing in the spaces is trusted: in a cell they are in the run area. */
static unsigned space_count(const struct hv_pci_spaces *spaces) { return spaces->count < HV_PCI_SPACES ? spaces->count : HV_PCI_SPACES; }

/* Little-endian, as this board's hosts are. */
static uint64_t get(const struct hv_pci_space *space, unsigned at, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, space->data + at, size);
    return value;
}

/* ---- configuration mechanism 1 */

static bool is_address(const struct hv_board *board, uint16_t port, unsigned size) { return board->pci.bus && port == HV_PCI_ADDRESS && size == 4; }

/* Bytes of the address register: nothing answers to them. */
static bool is_nothing(const struct hv_board *board, uint16_t port, unsigned size)
{
    return board->pci.bus && size == 1 && port >= HV_PCI_ADDRESS && port < HV_PCI_DATA && port != RESET_CONTROL;
}

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

static struct hv_pci_space *addressed(const struct hv_board *board)
{
    struct hv_pci_spaces *spaces = board->spaces;
    for (unsigned i = 0; i < space_count(spaces); i++)
        if (spaces->space[i].place == (board->pci.address >> 8 & 0xff))
            return &spaces->space[i];
    return NULL;
}

static unsigned offset_of(const struct hv_board *board, uint16_t port) { return (board->pci.address & 0xfc) + port - HV_PCI_DATA; }

bool hv_pci_in(const struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (is_address(board, port, size)) {
        *value = board->pci.address;
        return true;
    }
    bool nothing = is_nothing(board, port, size);
    if (!nothing && !is_data(board, port, size))
        return false;
    if (nothing || is_void(&board->pci)) {
        *value = 0xffffffffu >> (32 - 8 * size);
        return true;
    }
    const struct hv_pci_space *space = addressed(board);
    unsigned at = offset_of(board, port);
    if (!space || space->asks >> at / 4 & 1)
        return false;
    *value = (uint32_t)get(space, at, size);
    return true;
}

bool hv_pci_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (is_address(board, port, size)) {
        board->pci.address = value & ADDRESS_BITS;
        return true;
    }
    if (is_nothing(board, port, size))
        return true;
    if (!is_data(board, port, size))
        return false;
    if (is_void(&board->pci))
        return true;
    struct hv_pci_space *space = addressed(board);
    unsigned at = offset_of(board, port);
    if (!space || space->tells >> at / 4 & 1)
        return false;
    hv_pci_write_space(board, space, at, size, value);
    return true;
}

void hv_pci_write_space(struct hv_board *board, struct hv_pci_space *space, unsigned at, unsigned size, uint32_t value)
{
    for (unsigned i = at; i < at + size && i < BYTES; i++, value >>= 8)
        space->data[i] = (uint8_t)((space->data[i] & ~space->writable[i]) | (value & space->writable[i]));
    if (at < COMMAND + 2 && at + size > COMMAND)
        hv_pci_drive(board);
}

/* ---- BARs */

static uint64_t bar_start(const struct hv_pci_space *space, unsigned bar)
{
    return get(space, BAR0 + 4 * bar, space->wide >> bar & 1 ? 8 : 4) & ~BAR_ADDRESS;
}

int hv_pci_find(const struct hv_board *board, uint64_t address, unsigned size, uint32_t *bar, uint64_t *offset)
{
    const struct hv_pci_spaces *spaces = board->spaces;
    uint64_t best = 0;
    int found = -1;
    for (unsigned i = 0; i < space_count(spaces); i++) {
        const struct hv_pci_space *space = &spaces->space[i];
        if (!(get(space, COMMAND, 2) & COMMAND_MEMORY))
            continue;
        for (unsigned b = 0; b < HV_PCI_BARS; b++) {
            uint64_t start = bar_start(space, b);
            if (!space->bar_bytes[b] || start > address || (found >= 0 && start < best))
                continue;
            best = start; /* where they overlap, the one that begins last answers */
            found = (int)i;
            *bar = b;
        }
    }
    *offset = address - best;
    return found >= 0 && *offset + size <= spaces->space[found].bar_bytes[*bar] ? found : -1;
}

static bool in_window(const struct hv_board *board, uint64_t address, unsigned size)
{
    return board->pci.bus && address >= HV_PCI_WINDOW && address + size <= HV_PCI_WINDOW_END;
}

static bool is_virtio(const struct hv_pci_space *space, unsigned bar) { return space->virtio.queues && space->virtio.bar == bar; }

bool hv_pci_virtio_read(struct hv_board *board, struct hv_pci_space *space, unsigned bar, uint64_t offset, unsigned size, uint64_t *value)
{
    if (!is_virtio(space, bar) || !hv_virtio_read(&space->virtio, offset, size, value))
        return false;
    if (!space->virtio.isr) /* what asserts the pin */
        hv_pci_set_intx(board, space, false);
    return true;
}

bool hv_pci_virtio_write(struct hv_pci_space *space, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
    return is_virtio(space, bar) && hv_virtio_write(&space->virtio, offset, size, value);
}

bool hv_pci_mmio_read(struct hv_board *board, uint64_t address, unsigned size, uint64_t *value)
{
    uint64_t offset;
    uint32_t bar;
    if (!in_window(board, address, size))
        return false;
    int found = hv_pci_find(board, address, size, &bar, &offset);
    if (found >= 0)
        return hv_pci_virtio_read(board, &board->spaces->space[found], bar, offset, size, value);
    *value = ~0ull >> (64 - 8 * size);
    return true;
}

/* What is typed comes without being asked for: of such a notification there is something to do only when it waits for buffers. */
static bool has_nothing_to_do(const struct hv_board *board, struct hv_pci_space *space, unsigned bar, uint64_t offset)
{
    const struct hv_virtio_queue *queue = is_virtio(space, bar) ? hv_virtio_notified(&space->virtio, offset) : NULL;
    return queue && queue->purpose == HV_VIRTIO_TYPED && !hv_board_console_waiting(board);
}

enum hv_mmio_result hv_pci_mmio_write(struct hv_board *board, uint64_t address, unsigned size, uint64_t value)
{
    uint64_t offset;
    uint32_t bar;
    if (!in_window(board, address, size))
        return HV_MMIO_LEAVE;
    int found = hv_pci_find(board, address, size, &bar, &offset);
    if (found < 0)
        return HV_MMIO_DONE;
    struct hv_pci_space *space = &board->spaces->space[found];
    if (has_nothing_to_do(board, space, bar, offset))
        return HV_MMIO_NOTIFIED;
    return hv_pci_virtio_write(space, bar, offset, size, value) ? HV_MMIO_DONE : HV_MMIO_LEAVE;
}

struct hv_virtio_queue *hv_pci_notified(const struct hv_board *board, uint64_t address, struct hv_pci_space **space)
{
    uint64_t offset;
    uint32_t bar;
    int found = in_window(board, address, 1) ? hv_pci_find(board, address, 1, &bar, &offset) : -1;
    if (found < 0)
        return NULL;
    *space = &board->spaces->space[found];
    return is_virtio(*space, bar) ? hv_virtio_notified(&(*space)->virtio, offset) : NULL;
}

void hv_pci_notification(const struct hv_board *board, uint64_t address, unsigned buffers, uint64_t arguments[4])
{
    struct hv_pci_space *space = board->spaces->space;
    const struct hv_virtio_queue *queue = hv_pci_notified(board, address, &space);
    arguments[0] = space->place >> 3;
    arguments[1] = get(space, DEVICE, 2) - FIRST_VIRTIO;
    arguments[2] = queue ? (uint64_t)(queue - space->virtio.queue) : 0;
    arguments[3] = buffers;
}

bool hv_pci_may_master(const struct hv_pci_space *space) { return get(space, COMMAND, 2) & COMMAND_MASTER; }

/* ---- interrupt pins */

static bool asserts(const struct hv_pci_space *space) { return space->intx && !(get(space, COMMAND, 2) & COMMAND_INTX_DISABLE); }

static void mark(struct hv_pci_space *space, bool level)
{
    space->intx = level;
    space->data[STATUS] = (uint8_t)((space->data[STATUS] & ~STATUS_INTX) | (level ? STATUS_INTX : 0));
}

void hv_pci_set_intx(struct hv_board *board, struct hv_pci_space *space, bool level)
{
    if (space->intx == level)
        return;
    mark(space, level);
    hv_pci_drive(board);
}

void hv_pci_drive(struct hv_board *board)
{
    const struct hv_pci_spaces *spaces = board->spaces;
    uint32_t wired = 0, asserted = 0;
    for (unsigned i = 0; i < space_count(spaces); i++) {
        const struct hv_pci_space *space = &spaces->space[i];
        uint32_t line = space->gsi && space->gsi < HV_IOAPIC_PINS ? 1u << space->gsi : 0;
        wired |= line;
        asserted |= asserts(space) ? line : 0; /* several share one */
    }
    for (unsigned gsi = 0; gsi < HV_IOAPIC_PINS; gsi++)
        if (wired >> gsi & 1 && (asserted ^ board->ioapic.lines) >> gsi & 1)
            hv_board_set_irq(board, gsi, asserted >> gsi & 1);
}

/* ---- another process's */

void hv_pci_take(struct hv_pci_spaces *spaces, const struct hv_pci_spaces *theirs)
{
    for (unsigned i = 0; i < space_count(spaces); i++) {
        struct hv_pci_space *space = &spaces->space[i], their;
        memcpy(&their, &theirs->space[i], sizeof their); /* it may change meanwhile */
        __asm__ volatile("" : : : "memory");
        for (unsigned at = 0; at < BYTES; at++)
            space->data[at] = (uint8_t)((space->data[at] & ~space->writable[at]) | (their.data[at] & space->writable[at]));
        hv_virtio_take(&space->virtio, &their.virtio);
        if (!their.intx) /* only the device asserts it, and what serves it here */
            mark(space, false);
        else if (space->virtio.isr)
            mark(space, true);
    }
}
