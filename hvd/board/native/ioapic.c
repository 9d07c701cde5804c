/* The I/O APIC: Intel 82093AA (data sheet, order number 290566), 24 inputs.
 *
 * set_line's level says whether a device asserts its request, whatever polarity the entry names. An edge on a masked input is ignored, a
 * level is not, as the data sheet has it. Input 0 is the 8259 pair's INTR output and matters as ExtINT only.
 */
#include "board.h"

#include <string.h>

enum { ID = 0, VERSION = 1, ARBITRATION = 2, TABLE = 0x10 };
#define VERSION_VALUE (0x11u | (HV_IOAPIC_PINS - 1) << 16)
#define ENTRY_LOGICAL (1ull << 11)
#define ENTRY_REMOTE_IRR (1ull << 14)
#define ENTRY_LEVEL (1ull << 15)
#define ENTRY_MASKED (1ull << 16)
#define ENTRY_WRITABLE 0xff0000000001afffull
#define EXTINT 7u

static unsigned mode_of(uint64_t entry)
{
    return entry >> 8 & 7;
}

void hv_ioapic_reset(struct hv_ioapic *ioapic)
{
    uint32_t lines = ioapic->lines; /* what devices assert */
    *ioapic = (struct hv_ioapic){.lines = lines};
    for (unsigned pin = 0; pin < HV_IOAPIC_PINS; pin++)
        ioapic->entries[pin] = ENTRY_MASKED;
}

bool hv_ioapic_masked(const struct hv_ioapic *ioapic, unsigned pin)
{
    return ioapic->entries[pin] & ENTRY_MASKED;
}

uint8_t hv_ioapic_vector(const struct hv_ioapic *ioapic, unsigned pin)
{
    return (uint8_t)ioapic->entries[pin];
}

bool hv_ioapic_passes_extint(const struct hv_ioapic *ioapic)
{
    return !(ioapic->entries[0] & ENTRY_MASKED) && mode_of(ioapic->entries[0]) == EXTINT;
}

/* An input asks: an edge came, or its level is there and was not accepted yet. */
static void request(struct hv_ioapic *ioapic, unsigned pin, struct hv_lapic *lapic)
{
    uint64_t *entry = &ioapic->entries[pin];
    bool level = *entry & ENTRY_LEVEL;
    if (*entry & ENTRY_MASKED || (level && *entry & ENTRY_REMOTE_IRR) || !hv_lapic_is(lapic, (uint8_t)(*entry >> 56), *entry & ENTRY_LOGICAL))
        return;
    if (hv_lapic_deliver(lapic, mode_of(*entry), (uint8_t)*entry, level) && level)
        *entry |= ENTRY_REMOTE_IRR;
}

void hv_ioapic_set_line(struct hv_ioapic *ioapic, unsigned pin, bool level, struct hv_lapic *lapic)
{
    if (pin >= HV_IOAPIC_PINS)
        return;
    bool was = ioapic->lines >> pin & 1;
    ioapic->lines = level ? ioapic->lines | 1u << pin : ioapic->lines & ~(1u << pin);
    if (level && (!was || ioapic->entries[pin] & ENTRY_LEVEL))
        request(ioapic, pin, lapic);
}

void hv_ioapic_refresh(struct hv_ioapic *ioapic, struct hv_lapic *lapic)
{
    for (unsigned pin = 0; pin < HV_IOAPIC_PINS; pin++)
        if (ioapic->lines >> pin & 1 && ioapic->entries[pin] & ENTRY_LEVEL)
            request(ioapic, pin, lapic);
}

void hv_ioapic_end_of_interrupt(struct hv_ioapic *ioapic, uint8_t vector, struct hv_lapic *lapic)
{
    for (unsigned pin = 0; pin < HV_IOAPIC_PINS; pin++) {
        uint64_t *entry = &ioapic->entries[pin];
        if ((uint8_t)*entry != vector || !(*entry & ENTRY_LEVEL))
            continue;
        *entry &= ~ENTRY_REMOTE_IRR;
        if (ioapic->lines >> pin & 1)
            request(ioapic, pin, lapic);
    }
}

static uint32_t read_register(const struct hv_ioapic *ioapic)
{
    unsigned index = ioapic->index;
    if (index == ID || index == ARBITRATION)
        return (uint32_t)ioapic->id << 24;
    if (index == VERSION)
        return VERSION_VALUE;
    if (index < TABLE || index >= TABLE + 2 * HV_IOAPIC_PINS)
        return 0;
    uint64_t entry = ioapic->entries[(index - TABLE) / 2];
    return (uint32_t)(index & 1 ? entry >> 32 : entry);
}

static void write_register(struct hv_ioapic *ioapic, uint32_t value, struct hv_lapic *lapic)
{
    unsigned index = ioapic->index;
    if (index == ID)
        ioapic->id = value >> 24 & 15;
    if (index < TABLE || index >= TABLE + 2 * HV_IOAPIC_PINS)
        return;
    unsigned pin = (index - TABLE) / 2;
    uint64_t *entry = &ioapic->entries[pin];
    uint64_t written = index & 1 ? (uint64_t)value << 32 | (uint32_t)*entry : (*entry & 0xffffffff00000000ull) | value;
    *entry = (written & (ENTRY_WRITABLE | ENTRY_MASKED)) | (*entry & ENTRY_REMOTE_IRR);
    if (!(*entry & ENTRY_LEVEL)) /* kernels end a level interrupt so where there is no EOI register */
        *entry &= ~ENTRY_REMOTE_IRR;
    else if (ioapic->lines >> pin & 1)
        request(ioapic, pin, lapic);
}

uint32_t hv_ioapic_read(const struct hv_ioapic *ioapic, uint32_t offset)
{
    return offset == 0 ? ioapic->index : offset == 0x10 ? read_register(ioapic) : 0;
}

void hv_ioapic_write(struct hv_ioapic *ioapic, uint32_t offset, uint32_t value, struct hv_lapic *lapic)
{
    if (offset == 0)
        ioapic->index = (uint8_t)value;
    else if (offset == 0x10)
        write_register(ioapic, value, lapic);
}
