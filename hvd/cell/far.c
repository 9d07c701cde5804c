/* Transfers between code segments: far JMP, CALL and RET, call gates, IRET (Intel SDM vol. 2A). Not done: task switches. */
#include "cell.h"

#define TYPE_CODE 8u
#define TYPE_CONFORMING 4u
enum { CALL_GATE_16 = 4, TASK_GATE = 5, CALL_GATE_32 = 12 };

struct target {
    uint16_t selector;
    uint32_t words[2];
};

static void find(struct target *target, uint16_t selector)
{
    if (!(selector & ~3u))
        hv_raise_error(HV_GP, 0);
    target->selector = selector;
    if (!hv_descriptor(selector, target->words))
        hv_raise_error(HV_GP, selector & 0xfffc);
}

static bool is_code(const struct target *target) { return target->words[1] & HV_SEGMENT_S && target->words[1] >> 8 & TYPE_CODE; }
static bool is_conforming(const struct target *target) { return target->words[1] >> 8 & TYPE_CONFORMING; }
static unsigned level_of(const struct target *target) { return target->words[1] >> 13 & 3; }

static void require_present(const struct target *target, unsigned vector)
{
    if (!(target->words[1] & HV_SEGMENT_PRESENT))
        hv_raise_error(vector, target->selector & 0xfffc);
}

static void go(struct target *target, unsigned level, uint32_t offset)
{
    struct hv_segment segment;
    hv_mark_accessed(target->selector, target->words);
    target->words[1] |= 0x100;
    hv_unpack(&segment, (uint16_t)((target->selector & ~3u) | level), target->words);
    if (offset > segment.limit)
        hv_raise_error(HV_GP, 0);
    HV_CPU->segment[HV_CS] = segment;
    HV_CPU->cpl = (uint8_t)level;
    HV_CPU->eip = offset;
}

static void record(uint16_t selector, uint32_t offset) { hv_cross_here(HV_POINT_PRIVILEGED_FAR_TRANSFER, selector, offset, 0, 0); }

/* Code in the same level: what a direct JMP or CALL may reach. */
static void check_direct(const struct target *target)
{
    unsigned level = level_of(target), cpl = HV_CPU->cpl;
    bool allowed = is_conforming(target) ? level <= cpl : level == cpl && (target->selector & 3) <= cpl;
    if (!allowed)
        hv_raise_error(HV_GP, target->selector & 0xfffc);
    require_present(target, HV_NP);
}

/* A call gate names the code; returns its offset. */
static uint32_t through_gate(struct target *target, bool *wide, unsigned *parameters)
{
    unsigned type = target->words[1] >> 8 & 0x1f;
    unsigned gate_level = level_of(target);
    if (type == TASK_GATE || (!(target->words[1] & HV_SEGMENT_S) && (type & 5) == 1)) {
        if (gate_level < HV_CPU->cpl || gate_level < (target->selector & 3u))
            hv_raise_error(HV_GP, target->selector & 0xfffc);
        hv_cannot("a far transfer that switches tasks:");
    }
    if ((type != CALL_GATE_16 && type != CALL_GATE_32) || gate_level < HV_CPU->cpl || gate_level < (target->selector & 3u))
        hv_raise_error(HV_GP, target->selector & 0xfffc);
    require_present(target, HV_NP);
    *wide = type == CALL_GATE_32;
    *parameters = target->words[1] & 31;
    uint32_t offset = (target->words[0] & 0xffff) | (*wide ? target->words[1] & 0xffff0000u : 0);
    find(target, (uint16_t)(target->words[0] >> 16));
    if (!is_code(target) || level_of(target) > HV_CPU->cpl)
        hv_raise_error(HV_GP, target->selector & 0xfffc);
    require_present(target, HV_NP);
    return offset;
}

void hv_far_jump(uint16_t selector, uint32_t offset)
{
    struct target target;
    find(&target, selector);
    if (is_code(&target)) {
        check_direct(&target);
    } else {
        bool wide;
        unsigned parameters;
        offset = through_gate(&target, &wide, &parameters);
        if (!is_conforming(&target) && level_of(&target) != HV_CPU->cpl)
            hv_raise_error(HV_GP, target.selector & 0xfffc);
    }
    go(&target, HV_CPU->cpl, offset);
    record(selector, offset);
}

static void call_inner(struct target *target, uint32_t offset, unsigned size, uint32_t next, unsigned parameters)
{
    struct hv_cpu *cpu = HV_CPU;
    struct hv_cpu before = *cpu;
    unsigned level = level_of(target);
    uint16_t selector;
    uint32_t esp, words[2], copied[32];
    hv_new_stack(level, 0, &selector, &esp);
    hv_check_stack_segment(selector, level, true, 0, words);
    for (unsigned i = 0; i < parameters; i++)
        copied[i] = hv_pop_at(size, i * size);
    hv_mark_accessed(selector, words);
    words[1] |= 0x100;
    /* From here on in the new stack; what faults puts the old one back. */
    cpu->cpl = (uint8_t)level;
    hv_unpack(&cpu->segment[HV_SS], selector, words);
    cpu->r[HV_ESP] = esp;
    uint32_t bytes = (4 + parameters) * size;
    uint32_t mask = cpu->segment[HV_SS].attributes & HV_SEGMENT_32 ? ~0u : 0xffff;
    uint32_t low = (esp - bytes) & mask;
    struct hv_segment stack = cpu->segment[HV_SS];
    *cpu = before;
    if (low + bytes - 1 > stack.limit || low + bytes - 1 < low)
        hv_raise_error(HV_STACK, selector & 0xfffc);
    uint32_t at = stack.base + low;
    hv_write_system(at, size, next);
    hv_write_system(at + size, size, before.segment[HV_CS].selector);
    for (unsigned i = 0; i < parameters; i++)
        hv_write_system(at + (2 + i) * size, size, copied[i]);
    hv_write_system(at + (2 + parameters) * size, size, before.r[HV_ESP]);
    hv_write_system(at + (3 + parameters) * size, size, before.segment[HV_SS].selector);
    go(target, level, offset);
    cpu->segment[HV_SS] = stack;
    cpu->r[HV_ESP] = (esp & ~mask) | low;
}

void hv_far_call(uint16_t selector, uint32_t offset, unsigned size, uint32_t next)
{
    struct target target;
    find(&target, selector);
    if (is_code(&target)) {
        check_direct(&target);
    } else {
        bool wide;
        unsigned parameters;
        offset = through_gate(&target, &wide, &parameters);
        size = wide ? 4 : 2;
        if (!is_conforming(&target) && level_of(&target) < HV_CPU->cpl) {
            call_inner(&target, offset, size, next, parameters);
            record(selector, offset);
            return;
        }
    }
    uint32_t esp = HV_CPU->r[HV_ESP];
    uint16_t old = HV_CPU->segment[HV_CS].selector;
    hv_push(size, old);
    uint32_t second = HV_CPU->r[HV_ESP];
    HV_CPU->r[HV_ESP] = esp; /* until nothing can fault any more */
    hv_add_esp(-(int32_t)size);
    hv_push(size, next);
    second = HV_CPU->r[HV_ESP];
    HV_CPU->r[HV_ESP] = esp;
    go(&target, HV_CPU->cpl, offset);
    HV_CPU->r[HV_ESP] = second;
    record(selector, offset);
}

void hv_drop_inner_segments(void)
{
    static const unsigned data[] = {HV_ES, HV_FS, HV_GS, HV_DS};
    for (unsigned i = 0; i < 4; i++) {
        struct hv_segment *segment = &HV_CPU->segment[data[i]];
        unsigned type = HV_SEGMENT_TYPE(segment);
        bool conforming = type & TYPE_CODE && type & TYPE_CONFORMING;
        if (segment->attributes & HV_SEGMENT_PRESENT && !conforming && HV_SEGMENT_DPL(segment) < HV_CPU->cpl)
            *segment = (struct hv_segment){0};
    }
}

/* The common part of RET and IRET: CS:EIP to CS, and SS:ESP behind `depth` bytes if the level changes. flags: to be loaded, IRET only. */
static void return_to(uint16_t selector, uint32_t eip, unsigned size, uint32_t depth, uint32_t release, const uint32_t *flags)
{
    struct hv_cpu *cpu = HV_CPU;
    struct target target;
    unsigned level = selector & 3, old_level = cpu->cpl;
    find(&target, selector);
    if (!is_code(&target) || level < old_level || (is_conforming(&target) ? level_of(&target) > level : level_of(&target) != level))
        hv_raise_error(HV_GP, selector & 0xfffc);
    require_present(&target, HV_NP);
    uint32_t settable = HV_STATUS_FLAGS | HV_TF | HV_DF | HV_NT | HV_RF | HV_AC | HV_ID;
    if (old_level == 0)
        settable |= HV_IOPL;
    if (old_level <= (cpu->eflags >> 12 & 3))
        settable |= HV_IF;
    if (size == 2)
        settable &= 0xffff;
    if (level == old_level) {
        go(&target, level, eip);
        hv_add_esp((int32_t)(depth + release));
    } else {
        uint32_t esp = hv_pop_at(size, depth + release), words[2];
        uint16_t stack = (uint16_t)hv_pop_at(size, depth + release + size);
        hv_check_stack_segment(stack, level, false, 0, words);
        hv_mark_accessed(stack, words);
        words[1] |= 0x100;
        go(&target, level, eip);
        hv_unpack(&cpu->segment[HV_SS], stack, words);
        if (size == 2)
            esp &= 0xffff;
        cpu->r[HV_ESP] = cpu->segment[HV_SS].attributes & HV_SEGMENT_32 ? esp : (cpu->r[HV_ESP] & 0xffff0000u) | (esp & 0xffff);
        hv_add_esp((int32_t)release);
        hv_drop_inner_segments();
    }
    if (flags)
        cpu->eflags = (cpu->eflags & ~settable) | (*flags & settable) | 2;
}

void hv_far_return(unsigned size, uint32_t release)
{
    uint32_t eip = hv_pop_at(size, 0);
    uint16_t selector = (uint16_t)hv_pop_at(size, size);
    return_to(selector, eip, size, 2 * size, release, NULL);
    record(selector, eip);
}

void hv_interrupt_return(unsigned size)
{
    if (HV_CPU->eflags & HV_NT)
        hv_cannot("IRET with EFLAGS.NT set, which switches tasks:");
    uint32_t eip = hv_pop_at(size, 0), flags = hv_pop_at(size, 2 * size);
    uint16_t selector = (uint16_t)hv_pop_at(size, size);
    if (size == 4 && flags & HV_VM && HV_CPU->cpl == 0)
        hv_cannot("IRET to virtual-8086 mode:");
    HV_CPU->nmi_blocked = 0;
    return_to(selector, eip, size, 3 * size, 0, &flags);
    hv_cross_here(HV_POINT_PRIVILEGED_IRET, selector, eip, flags, HV_CPU->cpl);
}
