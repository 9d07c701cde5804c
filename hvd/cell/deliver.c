/* Exceptions and interrupts through the guest's IDT (Intel SDM vol. 3A, "Interrupt and Exception Handling"; vol. 2A, "INT n").
 *
 * Not done: task gates and virtual-8086 mode, which end the guest with that reason; RF is not set in the flags that a fault pushes.
 */
#include <stdio.h>

#include "cell.h"
#include "pace.h"

enum { GATE_TASK = 5, GATE_INTERRUPT_16 = 6, GATE_TRAP_16 = 7, GATE_INTERRUPT_32 = 14, GATE_TRAP_32 = 15 };
#define ERROR_IDT 2u
#define ERROR_EXTERNAL 1u
#define TYPE_CODE 8u
#define TYPE_CONFORMING 4u

/* A stack that is being pushed to: nothing of it is the processor's until all is written. */
struct stack {
    const struct hv_segment *segment;
    uint32_t esp, mask, external;
    unsigned size; /* of a push */
    uint16_t selector;
    bool inner;
};

static void push(struct stack *stack, uint32_t value)
{
    uint32_t offset = (stack->esp - stack->size) & stack->mask, last = offset + stack->size - 1;
    const struct hv_segment *segment = stack->segment;
    bool down = HV_SEGMENT_TYPE(segment) & 4;
    if (down ? offset <= segment->limit : last > segment->limit || last < offset)
        hv_raise_error(HV_STACK, (stack->inner ? stack->selector & 0xfffc : 0) | stack->external);
    hv_write_system(segment->base + offset, stack->size, value);
    stack->esp = (stack->esp & ~stack->mask) | offset;
}

static void record(unsigned vector, uint32_t error, bool software)
{
    if (software)
        hv_cross_here(HV_POINT_SOFTWARE_INTERRUPT, vector, HV_CPU->r[HV_EAX], 0, 0);
    else if (vector == HV_PAGE_FAULT)
        hv_cross_here(HV_POINT_EXCEPTION_BASE + vector, HV_CPU->cr2, error, 0, 0);
    else if (vector < 32)
        hv_cross_here(HV_POINT_EXCEPTION_BASE + vector, error, 0, 0, 0);
    else
        hv_cross_here(HV_POINT_INTERRUPT, vector, 0, 0, 0);
}

void hv_deliver(unsigned vector, bool has_error, uint32_t error, bool software)
{
    struct hv_cpu *cpu = HV_CPU;
    uint32_t external = software ? 0 : ERROR_EXTERNAL, gate_error = vector * 8 | ERROR_IDT | external;
    if (vector * 8 + 7 > cpu->idt.limit)
        hv_raise_error(HV_GP, gate_error);
    uint32_t low = (uint32_t)hv_read_system(cpu->idt.base + vector * 8, 4), high = (uint32_t)hv_read_system(cpu->idt.base + vector * 8 + 4, 4);
    unsigned type = high >> 8 & 0x1f;
    if (type == GATE_TASK) {
        char what[64];
        snprintf(what, sizeof what, "vector %u, which goes through a task gate:", vector);
        hv_cannot(what);
    }
    if (type != GATE_INTERRUPT_16 && type != GATE_TRAP_16 && type != GATE_INTERRUPT_32 && type != GATE_TRAP_32)
        hv_raise_error(HV_GP, gate_error);
    if (software && (high >> 13 & 3) < cpu->cpl)
        hv_raise_error(HV_GP, gate_error);
    if (!(high & HV_SEGMENT_PRESENT))
        hv_raise_error(HV_NP, gate_error);
    bool wide = type >= GATE_INTERRUPT_32;
    uint16_t selector = (uint16_t)(low >> 16);
    uint32_t offset = (low & 0xffff) | (wide ? high & 0xffff0000u : 0);

    uint32_t code[2];
    if (!(selector & ~3u))
        hv_raise_error(HV_GP, external);
    uint32_t selector_error = (selector & 0xfffc) | external;
    if (!hv_descriptor(selector, code))
        hv_raise_error(HV_GP, selector_error);
    unsigned code_type = code[1] >> 8 & 15, level = code[1] >> 13 & 3;
    if (!(code[1] & HV_SEGMENT_S) || !(code_type & TYPE_CODE) || level > cpu->cpl)
        hv_raise_error(HV_GP, selector_error);
    if (!(code[1] & HV_SEGMENT_PRESENT))
        hv_raise_error(HV_NP, selector_error);

    struct hv_segment inner_segment;
    struct stack stack = {.segment = &cpu->segment[HV_SS], .esp = cpu->r[HV_ESP], .external = external, .size = wide ? 4 : 2};
    bool inner = !(code_type & TYPE_CONFORMING) && level < cpu->cpl;
    uint16_t stack_selector = 0;
    uint32_t stack_words[2];
    if (inner) {
        hv_new_stack(level, external, &stack_selector, &stack.esp);
        hv_check_stack_segment(stack_selector, level, true, external, stack_words);
        stack_words[1] |= 0x100; /* accessed */
        hv_unpack(&inner_segment, stack_selector, stack_words);
        stack.segment = &inner_segment;
        stack.selector = stack_selector;
        stack.inner = true;
    } else {
        level = cpu->cpl;
    }
    stack.mask = stack.segment->attributes & HV_SEGMENT_32 ? ~0u : 0xffff;
    if (inner) {
        push(&stack, cpu->segment[HV_SS].selector);
        push(&stack, cpu->r[HV_ESP]);
    }
    push(&stack, cpu->eflags);
    push(&stack, cpu->segment[HV_CS].selector);
    push(&stack, cpu->eip);
    if (has_error)
        push(&stack, error);
    hv_mark_accessed(selector, code);
    if (inner)
        hv_mark_accessed(stack_selector, stack_words);
    struct hv_segment target;
    code[1] |= 0x100;
    hv_unpack(&target, (uint16_t)((selector & ~3u) | level), code);
    if (offset > target.limit)
        hv_raise_error(HV_GP, external);

    record(vector, error, software);
    if (inner)
        cpu->segment[HV_SS] = inner_segment;
    cpu->segment[HV_CS] = target;
    cpu->cpl = (uint8_t)level;
    cpu->r[HV_ESP] = stack.esp;
    cpu->eip = offset;
    cpu->eflags &= ~(HV_TF | HV_NT | HV_RF | HV_VM | (type == GATE_INTERRUPT_16 || type == GATE_INTERRUPT_32 ? HV_IF : 0));
    cpu->interrupt_shadow = 0;
}

void hv_software_interrupt(unsigned vector, unsigned length)
{
    cell.fault_eip = HV_CPU->eip - length;
    cell.fault_eip_valid = true;
    hv_deliver(vector, false, 0, true);
    cell.fault_eip_valid = false;
}

bool hv_interrupts_pending(void)
{
    return (cell.board.lapic.nmi && !HV_CPU->nmi_blocked) || HV_CPU->injected || hv_board_peek(&cell.board) >= 0;
}

bool hv_interrupts_wanted(void)
{
    if (cell.board.lapic.nmi && !HV_CPU->nmi_blocked)
        return true;
    return HV_CPU->eflags & HV_IF && (HV_CPU->injected || hv_board_peek(&cell.board) >= 0);
}

void hv_take_interrupt(void)
{
    struct hv_cpu *cpu = HV_CPU;
    cpu->halted = 0;
    cpu->interrupt_shadow = 0;
    if (cell.board.lapic.nmi && !cpu->nmi_blocked) {
        cell.board.lapic.nmi = false;
        cpu->nmi_blocked = 1;
        hv_deliver(HV_NMI, false, 0, false);
    } else if (cpu->injected) {
        cpu->injected = 0;
        hv_deliver(cpu->injected_vector, false, 0, false);
    } else {
        uint8_t vector = hv_board_acknowledge(&cell.board);
        hv_pace_taken(vector);
        hv_deliver(vector, false, 0, false);
    }
}
