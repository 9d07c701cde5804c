/* Pieces of translated code that rules.c puts instructions together from: operands in the window, pushes, ways out of a block. */
#include "pieces.h"

void hv_emit_exit(struct hv_translation *t, uint32_t eip)
{
    hv_entry_announce(eip);
    t->exit[t->exits].displacement = t->e.at;
    t->exit[t->exits++].eip = eip;
    hv_word32(&t->e, 0);
}

void hv_jump_out(struct hv_translation *t, uint32_t eip)
{
    hv_byte(&t->e, 0xe9);
    hv_emit_exit(t, eip);
}

void hv_call_out(struct hv_translation *t, uint32_t eip, enum hv_callout kind)
{
    hv_constant(&t->e, HV_R8, eip);
    hv_constant(&t->e, HV_R9, kind);
    hv_jump(&t->e, hv_stubs.callout);
}

void hv_check_interrupts(struct hv_translation *t, uint32_t eip)
{
    struct hv_emitter *e = &t->e;
    HV_CODE(e, "\x49\x89\xcb"); /* mov r11, rcx */
    hv_load32(e, HV_ECX, HV_FIELD(pending));
    HV_CODE(e, "\xe3\x00"); /* jrcxz none */
    uint8_t *jump = e->at;
    HV_CODE(e, "\x4c\x89\xd9"); /* mov rcx, r11 */
    hv_call_out(t, eip, HV_CALLOUT_INTERRUPT);
    jump[-1] = (uint8_t)(e->at - jump);
    HV_CODE(e, "\x4c\x89\xd9");
}

/* CR0.TS and EM and CR4.OSFXSR can make x87 and SSE instructions fault. They change only between blocks: once in each is enough. */
void hv_emit_fpu_check(struct hv_translation *t)
{
    enum hv_fpu kind = hv_fpu_kind(&t->insn);
    struct hv_emitter *e = &t->e;
    if (kind == HV_FPU_NONE || t->fpu_checked[kind])
        return;
    t->fpu_checked[kind] = t->block->one_way_in = true;
    HV_CODE(e, "\x49\x89\xcb"); /* mov r11, rcx */
    hv_load32(e, HV_ECX, HV_FIELD(fpu_traps) + 4 * (unsigned)kind);
    HV_CODE(e, "\xe3\x00"); /* jrcxz none */
    uint8_t *jump = e->at;
    HV_CODE(e, "\x4c\x89\xd9"); /* mov rcx, r11 */
    hv_call_out(t, t->eip, HV_CALLOUT_EMULATE);
    jump[-1] = (uint8_t)(e->at - jump);
    HV_CODE(e, "\x4c\x89\xd9");
}


/* ModRM, SIB and displacement of the memory operand without its segment. */
void hv_emit_operand(struct hv_translation *t, unsigned reg)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    reg = (reg & 7) << 3;
    if (insn->mod == 3) {
        hv_byte(e, 0xc0 | reg | insn->rm);
    } else if (!insn->has_sib && insn->mod == 0 && insn->rm == 5) { /* relative to RIP without a SIB byte */
        hv_byte(e, reg | 4);
        hv_byte(e, 0x25);
        hv_word32(e, (uint32_t)insn->displacement);
    } else {
        hv_byte(e, insn->mod << 6 | reg | insn->rm);
        if (insn->has_sib)
            hv_byte(e, insn->scale << 6 | insn->index << 3 | insn->base);
        if (insn->displacement_size == 1)
            hv_byte(e, (uint8_t)insn->displacement);
        else if (insn->displacement_size == 4)
            hv_word32(e, (uint32_t)insn->displacement);
    }
}

/* r8d = effective address, r9 = the window of the segment, both together linear; for FS and GS. */
void hv_emit_far_operand(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    HV_CODE(e, "\x67\x44\x8d"); /* lea r8d, [operand] */
    hv_emit_operand(t, HV_R8);
    hv_load32(e, HV_R9, HV_FIELD(segment_base) + 4 * (unsigned)t->insn.segment);
    HV_CODE(e, "\x47\x8d\x04\x08"); /* lea r8d, [r8 + r9] */
    hv_load64(e, HV_R9, HV_FIELD(segment_window) + 8 * (unsigned)t->insn.segment);
}

void hv_emit_prefixes(struct hv_translation *t)
{
    if (t->insn.operand_prefix)
        hv_byte(&t->e, 0x66);
    if (t->insn.repeat)
        hv_byte(&t->e, t->insn.repeat);
    if (t->insn.lock)
        hv_byte(&t->e, 0xf0);
}

void hv_emit_opcode(struct hv_translation *t, unsigned value)
{
    if (t->insn.map != HV_MAP_ONE)
        hv_byte(&t->e, 0x0f);
    if (t->insn.map == HV_MAP_0F38)
        hv_byte(&t->e, 0x38);
    if (t->insn.map == HV_MAP_0F3A)
        hv_byte(&t->e, 0x3a);
    hv_byte(&t->e, value);
}

void hv_emit_immediates(struct hv_translation *t)
{
    const struct hv_insn *insn = &t->insn;
    for (unsigned i = 0; i < insn->immediate_size; i++)
        hv_byte(&t->e, insn->immediate >> 8 * i & 0xff);
}

/* Does the ModRM reg field name AH, CH, DH or BH, which a REX prefix would turn into something else? */
static bool high_byte_register(const struct hv_insn *insn)
{
    if (insn->reg < 4)
        return false;
    if (insn->map == HV_MAP_ONE)
        return (insn->opcode < 0x40 && !(insn->opcode & 1)) || insn->opcode == 0x84 || insn->opcode == 0x86 || insn->opcode == 0x88 || insn->opcode == 0x8a;
    return insn->map == HV_MAP_0F && (insn->opcode == 0xb0 || insn->opcode == 0xc0);
}

/* The same instruction, its memory operand in the window. */
bool hv_emit_copy(struct hv_translation *t, unsigned value)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    bool is_lea = insn->map == HV_MAP_ONE && value == 0x8d;
    if (is_lea && insn->mod == 3)
        return false;
    if (hv_is_memory(insn) && !is_lea && hv_is_far(insn)) {
        if (high_byte_register(insn))
            return false;
        hv_emit_far_operand(t);
        hv_emit_prefixes(t);
        hv_byte(e, 0x43);
        hv_emit_opcode(t, value);
        hv_byte(e, insn->reg << 3 | 4);
        hv_byte(e, 0x01); /* [r9 + r8] */
        hv_emit_immediates(t);
        return true;
    }
    if ((hv_is_memory(insn) && !is_lea) || hv_is_masked_move(insn)) /* LEA only computes, and keeps the lower half */
        HV_CODE(e, "\x65\x67");
    hv_emit_prefixes(t);
    hv_emit_opcode(t, value);
    if (insn->has_modrm)
        hv_emit_operand(t, insn->reg);
    hv_emit_immediates(t);
    return true;
}

/* The most frequent kind, byte by byte. */
bool hv_emit_as_it_is(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    if (insn->opcode_offset || (insn->has_modrm && (insn->modrm & 0xc7) == 5)) /* prefixes, or memory by its displacement only */
        return false;
    bool is_lea = insn->opcode == 0x8d; /* which only computes, and keeps the lower half */
    if (is_lea && insn->mod == 3)
        return false;
    if (hv_is_memory(insn) && !is_lea)
        HV_CODE(e, "\x65\x67");
    memcpy(e->at, t->bytes, HV_LONGEST_INSTRUCTION); /* of one length: two moves, which would wait for those that have filled insn->bytes just now */
    e->at += insn->length;
    return true;
}

/* mov r8d, operand (0x8b), or the reverse (0x89) */
void hv_emit_move_r8(struct hv_translation *t, unsigned value)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    if (hv_is_memory(insn) && hv_is_far(insn)) {
        hv_emit_far_operand(t);
        HV_CODE(e, "\x47");
        hv_byte(e, value);
        HV_CODE(e, "\x04\x01");
        return;
    }
    if (hv_is_memory(insn))
        HV_CODE(e, "\x65\x67");
    hv_byte(e, 0x44);
    hv_byte(e, value);
    hv_emit_operand(t, HV_R8);
}

void hv_emit_push_r8(struct hv_translation *t)
{
    HV_CODE(&t->e, "\x65\x67\x44\x89\x44\x24\xfc"); /* mov gs:[esp - 4], r8d */
    hv_move_esp(&t->e, -4);
}

/* mov r8d, gs:[esp] */
void hv_emit_top_of_stack(struct hv_translation *t) { HV_CODE(&t->e, "\x65\x67\x44\x8b\x04\x24"); }

void hv_emit_push_constant(struct hv_translation *t, uint32_t value)
{
    HV_CODE(&t->e, "\x65\x67\xc7\x44\x24\xfc");
    hv_word32(&t->e, value);
    hv_move_esp(&t->e, -4);
}

/* To the block of EIP = r8d, by the table. Its key is EIP's negative, so that comparing needs no flags; the key 0 leads to hv_stubs.miss. In each
 * place anew: the processor predicts where each of them goes. */
void hv_emit_indirect_jump(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    HV_CODE(e, "\x49\x89\xc9"             /* mov r9, rcx */
               "\x45\x0f\xb7\xd0"         /* movzx r10d, r8w */
               "\x4f\x8d\x14\x12"         /* lea r10, [r10 + r10] */
               "\x43\x8b\x8c\xd7");       /* mov ecx, [r15 + r10 * 8 + lookup.key] */
    hv_word32(e, t->block->user ? HV_FIELD(user_lookup[0].negative_eip) : HV_FIELD(lookup[0].negative_eip));
    HV_CODE(e, "\x42\x8d\x0c\x01"         /* lea ecx, [rcx + r8] */
               "\xe3\x05");               /* jrcxz hit */
    hv_jump(e, hv_stubs.missed);
    HV_CODE(e, "\x4c\x89\xc9"             /* hit: mov rcx, r9 */
               "\x43\xff\xa4\xd7");       /* jmp [r15 + r10 * 8 + lookup.host] */
    hv_word32(e, t->block->user ? HV_FIELD(user_lookup[0].host) : HV_FIELD(lookup[0].host));
    t->ends = true;
}
