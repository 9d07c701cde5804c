/* The judge of what a cell says (hvd/cell/check.c) under the sanitizers: fuzz_area SEED STEPS. Half of the run areas are wholly random,
 * half were sound and got a few random bytes; while some are looked at, a second thread goes on writing, as a cell may. What was
 * accepted must be safe to use: the board runs on with it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "state.h"

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

static struct hv_cell_area area;
static bool stop;

__attribute__((no_sanitize("thread"))) static void *scribble(void *argument)
{
    uint32_t number = 1;
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        number = number * 1664525 + 1013904223;
        size_t room = sizeof area.cpu + sizeof area.devices + sizeof area.pci_spaces + sizeof area.cmos + sizeof area.vga + sizeof area.keyboard + sizeof area.acpi + sizeof area.exit;
        ((volatile uint8_t *)&area.cpu)[number % room] = (uint8_t)(number >> 24);
    }
    return NULL;
}

static void use(struct hv_board *board)
{
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x61, 0x3f8, 0x3fa, 0x3fd};
    uint8_t buffer[64];
    uint32_t value;
    uint64_t wide;
    hv_board_advance(board);
    hv_board_deadline(board);
    if (hv_board_peek(board) >= 0 && next() % 2)
        hv_board_acknowledge(board);
    for (int i = 0; i < 6; i++) {
        uint16_t port = ports[next() % (sizeof ports / sizeof *ports)];
        if (next() % 2)
            hv_board_port_in(board, port, 1, &value);
        else
            hv_board_port_out(board, port, 1, next());
    }
    hv_board_mmio_read(board, HV_LAPIC_ADDRESS + (next() & 0xff0), 4, &wide);
    hv_board_mmio_write(board, HV_LAPIC_ADDRESS + (next() & 0xff0), 4, next());
    hv_console_take(board->console, buffer, sizeof buffer);
    hv_console_put(board->console, buffer, next() % sizeof buffer);
    hv_console_unread(board->console, buffer, sizeof buffer);
}

/* A function of virtio, whose first queue is enabled. */
static void add_function(struct hv_board *board)
{
    struct hv_pci_spaces *spaces = &board->own_spaces;
    spaces->count = 1;
    struct hv_pci_space *space = &spaces->space[0];
    space->gsi = 10;
    space->bar_bytes[4] = 0x4000;
    space->data[0x22] = 0x10;
    space->writable[4] = space->data[4] = 6;
    space->virtio = (struct hv_virtio){.bar = 4, .queues = 2, .vectors = 3, .offered = 3, .accepted = 1, .status = 15};
    space->virtio.queue[0] = (struct hv_virtio_queue){.descriptors = 0x1000, .driver = 0x2000, .device = 0x3000, .size = 8, .enabled = 1};
}

#define RAM 0x100000u

/* One whose driver can negotiate and enable queues, and begins anew now and then. */
static void add_fresh_function(struct hv_board *board)
{
    board->own_spaces.count = 2;
    struct hv_virtio *virtio = &board->own_spaces.space[1].virtio;
    *virtio = (struct hv_virtio){.bar = 4, .queues = 2, .vectors = 3, .offered = 1ull << 32 | 3, .ram_end = RAM};
    virtio->queue[0].most = virtio->queue[1].most = 64;
    virtio->queue[1].purpose = HV_VIRTIO_RANDOM; /* which a cell serves */
}

static bool in_ram(uint64_t start, uint64_t bytes) { return start <= RAM && bytes <= RAM - start; }

static void check_fresh_function(const struct hv_board *board, unsigned long step)
{
    const struct hv_virtio *virtio = &board->own_spaces.space[1].virtio;
    CHECK(virtio->queues == 2 && virtio->offered == (1ull << 32 | 3) && virtio->ram_end == RAM && !(virtio->status & 0x70) && virtio->isr < 2);
    if (virtio->status & 8)
        CHECK(virtio->accepted & 1ull << 32 && !(virtio->accepted & ~virtio->offered));
    for (unsigned i = 0; i < 2; i++) {
        const struct hv_virtio_queue *queue = &virtio->queue[i];
        CHECK(queue->most == 64 && queue->purpose == (i ? HV_VIRTIO_RANDOM : HV_VIRTIO_ANY));
        CHECK(i || (!queue->next && !queue->used && !queue->told));
        if (!queue->enabled)
            continue;
        CHECK(queue->size && queue->size <= 64 && !(queue->size & (queue->size - 1)));
        CHECK(!(queue->descriptors & 15) && !(queue->driver & 1) && !(queue->device & 3));
        CHECK(in_ram(queue->descriptors, 16u * queue->size) && in_ram(queue->driver, 6 + 2u * queue->size) && in_ram(queue->device, 6 + 8u * queue->size));
    }
}

/* What a driver may have written of it. */
static void forge_driver(struct hv_virtio *virtio)
{
    virtio->status = (uint8_t)next();
    virtio->accepted = next() % 2 ? 1ull << 32 | (next() & 7) : next();
    for (unsigned i = 0; i < 2; i++) {
        struct hv_virtio_queue *queue = &virtio->queue[i];
        queue->size = (uint16_t)(next() % 4 ? 1u << next() % 8 : next());
        queue->descriptors = next() % (RAM + 0x1000) & ~15u;
        queue->driver = next() % (RAM + 0x1000) & ~1u;
        queue->device = next() % (RAM + 0x1000) & ~3u;
        queue->enabled = (uint8_t)next();
    }
}

/* What a cell cannot have changed, whatever it wrote. */
static void check_function(const struct hv_board *board, unsigned long step)
{
    const struct hv_pci_space *space = &board->own_spaces.space[0];
    const struct hv_virtio *virtio = &space->virtio;
    const struct hv_virtio_queue *first = &virtio->queue[0];
    CHECK(board->own_spaces.count == 2 && space->gsi == 10 && space->bar_bytes[4] == 0x4000 && !space->data[5] && !(space->data[4] & ~6));
    CHECK(space->data[0x22] == 0x10 && !space->intx && !virtio->isr);
    CHECK(virtio->queues == 2 && virtio->vectors == 3 && virtio->accepted == 1 && (virtio->status | 128) == 143); /* its driver can give up */
    CHECK(first->descriptors == 0x1000 && first->driver == 0x2000 && first->device == 0x3000 && first->size == 8 && first->enabled);
    CHECK(!virtio->queue[1].enabled && !virtio->queue[2].size);
    CHECK(virtio->config_vector < 3 || virtio->config_vector == HV_VIRTIO_NO_VECTOR);
    CHECK(!board->own_vga.there && board->own_vga.color_component < 3 && board->own_vga.colors[767] < 0x40);
    const struct hv_keyboard *keyboard = &board->own_keyboard;
    CHECK(!keyboard->there && keyboard->refused && keyboard->answers.count <= HV_KEY_BYTES && keyboard->lines & 1 && keyboard->full < 2);
    CHECK(keyboard->ps2.answers.count <= HV_KEY_BYTES && keyboard->ps2.keys.count <= HV_KEYS_MOST && keyboard->ps2.set >= 1 && keyboard->ps2.set <= 2);
    const struct hv_acpi *acpi = &board->own_acpi;
    CHECK(!acpi->there && !(acpi->status & ~0x100) && !(acpi->enable & ~0x721) && (acpi->control & ~0x1c00) == 1 && acpi->arbiter < 2 && acpi->half < 2);
    CHECK(board->own_cmos.index < 0x80 && !board->own_cmos.there && !board->own_cmos.base_s && !board->own_cmos.memory[10]);
    CHECK(first->vector < 3 || first->vector == HV_VIRTIO_NO_VECTOR);
}

static void make_sound(const struct hv_board *board)
{
    memset(&area.exit, 0, sizeof area.exit);
    memset(&area.cpu, 0, sizeof area.cpu);
    hv_cell_give_devices(&area, board);
    area.exit.reason = next() % HV_CELL_REASONS;
    area.exit.size = 1u << next() % 3;
    area.exit.address = next() % 2 ? next() & 0xffff : 0xe0000000u;
    area.exit.value = next();
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 0) | 1;
    unsigned long steps = strtoul(argv[2], NULL, 0), accepted = 0, refused = 0;
    struct hv_board *board = malloc(sizeof *board);
    hv_board_init(board, -1, NULL, 0, NULL, 0, HV_BACKEND_TRAP);
    hv_clock_start(&board->clock);
    board->console = &area.console;
    add_function(board);
    add_fresh_function(board);
    hv_keyboard_reset(board);
    board->own_keyboard.refused = 1;
    board->own_acpi.status = 0x100;
    struct hv_cell_known known = {
        .region_count = 3,
        .regions = {{.start = 0, .length = 1 << 20, .kind = HV_REGION_RAM},
                    {.start = 0xe0000000u, .length = 0x1000, .kind = HV_REGION_MMIO},
                    {.start = 0xfee00000u, .length = 0x1000, .kind = HV_REGION_MMIO, .hot = 1}},
        .start_ns = hv_host_ns(),
    };
    struct hv_cell_exit exit_record = {0};
    struct hv_cpu cpu = {0};
    pthread_t other;

    for (unsigned long step = 0; step < steps; step++) {
        uint8_t *bytes = (uint8_t *)&area;
        known.debugged = next() % 2;
        if (step == steps * 3 / 4 && pthread_create(&other, NULL, scribble, NULL) != 0)
            return 3;
        make_sound(board);
        unsigned changes = next() % 4 ? next() % 4 : 4096;
        size_t from = offsetof(struct hv_cell_area, cpu), room = sizeof area - from;
        for (unsigned i = 0; i < changes; i++)
            bytes[from + next() % room] = (uint8_t)next();
        if (next() % 8 == 0)
            for (size_t i = 0; i < sizeof area.devices; i++)
                area.devices[i] = (uint8_t)next();
        if (next() % 8 == 0)
            for (size_t i = 0; i < sizeof area.pci_spaces.space[0]; i++)
                ((uint8_t *)&area.pci_spaces.space[0])[i] = (uint8_t)next();
        if (next() % 4 == 0)
            forge_driver(&area.pci_spaces.space[1].virtio);
        struct hv_cell_exit before = exit_record;
        const char *wrong = hv_cell_take(&known, &area, &exit_record, &cpu, board);
        if (wrong) {
            refused++;
            CHECK(memcmp(&before, &exit_record, sizeof before) == 0);
            use(board);
            continue;
        }
        accepted++;
        CHECK(exit_record.reason < HV_CELL_REASONS && exit_record.reason != HV_CELL_HYPERCALL);
        CHECK(exit_record.size == 0 || exit_record.size == 1 || exit_record.size == 2 || exit_record.size == 4 || exit_record.size == 8);
        CHECK(exit_record.rip <= UINT32_MAX && !(exit_record.flags & ~HV_RECORD_USER));
        CHECK(exit_record.start_ns >= known.start_ns && exit_record.start_ns <= hv_host_ns());
        CHECK(memchr(exit_record.detail, 0, sizeof exit_record.detail));
        for (const char *at = exit_record.detail; *at; at++)
            CHECK(*at >= ' ' && *at <= '~');
        check_function(board, step);
        check_fresh_function(board, step);
        if (next() % 4 == 0)
            add_fresh_function(board);
        CHECK(cpu.cpl < 4 && cpu.halted < 2 && cpu.injected < 2);
        for (size_t i = 0; i < hv_board_field_count(); i++)
            for (uint32_t element = 0; element < hv_board_field(i)->count; element++) {
                uint64_t value = hv_board_get_field(board, i, element);
                CHECK(value >= hv_board_field(i)->least && value <= hv_board_field(i)->most);
            }
        use(board);
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    if (steps)
        pthread_join(other, NULL);
    if (!accepted || !refused) {
        fprintf(stderr, "%lu accepted, %lu refused\n", accepted, refused);
        return 4;
    }
    free(board);
    return 0;
}
