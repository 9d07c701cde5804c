#include "board.h"

#include <string.h>

#define IRQ_PIT 0
#define IRQ_UART 4
#define UART_FIRST 0x3f8
#define IRQ_CASCADE 2
#define ISA_IRQS 16
#define PIN_PIT 2 /* of the IOAPIC; its input 0 is the 8259 */
/* ELCR of the slave: IRQ 9 is the ACPI SCI, 10 and 11 are PCI's; shared lines, so level-triggered. Firmware sets it up so. */
#define LEVEL_IRQS 0x0e
#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define PAGE 4096u

enum device { FLOATING, PIC, PIT, UART };

static enum device device_at(uint32_t port)
{
    switch (port) {
    case 0x20:
    case 0x21:
    case 0xa0:
    case 0xa1:
    case 0x4d0:
    case 0x4d1:
        return PIC;
    case 0x40 ... 0x43:
    case 0x61:
        return PIT;
    case UART_FIRST ... UART_FIRST + 7:
        return UART;
    default:
        return FLOATING;
    }
}

static void reset_interrupts(struct hv_board *board)
{
    hv_pic_reset(&board->pic);
    board->pic.chip[1].elcr = LEVEL_IRQS;
    hv_lapic_reset(&board->lapic);
    hv_ioapic_reset(&board->ioapic);
}

void hv_board_init(struct hv_board *board, int out_event, void *counters, size_t counters_size, void *trace, size_t trace_size, unsigned backend)
{
    memset(board, 0, sizeof *board);
    board->out_event = out_event;
    board->console = &board->own_console;
    board->spaces = &board->own_spaces;
    board->cmos = &board->own_cmos;
    board->vga = &board->own_vga;
    board->keyboard = &board->own_keyboard;
    board->acpi = &board->own_acpi;
    hv_console_init(board->console);
    hv_crossings_init(&board->crossings, counters, counters_size, trace, trace_size, backend);
    reset_interrupts(board);
    hv_pit_reset(&board->pit, 0);
    hv_uart_reset(&board->uart);
}

size_t hv_board_size(void)
{
    return sizeof(struct hv_board);
}

struct hv_clock *hv_board_clock(struct hv_board *board)
{
    return &board->clock;
}

struct hv_pic *hv_board_pic(struct hv_board *board)
{
    return &board->pic;
}

struct hv_counters *hv_board_counters(struct hv_board *board)
{
    return board->crossings.counters;
}

struct hv_crossings *hv_board_crossings(struct hv_board *board)
{
    return &board->crossings;
}

void hv_board_account(struct hv_board *board, uint64_t run_ns, uint64_t halted_ns)
{
    struct hv_counters *counters = board->crossings.counters;
    if (!counters->first_instruction_ns)
        counters->first_instruction_ns = hv_host_ns() - run_ns - halted_ns;
    counters->run_ns += run_ns;
    counters->halted_ns += halted_ns;
}

void hv_board_reset(struct hv_board *board)
{
    board->typed_to_virtio = false;
    reset_interrupts(board);
    hv_pit_reset(&board->pit, hv_clock_now(&board->clock));
    hv_uart_reset(&board->uart);
    for (unsigned i = 0; i < HV_WINDOWS; i++)
        board->window[i].open = false;
    board->crossings.counters->resets++;
}

void hv_board_claim(struct hv_board *board, uint16_t first, uint16_t count)
{
    for (uint32_t port = first; port < (uint32_t)first + count && port < 65536; port++)
        board->claimed[port >> 3] |= (uint8_t)(1u << (port & 7));
}

static bool claimed(const struct hv_board *board, uint16_t port, unsigned size)
{
    for (uint32_t i = port; i < (uint32_t)port + size && i < 65536; i++)
        if (board->claimed[i >> 3] >> (i & 7) & 1)
            return true;
    return false;
}

void hv_board_set_irq(struct hv_board *board, unsigned gsi, bool level)
{
    if (gsi == IRQ_CASCADE)
        return;
    if (gsi < ISA_IRQS)
        hv_pic_set_line(&board->pic, gsi, level);
    hv_ioapic_set_line(&board->ioapic, gsi == IRQ_PIT ? PIN_PIT : gsi, level, &board->lapic);
}

void hv_board_msi(struct hv_board *board, uint64_t address, uint32_t data)
{
    if (address >> 20 != HV_LAPIC_ADDRESS >> 20)
        return;
    if (hv_lapic_is(&board->lapic, (uint8_t)(address >> 12), address >> 2 & 1))
        hv_lapic_deliver(&board->lapic, data >> 8 & 7, (uint8_t)data, data >> 15 & 1);
}

/* Through which controller do ticks of IRQ 0 go? */
static bool tick_by_ioapic(const struct hv_board *board)
{
    return !hv_ioapic_masked(&board->ioapic, PIN_PIT);
}

/* Has the guest taken the last tick: is IRQ 0 neither requested nor in service? */
static bool tick_taken(const struct hv_board *board)
{
    if (tick_by_ioapic(board))
        return !hv_lapic_holds(&board->lapic, hv_ioapic_vector(&board->ioapic, PIN_PIT));
    const struct hv_pic_chip *master = &board->pic.chip[0];
    return !((master->irr | master->isr) >> IRQ_PIT & 1);
}

static bool tick_masked(const struct hv_board *board)
{
    return !tick_by_ioapic(board) && board->pic.chip[0].imr >> IRQ_PIT & 1;
}

/* An edge on IRQ 0: the output goes low for a clock at most, then stays high until the next one is due. */
static void run_pit(struct hv_board *board, uint64_t now_ns)
{
    if (hv_pit_advance(&board->pit, now_ns, tick_taken(board))) {
        hv_board_set_irq(board, IRQ_PIT, false);
        hv_board_set_irq(board, IRQ_PIT, true);
    }
}

static void refresh_uart(struct hv_board *board)
{
    while (!board->typed_to_virtio && hv_uart_can_receive(&board->uart)) {
        int byte = hv_console_read(board->console);
        if (byte < 0)
            break;
        hv_uart_receive(&board->uart, (uint8_t)byte);
        board->crossings.counters->console_in_bytes++;
    }
    hv_board_set_irq(board, IRQ_UART, hv_uart_irq(&board->uart));
}

static uint8_t pit_read(struct hv_board *board, uint16_t port)
{
    uint64_t now_ns = hv_clock_now(&board->clock);
    run_pit(board, now_ns);
    return hv_pit_read(&board->pit, port, now_ns);
}

static void pit_write(struct hv_board *board, uint16_t port, uint8_t value)
{
    uint64_t now_ns = hv_clock_now(&board->clock);
    run_pit(board, now_ns);
    hv_pit_write(&board->pit, port, value, now_ns);
    /* In mode 0 the output stays low until the count is reached, which takes back a request that was not served. */
    if (board->pit.channel[0].mode == 0 && !hv_pit_output(&board->pit, 0, now_ns))
        hv_board_set_irq(board, IRQ_PIT, false);
}

/* After something was done to an interrupt controller: the 8254's next tick may have its turn now. */
static void after_controller(struct hv_board *board, bool was_taken, bool was_masked)
{
    bool masked = tick_masked(board);
    if (tick_taken(board) == was_taken && masked == was_masked)
        return;
    uint64_t now_ns = hv_clock_now(&board->clock);
    run_pit(board, now_ns); /* an edge is requested even while it is masked: that one is not forgiven */
    if (masked != was_masked)
        hv_pit_masked(&board->pit, now_ns, masked);
}

static uint8_t pic_read(struct hv_board *board, uint16_t port)
{
    bool taken = tick_taken(board), masked = tick_masked(board);
    uint8_t value = hv_pic_read(&board->pic, port); /* in poll mode this is an INTA */
    after_controller(board, taken, masked);
    return value;
}

static void pic_write(struct hv_board *board, uint16_t port, uint8_t value)
{
    bool taken = tick_taken(board), masked = tick_masked(board);
    hv_pic_write(&board->pic, port, value);
    if (port == 0x20 && value & 0x10) /* ICW1: everything begins anew */
        hv_pit_forgive(&board->pit, hv_clock_now(&board->clock));
    after_controller(board, taken, masked);
}

/* Does the 8259's INTR output reach the processor: past the local APIC, through its LINT0 or through the IOAPIC's input 0? */
static bool takes_extint(const struct hv_board *board)
{
    return hv_lapic_takes_extint(&board->lapic) || hv_ioapic_passes_extint(&board->ioapic);
}

int hv_board_peek(const struct hv_board *board)
{
    int vector = hv_lapic_peek(&board->lapic);
    return vector < 0 && takes_extint(board) ? hv_pic_peek(&board->pic) : vector;
}

uint8_t hv_board_acknowledge(struct hv_board *board)
{
    bool taken = tick_taken(board), masked = tick_masked(board);
    bool by_pic = hv_lapic_peek(&board->lapic) < 0 && takes_extint(board);
    uint8_t vector = by_pic ? hv_pic_acknowledge(&board->pic) : hv_lapic_acknowledge(&board->lapic);
    after_controller(board, taken, masked);
    return vector;
}

uint8_t hv_board_cr8(const struct hv_board *board)
{
    return board->lapic.tpr >> 4;
}

void hv_board_set_cr8(struct hv_board *board, uint8_t cr8)
{
    if (hv_board_cr8(board) != (cr8 & 15)) /* the register's low half has no place in CR8 */
        board->lapic.tpr = (uint8_t)(cr8 << 4);
}

bool hv_board_read_msr(struct hv_board *board, uint32_t number, uint64_t *value)
{
    if (number != MSR_APIC_BASE && number != MSR_TSC_DEADLINE)
        return false;
    hv_lapic_advance(&board->lapic, hv_clock_now(&board->clock));
    *value = number == MSR_APIC_BASE ? board->lapic.base : hv_lapic_read_deadline(&board->lapic);
    return true;
}

bool hv_board_write_msr(struct hv_board *board, uint32_t number, uint64_t value)
{
    if (number != MSR_APIC_BASE && number != MSR_TSC_DEADLINE)
        return false;
    bool taken = tick_taken(board), masked = tick_masked(board);
    uint64_t now_ns = hv_clock_now(&board->clock);
    hv_lapic_advance(&board->lapic, now_ns);
    if (number == MSR_APIC_BASE)
        hv_lapic_write_base(&board->lapic, value);
    else
        hv_lapic_write_deadline(&board->lapic, value);
    hv_lapic_advance(&board->lapic, now_ns);
    after_controller(board, taken, masked);
    return true;
}

static bool lapic_at(const struct hv_board *board, uint64_t address)
{
    return address - HV_LAPIC_ADDRESS < PAGE && board->lapic.base & HV_LAPIC_BASE_ENABLE;
}

static bool ioapic_at(uint64_t address)
{
    return address - HV_IOAPIC_ADDRESS < PAGE;
}

bool hv_board_mmio_read(struct hv_board *board, uint64_t address, unsigned size, uint64_t *value)
{
    uint32_t whole = 0; /* the register; others than 32-bit accesses to it are not defined, and read what they cut out of it */
    if (lapic_at(board, address)) {
        if ((address & 15) < 4)
            whole = hv_lapic_read(&board->lapic, (uint32_t)(address - HV_LAPIC_ADDRESS), hv_clock_now(&board->clock));
    } else if (ioapic_at(address)) {
        whole = hv_ioapic_read(&board->ioapic, (uint32_t)(address - HV_IOAPIC_ADDRESS) & ~3u);
    } else {
        return hv_pci_mmio_read(board, address, size, value);
    }
    *value = (uint64_t)whole >> 8 * (address & 3);
    if (size < 4)
        *value &= (1u << 8 * size) - 1;
    return true;
}

static void write_lapic(struct hv_board *board, uint32_t offset, uint32_t value)
{
    bool was_enabled = hv_lapic_enabled(&board->lapic);
    int ended = hv_lapic_write(&board->lapic, offset, value, hv_clock_now(&board->clock));
    if (ended >= 0)
        hv_ioapic_end_of_interrupt(&board->ioapic, (uint8_t)ended, &board->lapic);
    if (!was_enabled && hv_lapic_enabled(&board->lapic))
        hv_ioapic_refresh(&board->ioapic, &board->lapic);
}

enum hv_mmio_result hv_board_mmio_write(struct hv_board *board, uint64_t address, unsigned size, uint64_t value)
{
    bool lapic = lapic_at(board, address);
    if (!lapic && !ioapic_at(address))
        return hv_pci_mmio_write(board, address, size, value);
    bool taken = tick_taken(board), masked = tick_masked(board);
    /* Registers take whole 32-bit writes; of the IOAPIC's index a byte is enough (data sheet, "IOREGSEL"). */
    if (lapic && size == 4 && !(address & 15))
        write_lapic(board, (uint32_t)(address - HV_LAPIC_ADDRESS), (uint32_t)value);
    else if (!lapic && (size == 4 || address == HV_IOAPIC_ADDRESS))
        hv_ioapic_write(&board->ioapic, (uint32_t)(address - HV_IOAPIC_ADDRESS), (uint32_t)value, &board->lapic);
    after_controller(board, taken, masked);
    return HV_MMIO_DONE;
}

static uint8_t uart_read(struct hv_board *board, unsigned reg)
{
    unsigned waiting = board->uart.rx_count;
    uint8_t value = hv_uart_read(&board->uart, reg);
    /* Reading a character restarts the timeout of the FIFO, so that the line falls: what remains gives a new edge. */
    if (board->uart.rx_count < waiting)
        hv_board_set_irq(board, IRQ_UART, false);
    refresh_uart(board);
    return value;
}

static enum hv_port_result uart_write(struct hv_board *board, unsigned reg, uint8_t value)
{
    if (hv_uart_transmits(&board->uart, reg) && hv_console_full(board->console))
        return HV_PORT_WAIT;
    if (hv_uart_transmits(&board->uart, reg)) { /* a full transmitter takes the line low, the empty one that follows at once high again */
        board->uart.iir_thri = 0;
        hv_board_set_irq(board, IRQ_UART, hv_uart_irq(&board->uart));
    }
    int byte = hv_uart_write(&board->uart, reg, value);
    if (byte >= 0) {
        hv_console_write(board->console, board->out_event, &(uint8_t){(uint8_t)byte}, 1); /* has room: only this thread fills it */
        board->crossings.counters->console_out_bytes++;
        board->typed_to_virtio = false;
    }
    refresh_uart(board);
    return HV_PORT_DONE;
}

static uint8_t byte_in(struct hv_board *board, uint32_t port)
{
    switch (device_at(port)) {
    case PIC:
        return pic_read(board, (uint16_t)port);
    case PIT:
        return pit_read(board, (uint16_t)port);
    case UART:
        return uart_read(board, port - UART_FIRST);
    case FLOATING:
        break;
    }
    return 0xff;
}

static enum hv_port_result byte_out(struct hv_board *board, uint32_t port, uint8_t value)
{
    switch (device_at(port)) {
    case PIC:
        pic_write(board, (uint16_t)port, value);
        break;
    case PIT:
        pit_write(board, (uint16_t)port, value);
        break;
    case UART:
        return uart_write(board, port - UART_FIRST, value);
    case FLOATING:
        break;
    }
    return HV_PORT_DONE;
}

/* Devices whose rest is in Python. */
static bool registers_in(struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    return hv_pci_in(board, port, size, value) || hv_cmos_in(board, port, size, value) || hv_vga_in(board, port, size, value) ||
           hv_keyboard_in(board, port, size, value) || hv_acpi_in(board, port, size, value);
}

static bool registers_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    return hv_pci_out(board, port, size, value) || hv_cmos_out(board, port, size, value) || hv_vga_out(board, port, size, value) ||
           hv_keyboard_out(board, port, size, value) || hv_acpi_out(board, port, size, value);
}

bool hv_board_answers(uint16_t port) { return device_at(port) != FLOATING; }

enum hv_port_result hv_board_port_in(struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (size == 1 && device_at(port) != FLOATING) { /* what is read most */
        *value = byte_in(board, port);
        return HV_PORT_DONE;
    }
    if (registers_in(board, port, size, value))
        return HV_PORT_DONE;
    if (device_at(port) == FLOATING && claimed(board, port, size))
        return hv_window_in(board, port, size, value) ? HV_PORT_DONE : HV_PORT_LEAVE;
    *value = 0;
    for (unsigned i = 0; i < size; i++)
        *value |= (uint32_t)byte_in(board, (uint32_t)port + i) << (8 * i);
    return HV_PORT_DONE;
}

enum hv_port_result hv_board_port_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (size == 1 && device_at(port) != FLOATING)
        return byte_out(board, port, (uint8_t)value);
    if (registers_out(board, port, size, value))
        return HV_PORT_DONE;
    if (device_at(port) == FLOATING && claimed(board, port, size))
        return hv_window_out(board, port, size, value) ? HV_PORT_DONE : HV_PORT_LEAVE;
    for (unsigned i = 0; i < size; i++) {
        /* Only COM1's data register waits, and no port below it has side effects: doing the access again is safe. */
        if (byte_out(board, (uint32_t)port + i, (uint8_t)(value >> (8 * i))) == HV_PORT_WAIT)
            return HV_PORT_WAIT;
    }
    return HV_PORT_DONE;
}

bool hv_board_advance(struct hv_board *board)
{
    uint64_t now_ns = hv_clock_now(&board->clock);
    run_pit(board, now_ns);
    hv_lapic_advance(&board->lapic, now_ns);
    refresh_uart(board);
    return hv_board_peek(board) >= 0;
}

uint64_t hv_board_deadline(const struct hv_board *board)
{
    uint64_t pit_ns = hv_pit_deadline(&board->pit, tick_taken(board)), lapic_ns = hv_lapic_deadline(&board->lapic);
    return hv_clock_to_host(&board->clock, pit_ns < lapic_ns ? pit_ns : lapic_ns);
}
