/* x87 instructions, and EMMS, executed by the processor for the monitor: on an image of the guest's registers and an operand of ours, with exceptions masked,
 * since a fault here would be the monitor's. What the guest has not masked is told by the flags that the instruction leaves (SDM vol. 1, 8.5).
 *
 * Of an unmasked overflow or underflow the result in a register is that of a masked one, not scaled; a comparison that is invalid sets no conditions, as on
 * Intel's processors.
 */
#include <string.h>

#include "fpu.h"

extern const uint8_t hv_x87_registers[512][4], hv_x87_memory[64][4], hv_x87_memory_16[64][4], hv_emms[]; /* forms.S */

enum kind { UNDEFINED, UNKNOWN, LOAD, STORE, ENVIRONMENT_LOAD, ENVIRONMENT_STORE };

/* Memory operands, by opcode and /reg. UNKNOWN: SSE3's FISTTP. */
static const struct form {
    uint8_t kind, size, size_16; /* bytes; with 16-bit operands, if that makes a difference */
} memory_forms[8][8] = {
    {{LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}},
    {{LOAD, 4, 0}, {UNDEFINED, 0, 0}, {STORE, 4, 0}, {STORE, 4, 0}, {ENVIRONMENT_LOAD, 28, 14}, {ENVIRONMENT_LOAD, 2, 0}, {ENVIRONMENT_STORE, 28, 14}, {ENVIRONMENT_STORE, 2, 0}},
    {{LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}, {LOAD, 4, 0}},
    {{LOAD, 4, 0}, {UNKNOWN, 0, 0}, {STORE, 4, 0}, {STORE, 4, 0}, {UNDEFINED, 0, 0}, {LOAD, 10, 0}, {UNDEFINED, 0, 0}, {STORE, 10, 0}},
    {{LOAD, 8, 0}, {LOAD, 8, 0}, {LOAD, 8, 0}, {LOAD, 8, 0}, {LOAD, 8, 0}, {LOAD, 8, 0}, {LOAD, 8, 0}, {LOAD, 8, 0}},
    {{LOAD, 8, 0}, {UNKNOWN, 0, 0}, {STORE, 8, 0}, {STORE, 8, 0}, {ENVIRONMENT_LOAD, 108, 94}, {UNDEFINED, 0, 0}, {ENVIRONMENT_STORE, 108, 94}, {ENVIRONMENT_STORE, 2, 0}},
    {{LOAD, 2, 0}, {LOAD, 2, 0}, {LOAD, 2, 0}, {LOAD, 2, 0}, {LOAD, 2, 0}, {LOAD, 2, 0}, {LOAD, 2, 0}, {LOAD, 2, 0}},
    {{LOAD, 2, 0}, {UNKNOWN, 0, 0}, {STORE, 2, 0}, {STORE, 2, 0}, {LOAD, 10, 0}, {LOAD, 8, 0}, {STORE, 10, 0}, {STORE, 8, 0}},
};

/* Register operands: a bit for each ModRM byte from C0 on that is an instruction (SDM vol. 2D, tables ), aliases that all processors have
 * among them. */
static const uint64_t register_forms[8] = {
    ~0ull, 0xffff7f33ff01ffffull, 0x00000200ffffffffull, 0x00ffff1fffffffffull, ~0ull, 0x0000ffffffffffffull, 0xffffffff02ffffffull, 0x00ffff01ffffffffull,
};

enum { FNCLEX = 0xdbe2, FNINIT = 0xdbe3, FNSTSW_AX = 0xdfe0 };
#define OVERFLOW_UNDERFLOW 0x18u
#define SF 0x40u          /* of the status word: invalid because of the stack */
#define STICKY 0x7fu      /* exceptions, and SF */
#define C1 0x200u

/* No-wait instructions: those that do not look for an exception that waits. */
static bool looks(const struct hv_insn *insn, bool store, unsigned code)
{
    if (insn->mod == 3)
        return code != FNSTSW_AX && (code < 0xdbe0 || code > 0xdbe4);
    return !store;
}

static uint32_t run(const uint8_t *form, uint8_t image[512], uint8_t *operand, uint32_t flags)
{
    uint64_t in = (flags & HV_STATUS_FLAGS) | HV_IF | 2, out;
    __asm__ volatile("subq $128, %%rsp\n" /* below is the compiler's */
                     "fxrstor (%[image])\n"
                     "pushq %[in]\n"
                     "popfq\n"
                     "call *%[form]\n"
                     "pushfq\n"
                     "popq %[out]\n"
                     "fxsave (%[image])\n"
                     "addq $128, %%rsp"
                     : [out] "=&r"(out)
                     : [image] "r"(image), [form] "r"(form), [in] "r"(in), "D"(operand)
                     : "rax", "memory", "cc");
    return (uint32_t)out;
}

void hv_x87_look(void)
{
    const uint8_t *image = HV_CPU->fxsave;
    if (hv_fx_word(image, HV_FX_STATUS) & ~hv_fx_word(image, HV_FX_CONTROL) & HV_X87_EXCEPTIONS)
        hv_raise(HV_MF);
}

/* A calculation: true = it has a result. */
static bool calculate(const uint8_t *form, uint8_t scratch[512], uint8_t *operand, bool store, uint32_t *flags)
{
    uint8_t *image = HV_CPU->fxsave;
    unsigned control = hv_fx_word(image, HV_FX_CONTROL), before = hv_fx_word(image, HV_FX_STATUS);
    hv_fx_set_word(scratch, HV_FX_CONTROL, control | HV_X87_EXCEPTIONS);
    hv_fx_set_word(scratch, HV_FX_STATUS, before & ~(STICKY | HV_X87_SUMMARY));
    *flags = run(form, scratch, operand, *flags);
    unsigned after = hv_fx_word(scratch, HV_FX_STATUS), unmasked = after & ~control & HV_X87_EXCEPTIONS;
    unsigned summary = unmasked ? HV_X87_SUMMARY : 0;
    if (unmasked & (store ? HV_BEFORE_RESULT | OVERFLOW_UNDERFLOW : HV_BEFORE_RESULT)) {
        unsigned seen = unmasked & HV_BEFORE_RESULT ? HV_BEFORE_RESULT | SF : OVERFLOW_UNDERFLOW; /* what comes later has not been tried */
        memcpy(scratch, image, sizeof HV_CPU->fxsave);
        hv_fx_set_word(scratch, HV_FX_STATUS, (before & ~C1) | (after & (after & SF ? seen | C1 : seen)) | summary);
        return false;
    }
    hv_fx_set_word(scratch, HV_FX_CONTROL, control);
    hv_fx_set_word(scratch, HV_FX_STATUS, after | (before & STICKY) | summary);
    memcpy(scratch + HV_FX_LAST, image + HV_FX_LAST, HV_FX_MXCSR - HV_FX_LAST); /* or else it would be ours */
    return true;
}

static bool wait(const struct hv_insn *insn)
{
    hv_fpu_publish();
    hv_x87_look();
    return hv_done(insn);
}

/* What becomes of TOP is the processor's to say. */
static bool empty(const struct hv_insn *insn)
{
    hv_fpu_publish();
    hv_x87_look();
    run(hv_emms, HV_CPU->fxsave, NULL, 0);
    hv_fpu_return();
    return hv_done(insn);
}

bool hv_x87(const struct hv_insn *insn)
{
    static uint8_t scratch[512] __attribute__((aligned(16)));
    uint8_t operand[108] = {0};
    if (insn->map == HV_MAP_0F && insn->opcode == 0x77)
        return empty(insn);
    if (insn->map != HV_MAP_ONE)
        return false;
    if (insn->opcode == 0x9b)
        return wait(insn);
    if (insn->opcode < 0xd8 || insn->opcode > 0xdf)
        return false;
    unsigned group = insn->opcode - 0xd8u, code = (unsigned)insn->opcode << 8 | insn->modrm;
    bool in_register = insn->mod == 3, small = insn->operand_size == 2;
    const struct form *form = &memory_forms[group][insn->reg];
    if (in_register ? !(register_forms[group] >> (insn->modrm & 63) & 1) : form->kind == UNDEFINED)
        hv_raise(HV_UD);
    if (!in_register && form->kind == UNKNOWN)
        return false;
    bool store = !in_register && (form->kind == STORE || form->kind == ENVIRONMENT_STORE);
    bool control = in_register ? code == FNCLEX || code == FNINIT || code == FNSTSW_AX : form->kind >= ENVIRONMENT_LOAD;
    unsigned size = in_register ? 0 : small && form->size_16 ? form->size_16 : form->size;
    const uint8_t *at = in_register ? hv_x87_registers[group << 6 | (insn->modrm & 63)] : (small && form->size_16 ? hv_x87_memory_16 : hv_x87_memory)[group << 3 | insn->reg];

    hv_fpu_publish();
    if (looks(insn, control && store, code))
        hv_x87_look();
    uint32_t linear = 0, flags = HV_CPU->eflags;
    if (store)
        linear = hv_fpu_store_at(insn, size, 1);
    else if (size)
        hv_fpu_load(hv_operand_linear(insn, size, false), operand, size);
    memcpy(scratch, HV_CPU->fxsave, sizeof scratch);
    bool done = true;
    if (control)
        run(at, scratch, operand, flags);
    else
        done = calculate(at, scratch, operand, store, &flags);
    if (store && done)
        hv_fpu_store(linear, operand, size);
    memcpy(HV_CPU->fxsave, scratch, HV_FX_BYTES);
    hv_fpu_return();
    if (in_register && done && (insn->opcode == 0xdb || insn->opcode == 0xdf) && insn->reg >= 5 && insn->reg <= 6) /* FUCOMI, FCOMI */
        HV_CPU->eflags = (HV_CPU->eflags & ~HV_STATUS_FLAGS) | (flags & HV_STATUS_FLAGS);
    if (code == FNSTSW_AX && in_register)
        hv_set_register(HV_EAX, 2, hv_fx_word(scratch, HV_FX_STATUS));
    return hv_done(insn);
}
