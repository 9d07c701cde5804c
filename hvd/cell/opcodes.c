/* The tables of rules, by opcode, and what else an instruction's form says of it. */
#include "opcodes.h"
#include "pieces.h"

#define ROW8(first, rule) [first ... first + 7] = rule
#define ALU(first) [first ... first + 5] = PLAIN
static const uint8_t one_byte[256] = {
    ALU(0x00), [0x06] = PUSH_SEGMENT, [0x07] = POP_SEGMENT, ALU(0x08), [0x0e] = PUSH_SEGMENT, ALU(0x10), [0x16] = PUSH_SEGMENT, ALU(0x18), [0x1e] = PUSH_SEGMENT, [0x1f] = POP_SEGMENT,
    ALU(0x20), ALU(0x28), ALU(0x30), ALU(0x38), ROW8(0x40, NO_REX), ROW8(0x48, NO_REX), ROW8(0x50, PUSH_REGISTER), ROW8(0x58, POP_REGISTER),
    [0x60] = PUSH_ALL, [0x61] = POP_ALL, [0x68] = PUSH_IMMEDIATE, [0x69] = PLAIN, [0x6a] = PUSH_IMMEDIATE, [0x6b] = PLAIN, [0x70 ... 0x7f] = JCC,
    [0x80] = PLAIN, [0x81] = PLAIN, [0x82] = ALIAS_80, [0x83 ... 0x8b] = PLAIN, [0x8c] = FROM_SEGMENT, [0x8d] = PLAIN, [0x8e] = TO_SEGMENT, [0x8f] = POP_MEMORY,
    [0x90 ... 0x99] = PLAIN, [0x9b] = COPY, [0x9c] = PUSH_FLAGS, [0x9d] = POP_FLAGS, [0x9e] = COPY, [0x9f] = COPY, [0xa0 ... 0xa3] = ABSOLUTE,
    [0xa4 ... 0xa7] = STRING, [0xa8] = PLAIN, [0xa9] = PLAIN, [0xaa ... 0xaf] = STRING, [0xb0 ... 0xbf] = PLAIN, [0xc0] = PLAIN, [0xc1] = PLAIN,
    [0xc2] = RETURN, [0xc3] = RETURN, [0xc6] = COPY, [0xc7] = COPY, [0xc9] = LEAVE, [0xcf] = INTERRUPT_RETURN, [0xd0 ... 0xd3] = PLAIN, ROW8(0xd8, COPY), [0xe0 ... 0xe3] = LOOP,
    [0xe4] = PORT_OF_BYTE, [0xe6] = PORT_OF_BYTE, [0xe8] = CALL, [0xe9] = JUMP, [0xeb] = JUMP, [0xec] = PORT_OF_BYTE, [0xee] = PORT_OF_BYTE, [0xf5] = PLAIN, [0xf6] = PLAIN, [0xf7] = PLAIN, [0xf8] = PLAIN, [0xf9] = PLAIN, [0xfa] = CLEAR_INTERRUPT,
    [0xfb] = SET_INTERRUPT, [0xfc] = PLAIN, [0xfd] = PLAIN, [0xfe] = COPY, [0xff] = GROUP_FF,
};

static const uint8_t two_byte[256] = {
    [0x0b] = COPY_TO_END, [0x0d] = COPY, [0x10 ... 0x17] = COPY, [0x18 ... 0x1f] = COPY, [0x20] = FROM_CONTROL, [0x28 ... 0x2f] = COPY, [0x31] = READ_TIME,
    [0x40 ... 0x4f] = PLAIN, [0x50 ... 0x77] = COPY, [0x7c ... 0x7e] = COPY, [0x7f] = COPY, [0x80 ... 0x8f] = JCC_NEAR, [0x90 ... 0x9f] = PLAIN,
    [0xa0] = PUSH_SEGMENT, [0xa1] = POP_SEGMENT, [0xa3] = PLAIN, [0xa4] = PLAIN, [0xa5] = PLAIN, [0xa8] = PUSH_SEGMENT, [0xa9] = POP_SEGMENT, [0xab] = PLAIN, [0xac] = PLAIN, [0xad] = PLAIN,
    [0xae] = GROUP_AE, [0xaf] = PLAIN, [0xb0] = PLAIN, [0xb1] = PLAIN, [0xb3] = PLAIN, [0xb6] = PLAIN, [0xb7] = PLAIN, [0xb8] = COPY, [0xba] = COPY, [0xbb ... 0xbf] = PLAIN,
    [0xc0 ... 0xc6] = COPY, [0xc7] = GROUP_C7, ROW8(0xc8, COPY), [0xd0 ... 0xfe] = COPY,
};

enum rule hv_rule(const struct hv_insn *insn)
{
    switch (insn->map) {
    case HV_MAP_ONE: return one_byte[insn->opcode];
    case HV_MAP_0F: return two_byte[insn->opcode];
    case HV_MAP_VEX:
    case HV_MAP_3DNOW: return MONITOR;
    default: return COPY;
    }
}

bool hv_is_narrow(const struct hv_insn *insn, enum rule rule)
{
    switch (rule) {
    case PUSH_REGISTER: case POP_REGISTER: case PUSH_ALL: case POP_ALL: case PUSH_IMMEDIATE: case PUSH_SEGMENT: case JCC: case JCC_NEAR: case POP_MEMORY:
    case PUSH_FLAGS: case POP_FLAGS: case POP_SEGMENT: case INTERRUPT_RETURN: case RETURN: case LEAVE: case LOOP: case CALL: case JUMP:
        return insn->operand_size == 2;
    case GROUP_FF:
        return insn->operand_size == 2 && insn->reg >= 2;
    default:
        return false;
    }
}

bool hv_may_copy(const struct hv_insn *insn)
{
    /* MOVDIR64B and ENQCMD write to where a register says, which takes no prefix. */
    if (insn->map == HV_MAP_0F38 && insn->opcode == 0xf8)
        return false;
    if (hv_is_masked_move(insn) && hv_is_far(insn))
        return false;
    /* F3 0F B8 is POPCNT, but 0F B8 is nothing; the others keep their meaning with any prefix. */
    if (insn->map == HV_MAP_0F && insn->opcode == 0xb8 && insn->repeat != HV_REPEAT_E)
        return false;
    if (insn->map == HV_MAP_ONE && (insn->opcode == 0xc6 || insn->opcode == 0xc7) && insn->reg) /* XABORT, XBEGIN */
        return false;
    if (insn->map == HV_MAP_0F && insn->opcode == 0xba && insn->reg < 4)
        return false;
    if (insn->map == HV_MAP_ONE && insn->opcode == 0xfe && insn->reg > 1)
        return false;
    return true;
}

enum hv_replacement hv_replacement(const struct hv_insn *insn)
{
    static const uint8_t by_rule[] = {
        [PUSH_SEGMENT] = HV_REPLACED_IN_LINE, [JCC] = HV_REPLACED_CHAINED, [JCC_NEAR] = HV_REPLACED_CHAINED, [FROM_SEGMENT] = HV_REPLACED_IN_LINE,
        [PUSH_FLAGS] = HV_REPLACED_IN_LINE, [POP_FLAGS] = HV_REPLACED_IN_LINE, [RETURN] = HV_REPLACED_LOOKUP, [LOOP] = HV_REPLACED_CHAINED,
        [CALL] = HV_REPLACED_CHAINED, [JUMP] = HV_REPLACED_CHAINED, [CLEAR_INTERRUPT] = HV_REPLACED_IN_LINE, [SET_INTERRUPT] = HV_REPLACED_IN_LINE,
        [TO_SEGMENT] = HV_REPLACED_IN_LINE, [POP_SEGMENT] = HV_REPLACED_IN_LINE, [INTERRUPT_RETURN] = HV_REPLACED_CALLOUT, [READ_TIME] = HV_REPLACED_IN_LINE,
        [FROM_CONTROL] = HV_REPLACED_IN_LINE, [COPY_TO_END] = HV_REPLACED_NOT, [PORT_OF_BYTE] = HV_REPLACED_CALLOUT,
    };
    enum rule rule = insn->map == HV_MAP_VEX ? COPY : hv_rule(insn);
    if (rule == GROUP_FF)
        return insn->reg == 2 || insn->reg == 4 ? HV_REPLACED_LOOKUP : HV_REPLACED_NOT;
    return by_rule[rule];
}

bool hv_is_branch(const struct hv_insn *insn)
{
    enum rule rule = hv_rule(insn);
    return rule == RETURN || rule == CALL || rule == JUMP || rule == JCC || rule == JCC_NEAR || rule == LOOP || rule == GROUP_FF;
}

bool hv_is_string(const struct hv_insn *insn) { return insn->map == HV_MAP_ONE && one_byte[insn->opcode] == STRING; }

bool hv_sets_interrupts(const struct hv_insn *insn) { return insn->map == HV_MAP_ONE && one_byte[insn->opcode] == SET_INTERRUPT; }
