/* One instruction of guest kernel code to 64-bit code, by a rule for each opcode (docs/rewriting.md).
 *
 * Until its last access to memory the code changes no register and no flag that the guest can see, so that a fault in the middle is one of
 * the whole instruction. What is not known to be the same in 64-bit code is executed by the monitor; so is whatever could touch the host:
 * system calls, segment bases, far transfers.
 */
#include "opcodes.h"
#include "pieces.h"

#define VIRTUAL_FLAGS (HV_IOPL | HV_NT | HV_AC | HV_ID)

/* ---- rules; false = let the monitor do it */

static bool push_flags(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    HV_CODE(e, "\x41\x89\xe1\x49\x8d\xa7"); /* mov r9d, esp; lea rsp, scratch */
    hv_word32(e, HV_FIELD(scratch_stack[8]));
    HV_CODE(e, "\x9c\x41\x58\x44\x89\xcc"); /* pushfq; pop r8; mov esp, r9d */
    hv_load32(e, HV_R10, HV_FIELD(virtual_if));
    HV_CODE(e, "\x47\x8d\x84\x10"); /* lea r8d, [r8 + r10 - IF of the host] */
    hv_word32(e, (uint32_t)-(int32_t)HV_IF);
    hv_load32(e, HV_R10, HV_FIELD(virtual_flags));
    HV_CODE(e, "\x47\x8d\x04\x10"); /* lea r8d, [r8 + r10] */
    hv_emit_push_r8(t);
    return true;
}

static bool pop_flags(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    hv_emit_top_of_stack(t);
    /* From here on nothing faults, and the flags are free. */
    HV_CODE(e, "\x41\xf7\xc0"); /* test r8d, TF | ...: the monitor's */
    hv_word32(e, HV_TF);
    HV_CODE(e, "\x74\x00"); /* jz */
    uint8_t *jump = e->at;
    hv_call_out(t, t->eip, HV_CALLOUT_EMULATE);
    jump[-1] = (uint8_t)(e->at - jump);
    HV_CODE(e, "\x45\x89\xc1\x41\x81\xe1"); /* mov r9d, r8d; and r9d, IF */
    hv_word32(e, HV_IF);
    hv_store32(e, HV_R9, HV_FIELD(virtual_if));
    HV_CODE(e, "\x45\x89\xc1\x41\x81\xe1");
    hv_word32(e, VIRTUAL_FLAGS);
    hv_store32(e, HV_R9, HV_FIELD(virtual_flags));
    HV_CODE(e, "\x44\x8d\x4c\x24\x04\x41\x81\xe0"); /* lea r9d, [rsp + 4]; and r8d, the host's */
    hv_word32(e, HV_TRANSLATED_FLAGS);
    HV_CODE(e, "\x41\x81\xc8");
    hv_word32(e, HV_IF | 2);
    HV_CODE(e, "\x49\x8d\xa7"); /* lea rsp, scratch */
    hv_word32(e, HV_FIELD(scratch_stack[8]));
    HV_CODE(e, "\x41\x50\x9d\x44\x89\xcc"); /* push r8; popfq; mov esp, r9d */
    /* The interrupt that may be pending comes behind the instruction: IF is looked at by the monitor. */
    hv_block_place(t->block, e, (t->next - t->block->eip) | HV_PLACE_SHADOW);
    hv_check_interrupts(t, t->next);
    return true;
}

static bool string(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    unsigned op = t->insn.opcode;
    if (hv_is_far(&t->insn))
        return false;
    bool source = op < 0xa8 || op == 0xac || op == 0xad, destination = op < 0xa8 || op == 0xaa || op == 0xab || op >= 0xae;
    /* ES takes no override, so both get the window's base in the registers. The guest's values are the lower halves at any time. */
    if (source)
        HV_CODE(e, "\x4a\x8d\x34\x2e"); /* lea rsi, [rsi + r13] */
    if (destination)
        HV_CODE(e, "\x4a\x8d\x3c\x2f");
    hv_block_place(t->block, e, (t->eip - t->block->eip) | (t->shadow ? HV_PLACE_SHADOW : 0));
    hv_emit_copy(t, op);
    hv_block_place(t->block, e, (t->next - t->block->eip) | HV_PLACE_SHADOW);
    if (source)
        HV_CODE(e, "\x89\xf6"); /* mov esi, esi */
    if (destination)
        HV_CODE(e, "\x89\xff");
    return true;
}

static bool absolute(struct hv_translation *t)
{
    static const uint8_t moves[] = {0x8a, 0x8b, 0x88, 0x89};
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    unsigned move = moves[insn->opcode & 3];
    if (hv_is_far(insn)) {
        hv_constant(e, HV_R8, (uint32_t)insn->displacement);
        hv_load32(e, HV_R9, HV_FIELD(segment_base) + 4 * (unsigned)insn->segment);
        HV_CODE(e, "\x47\x8d\x04\x08");
        hv_load64(e, HV_R9, HV_FIELD(segment_window) + 8 * (unsigned)insn->segment);
        hv_emit_prefixes(t);
        hv_byte(e, 0x43);
        hv_byte(e, move);
        HV_CODE(e, "\x04\x01");
        return true;
    }
    HV_CODE(e, "\x65\x67");
    hv_emit_prefixes(t);
    hv_byte(e, move);
    HV_CODE(e, "\x04\x25");
    hv_word32(e, (uint32_t)insn->displacement);
    return true;
}

static bool push_all(struct hv_translation *t)
{
    for (unsigned i = 0; i < 8; i++) {
        HV_CODE(&t->e, "\x65\x67\x89"); /* mov gs:[esp - 4 * (i + 1)], register */
        hv_byte(&t->e, 0x44 | i << 3);
        hv_byte(&t->e, 0x24);
        hv_byte(&t->e, (uint8_t)(-4 * (int)(i + 1)));
    }
    hv_move_esp(&t->e, -32);
    return true;
}

static bool pop_all(struct hv_translation *t)
{
    /* All of it once before: after that no part can fault, with some registers lost already. From below, as the processor does. */
    for (unsigned i = 0; i < 8; i++) {
        HV_CODE(&t->e, "\x65\x67\x44\x8b\x44\x24"); /* mov r8d, gs:[esp + 4 * i] */
        hv_byte(&t->e, 4 * i);
    }
    for (unsigned i = 0; i < 8; i++) {
        if (i == HV_ESP)
            continue;
        HV_CODE(&t->e, "\x65\x67\x8b");
        hv_byte(&t->e, 0x44 | i << 3);
        hv_byte(&t->e, 0x24);
        hv_byte(&t->e, 4 * (7 - i));
    }
    hv_move_esp(&t->e, 32);
    return true;
}

static bool pop_memory(struct hv_translation *t)
{
    if (t->insn.reg || (hv_is_memory(&t->insn) && hv_is_far(&t->insn)))
        return false;
    hv_emit_top_of_stack(t);
    if (!hv_is_memory(&t->insn)) {
        hv_move_esp(&t->e, 4);
        hv_emit_move_r8(t, 0x89);
        return true;
    }
    hv_move_esp(&t->e, 4); /* the address is computed with the new ESP */
    hv_block_place(t->block, &t->e, (t->eip - t->block->eip) | HV_PLACE_SHADOW | HV_PLACE_POPPED);
    hv_emit_move_r8(t, 0x89);
    return true;
}

static bool group_ff(struct hv_translation *t)
{
    switch (t->insn.reg) {
    case 0:
    case 1:
        return hv_emit_copy(t, 0xff);
    case 2:
        hv_emit_move_r8(t, 0x8b);
        hv_emit_push_constant(t, t->next);
        hv_emit_indirect_jump(t);
        t->returns_to = t->next;
        return true;
    case 4:
        hv_emit_move_r8(t, 0x8b);
        hv_emit_indirect_jump(t);
        return true;
    case 6:
        hv_emit_move_r8(t, 0x8b);
        hv_emit_push_r8(t);
        return true;
    default:
        return false;
    }
}

/* The host's counter, if it is the guest's; added in 64 bits, without flags. */
static bool read_time(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    if (cell.area->tsc_counted || t->insn.lock || t->insn.repeat || t->insn.operand_prefix)
        return false;
    HV_CODE(e, "\x0f\x31"); /* rdtsc */
    hv_store32(e, HV_EAX, HV_FIELD(time));
    hv_store32(e, HV_EDX, HV_FIELD(time) + 4);
    hv_load64(e, HV_R8, HV_FIELD(time));
    hv_load64(e, HV_R9, HV_FIELD(cpu.tsc_offset));
    HV_CODE(e, "\x4f\x8d\x04\x08"); /* lea r8, [r8 + r9] */
    hv_store64(e, HV_R8, HV_FIELD(time));
    hv_load32(e, HV_EAX, HV_FIELD(time));
    hv_load32(e, HV_EDX, HV_FIELD(time) + 4);
    return true;
}

static bool from_control(struct hv_translation *t)
{
    static const uint32_t fields[8] = {[0] = HV_FIELD(cpu.cr0), [2] = HV_FIELD(cpu.cr2), [3] = HV_FIELD(cpu.cr3), [4] = HV_FIELD(cpu.cr4)};
    if (!fields[t->insn.reg])
        return false;
    hv_load32(&t->e, t->insn.rm, fields[t->insn.reg]);
    return true;
}

static bool from_segment(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    if (insn->reg > HV_GS || (hv_is_memory(insn) && hv_is_far(insn)))
        return false;
    hv_load16(e, HV_R8, HV_FIELD(cpu.segment[0].selector) + insn->reg * (uint32_t)sizeof(struct hv_segment));
    if (hv_is_memory(insn))
        HV_CODE(e, "\x65\x67\x66");
    else if (insn->operand_prefix)
        hv_byte(e, 0x66);
    HV_CODE(e, "\x44\x89");
    hv_emit_operand(t, HV_R8);
    return true;
}

static bool push_segment(struct hv_translation *t)
{
    const struct hv_insn *insn = &t->insn;
    unsigned segment = insn->map == HV_MAP_ONE ? insn->opcode >> 3 & 3 : insn->opcode == 0xa0 ? HV_FS : HV_GS;
    hv_load16(&t->e, HV_R8, HV_FIELD(cpu.segment[0].selector) + segment * (uint32_t)sizeof(struct hv_segment));
    hv_emit_push_r8(t);
    return true;
}

/* DS, ES, FS or GS = r8d. Until that has been done nothing has changed. */
static void load_segment(struct hv_translation *t, unsigned segment)
{
    struct hv_emitter *e = &t->e;
    hv_constant(e, HV_R9, segment);
    hv_constant(e, HV_R10, t->eip);
    HV_CODE(e, "\x4c\x8d\x25\x05\0\0\0"); /* lea r12, [rip + 5]: behind the jump */
    hv_jump(e, hv_stubs.load_segment);
}

static bool to_segment(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    if (insn->reg > HV_GS || insn->reg == HV_CS || insn->reg == HV_SS || insn->lock || (hv_is_memory(insn) && hv_is_far(insn)))
        return false;
    if (hv_is_memory(insn))
        HV_CODE(e, "\x65\x67");
    HV_CODE(e, "\x44\x0f\xb7"); /* movzx r8d, operand */
    hv_emit_operand(t, HV_R8);
    load_segment(t, insn->reg);
    return true;
}

static bool pop_segment(struct hv_translation *t)
{
    const struct hv_insn *insn = &t->insn;
    unsigned segment = insn->map == HV_MAP_ONE ? insn->opcode >> 3 & 3 : insn->opcode == 0xa1 ? HV_FS : HV_GS;
    if (insn->lock)
        return false;
    hv_emit_top_of_stack(t);
    HV_CODE(&t->e, "\x45\x0f\xb7\xc0"); /* movzx r8d, r8w */
    load_segment(t, segment);
    hv_move_esp(&t->e, 4);
    return true;
}

static bool access_port(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    if (insn->lock || t->shadow)
        return false;
    hv_constant(e, HV_R9, HV_PORT_ACCESS(insn->opcode, insn->immediate, insn->length));
    hv_constant(e, HV_R8, t->eip);
    hv_constant(e, HV_R10, t->eip);
    HV_CODE(e, "\x4c\x8d\x25\x05\0\0\0"); /* lea r12, [rip + 5]: behind the jump */
    hv_jump(e, hv_stubs.access_port);
    return true;
}

static uint32_t branch_target(const struct hv_translation *t)
{
    const struct hv_insn *insn = &t->insn;
    return t->next + (insn->immediate_size == 1 ? (uint32_t)(int8_t)insn->immediate : insn->immediate);
}

static bool leave(struct hv_translation *t)
{
    HV_CODE(&t->e, "\x65\x67\x44\x8b\x45\x00"  /* mov r8d, gs:[ebp] */
                   "\x8d\x65\x04"              /* lea esp, [rbp + 4] */
                   "\x44\x89\xc5");            /* mov ebp, r8d */
    return true;
}

static bool loop(struct hv_translation *t)
{
    hv_byte(&t->e, 0x67); /* ECX */
    hv_byte(&t->e, t->insn.opcode);
    HV_CODE(&t->e, "\x02\xeb\x05"); /* over the jump that is over the next one */
    hv_jump_out(t, branch_target(t));
    return true;
}

static bool return_near(struct hv_translation *t)
{
    hv_emit_top_of_stack(t);
    hv_move_esp(&t->e, 4 + (t->insn.opcode == 0xc2 ? (int32_t)t->insn.immediate : 0));
    hv_emit_indirect_jump(t);
    return true;
}

/* Not for programs: what depends on the privilege level, or works on what only kernel code has. */
#define BIT(rule) (1ull << (rule))
static const uint64_t for_kernels = BIT(PUSH_SEGMENT) | BIT(FROM_SEGMENT) | BIT(PUSH_FLAGS) | BIT(POP_FLAGS) | BIT(TO_SEGMENT) | BIT(POP_SEGMENT) |
                                    BIT(INTERRUPT_RETURN) | BIT(CLEAR_INTERRUPT) | BIT(SET_INTERRUPT) | BIT(FROM_CONTROL) | BIT(READ_TIME) |
                                    BIT(PORT_OF_BYTE);

bool hv_translate_instruction(struct hv_translation *t)
{
    struct hv_emitter *e = &t->e;
    const struct hv_insn *insn = &t->insn;
    unsigned op = insn->opcode;
    enum rule rule = hv_rule(insn);
    if (rule == PLAIN && hv_emit_as_it_is(t))
        return true;
    if (insn->lock && !hv_may_lock(insn)) /* #UD, also where the instruction is replaced by others */
        return false;
    if (rule == MONITOR || hv_is_narrow(insn, rule) || (t->block->user && BIT(rule) & for_kernels))
        return false;
    bool uses_address = hv_is_memory(insn) || rule == ABSOLUTE || rule == STRING || rule == LOOP;
    bool is_nop = insn->map == HV_MAP_0F && op >= 0x18 && op <= 0x1f;
    if (uses_address && insn->segment == HV_CS && rule != LOOP && !is_nop) /* which cannot be written to, and may not be readable */
        return false;
    if (insn->address_size == 2 && uses_address)
        return false;
    if (rule == COPY || rule == GROUP_AE)
        hv_emit_fpu_check(t);
    switch (rule) {
    case PLAIN:
    case COPY:
        return hv_may_copy(insn) && hv_emit_copy(t, op);
    case COPY_TO_END:
        t->ends = true;
        return hv_emit_copy(t, op);
    case NO_REX:
        hv_emit_prefixes(t);
        hv_byte(e, 0xff);
        hv_byte(e, (op < 0x48 ? 0xc0 : 0xc8) | (op & 7));
        return true;
    case PUSH_REGISTER:
        HV_CODE(e, "\x65\x67\x89");
        hv_byte(e, 0x44 | (op & 7) << 3);
        HV_CODE(e, "\x24\xfc");
        hv_move_esp(e, -4);
        return true;
    case POP_REGISTER:
        HV_CODE(e, "\x65\x67\x8b");
        hv_byte(e, 0x04 | (op & 7) << 3);
        hv_byte(e, 0x24);
        if (op != 0x5c)
            hv_move_esp(e, 4);
        return true;
    case PUSH_ALL:
        return push_all(t);
    case POP_ALL:
        return pop_all(t);
    case PUSH_IMMEDIATE:
        hv_emit_push_constant(t, op == 0x6a ? (uint32_t)(int8_t)insn->immediate : insn->immediate);
        return true;
    case PUSH_SEGMENT:
        return push_segment(t);
    case JCC:
        hv_byte(e, 0x0f);
        hv_byte(e, op + 0x10);
        hv_emit_exit(t, branch_target(t));
        return true;
    case JCC_NEAR:
        hv_byte(e, 0x0f);
        hv_byte(e, op);
        hv_emit_exit(t, branch_target(t));
        return true;
    case ALIAS_80:
        return hv_emit_copy(t, 0x80);
    case FROM_SEGMENT:
        return from_segment(t);
    case POP_MEMORY:
        return pop_memory(t);
    case TO_SEGMENT:
        return to_segment(t);
    case POP_SEGMENT:
        return pop_segment(t);
    case INTERRUPT_RETURN:
        if (insn->lock)
            return false;
        hv_call_out(t, t->eip, HV_CALLOUT_IRET);
        t->ends = true;
        return true;
    case PUSH_FLAGS:
        return push_flags(t);
    case POP_FLAGS:
        return pop_flags(t);
    case ABSOLUTE:
        return absolute(t);
    case STRING:
        return string(t);
    case RETURN:
        return return_near(t);
    case LEAVE:
        return leave(t);
    case LOOP:
        return loop(t);
    case CALL:
        hv_emit_push_constant(t, t->next);
        hv_jump_out(t, branch_target(t));
        t->returns_to = t->next;
        t->ends = true;
        return true;
    case JUMP:
        hv_jump_out(t, branch_target(t));
        t->ends = true;
        return true;
    case CLEAR_INTERRUPT:
        hv_store_constant(e, HV_FIELD(virtual_if), 0);
        return true;
    case SET_INTERRUPT:
        hv_store_constant(e, HV_FIELD(virtual_if), HV_IF);
        return true;
    case GROUP_FF:
        return group_ff(t);
    case READ_TIME:
        return read_time(t);
    case FROM_CONTROL:
        return from_control(t);
    case PORT_OF_BYTE:
        return access_port(t);
    case GROUP_AE: /* LDMXCSR, STMXCSR, CLFLUSH and the fences; FXSAVE and FXRSTOR are the monitor's, XSAVE is not offered, F3 is WRGSBASE */
        return !insn->repeat && !insn->operand_prefix &&
               (hv_is_memory(insn) ? insn->reg == 2 || insn->reg == 3 || insn->reg == 7 : insn->reg >= 5) && hv_emit_copy(t, op);
    case GROUP_C7:
        return (hv_is_memory(insn) ? insn->reg == 1 : insn->reg == 6 && !insn->repeat) && hv_emit_copy(t, op);
    default:
        return false;
    }
}
