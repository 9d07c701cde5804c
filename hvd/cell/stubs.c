/* The pieces of code between blocks, the monitor and the guest's programs. */
#include "emit.h"
#include "paravirt.h"
#include "translate.h"

struct hv_stubs hv_stubs;

static void store_registers(struct hv_emitter *e)
{
    for (unsigned i = 0; i < 8; i++)
        hv_store32(e, i, HV_FIELD(cpu.r) + 4 * i);
}

static void load_registers(struct hv_emitter *e)
{
    for (unsigned i = 0; i < 8; i++)
        if (i != HV_ESP)
            hv_load32(e, i, HV_FIELD(cpu.r) + 4 * i);
}

/* movzx eax, word [r15 + host_selector[segment]]; push rax */
static void push_selector(struct hv_emitter *e, unsigned segment)
{
    hv_load16(e, HV_EAX, HV_FIELD(host_selector) + 2 * segment);
    hv_byte(e, 0x50);
}

/* A short jump over what follows, to where here() is called: 0x74 = if equal, 0x75 = if not, 0xeb = always. */
#define IF_RCX_IS_0 0xe3u
static uint8_t *jump_over(struct hv_emitter *e, unsigned opcode)
{
    hv_byte(e, opcode);
    hv_byte(e, 0);
    return e->at;
}

static void here(struct hv_emitter *e, uint8_t *over) { over[-1] = (uint8_t)(e->at - over); }

/* mov segment, word [r15 + host_selector[segment]] */
static void load_selector(struct hv_emitter *e, unsigned segment)
{
    HV_CODE(e, "\x41\x8e");
    hv_cell_operand(e, segment, HV_FIELD(host_selector) + 2 * segment);
}

/* cmp word [r15 + offset], 0 */
static void compare_with_zero(struct hv_emitter *e, uint32_t offset)
{
    HV_CODE(e, "\x66\x41\x83");
    hv_cell_operand(e, 7, offset);
    hv_byte(e, 0);
}

/* The same unless it has that one already: of a null selector a load is four times as dear as of others. */
static void load_other_selector(struct hv_emitter *e, unsigned segment)
{
    HV_CODE(e, "\x8c"); /* mov eax, segment; cmp ax, word [r15 + host_selector[segment]] */
    hv_byte(e, 0xc0 | segment << 3);
    HV_CODE(e, "\x66\x41\x3b");
    hv_cell_operand(e, HV_EAX, HV_FIELD(host_selector) + 2 * segment);
    uint8_t *over = jump_over(e, 0x74);
    load_selector(e, segment);
    here(e, over);
}

/* The same of FS and GS, whose bases are the monitor's own, but for null selectors: without a base they are what they were. */
static void load_based_selector(struct hv_emitter *e, unsigned segment)
{
    HV_CODE(e, "\x41\xf7"); /* test dword [r15 + host_selector[segment]], ~3 */
    hv_cell_operand(e, 0, HV_FIELD(host_selector) + 2 * segment);
    hv_word32(e, 0xfffc);
    uint8_t *null = jump_over(e, 0x74);
    load_selector(e, segment);
    uint8_t *done = jump_over(e, 0xeb);
    here(e, null);
    load_other_selector(e, segment);
    here(e, done);
}

/* mov word [r15 + live_selector[segment]], segment; for all but CS */
void hv_store_selectors(struct hv_emitter *e)
{
    for (unsigned i = 0; i <= HV_GS; i++) {
        if (i == HV_CS)
            continue;
        HV_CODE(e, "\x41\x8c");
        hv_cell_operand(e, i, HV_FIELD(live_selector) + 2 * i);
    }
}

static const uint8_t volatiles[] = {HV_EAX, HV_ECX, HV_EDX, HV_ESI, HV_EDI, HV_ESP}; /* that C may overwrite, and the stack */
static void store_volatiles(struct hv_emitter *e)
{
    for (unsigned i = 0; i < sizeof volatiles; i++)
        hv_store32(e, volatiles[i], HV_FIELD(cpu.r) + 4 * volatiles[i]);
}

static void load_volatiles(struct hv_emitter *e)
{
    for (unsigned i = 0; i < sizeof volatiles; i++)
        hv_load32(e, volatiles[i], HV_FIELD(cpu.r) + 4 * volatiles[i]);
}

/* C in the middle of a block, with r9d and r8d: call [r15 + function], whose answer is in r8d then, and in rcx whether a signal has come. Flags are the guest's
 * again, without the TF of our own steps. */
static void call_in_block(struct hv_emitter *e, uint32_t function)
{
    store_volatiles(e);
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    HV_CODE(e, "\x9c\x58"); /* pushfq; pop rax */
    hv_store32(e, HV_EAX, HV_FIELD(load_flags));
    HV_CODE(e, "\xfc\x41\x52\x41\x52"       /* cld; push r10, twice: the stack stays aligned */
               "\x44\x89\xcf\x44\x89\xc6"   /* mov edi, r9d; mov esi, r8d */
               "\x41\xff");
    hv_cell_operand(e, 2, function);
    HV_CODE(e, "\x41\x5a\x41\x5a\x41\x89\xc0"); /* pop r10, twice; mov r8d, eax */
    hv_load32(e, HV_EAX, HV_FIELD(load_flags));
    hv_byte(e, 0x25); /* and eax, what the guest has; or eax, IF */
    hv_word32(e, HV_TRANSLATED_FLAGS);
    HV_CODE(e, "\x0d\x02\x02\0\0\x50\x9d"); /* push rax; popfq */
    hv_load32(e, HV_ECX, HV_FIELD(async));
}

static void call_out(struct hv_emitter *e, enum hv_callout kind)
{
    hv_constant(e, HV_R9, kind);
    hv_jump(e, hv_stubs.callout);
}

/* A signal that came while C worked is seen to by the monitor, which does it all again. */
static void load_segment(struct hv_emitter *e)
{
    hv_stubs.load_segment = e->at;
    call_in_block(e, HV_FIELD(load_segment));
    HV_CODE(e, "\xe3\x06\x41\xb8\0\0\0\0"  /* jrcxz over: mov r8d, 0 */
               "\x4c\x89\xc1");              /* mov rcx, r8 */
    uint8_t *failed = jump_over(e, IF_RCX_IS_0);
    load_volatiles(e);
    HV_CODE(e, "\x41\xff\xe4"); /* jmp r12 */
    here(e, failed);
    load_volatiles(e);
    HV_CODE(e, "\x45\x89\xd0"); /* mov r8d, r10d */
    call_out(e, HV_CALLOUT_EMULATE);
}

/* Here it has been done when a signal came: HV_PORT_ACCESS_DONE becomes something else that is not 0. */
static void access_port(struct hv_emitter *e)
{
    hv_stubs.access_port = e->at;
    call_in_block(e, HV_FIELD(access_port));
    HV_CODE(e, "\xe3\x04\x47\x8d\x04\x00"  /* jrcxz over: lea r8d, [r8 + r8] */
               "\x4c\x89\xc1");              /* mov rcx, r8 */
    uint8_t *not_here = jump_over(e, IF_RCX_IS_0);
    HV_CODE(e, "\x8d\x49\xff"); /* lea ecx, [rcx - 1] */
    uint8_t *done = jump_over(e, IF_RCX_IS_0);
    load_volatiles(e);
    hv_load32(e, HV_R8, HV_FIELD(cpu.eip));
    call_out(e, HV_CALLOUT_INTERRUPT);
    here(e, done);
    load_volatiles(e);
    HV_CODE(e, "\x41\xff\xe4"); /* jmp r12 */
    here(e, not_here);
    load_volatiles(e);
    HV_CODE(e, "\x45\x89\xd0"); /* mov r8d, r10d */
    call_out(e, HV_CALLOUT_EMULATE);
}

void hv_stubs_init(struct hv_emitter *e)
{
    /* system_call: r8d = EIP, r15 is set; what follows is the program's: its selectors, a stack, flags that C must not have */
    hv_stubs.system_call = e->at;
    cell.system_call = (uint64_t)(uintptr_t)e->at;
    hv_store_selectors(e);
    hv_constant(e, HV_R9, HV_CALLOUT_SYSTEM_CALL);
    if (!hv_paravirtual()) { /* there the gate does it, if need be */
        hv_load64(e, HV_R10, HV_FIELD(monitor_fs));
        HV_CODE(e, "\xf3\x49\x0f\xae\xd2"                  /* wrfsbase r10 */
                   "\x41\xba\x2b\0\0\0\x41\x8e\xd2"      /* mov r10d, the host's data segment; mov ss, r10d */
                   "\x49\xbd");                             /* mov r13, HV_WINDOW */
        hv_word64(e, HV_WINDOW);
        HV_CODE(e, "\xf3\x49\x0f\xae\xdd"); /* wrgsbase r13 */
    }

    uint8_t *to_callout = jump_over(e, 0xeb);
    hv_stubs.chain = e->at;
    hv_constant(e, HV_R9, HV_CALLOUT_CHAIN);
    here(e, to_callout);

    /* callout: r8d = EIP, r9d = kind, r10d = argument */
    hv_stubs.callout = e->at;
    store_registers(e);
    hv_store32(e, HV_R8, HV_FIELD(cpu.eip));
    hv_store32(e, HV_R9, HV_FIELD(callout_kind));
    hv_store32(e, HV_R10, HV_FIELD(callout_argument));
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    HV_CODE(e, "\x9c\x58"); /* pushfq; pop rax */
    hv_store32(e, HV_EAX, HV_FIELD(host_flags));
    hv_byte(e, 0xa9); /* test eax, what C must not have */
    hv_word32(e, HV_TF | HV_DF | HV_NT | HV_AC);
    uint8_t *usual = jump_over(e, 0x74);
    HV_CODE(e, "\x68\x02\x02\0\0\x9d"); /* push IF; popfq */
    here(e, usual);
    uint8_t *call = e->at;
    HV_CODE(e, "\x41\xff"); /* call [r15 + callout] */
    hv_cell_operand(e, 2, HV_FIELD(callout));
    hv_store64(e, HV_EAX, HV_FIELD(resume));
    hv_stubs.callout_end = e->at;

    /* resume: did a signal come meanwhile? */
    hv_stubs.resume = e->at;
    hv_load32(e, HV_ECX, HV_FIELD(async));
    HV_CODE(e, "\xe3\x10"); /* jrcxz over the next two */
    hv_store_constant(e, HV_FIELD(callout_kind), HV_CALLOUT_ASYNC);
    hv_jump(e, call);
    hv_load64(e, HV_R13, HV_FIELD(window));
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    hv_load32(e, HV_EAX, HV_FIELD(host_flags));
    HV_CODE(e, "\x50\x9d"); /* push rax; popfq */
    load_registers(e);
    hv_load32(e, HV_ESP, HV_FIELD(cpu.r) + 4 * HV_ESP);
    HV_CODE(e, "\x41\xff"); /* jmp [r15 + resume] */
    hv_cell_operand(e, 4, HV_FIELD(resume));

    /* enter_user: to compatibility mode by a far jump, or by IRETQ where TF must not trap before the guest's first instruction. The registers that
     * resume loaded are loaded again, since the selectors need some. */
    hv_stubs.enter_user = e->at;
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    compare_with_zero(e, HV_FIELD(stale_segments));
    uint8_t *known = jump_over(e, 0x74);
    static const uint8_t all[] = {HV_SS, HV_DS, HV_ES, HV_FS, HV_GS};
    for (unsigned i = 0; i < sizeof all; i++)
        load_selector(e, all[i]);
    HV_CODE(e, "\x66\x41\xc7"); /* mov word [r15 + stale_segments], 0 */
    hv_cell_operand(e, 0, HV_FIELD(stale_segments));
    HV_CODE(e, "\0\0");
    here(e, known);
    load_other_selector(e, HV_SS);
    load_other_selector(e, HV_DS);
    load_other_selector(e, HV_ES);
    for (unsigned i = HV_FS; i <= HV_GS; i++)
        (hv_paravirtual() ? load_other_selector : load_based_selector)(e, i);
    hv_load32(e, HV_EAX, HV_FIELD(user_flags));
    hv_byte(e, 0xa9); /* test eax, TF */
    hv_word32(e, HV_TF);
    uint8_t *steps = jump_over(e, 0x75);
    HV_CODE(e, "\x50\x9d"); /* push rax; popfq */
    load_registers(e);
    hv_load32(e, HV_ESP, HV_FIELD(cpu.r) + 4 * HV_ESP);
    HV_CODE(e, "\x41\xff"); /* jmp far [r15 + user_eip] */
    hv_cell_operand(e, 5, HV_FIELD(user_eip));
    here(e, steps);
    push_selector(e, HV_SS);
    hv_load32(e, HV_EAX, HV_FIELD(cpu.r) + 4 * HV_ESP);
    hv_byte(e, 0x50);
    hv_load32(e, HV_EAX, HV_FIELD(user_flags));
    hv_byte(e, 0x50);
    hv_load16(e, HV_EAX, HV_FIELD(user_cs));
    hv_byte(e, 0x50);
    hv_load32(e, HV_EAX, HV_FIELD(user_eip));
    hv_byte(e, 0x50);
    load_registers(e);
    HV_CODE(e, "\x48\xcf"); /* iretq */
    hv_stubs.by_signal = e->at;
    hv_byte(e, 0xf4); /* hlt, which traps: the state is given back by the frame */
    hv_stubs.ready_end = e->at;

    /* missed: r8d = EIP, and RCX lies in r9 (hv_emit_indirect_jump) */
    hv_stubs.missed = e->at;
    HV_CODE(e, "\x4c\x89\xc9"); /* mov rcx, r9 */
    hv_stubs.miss = e->at;
    hv_constant(e, HV_R9, HV_CALLOUT_LOOKUP);
    hv_jump(e, hv_stubs.callout);
    load_segment(e);
    access_port(e);
    hv_stubs.end = e->at;
}
