/* Random accesses to the hot devices under the sanitizers: fuzz_board SEED STEPS. Checks what must hold whatever a guest does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s, step %lu\n", __FILE__, __LINE__, #condition, step); \
            exit(1); \
        } \
    } while (0)

static uint64_t state;

static uint32_t next(void) /* xorshift64* (Vigna 2014) */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1dull >> 32);
}

static const uint16_t bases[] = {0x70, 0x71, 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61,
                                 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x3b4, 0x3b5, 0x3ba, 0x3bf, 0x3c0, 0x3c1, 0x3c4, 0x3c5, 0x3c7, 0x3c9,
                                 0x60, 0x60, 0x64, 0x92, 0x600, 0x602, 0x604, 0x605, 0x608, 0xa79, 0x3c9, 0x3ce, 0x3cf, 0x3d4, 0x3d5, 0x3d9, 0x3da, 0x1f, 0x3f6, 0x1f0, 0x1ef, 0xffff, 0xfffe};

/* Three functions of which the last is one of virtio, and one that says nothing true of itself, as in a run area. */
static void add_functions(struct hv_board *board)
{
    struct hv_pci_spaces *spaces = board->spaces;
    board->pci.bus = 1;
    spaces->count = 4;
    for (unsigned i = 0; i < spaces->count; i++) {
        struct hv_pci_space *space = &spaces->space[i];
        board->pci.functions[i] = 1;
        space->place = (uint8_t)(i << 3);
        space->gsi = (uint8_t)(i < 3 ? 10 + i % 2 : next());
        space->bar_bytes[1] = 0x1000;
        space->bar_bytes[4] = i < 3 ? 0x4000 : next();
        space->wide = i < 3 ? 1 << 4 : 0xff;
        space->tells = 1ull << next() % 64;
        memset(space->writable + 4, 0xff, 0x3c);
        space->virtio = (struct hv_virtio){.bar = 4, .queues = (uint8_t)(i < 2 ? 0 : i < 3 ? 2 : 255), .vectors = 3, .offered = 1ull << 32 | 3, .ram_end = 1 << 20};
        for (unsigned q = 0; q < HV_VIRTIO_QUEUES; q++)
            space->virtio.queue[q] = (struct hv_virtio_queue){.most = (uint16_t)(i < 3 ? 64 : next()), .purpose = (uint8_t)(next() % 3)};
    }
    spaces->count = next() % 8 ? 4 : UINT32_MAX;
}

static uint64_t in_window(void)
{
    uint64_t bar = HV_PCI_WINDOW + (next() % 8) * 0x4000;
    return next() % 8 ? bar + (next() % 4) * 0x1000 + (next() % 8 ? next() % 0x40 : next() % 0x1000) : HV_PCI_WINDOW + next() % 0x20000000;
}

/* Configure, mostly as it must be; look at the registers. */
static void use_functions(struct hv_board *board)
{
    static const uint8_t offsets[] = {0x04, 0x04, 0x10, 0x14, 0x20, 0x20, 0x24, 0x3c};
    uint32_t value = next() % 4 ? next() : next() % 2 ? 0x402 : (uint32_t)in_window(), got;
    uint64_t wide = 0;
    unsigned size = 1u << next() % 4;
    board->cmos->memory[next() % 2 ? 10 : 11] = (uint8_t)next();
    board->cmos->frozen = next() & 1;
    if (next() % 64 == 0) { /* as in a run area */
        board->vga->color_component = (uint8_t)next();
        board->vga->misc = (uint8_t)next();
        ((uint8_t *)board->keyboard)[2 + next() % (sizeof *board->keyboard - 2)] = (uint8_t)next();
        board->acpi->status = (uint16_t)next();
    }
    if (next() % 16 == 0) {
        uint8_t codes[20] = {(uint8_t)next(), 0xf0, (uint8_t)next()};
        board->keyboard->refused = next() & 1;
        hv_keyboard_press(board, codes, next() % sizeof codes);
    }
    hv_board_port_out(board, HV_PCI_ADDRESS, 4, 0x80000000u | next() % 6 << 11 | (next() % 4 ? offsets[next() % sizeof offsets] : next() & 0xfc));
    hv_board_port_out(board, (uint16_t)(HV_PCI_ADDRESS + next() % 8), 1u << next() % 3, value);
    hv_board_port_in(board, (uint16_t)(HV_PCI_ADDRESS + next() % 8), 1u << next() % 3, &got);
    hv_board_mmio_write(board, in_window(), size, next() % 2 ? next() : next() & 15);
    hv_board_mmio_read(board, in_window(), size, &wide);
    if (next() % 16 == 0)
        hv_pci_set_intx(board, &board->spaces->space[next() % 4], next() & 1);
    if (next() % 16 == 0)
        board->spaces->space[2].virtio.isr = next() & 3;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 0) | 1;
    unsigned long steps = strtoul(argv[2], NULL, 0);
    struct hv_board *board = malloc(sizeof *board);
    size_t trace_size = sizeof(struct hv_trace_header) + 100 * sizeof(struct hv_record);
    struct hv_counters *counters = malloc(sizeof *counters);
    struct hv_trace_header *trace = calloc(1, trace_size);
    trace->enabled = 0xffffffff;
    hv_board_init(board, -1, counters, sizeof *counters, trace, trace_size, HV_BACKEND_EMULATION);
    hv_board_claim(board, 0xfff0, 0xffff);
    hv_board_claim(board, 0x1f0, 8);
    add_functions(board);
    board->cmos->there = board->vga->there = board->keyboard->there = board->acpi->there = 1;
    hv_keyboard_reset(board);
    board->cmos->base_s = (int64_t)next() * 100 - 200000000000; /* from long before 1970 */
    board->cmos->base_ns = next() % 1000000000;
    hv_clock_start(&board->clock);
    uint64_t taken = 0, typed = 0, sent = 0;
    uint8_t buffer[300];

    for (unsigned long step = 0; step < steps; step++) {
        uint16_t port = bases[next() % (sizeof bases / sizeof *bases)];
        unsigned size = 1u << next() % 3;
        uint32_t value = next(), got = 0;
        switch (next() % 20) {
        case 0 ... 2:
            if (hv_board_port_in(board, port, size, &got) == HV_PORT_DONE && size < 4)
                CHECK(got >> (8 * size) == 0);
            break;
        case 3 ... 6:
            hv_board_port_out(board, port, size, value);
            break;
        case 7:
            hv_board_set_irq(board, value % 26, value >> 8 & 1);
            break;
        case 8: {
            int peek = hv_board_peek(board);
            CHECK(hv_pic_pending(&board->pic) == (hv_pic_peek(&board->pic) >= 0));
            uint8_t vector = hv_board_acknowledge(board);
            CHECK(peek < 0 || vector == peek);
            break;
        }
        case 9:
            CHECK(hv_board_advance(board) == (hv_board_peek(board) >= 0));
            CHECK(board->uart.rx_count <= HV_UART_FIFO);
            break;
        case 10:
            taken += hv_console_take(board->console, buffer, value % sizeof buffer);
            typed += hv_console_put(board->console, buffer, value % sizeof buffer);
            break;
        case 12 ... 14: { /* mostly where there are registers */
            uint64_t offset = next() % 4 ? (next() & 0x3f) << 4 : next() % 0x1040, found = 0;
            uint64_t address = (next() & 1 ? HV_LAPIC_ADDRESS : HV_IOAPIC_ADDRESS) + (next() % 8 ? offset : next() & 0x10);
            unsigned wide = next() % 3 ? 4 : 1u << next() % 4;
            if (next() % 3)
                hv_board_mmio_write(board, address, wide, next() % 2 ? value : value & 0x300ff);
            else if (hv_board_mmio_read(board, address, wide, &found) && wide < 8)
                CHECK(found >> (8 * wide) == 0);
            break;
        }
        case 15:
            hv_board_msi(board, next() % 4 ? HV_LAPIC_ADDRESS | (value & 0xff00c) : value, next());
            board->lapic.nmi = false;
            break;
        case 16: {
            uint32_t number = next() & 1 ? 0x1b : next() & 1 ? 0x6e0 : value;
            uint64_t content = 0;
            if (next() & 1)
                hv_board_write_msr(board, number, (uint64_t)next() << next() % 32 | HV_LAPIC_BASE_ENABLE * (next() % 8 != 0));
            else if (hv_board_read_msr(board, number, &content))
                CHECK(number != 0x1b || content >> 12 == HV_LAPIC_ADDRESS >> 12);
            hv_board_set_cr8(board, (uint8_t)value);
            CHECK(hv_board_cr8(board) == (value & 15));
            break;
        }
        case 17: /* the virtio console */
            memset(buffer, 0, sizeof buffer);
            if (value & 1)
                sent += hv_board_console_write(board, buffer, value % sizeof buffer);
            CHECK(hv_board_console_waiting(board) <= HV_CONSOLE_IN);
            CHECK(hv_board_console_read(board, buffer, value % sizeof buffer) <= value % sizeof buffer);
            break;
        case 18 ... 19:
            use_functions(board);
            break;
        case 11:
            hv_cross(&board->crossings, value, value & 1 ? hv_host_ns() : 0, port, 0, 1, 2, 3, 4);
            if (value % 1000 == 0)
                hv_board_reset(board);
            if (value % 50 == 1) { /* time jumps */
                hv_clock_stop(&board->clock);
                board->clock.stopped_ns += (uint64_t)next() << next() % 20;
                hv_clock_start(&board->clock);
            }
            hv_board_deadline(board);
            if (value % 20 == 2) { /* as from a damaged snapshot */
                struct hv_window *window = hv_board_window(board, next() % HV_WINDOWS);
                window->port = 0x1f0;
                window->open = next() & 1;
                window->out = next() & 1;
                window->length = next() >> next() % 32;
                window->position = next() >> next() % 32;
            }
            break;
        }
    }
    unsigned long step = steps;
    size_t length;
    while ((length = hv_console_take(board->console, buffer, sizeof buffer)))
        taken += length;
    CHECK(taken == board->uart.tx_bytes + sent); /* nothing that was sent is lost */
    CHECK(counters->console_out_bytes == taken);
    CHECK(typed == counters->console_in_bytes + (board->console->in_head - board->console->in_tail));
    CHECK(trace->head == counters->records && trace->capacity == 64);
    printf("%llu sent, %llu typed\n", (unsigned long long)taken, (unsigned long long)typed);
    free(trace);
    free(counters);
    free(board);
    return 0;
}
