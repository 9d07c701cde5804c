/* The pieces of code between blocks, the monitor and the guest's programs. */
#include "emit.h"
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

/* mov segment, word [r15 + host_selector[segment]] */
static void load_selector(struct hv_emitter *e, unsigned segment)
{
    HV_CODE(e, "\x41\x8e");
    hv_cell_operand(e, segment, HV_FIELD(host_selector) + 2 * segment);
}

void hv_stubs_init(struct hv_emitter *e)
{
    /* callout: r8d = EIP, r9d = kind, r10d = argument */
    hv_stubs.callout = e->at;
    store_registers(e);
    hv_store32(e, HV_R8, HV_FIELD(cpu.eip));
    hv_store32(e, HV_R9, HV_FIELD(callout_kind));
    hv_store32(e, HV_R10, HV_FIELD(callout_argument));
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    HV_CODE(e, "\x9c\x58"); /* pushfq; pop rax */
    hv_store32(e, HV_EAX, HV_FIELD(host_flags));
    hv_byte(e, 0xfc); /* cld: C's convention */
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
    HV_CODE(e, "\x49\xbd"); /* mov r13, HV_WINDOW */
    hv_word64(e, HV_WINDOW);
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    hv_load32(e, HV_EAX, HV_FIELD(host_flags));
    HV_CODE(e, "\x50\x9d"); /* push rax; popfq */
    load_registers(e);
    hv_load32(e, HV_ESP, HV_FIELD(cpu.r) + 4 * HV_ESP);
    HV_CODE(e, "\x41\xff"); /* jmp [r15 + resume] */
    hv_cell_operand(e, 4, HV_FIELD(resume));

    /* enter_user: IRETQ to compatibility mode; the registers that resume loaded are loaded again, since the selectors need some */
    hv_stubs.enter_user = e->at;
    hv_load64(e, HV_ESP, HV_FIELD(monitor_sp));
    push_selector(e, HV_SS);
    hv_load32(e, HV_EAX, HV_FIELD(cpu.r) + 4 * HV_ESP);
    hv_byte(e, 0x50);
    hv_load32(e, HV_EAX, HV_FIELD(user_flags));
    hv_byte(e, 0x50);
    push_selector(e, HV_CS);
    hv_load32(e, HV_EAX, HV_FIELD(cpu.eip));
    hv_byte(e, 0x50);
    load_selector(e, HV_DS);
    load_selector(e, HV_ES);
    load_selector(e, HV_FS);
    load_selector(e, HV_GS);
    load_registers(e);
    HV_CODE(e, "\x48\xcf");
    hv_stubs.ready_end = e->at;

    /* lookup: r8d = EIP. The table's key is EIP's negative, so that comparing needs no flags; the key 0 leads to miss. */
    hv_stubs.lookup = e->at;
    HV_CODE(e, "\x49\x89\xc9"             /* mov r9, rcx */
               "\x45\x0f\xb7\xd0"         /* movzx r10d, r8w */
               "\x4f\x8d\x14\x12"         /* lea r10, [r10 + r10] */
               "\x43\x8b\x8c\xd7");       /* mov ecx, [r15 + r10 * 8 + lookup.key] */
    hv_word32(e, HV_FIELD(lookup[0].negative_eip));
    HV_CODE(e, "\x42\x8d\x0c\x01"         /* lea ecx, [rcx + r8] */
               "\xe3\x0e"                 /* jrcxz hit */
               "\x4c\x89\xc9");           /* mov rcx, r9 */
    hv_stubs.miss = e->at;
    hv_constant(e, HV_R9, HV_CALLOUT_LOOKUP);
    hv_jump(e, hv_stubs.callout);
    HV_CODE(e, "\x4c\x89\xc9"             /* hit: mov rcx, r9 */
               "\x43\xff\xa4\xd7");       /* jmp [r15 + r10 * 8 + lookup.host] */
    hv_word32(e, HV_FIELD(lookup[0].host));
    hv_stubs.end = e->at;
}
