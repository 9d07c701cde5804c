/* Pieces of translated code (pieces.c). */
#ifndef HV_PIECES_H
#define HV_PIECES_H

#include "rules.h"

void hv_emit_exit(struct hv_translation *t, uint32_t eip); /* the displacement of a jump to eip, to its own stub at first */
void hv_emit_fpu_check(struct hv_translation *t);
static inline bool hv_is_memory(const struct hv_insn *insn) { return insn->has_modrm && insn->mod != 3; }
/* FS and GS have bases of their own, and may be more than the window can check. */
static inline bool hv_is_far(const struct hv_insn *insn) { return insn->segment == HV_FS || insn->segment == HV_GS; }
void hv_emit_operand(struct hv_translation *t, unsigned reg); /* ModRM, SIB and displacement, without the segment */
void hv_emit_far_operand(struct hv_translation *t); /* of FS and GS: r8d + r9 are linear in the window */
void hv_emit_prefixes(struct hv_translation *t);
void hv_emit_opcode(struct hv_translation *t, unsigned value);
void hv_emit_immediates(struct hv_translation *t);
/* MASKMOVQ and MASKMOVDQU write to EDI. */
static inline bool hv_is_masked_move(const struct hv_insn *insn) { return insn->map == HV_MAP_0F && insn->opcode == 0xf7 && insn->mod == 3; }
bool hv_emit_copy(struct hv_translation *t, unsigned value); /* the same instruction, its memory operand in the window; false: it has no such form */
bool hv_emit_as_it_is(struct hv_translation *t); /* the same for those of rule PLAIN; false: not in this form */
void hv_emit_move_r8(struct hv_translation *t, unsigned value); /* 0x8b: mov r8d, operand; 0x89: the reverse */
void hv_emit_push_r8(struct hv_translation *t);
void hv_emit_top_of_stack(struct hv_translation *t); /* mov r8d, gs:[esp] */
void hv_emit_push_constant(struct hv_translation *t, uint32_t value);
void hv_emit_indirect_jump(struct hv_translation *t); /* to the block of EIP r8d */

#endif
