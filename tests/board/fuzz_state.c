/* A board out of a forged snapshot under the sanitizers: fuzz_state SEED STEPS. Whatever the fields' limits let through, nothing that
 * the guest does afterwards may index, shift or divide by it, nor run for ever. */
#include <stdio.h>
#include <stdlib.h>

#include "state.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s, step %lu\n", __FILE__, __LINE__, #condition, step); \
            exit(1); \
        } \
    } while (0)

static uint64_t state;

static uint64_t next(void) /* xorshift64* (Vigna 2014) */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
}

static uint64_t forged(const struct hv_field *field)
{
    switch (next() % 6) {
    case 0:
        return next();
    case 1:
        return field->most;
    case 2:
        return field->most + 1;
    case 3:
        return field->least - 1;
    case 4:
        return next() >> next() % 64;
    default:
        return field->most == UINT64_MAX ? next() : field->least + next() % (field->most - field->least + 1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 0) | 1;
    unsigned long steps = strtoul(argv[2], NULL, 0), refused = 0;
    struct hv_board *board = malloc(sizeof *board);
    struct hv_counters *counters = malloc(sizeof *counters);
    hv_board_init(board, -1, counters, sizeof *counters, NULL, 0, HV_BACKEND_EMULATION);
    hv_clock_start(&board->clock);
    uint8_t buffer[300];

    for (unsigned long step = 0; step < steps; step++) {
        uint32_t got = 0;
        uint64_t wide = 0;
        if (next() % 4 == 0) {
            size_t index = next() % (hv_board_field_count() + 1);
            const struct hv_field *field = hv_board_field(index);
            uint32_t element = field ? (uint32_t)(next() % (field->count + 1)) : 0;
            uint64_t value = field ? forged(field) : next();
            bool inside = field && element < field->count && value >= field->least && value <= field->most;
            CHECK(hv_board_set_field(board, index, element, value) == inside);
            CHECK(!inside || hv_board_get_field(board, index, element) == value);
            refused += !inside;
            hv_board_restored(board);
            continue;
        }
        uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, (uint16_t)(0x3f8 + next() % 8)};
        uint16_t port = ports[next() % (sizeof ports / sizeof *ports)];
        switch (next() % 10) {
        case 0 ... 1:
            hv_board_port_in(board, port, 1, &got);
            break;
        case 2 ... 3:
            hv_board_port_out(board, port, 1, (uint32_t)next() & 0xff);
            break;
        case 4:
            hv_board_set_irq(board, (unsigned)next() % 20, next() & 1);
            break;
        case 5:
            hv_board_acknowledge(board);
            break;
        case 6:
            hv_board_advance(board);
            hv_board_deadline(board);
            hv_console_take(board->console, buffer, sizeof buffer);
            hv_console_put(board->console, buffer, next() % sizeof buffer);
            CHECK(hv_console_unread(board->console, buffer, sizeof buffer) <= sizeof buffer);
            break;
        case 7:
            hv_board_mmio_read(board, (next() & 1 ? 0xfee00000u : 0xfec00000u) + (uint32_t)(next() % 0x400 & ~15u), 4, &wide);
            break;
        case 8:
            hv_board_mmio_write(board, (next() & 1 ? 0xfee00000u : 0xfec00000u) + (uint32_t)(next() % 0x400 & ~15u), 4, (uint32_t)next());
            break;
        case 9:
            hv_clock_set(&board->clock, next() >> next() % 64);
            hv_clock_start(&board->clock);
            break;
        }
    }
    printf("%lu refused\n", refused);
    free(counters);
    free(board);
    return 0;
}
