/* What translate.c (a block) and rules.c (an instruction) of the translator share. */
#ifndef HV_RULES_H
#define HV_RULES_H

#include "emit.h"
#include "translate.h"

#define HV_MOST_EXITS 200 /* of a block, but for those of its last instruction */

/* A block under translation, and the instruction that is at hand. */
struct hv_translation {
    struct hv_emitter e;
    struct hv_block *block;
    struct hv_insn insn;
    const uint8_t *bytes; /* of the instruction, and of what follows, 15 in all: where they were decoded from */
    uint32_t eip, next;  /* of the instruction, and behind it */
    bool shadow;         /* it stands behind STI */
    bool ends;           /* nothing follows it in this block */
    uint32_t returns_to; /* behind the call that it ends with; HV_BLOCK_NONE = with none */
    bool one_way_out;    /* the block was left by a direct jump at its end only, to where no code is yet */
    bool fpu_checked[HV_FPU_KINDS];
    unsigned exits;
    struct { uint8_t *displacement; uint32_t eip, number; } exit[HV_MOST_EXITS + 8];
};

/* The code for the instruction; false = let the monitor execute it, and what was written is to be forgotten. */
bool hv_translate_instruction(struct hv_translation *);
enum hv_replacement hv_replacement(const struct hv_insn *); /* what its rule replaces it by, if it is not the monitor's */
bool hv_is_branch(const struct hv_insn *);         /* a near one */
bool hv_is_string(const struct hv_insn *);         /* of memory; not INS, OUTS */
bool hv_sets_interrupts(const struct hv_insn *);   /* STI */
void hv_jump_out(struct hv_translation *, uint32_t eip);
void hv_call_out(struct hv_translation *, uint32_t eip, enum hv_callout);
void hv_check_interrupts(struct hv_translation *, uint32_t eip); /* if something waits: take it at eip; no flags are touched */

#endif
