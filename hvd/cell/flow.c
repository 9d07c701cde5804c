/* Transfers of control within a segment, and the stack. Far ones are in far.c. */
#include "alu.h"
#include "cell.h"

static uint32_t checked_target(const struct hv_insn *insn, uint32_t target)
{
    if (insn->operand_size == 2)
        target &= 0xffff;
    if (target > HV_CPU->segment[HV_CS].limit)
        hv_raise_error(HV_GP, 0);
    return target;
}

static uint32_t relative_target(const struct hv_insn *insn)
{
    return checked_target(insn, HV_CPU->eip + insn->length + hv_sign_extended(insn->immediate, insn->immediate_size));
}

static bool jump(uint32_t target)
{
    HV_CPU->eip = target;
    return true;
}

static bool jump_if(const struct hv_insn *insn, bool taken)
{
    return taken ? jump(relative_target(insn)) : hv_done(insn);
}

static uint32_t next_eip(const struct hv_insn *insn) { return HV_CPU->eip + insn->length; }

static bool call(const struct hv_insn *insn, uint32_t target)
{
    hv_push(insn->operand_size, next_eip(insn));
    return jump(target);
}

static bool ret(const struct hv_insn *insn)
{
    uint32_t target = checked_target(insn, hv_pop_at(insn->operand_size, 0));
    hv_add_esp((int32_t)(insn->operand_size + (insn->opcode == 0xc2 ? insn->immediate : 0)));
    return jump(target);
}

/* LOOPNE E0, LOOPE E1, LOOP E2, JCXZ E3; CX or ECX by the address size. */
static bool loop(const struct hv_insn *insn)
{
    uint32_t count = hv_get_register(HV_ECX, insn->address_size);
    if (insn->opcode == 0xe3)
        return jump_if(insn, count == 0);
    bool zero = HV_CPU->eflags & HV_ZF, more = count != 1;
    bool taken = more && (insn->opcode == 0xe2 || zero == (insn->opcode == 0xe1));
    uint32_t target = taken ? relative_target(insn) : next_eip(insn);
    hv_set_register(HV_ECX, insn->address_size, count - 1);
    return jump(target);
}

/* ---- the stack */

static bool push(const struct hv_insn *insn, uint32_t value)
{
    hv_push(insn->operand_size, value);
    return hv_done(insn);
}

static bool pop_register(const struct hv_insn *insn)
{
    uint32_t value = hv_pop_at(insn->operand_size, 0);
    hv_add_esp(insn->operand_size);
    hv_set_register(insn->opcode & 7, insn->operand_size, value);
    return hv_done(insn);
}

/* An address that ESP is part of is computed with ESP behind the POP (SDM vol. 2, POP). */
static bool pop_rm(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size;
    uint32_t value = hv_pop_at(size, 0);
    if (insn->mod == 3) {
        hv_add_esp((int32_t)size);
        hv_set_register(insn->rm, size, value);
        return hv_done(insn);
    }
    uint32_t esp = HV_CPU->r[HV_ESP];
    hv_add_esp((int32_t)size);
    uint32_t offset = hv_operand_offset(insn), esp_behind = HV_CPU->r[HV_ESP];
    HV_CPU->r[HV_ESP] = esp;
    hv_write(hv_linear(hv_operand_segment(insn), offset, size, true), size, value);
    HV_CPU->r[HV_ESP] = esp_behind;
    return hv_done(insn);
}

static bool push_all(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size;
    for (unsigned i = 0; i < 8; i++)
        hv_push_at(size, (i + 1) * size, hv_get_register(i, size));
    hv_add_esp(-8 * (int32_t)size);
    return hv_done(insn);
}

static bool pop_all(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size;
    uint32_t values[8];
    for (unsigned i = 8; i-- > 0;)
        values[i] = hv_pop_at(size, (7 - i) * size);
    for (unsigned i = 0; i < 8; i++)
        if (i != HV_ESP)
            hv_set_register(i, size, values[i]);
    hv_add_esp(8 * (int32_t)size);
    return hv_done(insn);
}

/* Reads relative to EBP, which becomes the stack pointer. */
static uint32_t read_frame(uint32_t below, unsigned size)
{
    bool big = HV_CPU->segment[HV_SS].attributes & HV_SEGMENT_32;
    uint32_t offset = HV_CPU->r[HV_EBP] - below;
    return (uint32_t)hv_read(hv_linear(HV_SS, big ? offset : offset & 0xffff, size, false), size);
}

static bool leave(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size;
    uint32_t ebp = read_frame(0, size);
    bool big = HV_CPU->segment[HV_SS].attributes & HV_SEGMENT_32;
    hv_set_register(HV_ESP, big ? 4 : 2, HV_CPU->r[HV_EBP]);
    hv_add_esp((int32_t)size);
    hv_set_register(HV_EBP, size, ebp);
    return hv_done(insn);
}

static bool enter(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size, level = insn->second % 32, depth = size;
    bool big = HV_CPU->segment[HV_SS].attributes & HV_SEGMENT_32;
    hv_push_at(size, depth, HV_CPU->r[HV_EBP]);
    uint32_t esp = HV_CPU->r[HV_ESP], frame = big ? esp - size : (esp & ~0xffffu) | ((esp - size) & 0xffff);
    for (unsigned i = 1; i < level; i++) {
        depth += size;
        hv_push_at(size, depth, read_frame(i * size, size));
    }
    if (level) {
        depth += size;
        hv_push_at(size, depth, frame);
    }
    depth += insn->immediate;
    uint32_t last = esp - depth;
    hv_check_write(hv_linear(HV_SS, big ? last : last & 0xffff, size, true), size);
    hv_add_esp(-(int32_t)depth);
    hv_set_register(HV_EBP, size, frame);
    return hv_done(insn);
}

/* ---- which opcode is which */

static bool group5(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size;
    switch (insn->reg) {
    case 2: return call(insn, checked_target(insn, hv_get_rm(insn, size)));
    case 4: return jump(checked_target(insn, hv_get_rm(insn, size)));
    case 6: return push(insn, hv_get_rm(insn, size));
    default: return false;
    }
}

bool hv_flow(const struct hv_insn *insn)
{
    unsigned opcode = insn->opcode;
    if (insn->map == HV_MAP_0F && opcode >> 4 == 8)
        return jump_if(insn, hv_condition(opcode & 15, HV_CPU->eflags));
    if (insn->map != HV_MAP_ONE)
        return false;
    switch (opcode) {
    case 0x50 ... 0x57: return push(insn, HV_CPU->r[opcode & 7]);
    case 0x58 ... 0x5f: return pop_register(insn);
    case 0x60: return push_all(insn);
    case 0x61: return pop_all(insn);
    case 0x68:
    case 0x6a: return push(insn, hv_sign_extended(insn->immediate, insn->immediate_size));
    case 0x70 ... 0x7f: return jump_if(insn, hv_condition(opcode & 15, HV_CPU->eflags));
    case 0x8f: return pop_rm(insn);
    case 0xc2:
    case 0xc3: return ret(insn);
    case 0xc8: return enter(insn);
    case 0xc9: return leave(insn);
    case 0xe0 ... 0xe3: return loop(insn);
    case 0xe8: return call(insn, relative_target(insn));
    case 0xe9:
    case 0xeb: return jump(relative_target(insn));
    case 0xff: return group5(insn);
    default: return false;
    }
}
