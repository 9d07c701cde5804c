/* From the guest into the monitor and back: every trap is a signal, whose frame holds the guest's registers.
 *
 * A 64-bit frame keeps CS and SS; DS, ES, FS and GS stay live in the processor and are read here first of all, before anything needs the
 * monitor's own FS. The guest's x87, SSE and AVX registers lie in the frame, too, and come back with it.
 *
 * on_signal() takes the state over, lets a handler for the cause work, delivers what that raised, and goes on with resume(). Handlers run
 * in guarded(), to which hv_raise() and hv_abandon() unwind.
 */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "breakpoint.h"
#include "cell.h"
#include "debug.h"
#include "translate.h"

#ifndef TRAP_PERF
#define TRAP_PERF 6 /* si_code of a breakpoint set by perf_event_open(2) */
#endif
#define HOST_CODE_64 0x33
#define HOST_DATA 0x2b
#define NATIVE_FLAGS (HV_STATUS_FLAGS | HV_DF | HV_TF | HV_NT | HV_AC | HV_ID) /* that the guest has in the host's EFLAGS, too */
#define LIVE_FLAGS (HV_STATUS_FLAGS | HV_DF | HV_NT | HV_ID)                   /* always as the guest has them */
#define ERROR_WRITE 2u
#define ERROR_FETCH 16u
#define WALK_FAULT 0x80000000u
#define CR0_AM 0x40000u
#define HIGH_XMM 288 /* offset of XMM8 in an FXSAVE area */
#define XSTATE_HEADER 512 /* offset of XSTATE_BV in an XSAVE area (SDM vol. 1, 13.4.2) */
#define X87_AND_SSE 3u
#define FRAME_HAS_XSAVE 0x46505853u /* FP_XSTATE_MAGIC1, in the last 48 bytes of the FXSAVE image */
#define FRAME_MAGIC_AT 464

struct hv_cell cell;

static uint8_t *target;              /* of the frame: translated code, NULL = native code */
static bool filled;

static const int general[8] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI};

static ucontext_t *frame;
static uint16_t expected[HV_GS + 1]; /* the host selectors that the guest was entered with */
static uint16_t live[HV_GS + 1];     /* and those that it was left with */
static volatile uint64_t monitor_fs_base; /* volatile: the compiler takes no syscall() for one that lets a handler run */
static bool entered;
static bool was_translated;          /* the frame goes back to 64-bit code that is not begun anew */
static uint32_t shadow_eip;          /* where interrupt_shadow holds */
static uint64_t running_since;       /* CLOCK_MONOTONIC */
static bool stepping;                /* the host's TF is ours: one instruction, then see */

static struct {
    bool pending, has_error;
    unsigned vector;
    uint32_t error;
} raised;
static bool abandoned;
static void *unwind[5];

/* ---- unwinding */

_Noreturn static void raise_exception(unsigned vector, bool has_error, uint32_t error)
{
    raised.pending = true;
    raised.vector = vector;
    raised.has_error = has_error;
    raised.error = error;
    if (cell.fault_eip_valid) {
        HV_CPU->eip = cell.fault_eip;
        cell.fault_eip_valid = false;
    }
    __builtin_longjmp(unwind, 1);
}

_Noreturn void hv_raise(unsigned vector) { raise_exception(vector, false, 0); }

_Noreturn void hv_raise_error(unsigned vector, uint32_t error) { raise_exception(vector, true, error); }

_Noreturn void hv_raise_page_fault(uint32_t linear, uint32_t error)
{
    HV_CPU->cr2 = linear;
    raise_exception(HV_PAGE_FAULT, true, error & ~WALK_FAULT);
}

_Noreturn void hv_abandon(void)
{
    abandoned = true;
    raised.pending = false;
    cell.fault_eip_valid = false;
    __builtin_longjmp(unwind, 1);
}

/* Runs work; false: it was unwound. */
__attribute__((noinline)) static bool guarded(void (*work)(void))
{
    if (__builtin_setjmp(unwind))
        return false;
    work();
    return true;
}

/* ---- exceptions (SDM vol. 3A, table 6-5) */

enum class { BENIGN, CONTRIBUTORY, PAGE };

static enum class class_of(unsigned vector)
{
    if (vector == HV_PAGE_FAULT)
        return PAGE;
    return vector == HV_DE || (vector >= HV_TS && vector <= HV_GP) ? CONTRIBUTORY : BENIGN;
}

static struct {
    unsigned vector;
    bool has_error;
    uint32_t error;
} delivered;

/* The last page fault of the guest's programs: once its kernel has seen to it, they try the same again. */
static bool user_faulted;
static uint32_t user_fault;

static void deliver_it(void) { hv_deliver(delivered.vector, delivered.has_error, delivered.error, false); }

static void shut_down(void)
{
    for (;;)
        hv_leave(HV_CELL_SHUTDOWN);
}

/* Deliver what was raised, and what is raised by that. */
static void deliver_raised(void)
{
    bool first = true;
    if (raised.pending && raised.vector == HV_PAGE_FAULT && HV_CPU->cpl == 3) {
        user_faulted = true;
        user_fault = HV_CPU->cr2;
    }
    if (raised.pending && hv_debugging)
        hv_debug_raised();
    while (raised.pending) {
        raised.pending = false;
        if (first) {
            delivered.vector = raised.vector;
            delivered.has_error = raised.has_error;
            delivered.error = raised.error;
        } else if (delivered.vector == HV_DOUBLE) {
            guarded(shut_down);
            return;
        } else {
            enum class one = class_of(delivered.vector), two = class_of(raised.vector);
            bool twice = (one == CONTRIBUTORY && two == CONTRIBUTORY) || (one == PAGE && two != BENIGN);
            delivered.vector = twice ? HV_DOUBLE : raised.vector;
            delivered.has_error = twice || raised.has_error;
            delivered.error = twice ? 0 : raised.error;
        }
        first = false;
        guarded(deliver_it);
    }
}

/* ---- the state in the frame */

static greg_t *registers(void) { return frame->uc_mcontext.gregs; }

bool hv_fpu_publish(void)
{
    if (frame && frame->uc_mcontext.fpregs)
        memcpy(HV_CPU->fxsave, frame->uc_mcontext.fpregs, sizeof HV_CPU->fxsave);
    else if (!frame) /* a callout: they are where the guest left them */
        __asm__ volatile("fxsave %0" : "=m"(HV_CPU->fxsave));
    memset(HV_CPU->fxsave + HIGH_XMM, 0, sizeof HV_CPU->fxsave - HIGH_XMM); /* 64-bit code's, and the kernel's own words */
    return !frame;
}

void hv_fpu_adopt(void)
{
    if (!frame) {
        __asm__ volatile("fxrstor %0" : : "m"(HV_CPU->fxsave));
        return;
    }
    if (!frame->uc_mcontext.fpregs)
        return;
    uint8_t *image = (uint8_t *)frame->uc_mcontext.fpregs;
    uint32_t magic;
    memcpy(&magic, image + FRAME_MAGIC_AT, sizeof magic);
    memcpy(image, HV_CPU->fxsave, FRAME_MAGIC_AT); /* behind it the frame's own words */
    if (magic == FRAME_HAS_XSAVE) {
        uint64_t present = X87_AND_SSE; /* whatever else there was is as after a reset */
        memcpy(image + XSTATE_HEADER, &present, sizeof present);
    }
}

/* A segment register holds another selector than the guest was entered with: it loaded it without a trap. */
static unsigned reloaded;
static uint16_t reloaded_selector;
static void reload(void) { hv_load_segment(reloaded, reloaded_selector); }

static void take_segment(unsigned index)
{
    uint16_t guest;
    bool twin = hv_twin_guest_selector(live[index], &guest);
    reloaded = index;
    reloaded_selector = twin ? guest : live[index];
    struct hv_segment before = HV_CPU->segment[index];
    if (twin && !(guest & ~3u)) {
        HV_CPU->segment[index] = (struct hv_segment){.selector = guest};
    } else if (index == HV_CS || (twin && (before.selector & ~3u) == (guest & ~3u))) {
        HV_CPU->segment[index].selector = (uint16_t)((reloaded_selector & ~3u) | HV_CPU->cpl);
    } else if (!guarded(reload)) {
        raised.pending = false; /* where it should have faulted is long past: unusable */
        HV_CPU->segment[index] = (struct hv_segment){.selector = reloaded_selector};
    }
}

/* Registers, flags and segments out of the frame. */
static void take_state(void)
{
    struct hv_cpu *cpu = HV_CPU;
    greg_t *g = registers();
    for (int i = 0; i < 8; i++)
        cpu->r[i] = (uint32_t)g[general[i]];
    cpu->eip = (uint32_t)g[REG_RIP];
    uint32_t native = stepping ? NATIVE_FLAGS & ~(HV_TF | HV_AC) : NATIVE_FLAGS & ~HV_AC;
    cpu->eflags = (cpu->eflags & ~(native | HV_RF)) | ((uint32_t)g[REG_EFL] & native) | 2;
    live[HV_CS] = (uint16_t)g[REG_CSGSFS];
    live[HV_SS] = (uint16_t)(g[REG_CSGSFS] >> 48);
    for (unsigned i = 0; i <= HV_GS; i++)
        if (live[i] != expected[i])
            take_segment(i);
    if (cpu->interrupt_shadow && cpu->eip != shadow_eip)
        cpu->interrupt_shadow = 0;
}

/* Did the guest load a selector of the host's own GDT without a trap, which acts unlike its own? take_state() has put that right: what
 * the guest did with it may be tried again. */
static bool loaded_host_selector(void)
{
    for (unsigned i = 0; i <= HV_GS; i++)
        if (i != HV_CS && live[i] != expected[i] && live[i] & ~3u && !(live[i] & 4) && HV_CPU->segment[i].attributes)
            return true;
    return false;
}

static void load_selectors(void)
{
    __asm__ volatile("mov %0, %%ds" : : "r"(expected[HV_DS]));
    __asm__ volatile("mov %0, %%es" : : "r"(expected[HV_ES]));
    __asm__ volatile("mov %0, %%gs" : : "r"(expected[HV_GS]));
    __asm__ volatile("mov %0, %%fs" : : "r"(expected[HV_FS])); /* last: it takes the monitor's own away */
}

static void make_twins(void)
{
    if (user_faulted && HV_CPU->cpl == 3) {
        user_faulted = false;
        hv_shadow_prefill(user_fault);
    }
    for (unsigned i = 0; i <= HV_GS; i++)
        expected[i] = hv_twin(&HV_CPU->segment[i]);
    hv_shadow_mode(HV_CPU->cpl);
}

static uint32_t native_flags(void)
{
    const struct hv_cpu *cpu = HV_CPU;
    uint32_t flags = (cpu->eflags & (LIVE_FLAGS | HV_TF)) | HV_IF | 2;
    if (cpu->cpl == 3 && cpu->cr0 & CR0_AM)
        flags |= cpu->eflags & HV_AC;
    return stepping ? flags | HV_TF : flags;
}

/* Registers, flags and segments into the frame. */
static void give_state(void)
{
    struct hv_cpu *cpu = HV_CPU;
    greg_t *g = registers();
    for (int i = 0; i < 8; i++)
        g[general[i]] = cpu->r[i];
    g[REG_RIP] = cpu->eip;
    g[REG_EFL] = native_flags();
    g[REG_CSGSFS] = (greg_t)((uint64_t)expected[HV_CS] | (uint64_t)expected[HV_SS] << 48);
}

/* ---- causes */

static siginfo_t *info;
static uint32_t host_error;
static uint64_t host_address;

static void emulate(void)
{
    hv_emulate();
}

static void page_fault(void)
{
    struct hv_walk walk;
    uint32_t linear = (uint32_t)host_address;
    bool write = host_error & ERROR_WRITE, fetch = host_error & ERROR_FETCH;
    switch (hv_shadow_fault(linear, write, HV_CPU->cpl == 3, fetch, &walk)) {
    case HV_SHADOW_MAPPED:
        return;
    case HV_SHADOW_EMULATE:
        emulate();
        return;
    case HV_SHADOW_GUEST_FAULT:
        if (loaded_host_selector())
            return;
        hv_raise_page_fault(linear, walk.error);
    }
}

/* #GP, #SS, #NP: the instruction is privileged, or sensitive to selectors that only the guest has; or the guest did wrong. */
static void protection_fault(void)
{
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    unsigned available = hv_fetch(bytes);
    enum hv_decoded decoded = hv_decode(&insn, bytes, available, HV_CPU->segment[HV_CS].attributes & HV_SEGMENT_32);
    if (decoded == HV_DECODED) {
        HV_CPU->interrupt_shadow = 0;
        bool port_string = insn.map == HV_MAP_ONE && insn.opcode >= 0x6c && insn.opcode <= 0x6f; /* INS, OUTS */
        if (port_string ? hv_strings(&insn) : hv_sensitive(&insn))
            return;
    } else if (decoded == HV_DECODE_UNKNOWN) {
        hv_emulate(); /* says so, with the bytes */
        return;
    }
    if (loaded_host_selector())
        return;
    hv_raise_error(registers()[REG_TRAPNO] == HV_STACK ? HV_STACK : HV_GP, 0);
}

static void undefined(void)
{
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    if (hv_decode(&insn, bytes, hv_fetch(bytes), HV_CPU->segment[HV_CS].attributes & HV_SEGMENT_32) == HV_DECODED && hv_sensitive(&insn))
        return;
    hv_raise(HV_UD);
}

/* INT3, INTO: the host has gone on behind them; the guest's gate decides whether they may. */
static void software_trap(void)
{
    unsigned vector = (unsigned)registers()[REG_TRAPNO];
    unsigned length = 1;
    cell.fault_eip = HV_CPU->eip - length;
    cell.fault_eip_valid = true;
    hv_deliver(vector, false, 0, true);
    cell.fault_eip_valid = false;
}

static void debug_trap(void)
{
    if (stepping) { /* the instruction behind STI or MOV SS is done, or one of the debugger's */
        bool trap = HV_CPU->eflags & HV_TF;
        stepping = false;
        HV_CPU->interrupt_shadow = 0;
        if (hv_debugging)
            hv_debug_native((uint32_t)registers()[REG_EFL]);
        if (!trap)
            return;
    }
    HV_CPU->dr[6] = (HV_CPU->dr[6] & ~0xfu) | HV_DR6_BS;
    hv_deliver(HV_DB, false, 0, false);
}

/* INT 80, and SYSCALL or SYSENTER, which the host takes for system calls of its own. */
static void system_call(void)
{
    HV_CPU->r[HV_EAX] = (uint32_t)info->si_syscall;
    HV_CPU->eip -= 2;
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    if (hv_decode(&insn, bytes, hv_fetch(bytes), true) == HV_DECODED && insn.map == HV_MAP_ONE && insn.opcode == 0xcd)
        hv_sensitive(&insn);
    else
        hv_raise(HV_UD);
}

static void fault_without_error(void) { hv_raise((unsigned)registers()[REG_TRAPNO]); }

static void alignment(void) { hv_raise_error(HV_ALIGNMENT, 0); }

static void nothing(void) {}

struct cause {
    int signal, trap; /* trap: -1 any */
    void (*work)(void);
};
static const struct cause causes[] = {
    {SIGSEGV, HV_PAGE_FAULT, page_fault}, {SIGSEGV, HV_OF_TRAP, software_trap}, {SIGSEGV, HV_BR, fault_without_error},
    {SIGSEGV, -1, protection_fault}, {SIGBUS, HV_ALIGNMENT, alignment}, {SIGBUS, HV_STACK, protection_fault}, {SIGBUS, HV_NP, protection_fault},
    {SIGILL, -1, undefined}, {SIGTRAP, HV_BP, software_trap}, {SIGTRAP, HV_DB, debug_trap}, {SIGFPE, -1, fault_without_error},
    {SIGSYS, -1, system_call}, {SIGALRM, -1, nothing}, {SIGUSR1, -1, nothing},
};

static void (*cause_of(int signal, int trap))(void)
{
    for (unsigned i = 0; i < sizeof causes / sizeof *causes; i++)
        if (causes[i].signal == signal && (causes[i].trap < 0 || causes[i].trap == trap))
            return causes[i].work;
    return NULL;
}

/* ---- going on */

static void wait_in_halt(void) { hv_halt(); }
static void leave_interrupted(void) { hv_leave(HV_CELL_INTERRUPTED); }

static void interpret(void) { hv_emulate(); }
static bool natively;
static void interpret_for_debugger(void)
{
    natively = !hv_debug_execute();
    if (!natively)
        hv_debug_executed();
}
static void find_target(void) { target = hv_translated_target(); }

static bool may_run;
static void find_breakpoint(void) { may_run = hv_breakpoint_prepare(); }

/* Everything before the guest's next instruction: exceptions, exits, interrupts, HLT. Then `target` is where to go on: in translated code,
 * or NULL for native code. */
static void settle(void)
{
    stepping = false;
    for (;;) {
        deliver_raised();
        if (abandoned) {
            abandoned = false;
            hv_debug_forget();
            hv_fpu_adopt();
            continue;
        }
        if (hv_kicked()) {
            guarded(leave_interrupted);
            continue;
        }
        if (hv_timer_due())
            hv_board_advance(&cell.board);
        bool wanted = hv_interrupts_wanted(), translated = cell.mode == HV_MODE_REWRITING && HV_CPU->cpl < 3;
        bool interpreted = translated && !hv_translatable(), by_breakpoint = cell.mode == HV_MODE_BREAKPOINT && HV_CPU->cpl < 3;
        if (hv_debugging && hv_debug_stops()) {
            guarded(hv_debug_leave);
            continue;
        }
        if (hv_debugging && hv_debug_holds_interrupts(wanted))
            wanted = false;
        if (wanted && HV_CPU->interrupt_shadow && !HV_CPU->halted) {
            /* One more instruction, then the interrupt. */
            shadow_eip = HV_CPU->eip;
            if (translated || by_breakpoint)
                interpreted = true;
            else
                stepping = true;
        } else if (wanted) {
            cell.entry_ns = hv_host_ns();
            guarded(hv_take_interrupt);
            continue;
        } else if (HV_CPU->halted) {
            /* In a callout signals are not blocked: one that came before it sleeps would not wake it. */
            uint64_t all = ~0ull, before;
            syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &before, sizeof all);
            guarded(wait_in_halt);
            syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
            continue;
        } else if (HV_CPU->interrupt_shadow) {
            shadow_eip = HV_CPU->eip;
        }
        if (hv_debugging) {
            natively = false;
            guarded(interpret_for_debugger);
            stepping = natively;
            if (!natively)
                continue;
            shadow_eip = HV_CPU->eip;
        } else if (interpreted) {
            guarded(interpret);
            continue;
        }
        if (by_breakpoint && !hv_debugging && (!guarded(find_breakpoint) || !may_run))
            continue;
        if (guarded(translated ? find_target : make_twins)) {
            if (!translated)
                target = NULL;
            break;
        }
    }
    hv_arm_timer();
}

static enum { RUN, TO_INTERRUPT, OUT_OF_BLOCK } step; /* why translated code is stepped through: to where an interrupt may be taken; because
                                                         its block has been written over, or for the debugger */

/* The guest's next instruction, by the frame. */
static void resume(void)
{
    settle();
    if (!target) {
        give_state();
        return;
    }
    hv_translated_prepare();
    greg_t *g = registers();
    for (int i = 0; i < 8; i++)
        g[general[i]] = HV_CPU->r[i];
    g[REG_RIP] = (greg_t)(uintptr_t)target;
    g[REG_EFL] = cell.host_flags;
    if (hv_debugging) {
        g[REG_EFL] |= HV_TF;
        step = OUT_OF_BLOCK;
    }
    g[REG_R15] = (greg_t)(uintptr_t)&cell;
    g[REG_R13] = (greg_t)HV_WINDOW;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000ffffffff0000ll) | HOST_CODE_64 | (greg_t)((uint64_t)HOST_DATA << 48);
}

uint64_t hv_settle_and_go(void (*work)(void))
{
    guarded(work);
    settle();
    if (target) {
        hv_translated_prepare();
        if (hv_debugging) { /* at the stub, whose frame resume() can use */
            cell.host_flags |= HV_TF;
            step = OUT_OF_BLOCK;
        }
        return (uint64_t)(uintptr_t)target;
    }
    for (unsigned i = 0; i <= HV_GS; i++)
        cell.host_selector[i] = expected[i];
    cell.user_flags = native_flags();
    cell.host_flags = HV_IF | 2;
    return (uint64_t)(uintptr_t)hv_stubs.enter_user;
}

/* ---- translated code */

static struct hv_found found;

static void take_translated(void)
{
    greg_t *g = registers();
    for (int i = 0; i < 8; i++)
        HV_CPU->r[i] = (uint32_t)g[general[i]];
    if (found.popped)
        HV_CPU->r[HV_ESP] -= 4;
    HV_CPU->eip = found.eip;
    cell.host_flags = (uint32_t)g[REG_EFL];
    hv_translated_state();
    step = RUN;
}

static void translated_page_fault(void)
{
    struct hv_walk walk;
    uint32_t linear = (uint32_t)host_address;
    bool write = host_error & ERROR_WRITE;
    enum hv_shadow result = host_address >> 32 == HV_WINDOW >> 32 ? hv_shadow_fault(linear, write, false, false, &walk) : HV_SHADOW_EMULATE;
    if (result == HV_SHADOW_MAPPED) {
        filled = true;
        return;
    }
    take_translated();
    if (result == HV_SHADOW_EMULATE)
        hv_emulate();
    else
        hv_raise_page_fault(linear, walk.error);
}

static void translated_fault(void)
{
    unsigned vector = (unsigned)registers()[REG_TRAPNO];
    take_translated();
    if (vector == HV_GP)
        hv_raise_error(HV_GP, 0);
    hv_raise(vector);
}

static void set_step(int reason)
{
    greg_t *g = registers();
    step = reason;
    g[REG_EFL] = reason == RUN ? g[REG_EFL] & ~(greg_t)HV_TF : g[REG_EFL] | HV_TF;
}

/* A timer, a kick, or a step: true = the state has been taken over. */
static bool translated_async(bool known)
{
    cell.scratch_stack[7] &= ~(uint64_t)HV_TF; /* PUSHFQ under our own TF */
    hv_board_advance(&cell.board);
    bool wanted = hv_kicked() || (cell.virtual_if && hv_interrupts_pending());
    if (known && found.exact && (wanted || step == OUT_OF_BLOCK)) {
        if (step == OUT_OF_BLOCK)
            hv_debug_executed();
        take_translated();
        return true;
    }
    if (!cell.virtual_if && hv_interrupts_pending())
        cell.pending = 1;
    if (wanted || step == OUT_OF_BLOCK)
        set_step(step == OUT_OF_BLOCK ? OUT_OF_BLOCK : TO_INTERRUPT);
    else
        set_step(RUN);
    return false;
}

/* A signal in 64-bit code: translated code, the stubs, or the monitor at work for a callout. Returns whether the frame goes elsewhere. */
static bool in_64_bits(int signal)
{
    const uint8_t *rip = (const uint8_t *)registers()[REG_RIP];
    bool async = signal == SIGALRM || signal == SIGUSR1 || (signal == SIGTRAP && step != RUN);
    bool in_cache = cell.mode == HV_MODE_REWRITING && (uint64_t)rip - HV_CACHE < HV_CACHE_BYTES;
    if (async && (!in_cache || (rip >= hv_stubs.callout && rip < hv_stubs.callout_end))) {
        cell.async = 1;
        set_step(RUN);
        return false;
    }
    if (async && rip >= hv_stubs.resume && rip < hv_stubs.ready_end) { /* all is in struct hv_cell still */
        set_step(RUN);
        return true;
    }
    if (!in_cache)
        hv_fail("the guest left its cell's segments: 64-bit code at %#llx%s", (unsigned long long)registers()[REG_RIP],
                signal == SIGSYS ? " made a system call of the host" : "");
    bool known = hv_blocks_locate(rip, &found);
    if (async)
        return translated_async(known);
    if (!known)
        hv_fail("signal %d between blocks of translated code, at %p", signal, (const void *)rip);
    filled = false;
    if (signal == SIGSEGV && registers()[REG_TRAPNO] == HV_PAGE_FAULT) {
        guarded(translated_page_fault);
        if (filled) {
            if (host_error & ERROR_WRITE && hv_blocks_locate(rip, &found) && !found.valid)
                set_step(OUT_OF_BLOCK);
            return false;
        }
    } else {
        guarded(translated_fault);
    }
    return true;
}

/* A fault that only a mapping cures, of code whose segments are as they were: the state stays in the frame. */
static bool only_fills(int signal, const greg_t *g)
{
    return signal == SIGSEGV && g[REG_TRAPNO] == HV_PAGE_FAULT && live[HV_DS] == expected[HV_DS] && live[HV_ES] == expected[HV_ES] &&
           live[HV_FS] == expected[HV_FS] && live[HV_GS] == expected[HV_GS] && (uint16_t)g[REG_CSGSFS] == expected[HV_CS];
}

static void try_fill(void)
{
    struct hv_walk walk;
    HV_CPU->eip = (uint32_t)registers()[REG_RIP];
    filled = hv_shadow_fault((uint32_t)host_address, host_error & ERROR_WRITE, HV_CPU->cpl == 3, host_error & ERROR_FETCH, &walk) == HV_SHADOW_MAPPED;
}

static void handle(int signal)
{
    greg_t *g = registers();
    cell.area->counters.signals++;
    cell.entry_ns = hv_host_ns();
    if (entered)
        cell.board.crossings.counters->run_ns += cell.entry_ns - running_since;
    if (!entered) {
        entered = true;
        if (!cell.board.crossings.counters->first_instruction_ns)
            cell.board.crossings.counters->first_instruction_ns = cell.entry_ns;
        hv_fpu_adopt();
        resume();
        return;
    }
    host_error = (uint32_t)g[REG_ERR];
    host_address = (uint64_t)g[REG_CR2];
    if ((uint16_t)g[REG_CSGSFS] == HOST_CODE_64 || (uint64_t)g[REG_RIP] >> 32 || (signal == SIGSYS && info->si_arch != AUDIT_ARCH_I386)) {
        was_translated = true;
        if (in_64_bits(signal)) {
            resume();
            was_translated = false;
        }
        return;
    }
    target = NULL;
    if (only_fills(signal, g)) {
        filled = false;
        if (guarded(try_fill) && filled)
            return;
        raised.pending = false;
    }
    void (*work)(void) = cause_of(signal, (int)g[REG_TRAPNO]);
    take_state();
    if (signal == SIGTRAP && info->si_code == TRAP_PERF) {
        work = nothing; /* a breakpoint was reached: resume() sees to it */
        if (HV_CPU->cpl == 3) { /* not meant for programs: step over it */
            g[REG_EFL] |= HV_RF;
            return;
        }
    }
    if (!work)
        hv_fail("signal %d with trap %lld at %#x", signal, (long long)g[REG_TRAPNO], HV_CPU->eip);
    uint32_t eip = HV_CPU->eip;
    guarded(work);
    if (hv_debugging && HV_CPU->eip != eip)
        hv_debug_executed();
    resume();
}

void hv_on_signal(int signal, siginfo_t *information, void *context)
{
    __asm__ volatile("mov %%ds, %0" : "=r"(live[HV_DS]));
    __asm__ volatile("mov %%es, %0" : "=r"(live[HV_ES]));
    __asm__ volatile("mov %%fs, %0" : "=r"(live[HV_FS]));
    __asm__ volatile("mov %%gs, %0" : "=r"(live[HV_GS]));
    if (entered)
        __builtin_ia32_wrfsbase64(monitor_fs_base);
    frame = context;
    info = information;
    handle(signal);
    frame = NULL;
    running_since = hv_host_ns();
    if (was_translated)
        was_translated = false; /* back to where it came from, whose segments are as they were */
    else if (target)
        __builtin_ia32_wrgsbase64(HV_WINDOW);
    else
        load_selectors();
}

void hv_enter_first(void)
{
    monitor_fs_base = __builtin_ia32_rdfsbase64();
    /* The runner has blocked all signals, so that none came too early: a kick may be pending. */
    sigset_t none;
    sigemptyset(&none);
    for (;;) {
        syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), SIGUSR1);
        sigprocmask(SIG_SETMASK, &none, NULL);
    }
}
