#include "state.h"

#define MEMBER(path) ((struct hv_board *)0)->path
#define FIELD(name, path, least, most) {name, offsetof(struct hv_board, path), sizeof MEMBER(path), 1, least, most}
#define ARRAY(name, path, least, most) \
    {name, offsetof(struct hv_board, path), sizeof MEMBER(path)[0], sizeof MEMBER(path) / sizeof MEMBER(path)[0], least, most}
#define BYTE(name, path) FIELD(name, path, 0, 0xff)
#define WORD(name, path) FIELD(name, path, 0, UINT32_MAX)
#define FLAG(name, path) FIELD(name, path, 0, 1)
#define TIME(name, path) FIELD(name, path, 0, UINT64_MAX) /* virtual ns; compared and subtracted, so that any value is harmless */
#define COUNT(name, path) FIELD(name, path, 0, UINT64_MAX)

#define PIC_CHIP(name, n)                                                                                                        \
    BYTE(name ".irr", pic.chip[n].irr), BYTE(name ".isr", pic.chip[n].isr), BYTE(name ".imr", pic.chip[n].imr),                  \
    BYTE(name ".vector_base", pic.chip[n].vector_base), BYTE(name ".lines", pic.chip[n].lines),                                  \
    BYTE(name ".elcr", pic.chip[n].elcr), FIELD(name ".init_step", pic.chip[n].init_step, 0, 4),                                 \
    FLAG(name ".icw4_needed", pic.chip[n].icw4_needed), FLAG(name ".auto_eoi", pic.chip[n].auto_eoi),                            \
    FLAG(name ".rotate_on_auto_eoi", pic.chip[n].rotate_on_auto_eoi), FLAG(name ".special_mask", pic.chip[n].special_mask),      \
    FLAG(name ".special_fully_nested", pic.chip[n].special_fully_nested), FLAG(name ".poll", pic.chip[n].poll),                  \
    FLAG(name ".read_isr", pic.chip[n].read_isr), FIELD(name ".lowest_priority", pic.chip[n].lowest_priority, 0, 7),             \
    FLAG(name ".single", pic.chip[n].single)

/* The counts divide: they are never 0. */
#define PIT_CHANNEL(name, n)                                                                                                     \
    FIELD(name ".mode", pit.channel[n].mode, 0, 5), FIELD(name ".access", pit.channel[n].access, 1, 3),                          \
    FLAG(name ".bcd", pit.channel[n].bcd), FLAG(name ".write_low_done", pit.channel[n].write_low_done),                          \
    BYTE(name ".write_latch", pit.channel[n].write_latch), FLAG(name ".read_high_next", pit.channel[n].read_high_next),          \
    FIELD(name ".count_latched", pit.channel[n].count_latched, 0, 3), FLAG(name ".status_latched", pit.channel[n].status_latched), \
    BYTE(name ".status", pit.channel[n].status), FLAG(name ".gate", pit.channel[n].gate),                                        \
    FIELD(name ".loaded", pit.channel[n].loaded, 0, 2), FLAG(name ".output_hint", pit.channel[n].output_hint),                   \
    FIELD(name ".latch", pit.channel[n].latch, 0, 0xffff), FIELD(name ".reload", pit.channel[n].reload, 1, 65536),               \
    TIME(name ".start_ns", pit.channel[n].start_ns), FIELD(name ".next_reload", pit.channel[n].next_reload, 1, 65536),           \
    TIME(name ".stopped_ns", pit.channel[n].stopped_ns)

static const struct hv_field fields[] = {
    PIC_CHIP("pic.master", 0),
    PIC_CHIP("pic.slave", 1),
    PIT_CHANNEL("pit.channel0", 0),
    PIT_CHANNEL("pit.channel1", 1),
    PIT_CHANNEL("pit.channel2", 2),
    WORD("pci.address", pci.address),
    FIELD("lapic.base", lapic.base, 0, UINT64_MAX),
    ARRAY("lapic.isr", lapic.isr, 0, UINT32_MAX),
    ARRAY("lapic.tmr", lapic.tmr, 0, UINT32_MAX),
    ARRAY("lapic.irr", lapic.irr, 0, UINT32_MAX),
    ARRAY("lapic.lvt", lapic.lvt, 0, UINT32_MAX),
    WORD("lapic.ldr", lapic.ldr),
    WORD("lapic.dfr", lapic.dfr),
    WORD("lapic.svr", lapic.svr),
    WORD("lapic.icr", lapic.icr),
    WORD("lapic.icr_high", lapic.icr_high),
    WORD("lapic.esr", lapic.esr),
    WORD("lapic.errors", lapic.errors),
    WORD("lapic.initial_count", lapic.initial_count),
    FIELD("lapic.divide", lapic.divide, 0, 0x0b),
    BYTE("lapic.id", lapic.id),
    BYTE("lapic.tpr", lapic.tpr),
    FLAG("lapic.nmi", lapic.nmi),
    FLAG("lapic.given", lapic.given),
    TIME("lapic.next_tick_ns", lapic.next_tick_ns),
    COUNT("lapic.owed", lapic.owed),
    TIME("lapic.pause_end_ns", lapic.pause_end_ns),
    TIME("lapic.rest_end_ns", lapic.rest_end_ns),
    ARRAY("ioapic.entries", ioapic.entries, 0, UINT64_MAX),
    FIELD("ioapic.lines", ioapic.lines, 0, (1u << HV_IOAPIC_PINS) - 1),
    BYTE("ioapic.index", ioapic.index),
    BYTE("ioapic.id", ioapic.id),
    FLAG("console.typed_to_virtio", typed_to_virtio),
    FIELD("pit.port61", pit.port61, 0, 3),
    TIME("pit.next_edge_ns", pit.next_edge_ns),
    FIELD("pit.owed", pit.owed, 0, (uint64_t)HV_PIT_OWED_SECONDS *HV_PIT_HZ),
    TIME("pit.pause_end_ns", pit.pause_end_ns),
    TIME("pit.rest_end_ns", pit.rest_end_ns),
    TIME("pit.masked_ns", pit.masked_ns),
    COUNT("pit.missed", pit.missed),
    FLAG("pit.given", pit.given),
    FIELD("uart.ier", uart.ier, 0, 0x0f),
    FLAG("uart.iir_thri", uart.iir_thri),
    BYTE("uart.lcr", uart.lcr),
    FIELD("uart.mcr", uart.mcr, 0, 0x1f),
    BYTE("uart.lsr", uart.lsr),
    BYTE("uart.msr", uart.msr),
    BYTE("uart.scr", uart.scr),
    BYTE("uart.fcr", uart.fcr),
    ARRAY("uart.rx", uart.rx, 0, 0xff),
    FIELD("uart.rx_head", uart.rx_head, 0, HV_UART_FIFO - 1),
    FIELD("uart.rx_count", uart.rx_count, 0, HV_UART_FIFO),
    BYTE("uart.rx_overrun", uart.rx_overrun),
    FIELD("uart.polls", uart.polls, 0, HV_UART_POLLS),
    FIELD("uart.divisor", uart.divisor, 0, 0xffff),
    COUNT("uart.tx_bytes", uart.tx_bytes),
    COUNT("uart.rx_bytes", uart.rx_bytes),
};

size_t hv_board_field_count(void)
{
    return sizeof fields / sizeof *fields;
}

const struct hv_field *hv_board_field(size_t index)
{
    return index < hv_board_field_count() ? &fields[index] : NULL;
}

uint64_t hv_board_get_field(const struct hv_board *board, size_t index, uint32_t element)
{
    const struct hv_field *field = hv_board_field(index);
    if (!field || element >= field->count)
        return 0;
    const uint8_t *at = (const uint8_t *)board + field->offset + (size_t)element * field->width;
    switch (field->width) {
    case 1:
        return *at;
    case 2:
        return *(const uint16_t *)at;
    case 4:
        return *(const uint32_t *)at;
    default:
        return *(const uint64_t *)at;
    }
}

bool hv_board_set_field(struct hv_board *board, size_t index, uint32_t element, uint64_t value)
{
    const struct hv_field *field = hv_board_field(index);
    if (!field || element >= field->count || value < field->least || value > field->most)
        return false;
    uint8_t *at = (uint8_t *)board + field->offset + (size_t)element * field->width;
    switch (field->width) {
    case 1:
        *at = (uint8_t)value;
        break;
    case 2:
        *(uint16_t *)at = (uint16_t)value;
        break;
    case 4:
        *(uint32_t *)at = (uint32_t)value;
        break;
    default:
        *(uint64_t *)at = value;
        break;
    }
    return true;
}

void hv_board_restored(struct hv_board *board)
{
    /* The period of the local APIC's timer divides. */
    bool by_deadline = (board->lapic.lvt[HV_LVT_TIMER] >> 17 & 3) == 2;
    if (!board->lapic.initial_count && !by_deadline)
        board->lapic.next_tick_ns = HV_NEVER;
}

bool hv_clock_set(struct hv_clock *clock, uint64_t ns)
{
    if (ns > HV_MOST_NS)
        return false;
    clock->running = false;
    clock->stopped_ns = ns;
    return true;
}
