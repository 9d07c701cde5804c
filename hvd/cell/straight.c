/* Straight ways under paravirt: INT 80 of a program through the gate, and IRET of its kernel, where all is as it usually is. They do what deliver.c and
 * far.c do, by pointers and descriptors that are known, or leave everything as it was to those.
 *
 * Nothing here raises an exception, leaves to the runner or calls the host's kernel in a way that fails: FS may still be the guest's.
 */
#include "paravirt.h"

#include <string.h>

#include "debug.h"
#include "lookaside.h"
#include "signals.h"
#include "ticks.h"

#define LOCAL 4u /* of a selector: in the LDT */
#define TYPE_CODE 8u
#define TYPE_OTHER 4u /* conforming code, data that expands down */
#define TYPE_WRITABLE 2u
#define TYPE_ACCESSED 1u
#define DPL_3 0x6000u
#define TSS_32 8u
#define FRAME 20u /* bytes: EIP, CS, EFLAGS, ESP, SS */
#define FRAME_SAME_LEVEL 12u

enum kind { KERNEL_CODE, KERNEL_STACK, PROGRAM_CODE, PROGRAM_STACK, KINDS };

/* Segments by what their descriptors were, all of them such that nothing is left to check but the descriptor. */
static struct known {
    uint64_t words;
    struct hv_segment segment;
} known[KINDS];

static bool is_usual(enum kind kind, const struct hv_segment *segment)
{
    unsigned level = kind >= PROGRAM_CODE ? 3 : 0, type = HV_SEGMENT_TYPE(segment);
    const uint32_t wanted = HV_SEGMENT_S | HV_SEGMENT_PRESENT | HV_SEGMENT_32;
    if ((segment->attributes & wanted) != wanted || HV_SEGMENT_DPL(segment) != level || (segment->selector & 3u) != level || segment->base ||
        type & TYPE_OTHER || !(type & TYPE_ACCESSED))
        return false;
    if (kind == KERNEL_CODE || kind == PROGRAM_CODE)
        return type & TYPE_CODE;
    return !(type & TYPE_CODE) && type & TYPE_WRITABLE && segment->limit == ~0u;
}

static const struct hv_segment *find(enum kind kind, uint16_t selector)
{
    struct known *one = &known[kind];
    uint64_t words;
    const uint8_t *at = hv_lookaside_find(HV_READ, false, HV_CPU->gdt.base + (selector & ~7u), sizeof words);
    if (!at || !(selector & ~3u) || selector & LOCAL || (selector | 7u) > HV_CPU->gdt.limit)
        return NULL;
    memcpy(&words, at, sizeof words);
    if (one->words == words && one->segment.selector == selector)
        return &one->segment;
    struct hv_segment segment;
    hv_unpack(&segment, selector, (const uint32_t[]){(uint32_t)words, (uint32_t)(words >> 32)});
    if (!is_usual(kind, &segment))
        return NULL;
    *one = (struct known){words, segment};
    return &one->segment;
}

static bool is_flat_stack(const struct hv_segment *segment)
{
    return segment->attributes & HV_SEGMENT_PRESENT && segment->attributes & HV_SEGMENT_32 && !segment->base && segment->limit == ~0u && !(HV_SEGMENT_TYPE(segment) & TYPE_OTHER);
}

/* ---- time: of these crossings it is only told how long they took, which the time stamp counter knows sooner than the host */

void hv_straight_count(unsigned point) { hv_crossing_counted(&cell.board.crossings, point, hv_ticks_ns(cell.began_tsc)); }

bool hv_straight_begin(void)
{
    if (hv_debugging || !hv_ticks_do())
        return false;
    cell.began_tsc = hv_host_tsc();
    return true;
}

void hv_straight_end(void)
{
    if (!cell.began_tsc)
        return;
    cell.entry_ns = hv_host_ns() - hv_ticks_ns(cell.began_tsc);
    cell.began_tsc = 0;
    hv_account_run();
}

/* ---- what they do */

bool hv_straight_interrupt(unsigned vector)
{
    struct hv_cpu *cpu = HV_CPU;
    const struct hv_segment *tss = &cpu->segment[HV_TR];
    uint32_t gate[2], stack[2];
    const uint8_t *at = hv_lookaside_find(HV_READ, false, cpu->idt.base + vector * 8, sizeof gate);
    if (!at || cpu->cpl != 3 || vector * 8 + 7 > cpu->idt.limit)
        return false;
    memcpy(gate, at, sizeof gate);
    bool is_trap = gate[1] & 0x100;
    if ((gate[1] & (HV_SEGMENT_PRESENT | DPL_3 | 0x1e00)) != (HV_SEGMENT_PRESENT | DPL_3 | 0xe00)) /* a 32-bit gate, for programs */
        return false;
    uint32_t offset = (gate[0] & 0xffff) | (gate[1] & 0xffff0000u);
    const struct hv_segment *code = find(KERNEL_CODE, gate[0] >> 16 & ~3u);
    if (!code || offset > code->limit || !(tss->attributes & HV_SEGMENT_PRESENT) || !(HV_SEGMENT_TYPE(tss) & TSS_32) || tss->limit < 11)
        return false;
    at = hv_lookaside_find(HV_READ, false, tss->base + 4, sizeof stack);
    if (!at)
        return false;
    memcpy(stack, at, sizeof stack);
    const struct hv_segment *data = find(KERNEL_STACK, (uint16_t)stack[1]);
    uint8_t *to = hv_lookaside_find(HV_WRITE, false, stack[0] - FRAME, FRAME);
    if (!data || !to || stack[0] < FRAME)
        return false;
    const uint32_t frame[] = {cpu->eip, cpu->segment[HV_CS].selector, cpu->eflags, cpu->r[HV_ESP], cpu->segment[HV_SS].selector};
    memcpy(to, frame, sizeof frame);
    cpu->segment[HV_SS] = *data;
    cpu->segment[HV_CS] = *code;
    cpu->cpl = 0;
    cpu->r[HV_ESP] = stack[0] - FRAME;
    cpu->eip = offset;
    cpu->eflags &= ~(HV_TF | HV_NT | HV_RF | HV_VM | (is_trap ? 0 : HV_IF));
    cpu->interrupt_shadow = 0;
    hv_straight_count(HV_POINT_SOFTWARE_INTERRUPT);
    return true;
}

bool hv_straight_int80_entry(void)
{
    struct hv_cpu *cpu = HV_CPU;
    uint32_t back, eip = cpu->eip, esp = cpu->r[HV_ESP];
    const uint8_t *at = hv_lookaside_find(HV_READ, true, esp, sizeof back);
    if (!at || cpu->cpl != 3 || !is_flat_stack(&cpu->segment[HV_SS]))
        return false;
    memcpy(&back, at, sizeof back);
    cpu->eip = back;
    cpu->r[HV_ESP] = esp + 4;
    if (hv_straight_interrupt(0x80))
        return true;
    cpu->eip = eip;
    cpu->r[HV_ESP] = esp;
    return false;
}

bool hv_straight_return(bool at_site)
{
    struct hv_cpu *cpu = HV_CPU;
    uint32_t frame[5];
    uint32_t esp = cpu->r[HV_ESP] + (at_site ? 4 : 0); /* the address behind the site */
    const uint8_t *at = hv_lookaside_find(HV_READ, false, esp, sizeof frame);
    if (!at || cpu->cpl || cpu->eflags & HV_NT || !is_flat_stack(&cpu->segment[HV_SS]))
        return false;
    memcpy(frame, at, sizeof frame);
    if (frame[2] & (HV_TF | HV_NT | HV_RF | HV_VM | HV_AC))
        return false;
    bool to_program = frame[1] & 3;
    const struct hv_segment *code = find(to_program ? PROGRAM_CODE : KERNEL_CODE, (uint16_t)frame[1]);
    const struct hv_segment *data = to_program ? find(PROGRAM_STACK, (uint16_t)frame[4]) : &cpu->segment[HV_SS];
    if (!code || !data || frame[0] > code->limit)
        return false;
    cpu->nmi_blocked = 0;
    cpu->segment[HV_CS] = *code;
    cpu->segment[HV_SS] = *data;
    cpu->cpl = to_program ? 3 : 0;
    cpu->eip = frame[0];
    cpu->r[HV_ESP] = to_program ? frame[3] : esp + FRAME_SAME_LEVEL;
    const uint32_t loaded = HV_STATUS_FLAGS | HV_TF | HV_DF | HV_NT | HV_RF | HV_AC | HV_ID | HV_IOPL | HV_IF;
    cpu->eflags = (cpu->eflags & ~loaded) | (frame[2] & loaded) | 2;
    if (to_program)
        hv_drop_inner_segments();
    hv_straight_count(HV_POINT_PRIVILEGED_IRET);
    return true;
}
