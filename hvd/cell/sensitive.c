/* Privileged and sensitive instructions, one row of a table each (Intel SDM vol. 2; vol. 3A, "Privileged Instructions").
 *
 * A handler does the instruction's work; EIP moves on behind it unless the handler says that it went elsewhere.
 */
#include "paravirt.h"
#include "sensitive.h"

#define TSS_MAP_BASE 0x66

/* ---- flags */

static enum hv_after cli(const struct hv_insn *insn)
{
    (void)insn;
    if (HV_CPU->cpl > (HV_CPU->eflags >> 12 & 3))
        hv_raise_error(HV_GP, 0);
    HV_CPU->eflags &= ~HV_IF;
    hv_cross_here(HV_POINT_PRIVILEGED_CLI, 0, 0, 0, 0);
    return NEXT;
}

static enum hv_after sti(const struct hv_insn *insn)
{
    (void)insn;
    if (HV_CPU->cpl > (HV_CPU->eflags >> 12 & 3))
        hv_raise_error(HV_GP, 0);
    bool was = HV_CPU->eflags & HV_IF;
    HV_CPU->eflags |= HV_IF;
    hv_cross_here(HV_POINT_PRIVILEGED_STI, 0, 0, 0, 0);
    HV_CPU->eip = behind(insn);
    HV_CPU->interrupt_shadow = !was;
    return GONE;
}

static enum hv_after pushf(const struct hv_insn *insn)
{
    uint32_t flags = (HV_CPU->eflags | 2) & ~(HV_RF | HV_VM);
    hv_push(insn->operand_size, flags);
    hv_cross_here(HV_POINT_PRIVILEGED_PUSHF, flags, 0, 0, 0);
    return NEXT;
}

static enum hv_after popf(const struct hv_insn *insn)
{
    uint32_t flags = hv_pop_at(insn->operand_size, 0);
    uint32_t settable = HV_STATUS_FLAGS | HV_TF | HV_DF | HV_NT | HV_AC | HV_ID;
    if (HV_CPU->cpl == 0)
        settable |= HV_IOPL;
    if (HV_CPU->cpl <= (HV_CPU->eflags >> 12 & 3))
        settable |= HV_IF;
    if (insn->operand_size == 2)
        settable &= 0xffff;
    HV_CPU->eflags = (HV_CPU->eflags & ~settable & ~HV_RF) | (flags & settable) | 2;
    hv_add_esp(insn->operand_size);
    hv_cross_here(HV_POINT_PRIVILEGED_POPF, flags, 0, 0, 0);
    return NEXT;
}

static enum hv_after hlt(const struct hv_insn *insn)
{
    require_supervisor();
    HV_CPU->eip = behind(insn);
    HV_CPU->interrupt_shadow = 0;
    hv_halt();
    return GONE;
}

/* ---- ports */

void hv_check_io(uint16_t port, unsigned size)
{
    if (HV_CPU->cpl <= (HV_CPU->eflags >> 12 & 3))
        return;
    const struct hv_segment *tss = &HV_CPU->segment[HV_TR];
    if (!(tss->attributes & HV_SEGMENT_PRESENT) || !(HV_SEGMENT_TYPE(tss) & 8) || tss->limit < TSS_MAP_BASE + 1)
        hv_raise_error(HV_GP, 0);
    uint32_t at = (uint32_t)hv_read_system(tss->base + TSS_MAP_BASE, 2) + port / 8;
    if (at + 1 > tss->limit)
        hv_raise_error(HV_GP, 0);
    uint32_t bits = (uint32_t)hv_read_system(tss->base + at, 2) >> (port & 7);
    if (bits & ((1u << size) - 1))
        hv_raise_error(HV_GP, 0);
}

static enum hv_after in_out(const struct hv_insn *insn)
{
    bool out = insn->opcode & 2;
    unsigned size = insn->opcode & 1 ? insn->operand_size : 1;
    uint16_t port = insn->opcode & 8 ? (uint16_t)HV_CPU->r[HV_EDX] : (uint16_t)insn->immediate;
    hv_check_io(port, size);
    if (out)
        hv_port_out(port, size, hv_get_register(HV_EAX, size));
    else
        hv_set_register(HV_EAX, size, hv_port_in(port, size));
    return NEXT;
}

/* ---- segment registers */

static void recorded_load(unsigned segment, uint16_t selector)
{
    /* A twin that was offered, in another cell, from which this guest was moved. */
    if (hv_paravirtual() && selector & ~3u && hv_twin_guest_selector(selector, &selector))
        selector = hv_paravirt_selector(segment, selector);
    hv_load_segment(segment, selector);
    hv_cross_here(HV_POINT_PRIVILEGED_LOAD_SEGMENT, segment, selector, 0, 0);
}

static enum hv_after mov_from_segment(const struct hv_insn *insn)
{
    if (insn->reg > HV_GS)
        hv_raise(HV_UD);
    uint16_t selector = HV_CPU->segment[insn->reg].selector;
    hv_set_rm(insn, insn->mod == 3 ? insn->operand_size : 2, selector);
    return NEXT;
}

static enum hv_after mov_to_segment(const struct hv_insn *insn)
{
    if (insn->reg > HV_GS || insn->reg == HV_CS)
        hv_raise(HV_UD);
    recorded_load(insn->reg, (uint16_t)hv_get_rm(insn, 2));
    if (insn->reg == HV_SS) {
        HV_CPU->eip = behind(insn);
        HV_CPU->interrupt_shadow = 1;
        return GONE;
    }
    return NEXT;
}

static enum hv_after push_segment(const struct hv_insn *insn)
{
    unsigned segment = insn->map == HV_MAP_ONE ? insn->opcode >> 3 & 3 : insn->opcode == 0xa0 ? HV_FS : HV_GS;
    hv_push(insn->operand_size, HV_CPU->segment[segment].selector);
    return NEXT;
}

static enum hv_after pop_segment(const struct hv_insn *insn)
{
    unsigned segment = insn->map == HV_MAP_ONE ? insn->opcode >> 3 & 3 : insn->opcode == 0xa1 ? HV_FS : HV_GS;
    recorded_load(segment, (uint16_t)hv_pop_at(insn->operand_size, 0));
    hv_add_esp(insn->operand_size);
    if (segment == HV_SS) {
        HV_CPU->eip = behind(insn);
        HV_CPU->interrupt_shadow = 1;
        return GONE;
    }
    return NEXT;
}

static enum hv_after load_far_pointer(const struct hv_insn *insn)
{
    unsigned segment = insn->opcode == 0xc4 ? HV_ES : insn->opcode == 0xc5 ? HV_DS : insn->opcode == 0xb2 ? HV_SS : insn->opcode == 0xb4 ? HV_FS : HV_GS;
    if (insn->mod == 3)
        hv_raise(HV_UD);
    uint32_t at = hv_operand_linear(insn, insn->operand_size + 2u, false);
    uint32_t offset = (uint32_t)hv_read(at, insn->operand_size);
    recorded_load(segment, (uint16_t)hv_read(at + insn->operand_size, 2));
    hv_set_register(insn->reg, insn->operand_size, offset);
    return NEXT;
}

/* ---- transfers */

static enum hv_after far_direct(const struct hv_insn *insn)
{
    if (insn->opcode == 0xea)
        hv_far_jump(insn->second, insn->immediate);
    else
        hv_far_call(insn->second, insn->immediate, insn->operand_size, behind(insn));
    return GONE;
}

static enum hv_after far_indirect(const struct hv_insn *insn)
{
    if (insn->mod == 3)
        hv_raise(HV_UD);
    uint32_t at = hv_operand_linear(insn, insn->operand_size + 2u, false);
    uint32_t offset = (uint32_t)hv_read(at, insn->operand_size);
    uint16_t selector = (uint16_t)hv_read(at + insn->operand_size, 2);
    if (insn->reg == 5)
        hv_far_jump(selector, offset);
    else
        hv_far_call(selector, offset, insn->operand_size, behind(insn));
    return GONE;
}

static enum hv_after far_return(const struct hv_insn *insn)
{
    hv_far_return(insn->operand_size, insn->opcode == 0xca ? insn->immediate : 0);
    return GONE;
}

static enum hv_after iret(const struct hv_insn *insn)
{
    hv_interrupt_return(insn->operand_size);
    return GONE;
}

static enum hv_after software_interrupt(const struct hv_insn *insn)
{
    unsigned vector = insn->opcode == 0xcc ? HV_BP : insn->opcode == 0xce ? HV_OF_TRAP : insn->opcode == 0xf1 ? HV_DB : insn->immediate;
    if (insn->opcode == 0xce && !(HV_CPU->eflags & HV_OF))
        return NEXT;
    uint32_t eip = HV_CPU->eip;
    HV_CPU->eip = behind(insn);
    /* What faults on the way belongs to the instruction itself. */
    cell.fault_eip = eip;
    cell.fault_eip_valid = true;
    hv_deliver(vector, false, 0, insn->opcode != 0xf1);
    cell.fault_eip_valid = false;
    return GONE;
}

static enum hv_after absent(const struct hv_insn *insn)
{
    (void)insn;
    hv_raise(HV_UD);
}

/* ---- descriptor tables: 0F 00 and 0F 01 */

static enum hv_after store_selector(const struct hv_insn *insn, unsigned which, uint32_t value)
{
    if (HV_CPU->cpl && HV_CPU->cr4 & HV_CR4_UMIP)
        hv_raise_error(HV_GP, 0);
    hv_set_rm(insn, insn->mod == 3 ? insn->operand_size : 2, value);
    hv_cross_here(HV_POINT_PRIVILEGED_STORE_TABLE, which, value, 0, 0);
    return NEXT;
}

static void set_zf(bool on) { HV_CPU->eflags = on ? HV_CPU->eflags | HV_ZF : HV_CPU->eflags & ~HV_ZF; }

/* LAR and LSL may look at these system descriptors (SDM vol. 2A, table 3-53; vol. 2B, table 4-... of LSL). */
static bool visible(const uint32_t words[2], uint16_t selector, bool lsl)
{
    unsigned type = words[1] >> 8 & 15, level = words[1] >> 13 & 3;
    bool code_or_data = words[1] & HV_SEGMENT_S;
    if (!code_or_data) {
        unsigned known = lsl ? 1u << 1 | 1u << 2 | 1u << 3 | 1u << 9 | 1u << 11 : 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 9 | 1u << 11 | 1u << 12;
        if (!(known >> type & 1))
            return false;
    }
    if (code_or_data && (type & 12) == 12)
        return true;
    return level >= HV_CPU->cpl && level >= (selector & 3u);
}

static enum hv_after lar_lsl(const struct hv_insn *insn)
{
    uint16_t selector = (uint16_t)hv_get_rm(insn, 2);
    uint32_t words[2];
    bool lsl = insn->opcode == 3, ok = hv_descriptor(selector, words) && visible(words, selector, lsl);
    if (ok) {
        struct hv_segment segment;
        hv_unpack(&segment, selector, words);
        hv_set_register(insn->reg, insn->operand_size, lsl ? segment.limit : words[1] & 0x00f0ff00u);
    }
    set_zf(ok);
    hv_cross_here(HV_POINT_PRIVILEGED_DESCRIPTOR_CHECK, selector, 0, 0, 0);
    return NEXT;
}

static enum hv_after verify(const struct hv_insn *insn, bool write)
{
    uint16_t selector = (uint16_t)hv_get_rm(insn, 2);
    uint32_t words[2];
    bool ok = hv_descriptor(selector, words) && words[1] & HV_SEGMENT_S;
    if (ok) {
        unsigned type = words[1] >> 8 & 15, level = words[1] >> 13 & 3;
        bool code = type & 8, conforming = (type & 12) == 12;
        ok = (conforming || (level >= HV_CPU->cpl && level >= (selector & 3u))) && (write ? !code && type & 2 : !code || type & 2);
    }
    set_zf(ok);
    hv_cross_here(HV_POINT_PRIVILEGED_DESCRIPTOR_CHECK, selector, 0, 0, 0);
    return NEXT;
}

static enum hv_after group_00(const struct hv_insn *insn)
{
    uint16_t selector;
    switch (insn->reg) {
    case 0:
        return store_selector(insn, 2, HV_CPU->segment[HV_LDTR].selector);
    case 1:
        return store_selector(insn, 3, HV_CPU->segment[HV_TR].selector);
    case 2:
        require_supervisor();
        selector = (uint16_t)hv_get_rm(insn, 2);
        hv_load_ldtr(selector);
        hv_cross_here(HV_POINT_PRIVILEGED_LLDT, selector, 0, 0, 0);
        return NEXT;
    case 3:
        require_supervisor();
        selector = (uint16_t)hv_get_rm(insn, 2);
        hv_load_tr(selector);
        hv_cross_here(HV_POINT_PRIVILEGED_LTR, selector, 0, 0, 0);
        return NEXT;
    case 4:
        return verify(insn, false);
    case 5:
        return verify(insn, true);
    default:
        hv_raise(HV_UD);
    }
}

static enum hv_after store_table(const struct hv_insn *insn, const struct hv_table *table)
{
    if (HV_CPU->cpl && HV_CPU->cr4 & HV_CR4_UMIP)
        hv_raise_error(HV_GP, 0);
    uint32_t at = hv_operand_linear(insn, 6, true);
    hv_check_write(at, 6);
    hv_write(at, 2, table->limit);
    hv_write(at + 2, 4, table->base);
    hv_cross_here(HV_POINT_PRIVILEGED_STORE_TABLE, insn->reg, table->base, 0, 0);
    return NEXT;
}

static enum hv_after load_table(const struct hv_insn *insn, struct hv_table *table, unsigned point)
{
    require_supervisor();
    uint32_t at = hv_operand_linear(insn, 6, false);
    uint16_t limit = (uint16_t)hv_read(at, 2);
    uint32_t base = (uint32_t)hv_read(at + 2, 4);
    *table = (struct hv_table){.base = insn->operand_size == 2 ? base & 0xffffff : base, .limit = limit};
    hv_cross_here(point, table->base, table->limit, 0, 0);
    return NEXT;
}

static enum hv_after invlpg(const struct hv_insn *insn)
{
    require_supervisor();
    uint32_t linear = HV_CPU->segment[hv_operand_segment(insn)].base + hv_operand_offset(insn);
    hv_shadow_flush_page(linear);
    hv_cross_here(HV_POINT_PRIVILEGED_INVLPG, linear, 0, 0, 0);
    return NEXT;
}

#define RDTSCP 0xf9 /* ModRM; programs see in CPUID that their processor has it, and it traps when RDTSC does (docs/cell.md) */

static enum hv_after group_01(const struct hv_insn *insn)
{
    if (insn->modrm == RDTSCP && HV_CPU->cpl == 3 && !insn->lock) {
        hv_execute_rdtsc(insn);
        HV_CPU->r[HV_ECX] = 0; /* IA32_TSC_AUX: of the only processor */
        return NEXT;
    }
    if (insn->mod == 3 && insn->reg != 4 && insn->reg != 6)
        hv_raise(HV_UD); /* VMX, MONITOR, XGETBV, SVM, SWAPGS, RDTSCP: none is offered to kernels */
    switch (insn->reg) {
    case 0:
        return store_table(insn, &HV_CPU->gdt);
    case 1:
        return store_table(insn, &HV_CPU->idt);
    case 2:
        if (hv_paravirtual())
            hv_paravirt_forget_twins();
        return load_table(insn, &HV_CPU->gdt, HV_POINT_PRIVILEGED_LGDT);
    case 3:
        return load_table(insn, &HV_CPU->idt, HV_POINT_PRIVILEGED_LIDT);
    case 4:
        return store_selector(insn, 4, HV_CPU->cr0);
    case 6:
        return hv_execute_lmsw(insn);
    case 7:
        return invlpg(insn);
    default:
        hv_raise(HV_UD);
    }
}

typedef enum hv_after handler(const struct hv_insn *);

static handler *const one_byte[256] = {
    [0x06] = push_segment, [0x07] = pop_segment, [0x0e] = push_segment, [0x16] = push_segment, [0x17] = pop_segment, [0x1e] = push_segment,
    [0x1f] = pop_segment, [0x8c] = mov_from_segment, [0x8e] = mov_to_segment, [0x9a] = far_direct, [0x9c] = pushf, [0x9d] = popf,
    [0xc4] = load_far_pointer, [0xc5] = load_far_pointer, [0xca] = far_return, [0xcb] = far_return, [0xcc] = software_interrupt,
    [0xcd] = software_interrupt, [0xce] = software_interrupt, [0xcf] = iret, [0xe4] = in_out, [0xe5] = in_out, [0xe6] = in_out, [0xe7] = in_out,
    [0xea] = far_direct, [0xec] = in_out, [0xed] = in_out, [0xee] = in_out, [0xef] = in_out, [0xf1] = software_interrupt, [0xf4] = hlt,
    [0xfa] = cli, [0xfb] = sti, [0xff] = far_indirect,
};

static handler *const two_byte[256] = {
    [0x00] = group_00, [0x01] = group_01, [0x02] = lar_lsl, [0x03] = lar_lsl, [0x05] = absent, [0x06] = hv_execute_clts, [0x07] = absent, [0x08] = hv_execute_cache,
    [0x09] = hv_execute_cache, [0x20] = hv_execute_mov_from_control, [0x21] = hv_execute_mov_debug, [0x22] = hv_execute_mov_to_control, [0x23] = hv_execute_mov_debug, [0x30] = hv_execute_wrmsr, [0x31] = hv_execute_rdtsc,
    [0x32] = hv_execute_rdmsr, [0x33] = hv_execute_rdpmc, [0x34] = absent, [0x35] = absent, [0x37] = absent, [0xa0] = push_segment, [0xa1] = pop_segment, [0xa2] = hv_execute_cpuid,
    [0xa8] = push_segment, [0xa9] = pop_segment, [0xaa] = absent, [0xb2] = load_far_pointer, [0xb4] = load_far_pointer, [0xb5] = load_far_pointer,
};

bool hv_sensitive(const struct hv_insn *insn)
{
    if (insn->map == HV_MAP_0F && insn->opcode == 0xae)
        return hv_fpu_instruction(insn);
    handler *work = insn->map == HV_MAP_ONE ? one_byte[insn->opcode] : insn->map == HV_MAP_0F ? two_byte[insn->opcode] : NULL;
    if (!work)
        return false;
    if (insn->map == HV_MAP_ONE && insn->opcode == 0xff && insn->reg != 3 && insn->reg != 5)
        return false;
    if (insn->lock)
        hv_raise(HV_UD);
    if (work(insn) == NEXT)
        HV_CPU->eip = behind(insn);
    return true;
}
