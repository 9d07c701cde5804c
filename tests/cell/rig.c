#include "rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool hv_debugging; /* debug.c */
struct hv_cell cell;
struct rig rig;
static jmp_buf unwind;

void rig_reset(uint8_t *memory, uint32_t size)
{
    memset(&cell, 0, sizeof cell);
    memset(&rig, 0, sizeof rig);
    rig.memory = memory;
    rig.size = size;
    memset(rig.rights, RIG_WRITABLE, size / RIG_PAGE);
    for (unsigned i = HV_ES; i <= HV_GS; i++)
        cell.cpu.segment[i] = (struct hv_segment){.limit = 0xffffffff, .attributes = 0xc09300};
    cell.cpu.segment[HV_CS].attributes = 0xc09b00;
    cell.cpu.eflags = 2;
    cell.cpu.cr0 = HV_CR0_PE;
}

struct hv_cpu *rig_cpu(void) { return HV_CPU; }
struct rig *rig_state(void) { return &rig; }

int rig_step(void)
{
    rig.vector = rig.error = ~0u;
    int outcome = setjmp(unwind);
    if (outcome)
        return outcome;
    hv_emulate();
    return RIG_DONE;
}

_Noreturn void hv_raise_error(unsigned vector, uint32_t error)
{
    rig.vector = vector;
    rig.error = error;
    longjmp(unwind, RIG_RAISED);
}

_Noreturn void hv_raise(unsigned vector) { hv_raise_error(vector, ~0u); }

_Noreturn void hv_raise_page_fault(uint32_t linear, uint32_t error)
{
    rig.address = linear;
    hv_raise_error(HV_PAGE_FAULT, error & 0xff);
}

void hv_deliver(unsigned vector, bool has_error, uint32_t error, bool software)
{
    (void)software;
    hv_raise_error(vector, has_error ? error : ~0u);
}

void hv_breaks_trap(uint32_t cause) /* breaks.c; no breakpoint register is enabled here */
{
    HV_CPU->dr[6] = (HV_CPU->dr[6] & ~0xfu) | cause;
    hv_deliver(HV_DB, false, 0, false);
}

_Noreturn void hv_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rig.failure, sizeof rig.failure, format, arguments);
    va_end(arguments);
    longjmp(unwind, RIG_FAILED);
}

static uint32_t fault_at(uint32_t linear, bool write)
{
    uint32_t page = linear / RIG_PAGE, right = page < rig.size / RIG_PAGE ? rig.rights[page] : RIG_ABSENT;
    uint32_t allowed = right == RIG_ABSENT || (write && right == RIG_READ_ONLY) ? 0x80000000 : 0;
    return allowed ? allowed | (right != RIG_ABSENT) | (write ? 2 : 0) | (HV_CPU->cpl == 3 ? 4 : 0) : 0;
}

void hv_walk(struct hv_walk *walk, uint32_t linear, bool write, bool user, bool fetch, bool set_bits)
{
    (void)user, (void)fetch, (void)set_bits;
    *walk = (struct hv_walk){.physical = linear, .error = fault_at(linear, write)};
}

static void check(uint32_t linear, unsigned size, bool write)
{
    for (unsigned i = 0; i < size; i++) {
        uint32_t error = fault_at(linear + i, write);
        if (error)
            hv_raise_page_fault(linear + i, error);
    }
}

uint64_t hv_read(uint32_t linear, unsigned size)
{
    check(linear, size, false);
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)rig.memory[(uint32_t)(linear + i)] << 8 * i;
    return value;
}

void hv_write(uint32_t linear, unsigned size, uint64_t value)
{
    check(linear, size, true);
    for (unsigned i = 0; i < size; i++)
        rig.memory[(uint32_t)(linear + i)] = (uint8_t)(value >> 8 * i);
}

void hv_check_write(uint32_t linear, unsigned size) { check(linear, size, true); }
void hv_check_read(uint32_t linear, unsigned size) { check(linear, size, false); }

unsigned hv_fetch(uint8_t bytes[HV_LONGEST_INSTRUCTION])
{
    const struct hv_segment *cs = &HV_CPU->segment[HV_CS];
    unsigned got = 0;
    for (; got < HV_LONGEST_INSTRUCTION; got++) {
        uint32_t offset = HV_CPU->eip + got, linear = cs->base + offset;
        if (offset > cs->limit)
            break;
        uint32_t error = fault_at(linear, false);
        if (error && !got)
            hv_raise_page_fault(linear, error);
        if (error)
            break;
        bytes[got] = rig.memory[linear];
    }
    if (!got)
        hv_raise_error(HV_GP, 0);
    return got;
}

uint32_t hv_linear(unsigned segment, uint32_t offset, unsigned size, bool write)
{
    const struct hv_segment *s = &HV_CPU->segment[segment];
    if (write && HV_SEGMENT_TYPE(s) & 8)
        hv_raise_error(HV_GP, 0);
    if (offset > s->limit || s->limit - offset < size - 1)
        if (s->limit != 0xffffffff) /* a flat segment wraps */
            hv_raise_error(segment == HV_SS ? HV_STACK : HV_GP, 0);
    return s->base + offset;
}

static void count_port(uint32_t port, unsigned size, uint32_t value)
{
    rig.port_count++;
    rig.port_hash = (rig.port_hash ^ port ^ size << 16 ^ value) * 0x01000193u;
}

uint32_t rig_port_value(uint32_t count, uint32_t port, uint32_t size)
{
    uint32_t value = (count + 1) * 0x9e3779b1u ^ port * 0x85ebca6bu;
    return size == 4 ? value : value & ((1u << 8 * size) - 1);
}

uint32_t hv_port_in(uint16_t port, unsigned size)
{
    uint32_t value = rig_port_value(rig.port_count, port, size);
    count_port(port, size, 0);
    return value;
}

void hv_port_out(uint16_t port, unsigned size, uint32_t value) { count_port(port, size, value); }

/* Some at once, some one by one. */
static unsigned some(unsigned count) { return count < 3 ? count : 1 + rig.port_count % 3; }

void hv_cross_next(void) {}

unsigned hv_port_in_string(uint16_t port, unsigned size, uint32_t *values, unsigned count)
{
    unsigned done = some(count);
    for (unsigned i = 0; i < done; i++)
        values[i] = hv_port_in(port, size);
    return done;
}

unsigned hv_port_out_string(uint16_t port, unsigned size, const uint32_t *values, unsigned count)
{
    unsigned done = some(count);
    for (unsigned i = 0; i < done; i++)
        hv_port_out(port, size, values[i]);
    return done;
}

bool hv_in_memory(uint32_t linear) { return linear / RIG_PAGE < rig.size / RIG_PAGE; }

void hv_check_io(uint16_t port, unsigned size)
{
    (void)port, (void)size;
    if (HV_CPU->cpl > (HV_CPU->eflags & HV_IOPL) >> 12)
        hv_raise_error(HV_GP, 0);
}

bool hv_kicked(void) { return rig.kick_after && ++rig.kicked_calls >= rig.kick_after; }
bool hv_interrupts_wanted(void) { return false; }
bool hv_x87(const struct hv_insn *insn) { (void)insn; return false; }
bool hv_sse(const struct hv_insn *insn) { (void)insn; return false; }
bool hv_sensitive(const struct hv_insn *insn) { (void)insn; return false; }
