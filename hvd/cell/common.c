/* The instructions that kernels consist of, nine tenths of them, many in a row: by tables that say of each opcode and of each ModRM byte what it adds, without
 * taking them to parts (decode.c), and nearly without branches, which the processor would predict wrongly for each other instruction. What is written is what
 * rules.c writes, which does all the others. */
#include "common.h"

#define PAGE 4096u
#define READ 16u /* bytes at once of the guest's code, and as many written */

/* ---- of a ModRM byte in 32-bit addressing */
#define BYTES 7u          /* it, a SIB byte and the displacement */
#define MEMORY 0x10u      /* so that shifted by three it is two, the prefixes' bytes */
#define NO_BASE 0x20u     /* the SIB byte may say that a displacement of four bytes follows */
#define ABSOLUTE 0x40u    /* which 64-bit code has another form for */
#define REGISTER 0x80u
#define EXTENDED 0x100u   /* reg is not 0 */

#define RM8(reg, base, sib, fifth) reg | (base), reg | (base), reg | (base), reg | (base), reg | ((base) + 1) | (sib), reg | (fifth), reg | (base), reg | (base)
#define MOD(base, sib, fifth) RM8(0, base, sib, fifth), RM8(EXTENDED, base, sib, fifth), RM8(EXTENDED, base, sib, fifth), RM8(EXTENDED, base, sib, fifth), \
    RM8(EXTENDED, base, sib, fifth), RM8(EXTENDED, base, sib, fifth), RM8(EXTENDED, base, sib, fifth), RM8(EXTENDED, base, sib, fifth)
static const uint16_t modrm_rows[256] = {
    MOD(MEMORY | 1, NO_BASE, MEMORY | ABSOLUTE | 5),
    MOD(MEMORY | 2, 0, MEMORY | 2),
    MOD(MEMORY | 5, 0, MEMORY | 5),
    [0xc0 ... 0xc7] = REGISTER | 1, [0xc8 ... 0xff] = EXTENDED | REGISTER | 1,
};

/* ---- of an opcode */
enum kind { OTHER, COPIED, WRITTEN /* as a text says */, JCC_SHORT, JCC_LONG, JUMP_SHORT, JUMP_LONG, CALL, RETURN };
struct form {
    uint8_t kind;
    uint8_t bytes;  /* opcode and immediate */
    uint16_t modrm; /* which bits of the ModRM byte's row count: none, if there is no such byte */
    uint16_t not;   /* those with which it is another instruction, or has another form in 64-bit code */
};
#define ALONE(count) {COPIED, count, 0, 0}
#define OPERAND(count) {COPIED, count, 0xffff, ABSOLUTE}
#define FIRST_OF_GROUP(count) {COPIED, count, 0xffff, ABSOLUTE | EXTENDED}
#define ARITHMETIC(first) [first ... first + 3] = OPERAND(1), [first + 4] = ALONE(2), [first + 5] = ALONE(5)
static const struct form one_byte[256] = {
    ARITHMETIC(0x00), ARITHMETIC(0x08), ARITHMETIC(0x10), ARITHMETIC(0x18), ARITHMETIC(0x20), ARITHMETIC(0x28), ARITHMETIC(0x30), ARITHMETIC(0x38),
    [0x40 ... 0x5f] = {WRITTEN, 1, 0, 0}, [0x69] = OPERAND(5), [0x6b] = OPERAND(2), [0x70 ... 0x7f] = {JCC_SHORT, 2, 0, 0},
    [0x80] = OPERAND(2), [0x81] = OPERAND(5), [0x83] = OPERAND(2), [0x84 ... 0x8b] = OPERAND(1),
    [0x8d] = {COPIED, 1, 0xffff & ~MEMORY, ABSOLUTE | REGISTER}, /* LEA only computes, and keeps the lower half */
    [0x90 ... 0x99] = ALONE(1), [0xa8] = ALONE(2), [0xa9] = ALONE(5), [0xb0 ... 0xb7] = ALONE(2), [0xb8 ... 0xbf] = ALONE(5), [0xc0] = OPERAND(2), [0xc1] = OPERAND(2),
    [0xc3] = {RETURN, 1, 0, 0}, [0xc6] = FIRST_OF_GROUP(2), [0xc7] = FIRST_OF_GROUP(5), [0xd0 ... 0xd3] = OPERAND(1), [0xe8] = {CALL, 5, 0, 0},
    [0xe9] = {JUMP_LONG, 5, 0, 0}, [0xeb] = {JUMP_SHORT, 2, 0, 0}, [0xf5] = ALONE(1), [0xf6] = FIRST_OF_GROUP(2), [0xf7] = FIRST_OF_GROUP(5),
    [0xf8] = ALONE(1), [0xf9] = ALONE(1), [0xfc] = ALONE(1), [0xfd] = ALONE(1),
};
static const struct form two_byte[256] = {
    [0x40 ... 0x4f] = OPERAND(2), [0x80 ... 0x8f] = {JCC_LONG, 6, 0, 0}, [0x90 ... 0x9f] = OPERAND(2), [0xa3] = OPERAND(2), [0xa4] = OPERAND(3), [0xa5] = OPERAND(2),
    [0xab] = OPERAND(2), [0xac] = OPERAND(3), [0xad] = OPERAND(2), [0xaf] = OPERAND(2), [0xb0] = OPERAND(2), [0xb1] = OPERAND(2), [0xb3] = OPERAND(2), [0xb6] = OPERAND(2),
    [0xb7] = OPERAND(2), [0xbb ... 0xbf] = OPERAND(2),
};

/* 40-5F: INC, DEC, PUSH, POP. As rules.c writes them. */
#define COUNT(base, reg) {2, {0xff, (base) | (reg)}}
#define PUSH(reg) {10, {0x65, 0x67, 0x89, 0x44 | (reg) << 3, 0x24, 0xfc, 0x8d, 0x64, 0x24, 0xfc}}
#define POP(reg) {9, {0x65, 0x67, 0x8b, 0x04 | (reg) << 3, 0x24, 0x8d, 0x64, 0x24, 0x04}}
#define POP_ESP {5, {0x65, 0x67, 0x8b, 0x24, 0x24}}
static const struct text {
    uint8_t bytes, code[READ];
} texts[32] = {
    COUNT(0xc0, 0), COUNT(0xc0, 1), COUNT(0xc0, 2), COUNT(0xc0, 3), COUNT(0xc0, 4), COUNT(0xc0, 5), COUNT(0xc0, 6), COUNT(0xc0, 7),
    COUNT(0xc8, 0), COUNT(0xc8, 1), COUNT(0xc8, 2), COUNT(0xc8, 3), COUNT(0xc8, 4), COUNT(0xc8, 5), COUNT(0xc8, 6), COUNT(0xc8, 7),
    PUSH(0), PUSH(1), PUSH(2), PUSH(3), PUSH(4), PUSH(5), PUSH(6), PUSH(7),
    POP(0), POP(1), POP(2), POP(3), POP_ESP, POP(5), POP(6), POP(7),
};

static uint32_t target_of(const uint8_t *in, uint32_t next)
{
    int32_t displacement;
    memcpy(&displacement, in, 4);
    return next + (uint32_t)displacement;
}

/* in: a jump, call or return of that kind, and what is behind it */
static void jump(struct hv_translation *t, enum kind kind, const uint8_t *in, uint32_t next)
{
    struct hv_emitter *e = &t->e;
    uint32_t near = next + (uint32_t)(int8_t)in[1];
    switch (kind) {
    case JCC_SHORT:
        hv_byte(e, 0x0f);
        hv_byte(e, in[0] + 0x10u);
        hv_emit_exit(t, near);
        return;
    case JCC_LONG:
        hv_byte(e, 0x0f);
        hv_byte(e, in[1]);
        hv_emit_exit(t, target_of(in + 2, next));
        return;
    case CALL:
        hv_emit_push_constant(t, next);
        hv_jump_out(t, target_of(in + 1, next));
        t->returns_to = next;
        break;
    case RETURN:
        hv_emit_top_of_stack(t);
        hv_move_esp(e, 4);
        hv_emit_indirect_jump(t);
        break;
    default:
        hv_jump_out(t, kind == JUMP_SHORT ? near : target_of(in + 1, next));
    }
    t->ends = true;
}

void hv_translate_common(struct hv_translation *t, unsigned most)
{
    struct hv_block *block = t->block;
    struct hv_place *const first = hv_block_places(), *place = first;
    const uint8_t *in = t->bytes, *const begin = in, *const last = in - t->next % PAGE + PAGE - READ;
    const uint32_t eip = t->next, offset = eip - block->eip;
    uint8_t *out = t->e.at;
    for (; in <= last && place < first + most && !t->ends; place++) {
        const uint8_t *opcode = *in == 0x0f ? in + 1 : in;
        const struct form *form = *in == 0x0f ? &two_byte[*opcode] : &one_byte[*opcode];
        unsigned row = modrm_rows[opcode[1]] & form->modrm;
        if (form->kind == OTHER || row & form->not)
            break;
        *place = (struct hv_place){(uint16_t)(out - block->host), (uint16_t)(offset + (uint32_t)(in - begin))};
        if (form->kind <= WRITTEN) {
            bool written = form->kind == WRITTEN;
            const struct text *text = &texts[*in & 31];
            unsigned bytes = form->bytes + (row & BYTES) + (row & NO_BASE && (opcode[2] & 7) == 5 ? 4 : 0);
            memcpy(out, "\x65\x67", 2);
            out += row >> 3 & 2;
            memcpy(out, written ? text->code : in, READ);
            out += written ? text->bytes : bytes;
            in += bytes;
        } else {
            t->e.at = out;
            jump(t, form->kind, in, eip + (uint32_t)(in - begin) + form->bytes);
            out = t->e.at;
            in += form->bytes;
        }
    }
    t->e.at = out;
    t->next = eip + (uint32_t)(in - begin);
    block->instructions = (uint16_t)(block->instructions + (place - first));
    hv_block_placed(block, (unsigned)(place - first));
}
