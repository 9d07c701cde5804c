/* Instructions of the guest, executed by the monitor: their operands, the stack, and who executes which. */
#include "cell.h"
#include "debug.h"

/* ---- registers */

uint32_t hv_get_register(unsigned index, unsigned size)
{
    switch (size) {
    case 1: return (index < 4 ? HV_CPU->r[index] : HV_CPU->r[index - 4] >> 8) & 0xff;
    case 2: return HV_CPU->r[index] & 0xffff;
    default: return HV_CPU->r[index];
    }
}

void hv_set_register(unsigned index, unsigned size, uint32_t value)
{
    uint32_t mask = size == 2 ? 0xffff : size == 4 ? 0xffffffff : index < 4 ? 0xff : 0xff00;
    uint32_t *r = &HV_CPU->r[size == 1 ? index & 3 : index];
    if (mask == 0xff00)
        value <<= 8;
    *r = (*r & ~mask) | (value & mask);
}

/* ---- memory operands (Intel SDM vol. 2, tables 2-1 to 2-3) */

uint32_t hv_operand_offset(const struct hv_insn *insn)
{
    const uint32_t *r = HV_CPU->r;
    uint32_t offset = (uint32_t)insn->displacement;
    if (!insn->has_modrm) /* moffs */
        return insn->address_size == 2 ? offset & 0xffff : offset;
    if (insn->address_size == 2) {
        static const int8_t bases[8] = {HV_EBX, HV_EBX, HV_EBP, HV_EBP, -1, -1, HV_EBP, HV_EBX};
        static const int8_t indexes[8] = {HV_ESI, HV_EDI, HV_ESI, HV_EDI, HV_ESI, HV_EDI, -1, -1};
        if (bases[insn->rm] >= 0 && !(insn->mod == 0 && insn->rm == 6))
            offset += r[bases[insn->rm]];
        if (indexes[insn->rm] >= 0)
            offset += r[indexes[insn->rm]];
        return offset & 0xffff;
    }
    if (!insn->has_sib)
        return insn->mod == 0 && insn->rm == 5 ? offset : offset + r[insn->rm];
    if (insn->mod != 0 || insn->base != 5)
        offset += r[insn->base];
    if (insn->index != 4)
        offset += r[insn->index] << insn->scale;
    return offset;
}

unsigned hv_operand_segment(const struct hv_insn *insn)
{
    if (insn->segment >= 0)
        return (unsigned)insn->segment;
    if (!insn->has_modrm)
        return HV_DS;
    bool stack;
    if (insn->address_size == 2)
        stack = insn->rm == 2 || insn->rm == 3 || (insn->rm == 6 && insn->mod != 0);
    else if (insn->has_sib)
        stack = insn->base == HV_ESP || (insn->base == HV_EBP && insn->mod != 0);
    else
        stack = insn->rm == HV_EBP && insn->mod != 0;
    return stack ? HV_SS : HV_DS;
}

uint32_t hv_operand_linear(const struct hv_insn *insn, unsigned size, bool write)
{
    return hv_linear(hv_operand_segment(insn), hv_operand_offset(insn), size, write);
}

uint32_t hv_get_rm(const struct hv_insn *insn, unsigned size)
{
    return insn->mod == 3 ? hv_get_register(insn->rm, size) : (uint32_t)hv_read(hv_operand_linear(insn, size, false), size);
}

void hv_set_rm(const struct hv_insn *insn, unsigned size, uint32_t value)
{
    if (insn->mod == 3)
        hv_set_register(insn->rm, size, value);
    else
        hv_write(hv_operand_linear(insn, size, true), size, value);
}

/* ---- the stack */

static uint32_t stack_mask(void)
{
    return HV_CPU->segment[HV_SS].attributes & HV_SEGMENT_32 ? 0xffffffff : 0xffff;
}

void hv_add_esp(int32_t bytes)
{
    uint32_t mask = stack_mask(), *esp = &HV_CPU->r[HV_ESP];
    *esp = (*esp & ~mask) | ((*esp + (uint32_t)bytes) & mask);
}

void hv_push_at(unsigned size, uint32_t depth, uint32_t value)
{
    hv_write(hv_linear(HV_SS, (HV_CPU->r[HV_ESP] - depth) & stack_mask(), size, true), size, value);
}

void hv_push(unsigned size, uint32_t value)
{
    hv_push_at(size, size, value);
    hv_add_esp(-(int32_t)size);
}

uint32_t hv_pop_at(unsigned size, uint32_t depth)
{
    return (uint32_t)hv_read(hv_linear(HV_SS, (HV_CPU->r[HV_ESP] + depth) & stack_mask(), size, false), size);
}

/* ---- the instruction pointer */

bool hv_done(const struct hv_insn *insn)
{
    HV_CPU->eip += insn->length; /* all of it, even in 16-bit code, which only jumps make IP */
    return true;
}

/* ---- one instruction */

/* LOCK is for a few that write memory (SDM vol. 2, LOCK); with anything else it is #UD. */
bool hv_may_lock(const struct hv_insn *insn)
{
    if (!insn->has_modrm || insn->mod == 3)
        return false;
    unsigned opcode = insn->opcode, reg = insn->reg;
    if (insn->map == HV_MAP_ONE)
        return (opcode < 0x38 && (opcode & 7) < 2) || (opcode >= 0x80 && opcode <= 0x83 && reg != 7) || opcode == 0x86 || opcode == 0x87
            || ((opcode == 0xf6 || opcode == 0xf7) && (reg == 2 || reg == 3)) || (opcode >= 0xfe && reg < 2);
    if (insn->map != HV_MAP_0F)
        return false;
    return opcode == 0xab || opcode == 0xb3 || opcode == 0xbb || (opcode == 0xba && reg >= 5) || opcode == 0xb0 || opcode == 0xb1
        || opcode == 0xc0 || opcode == 0xc1 || (opcode == 0xc7 && reg == 1);
}

/* Instructions by opcode, a bit for each /reg with a register and with a memory operand. */
struct forms {
    uint8_t map, opcode, registers, memory;
};

/* Forms that decode but that IA-32 does not define, and UD0, UD1, UD2. */
static const struct forms undefined[] = {
    {HV_MAP_ONE, 0x62, 0xff, 0}, {HV_MAP_ONE, 0x8c, 0xc0, 0xc0}, {HV_MAP_ONE, 0x8d, 0xff, 0}, {HV_MAP_ONE, 0x8e, 0xc2, 0xc2},
    {HV_MAP_ONE, 0x8f, 0xfe, 0xfe}, {HV_MAP_ONE, 0xc4, 0xff, 0}, {HV_MAP_ONE, 0xc5, 0xff, 0}, {HV_MAP_ONE, 0xc6, 0x7e, 0xfe},
    {HV_MAP_ONE, 0xc7, 0x7e, 0xfe}, {HV_MAP_ONE, 0xfe, 0xfc, 0xfc}, {HV_MAP_ONE, 0xff, 0xa8, 0x80}, {HV_MAP_0F, 0x00, 0xc0, 0xc0},
    {HV_MAP_0F, 0x0b, 0xff, 0xff}, {HV_MAP_0F, 0xb9, 0xff, 0xff}, {HV_MAP_0F, 0xff, 0xff, 0xff}, {HV_MAP_0F, 0xba, 0x0f, 0x0f},
    {HV_MAP_0F, 0xb2, 0xff, 0}, {HV_MAP_0F, 0xb4, 0xff, 0}, {HV_MAP_0F, 0xb5, 0xff, 0}, {HV_MAP_0F, 0xc3, 0xff, 0},
    {HV_MAP_0F, 0xc7, 0x3f, 0x05}, {HV_MAP_0F, 0x0d, 0xff, 0}, {HV_MAP_0F, 0xae, 0x1f, 0},
};

/* What CPUID hides from kernels (hvd/cell/features.py), so that it is #UD there: XABORT, XBEGIN; FEMMS; VMREAD, VMWRITE; VIA's
 * cryptography; XSAVE and its like. All of VEX, EVEX and 3DNow!, too. */
static const struct forms hidden[] = {
    {HV_MAP_ONE, 0xc6, 0x80, 0}, {HV_MAP_ONE, 0xc7, 0x80, 0}, {HV_MAP_0F, 0x0e, 0xff, 0xff}, {HV_MAP_0F, 0x78, 0xff, 0xff}, {HV_MAP_0F, 0x79, 0xff, 0xff},
    {HV_MAP_0F, 0xa6, 0xff, 0xff}, {HV_MAP_0F, 0xa7, 0xff, 0xff}, {HV_MAP_0F, 0xae, 0xe0, 0x70}, {HV_MAP_0F, 0xc7, 0xc0, 0xf8},
};

static bool listed(const struct forms *table, size_t rows, const struct hv_insn *insn)
{
    for (size_t i = 0; i < rows; i++) {
        if (table[i].map == insn->map && table[i].opcode == insn->opcode) {
            unsigned forms = insn->has_modrm && insn->mod != 3 ? table[i].memory : table[i].registers;
            return forms >> insn->reg & 1;
        }
    }
    return false;
}

static bool is_undefined(const struct hv_insn *insn) { return listed(undefined, sizeof undefined / sizeof *undefined, insn); }

static bool is_hidden(const struct hv_insn *insn)
{
    return insn->map == HV_MAP_VEX || insn->map == HV_MAP_3DNOW || listed(hidden, sizeof hidden / sizeof *hidden, insn);
}

/* INT n, INT3, INTO, INT1: what they call starts without TF, and the trap of the instruction itself is lost with it. */
static bool is_software_interrupt(const struct hv_insn *insn)
{
    return insn->map == HV_MAP_ONE && ((insn->opcode >= 0xcc && insn->opcode <= 0xce) || insn->opcode == 0xf1);
}

/* ---- x87, MMX and SSE */

enum hv_fpu hv_fpu_kind(const struct hv_insn *insn)
{
    unsigned op = insn->opcode;
    bool prefixed = insn->operand_prefix || insn->repeat;
    switch (insn->map) {
    case HV_MAP_ONE:
        return op >= 0xd8 && op <= 0xdf ? HV_FPU_X87 : op == 0x9b ? HV_FPU_WAIT : HV_FPU_NONE;
    case HV_MAP_0F:
        if ((op >= 0x10 && op <= 0x17) || (op >= 0x28 && op <= 0x2f) || (op >= 0x50 && op <= 0x5f) || op == 0xc2 || op == 0xc6)
            return HV_FPU_SSE;
        if ((op >= 0x60 && op <= 0x7f) || op == 0xc4 || op == 0xc5 || (op >= 0xd0 && op <= 0xfe))
            return prefixed ? HV_FPU_SSE : HV_FPU_X87;
        if (op == 0xae && insn->mod != 3 && insn->reg < 4) /* FXSAVE, FXRSTOR; LDMXCSR, STMXCSR */
            return insn->reg < 2 ? HV_FPU_X87 : HV_FPU_SSE;
        if (insn->mod != 3 && ((op == 0xae && insn->reg < 7) || (op == 0xc7 && insn->reg >= 3 && insn->reg < 6))) /* XSAVE, XRSTOR and the like */
            return prefixed ? HV_FPU_NONE : HV_FPU_AVX;
        return HV_FPU_NONE;
    case HV_MAP_0F38:
        return op < 0x80 || (op >= 0xc0 && op < 0xf0) ? (prefixed ? HV_FPU_SSE : HV_FPU_X87) : HV_FPU_NONE;
    case HV_MAP_0F3A:
        return prefixed ? HV_FPU_SSE : HV_FPU_X87;
    case HV_MAP_VEX: /* but for ANDN, BEXTR and the like, which are of general registers */
        return (insn->vex_map == 2 && op >= 0xf2 && op <= 0xf7) || (insn->vex_map == 3 && op == 0xf0) || insn->vex_map > 3 ? HV_FPU_NONE : HV_FPU_AVX;
    default:
        return HV_FPU_NONE;
    }
}

bool hv_fpu_traps(enum hv_fpu kind)
{
    uint32_t cr0 = HV_CPU->cr0;
    switch (kind) {
    case HV_FPU_X87:
        return cr0 & (HV_CR0_TS | HV_CR0_EM);
    case HV_FPU_SSE:
        return cr0 & (HV_CR0_TS | HV_CR0_EM) || !(HV_CPU->cr4 & HV_CR4_OSFXSR);
    case HV_FPU_WAIT:
        return (cr0 & (HV_CR0_TS | HV_CR0_MP)) == (HV_CR0_TS | HV_CR0_MP);
    case HV_FPU_AVX:
        return HV_CPU->cpl == 3 && cr0 & HV_CR0_TS;
    default:
        return false;
    }
}

/* Raises what such an instruction does when the guest has not enabled it. */
static void check_fpu(const struct hv_insn *insn)
{
    enum hv_fpu kind = hv_fpu_kind(insn);
    if (!hv_fpu_traps(kind))
        return;
    bool mmx_or_sse = kind != HV_FPU_AVX && insn->map != HV_MAP_ONE && !(insn->map == HV_MAP_0F && insn->opcode == 0xae && insn->reg < 2);
    if ((mmx_or_sse && HV_CPU->cr0 & HV_CR0_EM) || (kind == HV_FPU_SSE && !(HV_CPU->cr4 & HV_CR4_OSFXSR)))
        hv_raise(HV_UD);
    hv_raise(HV_NM);
}

void hv_cannot_execute(const char *what, const uint8_t *bytes, unsigned length)
{
    static const char digits[] = "0123456789abcdef";
    char text[3 * HV_LONGEST_INSTRUCTION + 1] = "";
    for (unsigned i = 0; i < length; i++) {
        text[3 * i] = ' ';
        text[3 * i + 1] = digits[bytes[i] >> 4];
        text[3 * i + 2] = digits[bytes[i] & 15];
    }
    hv_fail("the monitor cannot execute %s%s at %04x:%08x", what, text, HV_CPU->segment[HV_CS].selector, HV_CPU->eip);
}

/* The instruction goes on where no code can be fetched: behind available bytes of it. */
_Noreturn static void next_byte_fault(unsigned available)
{
    const struct hv_segment *cs = &HV_CPU->segment[HV_CS];
    uint32_t offset = HV_CPU->eip + available;
    if (offset <= cs->limit) {
        struct hv_walk walk;
        hv_walk(&walk, cs->base + offset, false, HV_CPU->cpl == 3, true, false);
        if (walk.error)
            hv_raise_page_fault(cs->base + offset, walk.error);
    }
    hv_raise_error(HV_GP, 0);
}

void hv_fetch_instruction(struct hv_insn *insn)
{
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    unsigned available = hv_fetch(bytes);
    switch (hv_decode(insn, bytes, available, HV_CPU->segment[HV_CS].attributes & HV_SEGMENT_32)) {
    case HV_DECODED:
        break;
    case HV_DECODE_MORE:
        next_byte_fault(available);
    case HV_DECODE_LONG:
        hv_raise_error(HV_GP, 0);
    default:
        hv_raise(HV_UD);
    }
}

void hv_single_step_trap(const struct hv_insn *insn)
{
    if (is_software_interrupt(insn) || HV_CPU->interrupt_shadow)
        return;
    hv_breaks_trap(HV_DR6_BS);
}

bool hv_interpret(const struct hv_insn *insn)
{
    struct hv_cpu *cpu = HV_CPU;
    if ((insn->lock && !hv_may_lock(insn)) || is_undefined(insn))
        hv_raise(HV_UD);
    check_fpu(insn);
    bool trap = cpu->eflags & HV_TF;
    uint8_t shadow = cpu->interrupt_shadow;
    cpu->interrupt_shadow = 0;
    if (!hv_sensitive(insn) && !hv_strings(insn) && !hv_execute(insn) && !hv_x87(insn) && !hv_sse(insn)) {
        cpu->interrupt_shadow = shadow;
        return false;
    }
    if (insn->map != HV_MAP_ONE || insn->opcode != 0xcf) /* IRET loads it */
        cpu->eflags &= ~HV_RF;
    if (trap)
        hv_single_step_trap(insn);
    return true;
}

void hv_emulate(void)
{
    struct hv_insn insn;
    hv_fetch_instruction(&insn);
    if (hv_interpret(&insn))
        return;
    if (HV_CPU->cpl < 3 && cell.mode != HV_MODE_TRAP && is_hidden(&insn))
        hv_raise(HV_UD);
    hv_cannot_execute("the instruction", insn.bytes, insn.length);
}
