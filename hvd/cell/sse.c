/* MMX, SSE and SSE2 instructions, executed for the monitor: moves by it, calculations by the processor, with the first register in XMM0 or MM0, the other
 * operand in memory of ours, and exceptions masked, since a fault here would be the monitor's (SDM vol. 1, 11.5). What is newer is not here: CPUID hides
 * it from kernels.
 */
#include <string.h>

#include "fpu.h"

extern const uint8_t hv_sse_forms[4][256][8], hv_sse_compares[4][8][8]; /* forms.S */

enum prefix { NONE, P66, PF3, PF2 };

/* `size` bytes of memory are read or written; 16 of them must be aligned, unless it is said. */
enum kind {
    ABSENT,
    CALCULATE,                 /* register = register op r/m */
    FLAGS,                     /* EFLAGS by register and r/m */
    COMPARE,                   /* by a predicate */
    TO_GENERAL, FROM_GENERAL,  /* conversions */
    LOAD, LOAD_ANY,            /* all of the register, zeros above `size`; ANY: not aligned */
    MERGE,                     /* the same, but of a register only `size` bytes, and above them nothing changes */
    STORE, STORE_ANY,
    STORE_CLEAR,               /* to a register, with zeros above `size` */
    STORE_MERGE,               /* without */
    LOAD_LOW, LOAD_HIGH,       /* halves: of a register the other one */
    STORE_LOW, STORE_HIGH,     /* to memory only */
    LOAD_GENERAL, STORE_GENERAL,
    SIGNS, SIGNS_PS, SIGNS_PD, /* of the elements, to a general register */
    SHUFFLE_D, SHUFFLE_LOW, SHUFFLE_HIGH, SHUFFLE_PS, SHUFFLE_PD,
    INSERT, EXTRACT,
    SHIFT,                     /* by an immediate */
    MASKED,                    /* to EDI */
    /* with MMX registers */
    MM_CALCULATE, TO_MM, FROM_MM, MM_LOAD, MM_STORE, MM_LOAD_GENERAL, MM_STORE_GENERAL, MM_SIGNS, SHUFFLE_W, MM_INSERT, MM_EXTRACT, MM_SHIFT, MM_MASKED, TO_XMM_LOW,
    TO_MM_LOW,
};
struct form {
    uint8_t kind, size;
};
#define ROW(first, last, kind, size) [first ... last] = {kind, size}
static const struct form forms[4][256] = {
    [NONE] = {
        [0x10] = {LOAD_ANY, 16}, [0x11] = {STORE_ANY, 16}, [0x12] = {LOAD_LOW, 8}, [0x13] = {STORE_LOW, 8}, ROW(0x14, 0x15, CALCULATE, 16),
        [0x16] = {LOAD_HIGH, 8}, [0x17] = {STORE_HIGH, 8}, [0x28] = {LOAD, 16}, [0x29] = {STORE, 16}, [0x2a] = {FROM_MM, 8}, [0x2b] = {STORE, 16},
        ROW(0x2c, 0x2d, TO_MM, 8), ROW(0x2e, 0x2f, FLAGS, 4), [0x50] = {SIGNS_PS, 0}, ROW(0x51, 0x59, CALCULATE, 16), [0x5a] = {CALCULATE, 8},
        ROW(0x5b, 0x5f, CALCULATE, 16), ROW(0x60, 0x62, MM_CALCULATE, 4), ROW(0x63, 0x6b, MM_CALCULATE, 8), [0x6e] = {MM_LOAD_GENERAL, 4}, [0x6f] = {MM_LOAD, 8},
        [0x70] = {SHUFFLE_W, 8}, ROW(0x71, 0x73, MM_SHIFT, 0), ROW(0x74, 0x76, MM_CALCULATE, 8), [0x7e] = {MM_STORE_GENERAL, 4},
        [0x7f] = {MM_STORE, 8}, [0xc2] = {COMPARE, 16}, [0xc4] = {MM_INSERT, 2}, [0xc5] = {MM_EXTRACT, 0}, [0xc6] = {SHUFFLE_PS, 16}, ROW(0xd1, 0xd5, MM_CALCULATE, 8),
        [0xd7] = {MM_SIGNS, 0}, ROW(0xd8, 0xe5, MM_CALCULATE, 8), [0xe7] = {MM_STORE, 8}, ROW(0xe8, 0xef, MM_CALCULATE, 8), ROW(0xf1, 0xf6, MM_CALCULATE, 8),
        [0xf7] = {MM_MASKED, 8}, ROW(0xf8, 0xfe, MM_CALCULATE, 8),
    },
    [P66] = {
        [0x10] = {LOAD_ANY, 16}, [0x11] = {STORE_ANY, 16}, [0x12] = {LOAD_LOW, 8}, [0x13] = {STORE_LOW, 8}, ROW(0x14, 0x15, CALCULATE, 16),
        [0x16] = {LOAD_HIGH, 8}, [0x17] = {STORE_HIGH, 8}, [0x28] = {LOAD, 16}, [0x29] = {STORE, 16}, [0x2a] = {FROM_MM, 8}, [0x2b] = {STORE, 16},
        ROW(0x2c, 0x2d, TO_MM, 16), ROW(0x2e, 0x2f, FLAGS, 8), [0x50] = {SIGNS_PD, 0}, [0x51] = {CALCULATE, 16}, ROW(0x54, 0x6d, CALCULATE, 16),
        [0x6e] = {LOAD_GENERAL, 4}, [0x6f] = {LOAD, 16}, [0x70] = {SHUFFLE_D, 16}, ROW(0x71, 0x73, SHIFT, 0), ROW(0x74, 0x76, CALCULATE, 16),
        [0x7e] = {STORE_GENERAL, 4}, [0x7f] = {STORE, 16}, [0xc2] = {COMPARE, 16}, [0xc4] = {INSERT, 2}, [0xc5] = {EXTRACT, 0}, [0xc6] = {SHUFFLE_PD, 16},
        ROW(0xd1, 0xd5, CALCULATE, 16), [0xd6] = {STORE_CLEAR, 8}, [0xd7] = {SIGNS, 0}, ROW(0xd8, 0xe6, CALCULATE, 16), [0xe7] = {STORE, 16}, ROW(0xe8, 0xef, CALCULATE, 16),
        ROW(0xf1, 0xf6, CALCULATE, 16), [0xf7] = {MASKED, 16}, ROW(0xf8, 0xfe, CALCULATE, 16),
    },
    [PF3] = {
        [0x10] = {MERGE, 4}, [0x11] = {STORE_MERGE, 4}, [0x2a] = {FROM_GENERAL, 4}, ROW(0x2c, 0x2d, TO_GENERAL, 4), ROW(0x51, 0x53, CALCULATE, 4),
        ROW(0x58, 0x5a, CALCULATE, 4), [0x5b] = {CALCULATE, 16}, ROW(0x5c, 0x5f, CALCULATE, 4), [0x6f] = {LOAD_ANY, 16}, [0x70] = {SHUFFLE_HIGH, 16},
        [0x7e] = {LOAD_ANY, 8}, [0x7f] = {STORE_ANY, 16}, [0xc2] = {COMPARE, 4}, [0xd6] = {TO_XMM_LOW, 0}, [0xe6] = {CALCULATE, 8},
    },
    [PF2] = {
        [0x10] = {MERGE, 8}, [0x11] = {STORE_MERGE, 8}, [0x2a] = {FROM_GENERAL, 4}, ROW(0x2c, 0x2d, TO_GENERAL, 8), [0x51] = {CALCULATE, 8}, ROW(0x58, 0x5a, CALCULATE, 8),
        ROW(0x5c, 0x5f, CALCULATE, 8), [0x70] = {SHUFFLE_LOW, 16}, [0xc2] = {COMPARE, 8}, [0xd6] = {TO_MM_LOW, 0}, [0xe6] = {CALCULATE, 16},
    },
};
#undef ROW

/* What an instruction works with. `image` is the guest's registers, which become its own again when all is done. */
struct work {
    const struct hv_insn *insn;
    const struct form *form;
    enum prefix prefix;
    uint8_t image[512] __attribute__((aligned(16)));
    uint8_t operand[16] __attribute__((aligned(16)));
    uint32_t general; /* a general register's new value */
    uint32_t flags;   /* EFLAGS */
};

#define MXCSR_MASKS 0x1f80u

static uint8_t *xmm(struct work *w, unsigned index) { return w->image + HV_FX_XMM + 16 * index; }
static uint8_t *mm(struct work *w, unsigned index) { return w->image + HV_FX_ST + 16 * index; }

/* MMX registers are the x87 ones, whatever TOP says; an MMX instruction makes TOP 0 and all of them valid (SDM vol. 3A, 12.2). */
static void enter_mmx(struct work *w)
{
    hv_x87_look();
    uint8_t stack[128];
    unsigned status = hv_fx_word(w->image, HV_FX_STATUS), top = status >> 11 & 7;
    memcpy(stack, w->image + HV_FX_ST, sizeof stack);
    for (unsigned i = 0; i < 8; i++)
        memcpy(mm(w, i), stack + 16 * ((i - top) & 7), 16);
    hv_fx_set_word(w->image, HV_FX_STATUS, status & ~0x3800u);
    w->image[HV_FX_TAGS] = 0xff;
}

static void put_mm(struct work *w, unsigned index, const uint8_t *value)
{
    memcpy(mm(w, index), value, 8);
    hv_fx_set_word(mm(w, index), 8, 0xffff);
}

/* ---- operands */

/* The r/m operand, of which a register is in `bank`, into w->operand. */
static void fetch(struct work *w, uint8_t *(*bank)(struct work *, unsigned), bool aligned)
{
    memset(w->operand, 0, sizeof w->operand);
    if (w->insn->mod == 3)
        memcpy(w->operand, bank(w, w->insn->rm), bank == mm ? 8 : 16);
    else {
        uint32_t linear = hv_operand_linear(w->insn, w->form->size, false);
        if (aligned && w->form->size == 16 && linear & 15)
            hv_raise_error(HV_GP, 0);
        hv_fpu_load(linear, w->operand, w->form->size);
    }
}

/* To the r/m operand, if it is memory. */
static bool to_memory(struct work *w, const uint8_t *value, bool aligned)
{
    if (w->insn->mod == 3)
        return false;
    hv_fpu_store(hv_fpu_store_at(w->insn, w->form->size, aligned ? 16 : 1), value, w->form->size);
    return true;
}

static uint32_t word_at(const uint8_t *at) { return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24; }

static void put_word(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }

/* ---- calculations */

/* Raises #XM when there is an exception that the guest has not masked: then only its flags have changed, and what MMX makes of the x87 registers. */
static void calculate(struct work *w, const uint8_t *code, uint8_t *first, uint8_t *first_mm)
{
    uint32_t mxcsr = word_at(w->image + HV_FX_MXCSR), ours = (mxcsr & ~(uint32_t)HV_X87_EXCEPTIONS) | MXCSR_MASKS;
    uint64_t general, flags;
    uint8_t result[16], result_mm[8];
    memcpy(result, first, sizeof result);
    memcpy(result_mm, first_mm, sizeof result_mm);
    __asm__ volatile("subq $128, %%rsp\n"
                     "fninit\n" /* no x87 exception waits, or else MMX instructions would raise it */
                     "ldmxcsr (%[mxcsr])\n"
                     "movdqu (%[xmm]), %%xmm0\n"
                     "movq (%[mm]), %%mm0\n"
                     "call *%[code]\n"
                     "pushfq\n"
                     "popq %[flags]\n"
                     "movdqu %%xmm0, (%[xmm])\n"
                     "movq %%mm0, (%[mm])\n"
                     "stmxcsr (%[mxcsr])\n"
                     "addq $128, %%rsp"
                     : "=&a"(general), [flags] "=&r"(flags)
                     : [mxcsr] "r"(&ours), [xmm] "r"(result), [mm] "r"(result_mm), [code] "r"(code), "D"(w->operand)
                     : "memory", "cc");
    uint32_t raised = ours & HV_X87_EXCEPTIONS, unmasked = raised & ~(mxcsr >> 7);
    if (unmasked & HV_BEFORE_RESULT)
        raised &= HV_BEFORE_RESULT; /* what comes later has not been tried */
    put_word(w->image + HV_FX_MXCSR, mxcsr | raised);
    if (unmasked) {
        memcpy(HV_CPU->fxsave, w->image, HV_FX_BYTES);
        hv_fpu_return();
        hv_raise(HV_CPU->cr4 & HV_CR4_OSXMMEXCPT ? HV_XM : HV_UD);
    }
    memcpy(first, result, sizeof result);
    memcpy(first_mm, result_mm, sizeof result_mm);
    w->general = (uint32_t)general;
    w->flags = (uint32_t)flags;
}

static void calculate_form(struct work *w, uint8_t *first, uint8_t *first_mm)
{
    calculate(w, hv_sse_forms[w->prefix][w->insn->opcode], first, first_mm);
}

/* An 8-byte scratch for the bank that an instruction has no part in. */
static uint8_t unused[16] __attribute__((aligned(16)));

static void shift(struct work *w, uint8_t *value, bool in_mm)
{
    static const uint8_t by_count[3][8] = {{0, 0, 0xd1, 0, 0xe1, 0, 0xf1, 0}, {0, 0, 0xd2, 0, 0xe2, 0, 0xf2, 0}, {0, 0, 0xd3, 0, 0, 0, 0xf3, 0}};
    unsigned count = w->insn->immediate & 0xff, group = w->insn->opcode - 0x71u, bytes = count > 15 ? 16 : count;
    if (group == 2 && !in_mm && (w->insn->reg == 3 || w->insn->reg == 7)) { /* PSRLDQ, PSLLDQ */
        uint8_t moved[16] = {0};
        for (unsigned i = bytes; i < 16; i++)
            moved[w->insn->reg == 3 ? i - bytes : i] = value[w->insn->reg == 3 ? i : i - bytes];
        memcpy(value, moved, 16);
        return;
    }
    unsigned opcode = by_count[group][w->insn->reg];
    if (!opcode || w->insn->mod != 3)
        hv_raise(HV_UD);
    memset(w->operand, 0, sizeof w->operand);
    w->operand[0] = (uint8_t)count; /* the same instruction by a register's count */
    calculate(w, hv_sse_forms[in_mm ? NONE : P66][opcode], in_mm ? unused : value, in_mm ? value : unused);
}

/* Elements of `size` bytes, four of them, two bits of the immediate for each: from `low` or, the upper two if it is another, `high`. */
static void shuffle(uint8_t *to, const uint8_t *low, const uint8_t *high, unsigned size, uint32_t order)
{
    uint8_t made[16];
    for (unsigned i = 0; i < 4; i++)
        memcpy(made + size * i, (i < 2 ? low : high) + size * (order >> 2 * i & 3), size);
    memcpy(to, made, 4 * size);
}

static uint32_t signs(const uint8_t *value, unsigned size, unsigned count)
{
    uint32_t found = 0;
    for (unsigned i = 0; i < count; i++)
        found |= (uint32_t)(value[size * i + size - 1] >> 7) << i;
    return found;
}

/* MASKMOVQ, MASKMOVDQU: the bytes whose mask has its upper bit set, to [EDI]. All of the operand must be writable, as processors may want it to be. */
static void store_masked(struct work *w, const uint8_t *value, const uint8_t *mask)
{
    unsigned segment = w->insn->segment >= 0 ? (unsigned)w->insn->segment : HV_DS;
    uint32_t offset = w->insn->address_size == 2 ? HV_CPU->r[HV_EDI] & 0xffff : HV_CPU->r[HV_EDI];
    uint32_t linear = hv_linear(segment, offset, w->form->size, true);
    hv_check_write(linear, w->form->size);
    for (unsigned i = 0; i < w->form->size; i++)
        if (mask[i] >> 7)
            hv_write(linear + i, 1, value[i]);
}

/* ---- which is which. false: no such form; nothing has changed */

static bool of_xmm(struct work *w)
{
    const struct hv_insn *insn = w->insn;
    unsigned size = w->form->size, order = insn->immediate;
    bool in_register = insn->mod == 3;
    uint8_t *reg = xmm(w, insn->reg), *rm = in_register ? xmm(w, insn->rm) : NULL, *operand = w->operand;
    switch ((enum kind)w->form->kind) {
    case CALCULATE: fetch(w, xmm, true); calculate_form(w, reg, unused); return true;
    case COMPARE:
        fetch(w, xmm, true);
        calculate(w, hv_sse_compares[w->prefix][order & 7], reg, unused);
        return true;
    case FLAGS:
        fetch(w, xmm, false);
        calculate_form(w, reg, unused);
        HV_CPU->eflags = (HV_CPU->eflags & ~HV_STATUS_FLAGS) | (w->flags & HV_STATUS_FLAGS);
        return true;
    case LOAD:
    case LOAD_ANY: fetch(w, xmm, w->form->kind == LOAD); memset(operand + size, 0, 16 - size); memcpy(reg, operand, 16); return true;
    case MERGE: fetch(w, xmm, false); memcpy(reg, operand, in_register ? size : 16); return true;
    case STORE:
    case STORE_ANY:
        if (in_register && (insn->opcode == 0x2b || insn->opcode == 0xe7)) /* MOVNTPS, MOVNTDQ */
            return false;
        if (!to_memory(w, reg, w->form->kind == STORE))
            memmove(rm, reg, 16);
        return true;
    case STORE_CLEAR:
        if (!to_memory(w, reg, false)) {
            memmove(rm, reg, 8);
            memset(rm + 8, 0, 8);
        }
        return true;
    case STORE_MERGE:
        if (!to_memory(w, reg, false))
            memmove(rm, reg, size);
        return true;
    case LOAD_LOW: fetch(w, xmm, false); memcpy(reg, operand + (in_register ? 8 : 0), 8); return !in_register || w->prefix == NONE; /* MOVHLPS */
    case LOAD_HIGH: fetch(w, xmm, false); memcpy(reg + 8, operand, 8); return !in_register || w->prefix == NONE;
    case STORE_LOW: return to_memory(w, reg, false);
    case STORE_HIGH: return to_memory(w, reg + 8, false);
    case LOAD_GENERAL: memset(reg, 0, 16); put_word(reg, hv_get_rm(insn, 4)); return true;
    case STORE_GENERAL: hv_set_rm(insn, 4, word_at(reg)); return true;
    case FROM_GENERAL: put_word(operand, hv_get_rm(insn, 4)); calculate_form(w, reg, unused); return true;
    case TO_GENERAL: fetch(w, xmm, false); calculate_form(w, reg, unused); hv_set_register(insn->reg, 4, w->general); return true;
    case SHUFFLE_D: fetch(w, xmm, true); shuffle(reg, operand, operand, 4, order); return true;
    case SHUFFLE_LOW: fetch(w, xmm, true); shuffle(reg, operand, operand, 2, order); memcpy(reg + 8, operand + 8, 8); return true;
    case SHUFFLE_HIGH: fetch(w, xmm, true); memcpy(reg, operand, 8); shuffle(reg + 8, operand + 8, operand + 8, 2, order); return true;
    case SHUFFLE_PS: fetch(w, xmm, true); shuffle(reg, reg, operand, 4, order); return true;
    case SHUFFLE_PD:
        fetch(w, xmm, true);
        memcpy(reg, reg + (order & 1 ? 8 : 0), 8);
        memcpy(reg + 8, operand + (order & 2 ? 8 : 0), 8);
        return true;
    case INSERT: hv_fx_set_word(reg, 2 * (order & 7), hv_get_rm(insn, 2)); return true;
    default: break;
    }
    if (!in_register) /* the others are of registers only */
        return false;
    switch ((enum kind)w->form->kind) {
    case SIGNS_PS: hv_set_register(insn->reg, 4, signs(rm, 4, 4)); return true;
    case SIGNS_PD: hv_set_register(insn->reg, 4, signs(rm, 8, 2)); return true;
    case SIGNS: hv_set_register(insn->reg, 4, signs(rm, 1, 16)); return true;
    case EXTRACT: hv_set_register(insn->reg, 4, hv_fx_word(rm, 2 * (order & 7))); return true;
    case SHIFT: shift(w, rm, false); return true;
    case MASKED: store_masked(w, reg, rm); return true;
    default: return false;
    }
}

static bool of_mm(struct work *w)
{
    const struct hv_insn *insn = w->insn;
    bool in_register = insn->mod == 3;
    uint8_t *operand = w->operand, made[16] = {0};
    enum kind kind = (enum kind)w->form->kind;
    if (!(kind == FROM_MM && w->prefix == P66 && !in_register)) /* CVTPI2PD of memory leaves x87 alone */
        enter_mmx(w);
    uint8_t *reg = mm(w, insn->reg), *rm = in_register ? mm(w, insn->rm) : NULL;
    switch (kind) {
    case MM_CALCULATE: fetch(w, mm, false); calculate_form(w, unused, reg); put_mm(w, insn->reg, reg); return true;
    case FROM_MM: fetch(w, mm, false); calculate_form(w, xmm(w, insn->reg), unused); return true;
    case TO_MM: fetch(w, xmm, true); calculate_form(w, unused, made); put_mm(w, insn->reg, made); return true;
    case MM_LOAD: fetch(w, mm, false); put_mm(w, insn->reg, operand); return true;
    case MM_STORE:
        if (!to_memory(w, reg, false)) {
            if (insn->opcode == 0xe7) /* MOVNTQ */
                return false;
            put_mm(w, insn->rm, memcpy(made, reg, 8));
        }
        return true;
    case MM_LOAD_GENERAL: put_word(made, hv_get_rm(insn, 4)); put_mm(w, insn->reg, made); return true;
    case MM_STORE_GENERAL: hv_set_rm(insn, 4, word_at(reg)); return true;
    case SHUFFLE_W: fetch(w, mm, false); shuffle(made, operand, operand, 2, insn->immediate); put_mm(w, insn->reg, made); return true;
    case MM_INSERT: memcpy(made, reg, 8); hv_fx_set_word(made, 2 * (insn->immediate & 3), hv_get_rm(insn, 2)); put_mm(w, insn->reg, made); return true;
    default: break;
    }
    if (!in_register)
        return false;
    switch (kind) {
    case MM_SIGNS: hv_set_register(insn->reg, 4, signs(rm, 1, 8)); return true;
    case MM_EXTRACT: hv_set_register(insn->reg, 4, hv_fx_word(rm, 2 * (insn->immediate & 3))); return true;
    case MM_SHIFT: shift(w, rm, true); put_mm(w, insn->rm, rm); return true;
    case MM_MASKED: store_masked(w, reg, rm); return true;
    case TO_XMM_LOW: memset(xmm(w, insn->reg), 0, 16); memcpy(xmm(w, insn->reg), rm, 8); return true;
    case TO_MM_LOW: put_mm(w, insn->reg, xmm(w, insn->rm)); return true;
    default: return false;
    }
}

/* LDMXCSR, STMXCSR */
static bool control(const struct hv_insn *insn)
{
    uint32_t value;
    if (insn->reg == 3) {
        hv_set_rm(insn, 4, word_at(HV_CPU->fxsave + HV_FX_MXCSR));
        return hv_done(insn);
    }
    value = hv_get_rm(insn, 4);
    if (hv_mxcsr_reserved(value))
        hv_raise_error(HV_GP, 0);
    put_word(HV_CPU->fxsave + HV_FX_MXCSR, value);
    hv_fpu_return();
    return hv_done(insn);
}

static enum prefix prefix_of(const struct hv_insn *insn)
{
    return insn->repeat == HV_REPEAT_NE ? PF2 : insn->repeat == HV_REPEAT_E ? PF3 : insn->operand_prefix ? P66 : NONE;
}

bool hv_sse(const struct hv_insn *insn)
{
    static struct work w;
    if (insn->map != HV_MAP_0F)
        return false;
    w.insn = insn;
    w.prefix = prefix_of(insn);
    w.form = &forms[w.prefix][insn->opcode];
    bool mxcsr = insn->opcode == 0xae && insn->mod != 3 && (insn->reg == 2 || insn->reg == 3) && w.prefix == NONE;
    enum kind kind = (enum kind)w.form->kind;
    if (!mxcsr && kind == ABSENT)
        return false;
    hv_fpu_publish();
    if (mxcsr)
        return control(insn);
    bool with_mm = kind >= MM_CALCULATE;
    memcpy(w.image, HV_CPU->fxsave, sizeof w.image);
    if (!(with_mm ? of_mm : of_xmm)(&w))
        hv_raise(HV_UD);
    memcpy(HV_CPU->fxsave, w.image, HV_FX_BYTES);
    hv_fpu_return();
    return hv_done(insn);
}
