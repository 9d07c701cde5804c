/* The gate: from the hypercall page into the monitor by a far transfer, without a signal, and back by a far jump (stubs.c).
 *
 * An entry of the page pushes the 64-bit code segment and the address of its own second half, and RETF goes there: so it works wherever the page
 * is mapped. The second half jumps to HV_CACHE, which is the same address in every cell: a page is good in any other cell, too.
 */
#include <sys/mman.h>

#include "debug.h"
#include "emit.h"
#include "lookaside.h"
#include "paravirt.h"
#include "signals.h"
#include "sites.h"
#include "translate.h"

#define BYTES 4096u
#define STUBS_AT 256u
#define STACK_BYTES (256u << 10)
#define KIND 16u          /* of the first entry; those of enum hv_callout are below */
#define SECOND_HALF 7u    /* bytes of the first */
#define LONGEST_CALL 5u   /* bytes of a CALL at a site */

static bool stepped;
static uint64_t gate_end;

bool hv_gate_is(uint64_t rip) { return rip >= HV_CACHE && rip < gate_end; }

void hv_gate_step(void) { stepped = true; }

static void fill_entry(uint8_t *at, unsigned kind)
{
    struct hv_emitter e = {at};
    memset(at, 0xcc, HV_PV_ENTRY_BYTES);
    HV_CODE(&e, "\x6a\x33"                  /* push $0x33 */
                "\xe8\x1a\x00\x00\x00"      /* call over the second half */
                "\x4c\x8d\x05\xf2\xff\xff\xff"); /* 64 bits: lea r8, [the entry] */
    hv_constant(&e, HV_R9, kind);
    HV_CODE(&e, "\x49\xbb"); /* mov r11, HV_CACHE */
    hv_word64(&e, HV_CACHE);
    HV_CODE(&e, "\x41\xff\xe3" /* jmp r11 */
                "\xcb");       /* 32 bits: retf */
}

void hv_gate_fill(uint8_t *page)
{
    for (unsigned i = 0; i < HV_PV_ENTRIES; i++)
        fill_entry(page + i * HV_PV_ENTRY_BYTES, KIND + i);
}

/* ---- what the entries do. EIP is the entry's, and ESP as the CALL there has left it */

static void require_supervisor(void)
{
    if (HV_CPU->cpl)
        hv_raise_error(HV_GP, 0);
}

static void go_back(void)
{
    uint32_t back = hv_pop_at(4, 0);
    hv_add_esp(4);
    HV_CPU->eip = back;
}

static void call(void)
{
    require_supervisor();
    go_back();
    hv_hypercall();
}

/* Instructions of sites, decoded: by where their length and bytes stand, as long as these do. */
#define SITES 64u
static struct decoded {
    uint8_t bytes[1 + HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
} decoded[SITES];

static bool decode_site(struct hv_insn *insn, uint32_t bytes_at)
{
    struct decoded *row = &decoded[bytes_at % SITES];
    uint8_t bytes[1 + HV_LONGEST_INSTRUCTION] = {0};
    const uint8_t *at = hv_lookaside_find(HV_READ, false, bytes_at, sizeof bytes);
    if (at && at[0] && memcmp(row->bytes, at, sizeof bytes) == 0) {
        *insn = row->insn;
        return true;
    }
    hv_copy_in(bytes, bytes_at, 1);
    unsigned length = bytes[0];
    if (!length || length > HV_LONGEST_INSTRUCTION || !hv_copy_in(bytes, bytes_at, 1 + length) ||
        hv_decode(insn, bytes + 1, length, true) != HV_DECODED || insn->length != length)
        return false;
    if (length < LONGEST_CALL)
        insn->length = LONGEST_CALL;
    if (at) {
        memcpy(row->bytes, at, sizeof bytes);
        row->insn = *insn;
    }
    return true;
}

static void site(void)
{
    require_supervisor();
    uint32_t bytes_at = hv_pop_at(4, 0), behind = hv_pop_at(4, 4);
    struct hv_insn insn;
    if (!decode_site(&insn, bytes_at))
        hv_raise(HV_UD);
    HV_CPU->eip = behind - LONGEST_CALL;
    hv_add_esp(8);
    if (insn.map == HV_MAP_ONE && insn.opcode == 0xf4) { /* HLT: not before signals are blocked (resume.c) */
        hv_done(&insn);
        HV_CPU->halted = 1;
        return;
    }
    if (!hv_interpret(&insn))
        hv_raise(HV_UD);
}

static void interrupt_return(void)
{
    require_supervisor();
    hv_interrupt_return(4);
}

static void interrupt_return_site(void)
{
    require_supervisor();
    HV_CPU->eip = hv_pop_at(4, 0) - LONGEST_CALL;
    hv_add_esp(4);
    hv_interrupt_return(4);
}

static void idle(void)
{
    require_supervisor();
    go_back();
    HV_CPU->eflags |= HV_IF;
    HV_CPU->halted = 1;
    hv_cross_here(HV_POINT_HYPERCALL_IDLE, 0, 0, 0, 0);
}

static void deliver(void)
{
    require_supervisor();
    go_back();
    hv_cross_here(HV_POINT_HYPERCALL_DELIVER, 0, 0, 0, 0);
}

static void int80(void)
{
    uint32_t back = hv_pop_at(4, 0);
    hv_add_esp(4);
    HV_CPU->eip = back;
    hv_software_interrupt(0x80, LONGEST_CALL);
}

static void system_call(void) { hv_software_interrupt(0x80, 2); } /* of a program (sites.h) */
static void device(void) /* its instruction, and what the jump covers behind it */
{
    require_supervisor();
    hv_sites_covered();
}
static void nothing(void) {}
static void unknown(void) { hv_raise(HV_UD); }

static void (*const entries[HV_PV_ENTRIES])(void) = {
    [HV_PV_ENTRY_CALL / HV_PV_ENTRY_BYTES] = call, [HV_PV_ENTRY_SITE / HV_PV_ENTRY_BYTES] = site,
    [HV_PV_ENTRY_IRET / HV_PV_ENTRY_BYTES] = interrupt_return, [HV_PV_ENTRY_IDLE / HV_PV_ENTRY_BYTES] = idle,
    [HV_PV_ENTRY_DELIVER / HV_PV_ENTRY_BYTES] = deliver, [HV_PV_ENTRY_INT80 / HV_PV_ENTRY_BYTES] = int80,
    [HV_PV_ENTRY_IRET_SITE / HV_PV_ENTRY_BYTES] = interrupt_return_site,
};

/* The monitor's own FS base. Straight ways do without: to set it and to load the guest's FS again costs half as much as they do. */
static void take_fs(void)
{
    __builtin_ia32_wrfsbase64(cell.monitor_fs);
    cell.fs_is_taken = 1;
}

static void take_guest(uint32_t kind)
{
    if (kind == HV_CALLOUT_SYSTEM_CALL) {
        hv_take_program();
        return;
    }
    for (unsigned i = 0; i <= HV_GS; i++)
        hv_trap.live[i] = i == HV_CS ? hv_trap.expected[HV_CS] : cell.live_selector[i];
    hv_take_native(cell.host_flags);
}

/* Does the guest have other selectors than it was entered with? */
static bool has_loaded(void)
{
    for (unsigned i = 0; i <= HV_GS; i++)
        if (i != HV_CS && cell.live_selector[i] != hv_trap.expected[i])
            return true;
    return false;
}

static void (*work_of(uint32_t kind))(void)
{
    if (kind == HV_CALLOUT_SYSTEM_CALL)
        return system_call;
    if (kind == HV_CALLOUT_DEVICE)
        return device;
    return kind - KIND < HV_PV_ENTRIES && entries[kind - KIND] ? entries[kind - KIND] : unknown;
}

/* What has a straight way (straight.c), which does without FS. */
static bool straight(uint32_t kind)
{
    switch (kind) {
    case HV_CALLOUT_SYSTEM_CALL: return hv_straight_interrupt(0x80);
    case KIND + HV_PV_ENTRY_INT80 / HV_PV_ENTRY_BYTES: return hv_straight_int80_entry();
    case KIND + HV_PV_ENTRY_IRET / HV_PV_ENTRY_BYTES: return hv_straight_return(false);
    case KIND + HV_PV_ENTRY_IRET_SITE / HV_PV_ENTRY_BYTES: return hv_straight_return(true);
    default: return false;
    }
}

/* Nobody looks on, and no signal has come meanwhile: if that is so when the work is done, too, there is nothing to be settled. */
static bool go_lightly(uint32_t kind)
{
    if (has_loaded())
        take_fs();
    take_guest(kind);
    if (straight(kind))
        return hv_go_straight_on();
    take_fs();
    return hv_guarded(work_of(kind)) && cell.began_tsc && hv_timer_is_right() && hv_go_straight_on();
}

/* Called by the stub, with registers, flags and selectors in struct hv_cell. */
static uint64_t enter(void)
{
    uint32_t kind = cell.callout_kind;
    cell.board.crossings.counters->callouts++;
    if (kind != HV_CALLOUT_ASYNC && !cell.async && !stepped && !hv_trap.stepping && !(cell.host_flags & HV_TF) && hv_straight_begin()) {
        bool gone = go_lightly(kind);
        if (!gone) {
            take_fs();
            hv_straight_end();
            cell.async = 0;
            return hv_settle_and_go(nothing);
        }
        cell.began_tsc = 0;
        return (uint64_t)(uintptr_t)hv_stubs.enter_user;
    }
    take_fs();
    cell.async = 0;
    cell.entry_ns = hv_host_ns();
    hv_account_run();
    if (kind == HV_CALLOUT_ASYNC) /* whose state is in cell.cpu already */
        return hv_settle_and_go(nothing);
    take_guest(kind);
    if (kind != HV_CALLOUT_SYSTEM_CALL) {
        if (stepped && !hv_trap.stepping)
            HV_CPU->eflags |= HV_TF;
        stepped = false;
        hv_trap.stepping = false;
    }
    return hv_settle_and_go(work_of(kind));
}

bool hv_gate_interpret(void)
{
    uint8_t bytes[HV_PV_ENTRY_BYTES], entry[HV_PV_ENTRY_BYTES];
    const struct hv_segment *cs = &HV_CPU->segment[HV_CS];
    if (!hv_copy_in(bytes, cs->base + HV_CPU->eip, 1) || bytes[0] != 0x6a || !hv_copy_in(bytes, cs->base + HV_CPU->eip, sizeof bytes))
        return false;
    for (unsigned i = 0; i < HV_PV_ENTRIES; i++) {
        fill_entry(entry, KIND + i);
        if (memcmp(bytes, entry, sizeof entry) == 0) {
            entries[i]();
            return true;
        }
    }
    return false;
}

/* ---- the code between */

bool hv_gate_init(void)
{
    uint8_t *at = mmap((void *)HV_CACHE, BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    uint8_t *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at != (uint8_t *)HV_CACHE || stack == MAP_FAILED)
        return false;
    cell.monitor_sp = (uint64_t)(uintptr_t)(stack + STACK_BYTES - 64);
    cell.monitor_fs = __builtin_ia32_rdfsbase64();
    cell.callout = (uint64_t)(uintptr_t)enter;
    struct hv_emitter stubs = {at + STUBS_AT};
    hv_stubs_init(&stubs);
    struct hv_emitter e = {at};
    HV_CODE(&e, "\x49\xbf"); /* mov r15, cell */
    hv_word64(&e, (uint64_t)(uintptr_t)&cell);
    hv_store_selectors(&e);
    hv_jump(&e, hv_stubs.callout);
    gate_end = (uint64_t)(uintptr_t)e.at;
    return mprotect(at, BYTES, PROT_READ | PROT_EXEC) == 0;
}
