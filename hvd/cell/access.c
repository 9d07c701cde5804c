/* The monitor's own accesses to guest memory: by linear address, through the guest's page tables, as the processor would. */
#include "cell.h"
#include "debug.h"
#include "lookaside.h"
#include "paravirt.h"
#include "translate.h"

#define PAGE 4096u

struct hv_lookaside hv_lookaside[HV_ACCESSES][2][HV_LOOKASIDE_ROWS];
uint32_t hv_lookaside_generation = 1;

/* Sizes 1, 2, 4, 8, each as one instruction. */
static uint64_t load(const uint8_t *at, unsigned size)
{
    uint16_t two;
    uint32_t four;
    uint64_t eight;
    switch (size) {
    case 1: return *at;
    case 2: return __builtin_memcpy(&two, at, 2), two;
    case 4: return __builtin_memcpy(&four, at, 4), four;
    default: return __builtin_memcpy(&eight, at, 8), eight;
    }
}

static void store(uint8_t *at, uint64_t value, unsigned size)
{
    switch (size) {
    case 1: *at = (uint8_t)value; break;
    case 2: __builtin_memcpy(at, &value, 2); break;
    case 4: __builtin_memcpy(at, &value, 4); break;
    default: __builtin_memcpy(at, &value, 8); break;
    }
}

/* One access that lies within a page. */
static uint64_t read_within(uint32_t linear, unsigned size, bool user)
{
    uint8_t *at = hv_paravirtual() ? hv_paravirt_at(linear, user) : NULL;
    if (!at) {
        struct hv_walk walk;
        hv_walk(&walk, linear, false, user, false, true);
        if (walk.error)
            hv_raise_page_fault(linear, walk.error);
        at = hv_memory_at(walk.physical, false, NULL);
        if (!at)
            return hv_mmio_read(walk.physical, size);
        hv_lookaside_add(HV_READ, user, linear, at);
    }
    return load(at, size);
}

static void write_within(uint32_t linear, unsigned size, uint64_t value, bool user)
{
    struct hv_walk walk;
    uint8_t *vcpu = hv_paravirtual() ? hv_paravirt_at(linear, user) : NULL;
    if (vcpu) {
        store(vcpu, value, size);
        hv_paravirt_take();
        return;
    }
    hv_walk(&walk, linear, true, user, false, true);
    if (walk.error)
        hv_raise_page_fault(linear, walk.error);
    uint8_t *at = hv_memory_at(walk.physical, true, NULL);
    if (at) {
        hv_code_written(walk.physical, size);
        if (!hv_shadow_is_code(walk.physical))
            hv_lookaside_add(HV_WRITE, user, linear, at);
        hv_lookaside_add(HV_READ, user, linear, at); /* the processor's TLB has one entry for both */
        store(at, value, size);
    }
    else if (!hv_memory_at(walk.physical, false, NULL)) /* a store to ROM is lost */
        hv_mmio_write(walk.physical, size, value);
}

static bool crosses(uint32_t linear, unsigned size)
{
    return (linear & (PAGE - 1)) + size > PAGE;
}

static uint64_t read_as(uint32_t linear, unsigned size, bool user)
{
    if (hv_watching)
        hv_debug_access(linear, size, false);
    const uint8_t *at = hv_lookaside_find(HV_READ, user, linear, size);
    if (at)
        return load(at, size);
    if (!crosses(linear, size))
        return read_within(linear, size, user);
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= read_within(linear + i, 1, user) << 8 * i;
    return value;
}

static void check_as(uint32_t linear, unsigned size, bool write, bool user)
{
    if (hv_paravirtual() && !crosses(linear, size) && hv_paravirt_at(linear, user))
        return;
    for (unsigned i = 0; i < size; i = crosses(linear, size) && i == 0 ? PAGE - (linear & (PAGE - 1)) : size) {
        struct hv_walk walk;
        hv_walk(&walk, linear + i, write, user, false, false);
        if (walk.error)
            hv_raise_page_fault(linear + i, walk.error);
    }
}

static void write_as(uint32_t linear, unsigned size, uint64_t value, bool user)
{
    if (hv_watching)
        hv_debug_access(linear, size, true);
    uint8_t *at = hv_lookaside_find(HV_WRITE, user, linear, size);
    if (at) {
        store(at, value, size);
        return;
    }
    if (!crosses(linear, size)) {
        write_within(linear, size, value, user);
        return;
    }
    check_as(linear, size, true, user); /* all of it or nothing */
    for (unsigned i = 0; i < size; i++)
        write_within(linear + i, 1, value >> 8 * i & 0xff, user);
}

uint64_t hv_read(uint32_t linear, unsigned size) { return read_as(linear, size, HV_CPU->cpl == 3); }
void hv_write(uint32_t linear, unsigned size, uint64_t value) { write_as(linear, size, value, HV_CPU->cpl == 3); }
uint64_t hv_read_system(uint32_t linear, unsigned size) { return read_as(linear, size, false); }
void hv_write_system(uint32_t linear, unsigned size, uint64_t value) { write_as(linear, size, value, false); }

bool hv_in_memory(uint32_t linear)
{
    struct hv_walk walk;
    hv_walk(&walk, linear, false, HV_CPU->cpl == 3, false, false);
    return !walk.error && hv_memory_at(walk.physical, false, NULL);
}

void hv_check_write(uint32_t linear, unsigned size) { check_as(linear, size, true, HV_CPU->cpl == 3); }
void hv_check_read(uint32_t linear, unsigned size) { check_as(linear, size, false, HV_CPU->cpl == 3); }

unsigned hv_fetch_at(uint32_t eip, uint8_t bytes[HV_LONGEST_INSTRUCTION])
{
    const struct hv_segment *cs = &HV_CPU->segment[HV_CS];
    struct hv_walk walk;
    if (eip > cs->limit)
        return 0;
    if (!hv_lookaside_find(HV_FETCH, HV_CPU->cpl == 3, cs->base + eip, 1)) {
        hv_walk(&walk, cs->base + eip, false, HV_CPU->cpl == 3, true, false);
        if (walk.error)
            return 0;
    }
    uint32_t before = HV_CPU->eip;
    HV_CPU->eip = eip;
    unsigned available = hv_fetch(bytes);
    HV_CPU->eip = before;
    return available;
}

unsigned hv_fetch(uint8_t bytes[HV_LONGEST_INSTRUCTION])
{
    const struct hv_segment *cs = &HV_CPU->segment[HV_CS];
    uint32_t offset = HV_CPU->eip;
    unsigned most = HV_LONGEST_INSTRUCTION;
    if (offset > cs->limit)
        hv_raise_error(HV_GP, 0);
    if (cs->limit - offset < most - 1)
        most = cs->limit - offset + 1;
    const uint8_t *known = hv_lookaside_find(HV_FETCH, HV_CPU->cpl == 3, cs->base + offset, HV_LONGEST_INSTRUCTION);
    if (known && most == HV_LONGEST_INSTRUCTION) {
        __builtin_memcpy(bytes, known, HV_LONGEST_INSTRUCTION);
        return HV_LONGEST_INSTRUCTION;
    }
    unsigned got = 0;
    while (got < most) {
        uint32_t linear = cs->base + offset + got;
        struct hv_walk walk;
        hv_walk(&walk, linear, false, HV_CPU->cpl == 3, true, true);
        if (walk.error) {
            if (!got)
                hv_raise_page_fault(linear, walk.error);
            break;
        }
        uint8_t *at = hv_memory_at(walk.physical, false, NULL);
        if (at)
            hv_lookaside_add(HV_FETCH, HV_CPU->cpl == 3, linear, at);
        if (!at && !got)
            hv_fail("code is fetched at %#x, where there is no memory", linear);
        unsigned piece = PAGE - (linear & (PAGE - 1));
        if (piece > most - got)
            piece = most - got;
        for (unsigned i = 0; i < piece; i++)
            bytes[got + i] = at ? at[i] : 0xff; /* a bus that nobody drives */
        got += piece;
    }
    return got;
}
