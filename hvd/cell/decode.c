#include "decode.h"

#include <stddef.h>
#include <string.h>

/* What follows an opcode, one letter each (Intel SDM vol. 2D, appendix A; AMD APM vol. 3 for 3DNow!, SSE4a and XOP):
 *   .  nothing              m  ModRM             b  imm8            n  ModRM, imm8
 *   z  imm16 or imm32       y  ModRM, imm16/32   w  imm16           t  imm16, imm8 (ENTER)
 *   o  moffs                f  far pointer       g  ModRM; imm8 for /0 and /1       h  ModRM; imm16/32 for /0 and /1
 *   c  ModRM, which always names registers       s  ModRM; two imm8 behind 66 or F2 (EXTRQ, INSERTQ)
 *   P  prefix               E  two-byte escape   8  0F38 escape     A  0F3A escape  D  3DNow!
 *   e  BOUND or EVEX        v  LES or VEX        u  LDS or VEX      x  POP or XOP   ?  no instruction
 */
static const char one_byte[257] =
    "mmmmbz..mmmmbz.E" /* 00 */
    "mmmmbz..mmmmbz.."
    "mmmmbzP.mmmmbzP." /* 20 */
    "mmmmbzP.mmmmbzP."
    "................" /* 40 */
    "................"
    "..emPPPPzybn...." /* 60 */
    "bbbbbbbbbbbbbbbb"
    "nynnmmmmmmmmmmmx" /* 80 */
    "..........f....."
    "oooo....bz......" /* a0 */
    "bbbbbbbbzzzzzzzz"
    "nnw.vunyt.w..b.." /* c0 */
    "mmmmbb..mmmmmmmm"
    "bbbbbbbbzzfb...." /* e0 */
    "P.PP..gh......mm";
static const char two_byte[257] =
    "mmmm?.....?.?m.D" /* 0f 00 */
    "mmmmmmmmmmmmmmmm"
    "cccc????mmmmmmmm" /* 0f 20 */
    "......?.8?A?????"
    "mmmmmmmmmmmmmmmm" /* 0f 40 */
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm" /* 0f 60 */
    "nnnnmmm.sm??mmmm"
    "zzzzzzzzzzzzzzzz" /* 0f 80 */
    "mmmmmmmmmmmmmmmm"
    "...mnmmm...mnmmm" /* 0f a0 */
    "mmmmmmmmmmnmmmmm"
    "mmnmnnnm........" /* 0f c0 */
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm" /* 0f e0 */
    "mmmmmmmmmmmmmmmm";

struct cursor {
    struct hv_insn *insn;
    const uint8_t *bytes;
    unsigned available, at;
};

/* Why the next count bytes cannot be read; HV_DECODED: they can. */
static enum hv_decoded lacks(const struct cursor *cursor, unsigned count)
{
    if (cursor->at + count <= cursor->available)
        return HV_DECODED;
    return cursor->available == HV_LONGEST_INSTRUCTION ? HV_DECODE_LONG : HV_DECODE_MORE;
}
#define NEED(cursor, count) do { enum hv_decoded lack = lacks(cursor, count); if (lack) return lack; } while (0)

/* size: 1, 2 or 4 */
static inline uint32_t take(struct cursor *cursor, unsigned size)
{
    const uint8_t *bytes = cursor->bytes + cursor->at;
    cursor->at += size;
    if (size == 1)
        return bytes[0];
    uint32_t value = bytes[0] | (uint32_t)bytes[1] << 8;
    return size == 2 ? value : value | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static enum hv_decoded prefixes(struct cursor *cursor, bool code32)
{
    struct hv_insn *insn = cursor->insn;
    for (;; cursor->at++) {
        NEED(cursor, 1);
        if (one_byte[cursor->bytes[cursor->at]] != 'P')
            break;
        switch (cursor->bytes[cursor->at]) {
        case 0x26: insn->segment = HV_ES; continue;
        case 0x2e: insn->segment = HV_CS; continue;
        case 0x36: insn->segment = HV_SS; continue;
        case 0x3e: insn->segment = HV_DS; continue;
        case 0x64: insn->segment = HV_FS; continue;
        case 0x65: insn->segment = HV_GS; continue;
        case 0x66: insn->operand_prefix = true; continue;
        case 0x67: insn->address_prefix = true; continue;
        case 0xf0: insn->lock = true; continue;
        case 0xf2: insn->repeat = HV_REPEAT_NE; continue;
        case 0xf3: insn->repeat = HV_REPEAT_E; continue;
        }
    }
    insn->operand_size = code32 != insn->operand_prefix ? 4 : 2;
    insn->address_size = code32 != insn->address_prefix ? 4 : 2;
    insn->opcode_offset = (uint8_t)cursor->at;
    return HV_DECODED;
}

static enum hv_decoded displacement(struct cursor *cursor, unsigned size)
{
    struct hv_insn *insn = cursor->insn;
    NEED(cursor, size);
    insn->displacement_size = (uint8_t)size;
    insn->displacement_offset = (uint8_t)cursor->at;
    uint32_t value = take(cursor, size);
    insn->displacement = size == 1 ? (int8_t)value : size == 2 ? (int16_t)value : (int32_t)value;
    return HV_DECODED;
}

/* registers_only: MOV to and from CR and DR, which ignore the mod field. */
static enum hv_decoded modrm(struct cursor *cursor, bool registers_only)
{
    struct hv_insn *insn = cursor->insn;
    NEED(cursor, 1);
    insn->has_modrm = true;
    insn->modrm = (uint8_t)take(cursor, 1);
    insn->mod = registers_only ? 3 : insn->modrm >> 6;
    insn->reg = insn->modrm >> 3 & 7;
    insn->rm = insn->modrm & 7;
    if (insn->mod == 3)
        return HV_DECODED;

    unsigned size = insn->mod == 1 ? 1 : insn->mod == 2 ? insn->address_size : 0;
    if (insn->address_size == 2) {
        if (insn->mod == 0 && insn->rm == 6)
            size = 2;
    } else if (insn->rm == 4) {
        NEED(cursor, 1);
        uint32_t sib = take(cursor, 1);
        insn->has_sib = true;
        insn->scale = sib >> 6;
        insn->index = sib >> 3 & 7;
        insn->base = sib & 7;
        if (insn->mod == 0 && insn->base == 5)
            size = 4;
    } else if (insn->mod == 0 && insn->rm == 5) {
        size = 4;
    }
    return size ? displacement(cursor, size) : HV_DECODED;
}

static enum hv_decoded immediate(struct cursor *cursor, unsigned size)
{
    NEED(cursor, size);
    cursor->insn->immediate_size = (uint8_t)size;
    cursor->insn->immediate_offset = (uint8_t)cursor->at;
    cursor->insn->immediate = take(cursor, size);
    return HV_DECODED;
}

static enum hv_decoded second(struct cursor *cursor, unsigned size)
{
    NEED(cursor, size);
    cursor->insn->second_size = (uint8_t)size;
    cursor->insn->second = (uint16_t)take(cursor, size);
    return HV_DECODED;
}

/* Both operands, one behind the other. */
static enum hv_decoded both(enum hv_decoded first, struct cursor *cursor, enum hv_decoded (*next)(struct cursor *, unsigned), unsigned size)
{
    return first ? first : next(cursor, size);
}

/* The opcode and operands behind a VEX, EVEX or XOP prefix: their maps give every instruction a ModRM byte, but for VZEROUPPER. */
static enum hv_decoded vex_operands(struct cursor *cursor, unsigned map)
{
    struct hv_insn *insn = cursor->insn;
    NEED(cursor, 1);
    insn->map = HV_MAP_VEX;
    insn->vex_map = (uint8_t)map;
    insn->opcode = (uint8_t)take(cursor, 1);
    if (map == 1 && insn->opcode == 0x77)
        return HV_DECODED;
    enum hv_decoded result = modrm(cursor, false);
    unsigned size = map == 3 || map == 8 ? 1 : map == 10 ? 4 : map == 1 && two_byte[insn->opcode] == 'n' ? 1 : 0;
    return size ? both(result, cursor, immediate, size) : result;
}

/* In these the byte behind the opcode tells a prefix of the new kind from the old instruction, whose ModRM byte it cannot be. */
static enum hv_decoded escape_or_modrm(struct cursor *cursor, char form)
{
    NEED(cursor, 1);
    unsigned payload = cursor->bytes[cursor->at], map;
    switch (form) {
    case 'x':
        map = payload & 31;
        if (map < 8)
            return modrm(cursor, false);
        if (map > 10)
            return HV_DECODE_UNKNOWN;
        NEED(cursor, 2);
        cursor->at += 2;
        return vex_operands(cursor, map);
    case 'e':
        if (payload >> 6 != 3)
            return modrm(cursor, false);
        map = payload & 7;
        NEED(cursor, 2);
        if (payload & 8 || map == 0 || map == 4 || map == 7 || !(cursor->bytes[cursor->at + 1] & 4))
            return HV_DECODE_UNKNOWN;
        NEED(cursor, 3);
        cursor->at += 3;
        return vex_operands(cursor, map);
    case 'v':
        if (payload >> 6 != 3)
            return modrm(cursor, false);
        map = payload & 31;
        if (map == 0 || map > 3)
            return HV_DECODE_UNKNOWN;
        NEED(cursor, 2);
        cursor->at += 2;
        return vex_operands(cursor, map);
    default:
        if (payload >> 6 != 3)
            return modrm(cursor, false);
        cursor->at++;
        return vex_operands(cursor, 1);
    }
}

static enum hv_decoded operands(struct cursor *cursor, char form)
{
    struct hv_insn *insn = cursor->insn;
    switch (form) {
    case '.': return HV_DECODED;
    case 'm': return modrm(cursor, false);
    case 'c': return modrm(cursor, true);
    case 'b': return immediate(cursor, 1);
    case 'w': return immediate(cursor, 2);
    case 'z': return immediate(cursor, insn->operand_size);
    case 'n': return both(modrm(cursor, false), cursor, immediate, 1);
    case 'y': return both(modrm(cursor, false), cursor, immediate, insn->operand_size);
    case 't': return both(immediate(cursor, 2), cursor, second, 1);
    case 'f': return both(immediate(cursor, insn->operand_size), cursor, second, 2);
    case 'o': return displacement(cursor, insn->address_size);
    case 'g':
    case 'h': {
        enum hv_decoded result = modrm(cursor, false);
        return insn->reg > 1 ? result : both(result, cursor, immediate, form == 'g' ? 1 : insn->operand_size);
    }
    case 's':
        if (!insn->operand_prefix && insn->repeat != HV_REPEAT_NE)
            return modrm(cursor, false);
        return both(both(modrm(cursor, false), cursor, immediate, 1), cursor, second, 1);
    case 'D': {
        enum hv_decoded result = modrm(cursor, false);
        if (result)
            return result;
        NEED(cursor, 1);
        insn->map = HV_MAP_3DNOW;
        insn->opcode = (uint8_t)take(cursor, 1);
        return HV_DECODED;
    }
    case 'e':
    case 'v':
    case 'u':
    case 'x': return escape_or_modrm(cursor, form);
    default: return HV_DECODE_UNKNOWN;
    }
}

static enum hv_decoded opcode(struct cursor *cursor)
{
    struct hv_insn *insn = cursor->insn;
    insn->opcode = (uint8_t)take(cursor, 1);
    char form = one_byte[insn->opcode];
    if (form != 'E')
        return operands(cursor, form);
    NEED(cursor, 1);
    insn->map = HV_MAP_0F;
    insn->opcode = (uint8_t)take(cursor, 1);
    form = two_byte[insn->opcode];
    if (form != '8' && form != 'A')
        return operands(cursor, form);
    NEED(cursor, 1);
    insn->map = form == '8' ? HV_MAP_0F38 : HV_MAP_0F3A;
    insn->opcode = (uint8_t)take(cursor, 1);
    return operands(cursor, form == '8' ? 'm' : 'n');
}

enum hv_decoded hv_decode(struct hv_insn *insn, const uint8_t *bytes, unsigned available, bool code32)
{
    struct cursor cursor = {insn, bytes, available < HV_LONGEST_INSTRUCTION ? available : HV_LONGEST_INSTRUCTION, 0};
    memset(insn, 0, offsetof(struct hv_insn, bytes)); /* the rest is copied anyway */
    insn->segment = -1;
    enum hv_decoded result = prefixes(&cursor, code32);
    if (result == HV_DECODED)
        result = opcode(&cursor);
    insn->length = (uint8_t)cursor.at;
    if (available >= HV_LONGEST_INSTRUCTION)
        memcpy(insn->bytes, bytes, HV_LONGEST_INSTRUCTION); /* of one length, it is two moves */
    else
        memcpy(insn->bytes, bytes, cursor.at);
    return result;
}
