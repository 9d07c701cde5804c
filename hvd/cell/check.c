/* What a cell says, judged. Its guest may have taken it over, so that any byte of the area may be anything and may change at any time:
 * each is copied once, and only the copy is looked at. */
#include <string.h>

#include "host.h"
#include "state.h"

#define DEVICES offsetof(struct hv_board, pic)
#define DEVICES_BYTES (offsetof(struct hv_board, claimed) - DEVICES)
#define ATTRIBUTES 0x00f0ff00u /* of a segment: what a descriptor has */
#define EFER_NXE 0x800u
#define PORTS 65536u

_Static_assert(DEVICES_BYTES <= HV_AREA_DEVICES, "the run area has room for the devices");

void hv_cell_text(char *to, const char *from, size_t size)
{
    memcpy(to, from, size);
    to[size - 1] = 0;
    for (size_t i = 0; to[i]; i++)
        if (to[i] < ' ' || to[i] > '~')
            to[i] = '?';
}

void hv_cell_give_devices(struct hv_cell_area *area, const struct hv_board *board)
{
    memcpy(area->devices, (const uint8_t *)board + DEVICES, DEVICES_BYTES);
    area->cmos = board->own_cmos;
    area->vga = board->own_vga;
    area->keyboard = board->own_keyboard;
    area->acpi = board->own_acpi;
    const struct hv_pci_spaces *spaces = &board->own_spaces;
    area->pci_spaces.count = spaces->count;
    memcpy(area->pci_spaces.space, spaces->space, sizeof *spaces->space * (spaces->count < HV_PCI_SPACES ? spaces->count : HV_PCI_SPACES));
}

/* ---- the exit */

static bool in_runner(const struct hv_cell_known *known, uint64_t address)
{
    for (uint32_t i = 0; i < known->region_count; i++) {
        const struct hv_cell_region *region = &known->regions[i];
        if (region->kind == HV_REGION_MMIO && !region->hot && address - region->start < region->length)
            return true;
    }
    return false;
}

static uint64_t mask(uint32_t size) { return size < 8 ? (1ull << 8 * size) - 1 : ~0ull; }

static const char *check_access(const struct hv_cell_known *known, struct hv_cell_exit *exit)
{
    bool port = exit->reason == HV_CELL_PORT_IN || exit->reason == HV_CELL_PORT_OUT;
    if (exit->size != 1 && exit->size != 2 && exit->size != 4 && (port || exit->size != 8))
        return "an access of a size that there is not";
    if (port ? exit->address >= PORTS : !in_runner(known, exit->address))
        return port ? "a port that there is not" : "an access to memory that is none of a device";
    exit->value &= mask(exit->size);
    return exit->count > HV_AREA_STRING ? "more elements of a string than there is room for" : NULL;
}

static const char *check_exit(const struct hv_cell_known *known, struct hv_cell_exit *exit)
{
    uint64_t now_ns = hv_host_ns();
    if (exit->start_ns < known->start_ns || exit->start_ns > now_ns)
        exit->start_ns = now_ns;
    exit->flags &= HV_RECORD_USER;
    exit->count = exit->reason == HV_CELL_PORT_IN || exit->reason == HV_CELL_PORT_OUT ? exit->count : 0;
    exit->rip &= UINT32_MAX;
    switch (exit->reason) {
    case HV_CELL_PORT_IN:
    case HV_CELL_PORT_OUT:
    case HV_CELL_MMIO_READ:
    case HV_CELL_MMIO_WRITE:
        exit->detail[0] = 0;
        return check_access(known, exit);
    case HV_CELL_DEBUG:
        if (!known->debugged)
            return "a stop for a debugger that there is not";
        if (exit->value < 1 || exit->value > 3) /* DebugCause */
            return "a stop for a debugger without a cause";
        exit->address &= UINT32_MAX;
        break;
    case HV_CELL_HYPERCALL: /* no mode has calls that leave as such */
        return "a hypercall";
    case HV_CELL_INTERRUPTED:
    case HV_CELL_HALT:
    case HV_CELL_SHUTDOWN:
    case HV_CELL_CONSOLE_FULL:
        exit->address = exit->value = 0;
        break;
    case HV_CELL_ERROR: {
        char text[sizeof exit->detail];
        hv_cell_text(text, exit->detail, sizeof text);
        memcpy(exit->detail, text, sizeof text);
        exit->address = exit->value = 0;
        exit->size = 0;
        return NULL;
    }
    default:
        return "an exit that there is not";
    }
    exit->size = 0;
    exit->detail[0] = 0;
    return NULL;
}

/* ---- the processor: the runner prints it, walks page tables by it, saves it and gives it back to the cell */

static const char *check_cpu(struct hv_cpu *cpu)
{
    uint8_t flags = cpu->halted | cpu->interrupt_shadow | cpu->nmi_blocked | cpu->nmi_pending | cpu->injected;
    if (cpu->cpl > 3 || flags > 1)
        return "a state of the processor that there is not";
    if (cpu->efer & ~(uint64_t)EFER_NXE || (cpu->cr0 & HV_CR0_PG && !(cpu->cr0 & HV_CR0_PE)))
        return "a mode of the processor that there is not";
    for (unsigned i = 0; i < HV_SEGMENTS; i++) {
        cpu->segment[i].attributes &= ATTRIBUTES;
        cpu->segment[i].reserved = 0;
    }
    cpu->eflags |= 2;
    cpu->user_limit &= ~0xfffu; /* of a page */
    return NULL;
}

/* ---- the devices: as strictly as those of a snapshot (state.c) */

static uint64_t value_at(const uint8_t *at, uint32_t width)
{
    uint64_t value = 0;
    memcpy(&value, at, width); /* little-endian, as the board's hosts are */
    return value;
}

static bool check_devices(const uint8_t *devices)
{
    for (size_t i = 0; i < hv_board_field_count(); i++) {
        const struct hv_field *field = hv_board_field(i);
        const uint8_t *at = devices + (field->offset - DEVICES);
        for (uint32_t element = 0; element < field->count; element++, at += field->width) {
            uint64_t value = value_at(at, field->width);
            if (value < field->least || value > field->most)
                return false;
        }
    }
    return true;
}

static void take_devices(struct hv_board *board, const uint8_t *devices)
{
    for (size_t i = 0; i < hv_board_field_count(); i++) {
        const struct hv_field *field = hv_board_field(i);
        memcpy((uint8_t *)board + field->offset, devices + (field->offset - DEVICES), (size_t)field->width * field->count);
    }
    hv_board_restored(board);
}

const char *hv_cell_take(const struct hv_cell_known *known, const struct hv_cell_area *area, struct hv_cell_exit *exit, struct hv_cpu *cpu,
                         struct hv_board *board)
{
    struct hv_cell_exit new_exit;
    struct hv_cpu new_cpu;
    uint8_t devices[DEVICES_BYTES];
    memcpy(&new_exit, &area->exit, sizeof new_exit);
    memcpy(&new_cpu, &area->cpu, sizeof new_cpu);
    memcpy(devices, area->devices, sizeof devices);
    __asm__ volatile("" : : : "memory"); /* the compiler may not look there again */
    const char *wrong = check_exit(known, &new_exit);
    if (!wrong)
        wrong = check_cpu(&new_cpu);
    /* Most exits leave the devices as they are, and comparing is quicker than checking. */
    bool same = memcmp(devices, (const uint8_t *)board + DEVICES, sizeof devices) == 0;
    if (!wrong && !same && !check_devices(devices))
        wrong = "a state of the board's devices that there is not";
    if (wrong)
        return wrong;
    *exit = new_exit;
    *cpu = new_cpu;
    if (!same)
        take_devices(board, devices);
    hv_pci_take(&board->own_spaces, &area->pci_spaces);
    hv_cmos_take(&board->own_cmos, &area->cmos);
    hv_vga_take(&board->own_vga, &area->vga);
    hv_keyboard_take(&board->own_keyboard, &area->keyboard);
    hv_acpi_take(&board->own_acpi, &area->acpi);
    return NULL;
}
