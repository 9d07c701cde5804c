/* Guest-physical addresses that are no RAM: devices, the board's own, and nothing at all. */
#include <stdlib.h>

#include "shim.h"

#ifdef __x86_64__

/* `user` of these callbacks is not the emulator but the region, whose base the offset lacks. */
struct mmio_region {
    struct hv_emulator *emulator;
    uint64_t base;
    struct mmio_region *next;
};

/* Translated code keeps EIP and the flags' source up to date at the ends of blocks only; here the guest's instruction is looked up. Not
 * every access comes from an instruction (page tables may lie anywhere), so that the note is used once. */
static void find_instruction(struct hv_emulator *e)
{
    uintptr_t *pc = &HV_AT(uintptr_t, e->cpu, CPU_MEM_IO_PC);
    e->unicorn.cpu_restore_state_x86_64(e->cpu, *pc, true);
    *pc = 0;
}

/* Devices: what of them the board in C does not answer is Python's. */
static uint64_t on_mmio_read(uc_engine *uc, uint64_t offset, unsigned size, void *user)
{
    (void)uc;
    struct mmio_region *region = user;
    struct hv_emulator *e = region->emulator;
    uint64_t start = hv_host_ns(), value = ~0ull;
    find_instruction(e);
    if (hv_replay_read(e, false, region->base + offset, size, &value))
        return value;
    if (hv_board_mmio_read(e->board, region->base + offset, size, &value)) {
        hv_cross(&e->board->crossings, HV_POINT_MMIO_READ, start, hv_linear_rip(e), hv_record_flags(e), region->base + offset, size, value, 0);
    } else {
        hv_hooks_describe(e, region->base + offset, size, value, start);
        hv_hooks_leave(e, HV_EXIT_MMIO_READ);
        value = e->exit.value;
    }
    hv_replay_note(e, false, region->base + offset, size, value);
    hv_update_interrupt(e);
    return value;
}

static void on_mmio_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value, void *user)
{
    (void)uc;
    struct mmio_region *region = user;
    struct hv_emulator *e = region->emulator;
    uint64_t start = hv_host_ns(), address = region->base + offset, notified[4];
    find_instruction(e);
    switch (hv_board_mmio_write(e->board, address, size, value)) {
    case HV_MMIO_DONE:
        hv_cross(&e->board->crossings, HV_POINT_MMIO_WRITE, start, hv_linear_rip(e), hv_record_flags(e), address, size, value, 0);
        break;
    case HV_MMIO_NOTIFIED:
        hv_pci_notification(e->board, address, 0, notified);
        hv_cross(&e->board->crossings, HV_POINT_VIRTIO_NOTIFY, start, hv_linear_rip(e), hv_record_flags(e), notified[0], notified[1], notified[2], notified[3]);
        break;
    case HV_MMIO_LEAVE:
        hv_hooks_describe(e, address, size, value, start);
        hv_hooks_leave(e, HV_EXIT_MMIO_WRITE);
        break;
    }
    hv_update_interrupt(e);
}

/* The local APIC and the IOAPIC. */
static uint64_t on_board_read(uc_engine *uc, uint64_t offset, unsigned size, void *user)
{
    (void)uc;
    struct mmio_region *region = user;
    struct hv_emulator *e = region->emulator;
    uint64_t start = hv_host_ns(), value = ~0ull;
    find_instruction(e);
    if (hv_replay_read(e, false, region->base + offset, size, &value))
        return value;
    hv_apic_pull_priority(e);
    hv_board_mmio_read(e->board, region->base + offset, size, &value);
    hv_replay_note(e, false, region->base + offset, size, value);
    hv_cross(&e->board->crossings, HV_POINT_MMIO_READ, start, hv_linear_rip(e), hv_record_flags(e), region->base + offset, size, value, 0);
    hv_update_interrupt(e);
    hv_arm_timer(e); /* looking at a timer runs it */
    return value;
}

static void on_board_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value, void *user)
{
    (void)uc;
    struct mmio_region *region = user;
    struct hv_emulator *e = region->emulator;
    uint64_t start = hv_host_ns();
    find_instruction(e);
    hv_apic_pull_priority(e);
    hv_board_mmio_write(e->board, region->base + offset, size, value);
    hv_apic_push_priority(e);
    hv_cross(&e->board->crossings, HV_POINT_MMIO_WRITE, start, hv_linear_rip(e), hv_record_flags(e), region->base + offset, size, value, 0);
    hv_update_interrupt(e);
    hv_arm_timer(e);
}

/* Nothing answers: reads give all ones, writes vanish, as on a PC's bus. */
static uint64_t on_hole_read(uc_engine *uc, uint64_t offset, unsigned size, void *user)
{
    (void)uc;
    struct mmio_region *region = user;
    struct hv_emulator *e = region->emulator;
    find_instruction(e);
    uint64_t value = size >= 8 ? ~0ull : (1ull << (8 * size)) - 1;
    hv_cross(&e->board->crossings, HV_POINT_MMIO_READ, hv_host_ns(), hv_linear_rip(e), hv_record_flags(e), region->base + offset, size, value, 0);
    return value;
}

static void on_hole_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value, void *user)
{
    (void)uc;
    struct mmio_region *region = user;
    struct hv_emulator *e = region->emulator;
    find_instruction(e);
    hv_cross(&e->board->crossings, HV_POINT_MMIO_WRITE, hv_host_ns(), hv_linear_rip(e), hv_record_flags(e), region->base + offset, size, value, 0);
}

typedef uint64_t mmio_read(uc_engine *, uint64_t, unsigned, void *);
typedef void mmio_write(uc_engine *, uint64_t, unsigned, uint64_t, void *);

static bool map_region(struct hv_emulator *e, uint64_t base, uint64_t length, mmio_read *on_read, mmio_write *on_write)
{
    struct mmio_region *region = calloc(1, sizeof *region);
    if (!region)
        return false;
    *region = (struct mmio_region){ .emulator = e, .base = base, .next = e->regions };
    e->regions = region;
    return e->unicorn.uc_mmio_map(e->uc, base, length, on_read, region, on_write, region) == UC_ERR_OK_;
}

/* After Unicorn was closed. */
void hv_mmio_free(struct hv_emulator *e)
{
    while (e->regions) {
        struct mmio_region *region = e->regions;
        e->regions = region->next;
        free(region);
    }
}

bool hv_emulator_map_hole(struct hv_emulator *e, uint64_t base, uint64_t length)
{
    return map_region(e, base, length, on_hole_read, on_hole_write);
}

bool hv_emulator_map_device(struct hv_emulator *e, uint64_t base, uint64_t length)
{
    return map_region(e, base, length, on_mmio_read, on_mmio_write);
}

bool hv_emulator_map_board(struct hv_emulator *e, uint64_t base, uint64_t length)
{
    return map_region(e, base, length, on_board_read, on_board_write);
}
#endif
