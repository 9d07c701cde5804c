/* From the guest into the monitor and back: every trap is a signal, whose frame holds the guest's registers.
 *
 * A 64-bit frame keeps CS and SS; DS, ES, FS and GS stay live in the processor and are read here first of all, before anything needs the
 * monitor's own FS. The guest's x87, SSE and AVX registers lie in the frame, too, and come back with it.
 *
 * hv_on_signal() takes the state over, lets a handler for the cause work, delivers what that raised, and goes on with hv_resume(). Handlers run
 * in hv_guarded(), to which hv_raise() and hv_abandon() unwind.
 */
#include "signals.h"

#include <linux/audit.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "breakpoint.h"
#include "debug.h"
#include "paravirt.h"
#include "sites.h"
#include "translate.h"

#define INT 0xcd
#define IRET 0xcf
#ifndef TRAP_BRKPT
#define TRAP_BRKPT 1 /* si_code of a #DB that DR6 has no cause of: INT1 */
#endif
#ifndef TRAP_PERF
#define TRAP_PERF 6 /* si_code of a breakpoint set by perf_event_open(2) */
#endif

struct hv_cell cell;
struct hv_trap hv_trap;

static volatile uint64_t monitor_fs_base; /* volatile: the compiler takes no syscall() for one that lets a handler run */
static bool entered;
static bool was_translated;    /* the frame goes back to 64-bit code that is not begun anew */
static uint64_t running_since; /* CLOCK_MONOTONIC; what is not accounted for yet began then */

static void page_fault(void)
{
    struct hv_walk walk = {0};
    uint32_t linear = (uint32_t)hv_trap.address;
    bool write = hv_trap.error & HV_ERROR_WRITE, fetch = hv_trap.error & HV_ERROR_FETCH;
    switch (hv_shadow_fault(linear, write, HV_CPU->cpl == 3, fetch, &walk)) {
    case HV_SHADOW_MAPPED:
        return;
    case HV_SHADOW_EMULATE:
        if (hv_paravirtual() && HV_CPU->cpl < 3 && !fetch)
            hv_sites_kernel();
        hv_emulate();
        return;
    case HV_SHADOW_GUEST_FAULT:
        if (hv_loaded_host_selector())
            return;
        hv_raise_page_fault(linear, walk.error);
    }
}

static bool in_slot(void) { return hv_sites_in_slot((uint64_t)hv_frame_registers()[REG_RIP], (uint16_t)hv_frame_registers()[REG_CSGSFS]); }

/* #GP, #SS, #NP: the instruction is privileged, or sensitive to selectors that only the guest has; or the guest did wrong. */
static void protection_fault(void)
{
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    if (hv_shadow_stale_end()) { /* the kernel looks for what its programs have there: now it is */
        hv_shadow_enter_programs();
        return;
    }
    if (!in_slot() && hv_sites_cover(HV_CPU->eip)) /* a byte of a jump: hv_resume() goes on behind it */
        return;
    unsigned available = hv_fetch(bytes);
    enum hv_decoded decoded = hv_decode(&insn, bytes, available, HV_CPU->segment[HV_CS].attributes & HV_SEGMENT_32);
    if (decoded == HV_DECODED) {
        bool port_string = insn.map == HV_MAP_ONE && insn.opcode >= 0x6c && insn.opcode <= 0x6f; /* INS, OUTS */
        bool trap = HV_CPU->eflags & HV_TF;
        HV_CPU->interrupt_shadow = 0;
        if (hv_paravirtual() && hv_paravirt_trap(&insn))
            return;
        if (hv_paravirtual() && !HV_CPU->cpl && insn.map == HV_MAP_ONE && (insn.opcode == INT || insn.opcode == IRET))
            hv_sites_kernel();
        if (port_string ? hv_strings(&insn) : hv_sensitive(&insn)) {
            if (trap)
                hv_single_step_trap(&insn);
            return;
        }
    } else if (decoded == HV_DECODE_UNKNOWN) {
        hv_emulate(); /* says so, with the bytes */
        return;
    }
    if (hv_loaded_host_selector())
        return;
    if (decoded == HV_DECODED && HV_CPU->cpl == 3 && HV_CPU->user_limit && hv_paravirt_beyond(&insn))
        return;
    hv_raise_error(hv_frame_registers()[REG_TRAPNO] == HV_STACK ? HV_STACK : HV_GP, 0);
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
    unsigned vector = (unsigned)hv_frame_registers()[REG_TRAPNO];
    unsigned length = 1;
    hv_software_interrupt(vector, length);
}

static void debug_trap(void)
{
    if (in_slot()) /* TF was set in front of INT 80, which has no trap behind it */
        return;
    bool int1 = hv_trap.info->si_code == TRAP_BRKPT;
    if (hv_trap.stepping) { /* the instruction behind STI or MOV SS is done, or one of the debugger's */
        bool trap = HV_CPU->eflags & HV_TF;
        hv_trap.stepping = false;
        HV_CPU->interrupt_shadow = 0;
        if (hv_debugging)
            hv_debug_native((uint32_t)hv_frame_registers()[REG_EFL]);
        if (!trap && !int1)
            return;
    }
    if (int1)
        hv_int1_trap();
    else
        hv_breaks_trap(HV_DR6_BS);
}

/* INT 80, and SYSCALL or SYSENTER, which the host takes for system calls of its own. */
static void system_call(void)
{
    HV_CPU->r[HV_EAX] = (uint32_t)hv_trap.info->si_syscall;
    HV_CPU->eip -= 2;
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    if (hv_decode(&insn, bytes, hv_fetch(bytes), true) == HV_DECODED && insn.map == HV_MAP_ONE && insn.opcode == 0xcd) {
        hv_sites_hit();
        hv_sensitive(&insn);
    } else
        hv_raise(HV_UD);
}

static void fault_without_error(void) { hv_raise((unsigned)hv_frame_registers()[REG_TRAPNO]); }

/* Checked by the guest in ring 3 with CR0.AM; by the host whenever AC is set, which PUSHF shows in ring 3 only if it is. */
static void alignment(void)
{
    if (HV_CPU->cpl == 3 && HV_CPU->cr0 & HV_CR0_AM)
        hv_raise_error(HV_ALIGNMENT, 0);
    struct hv_insn insn;
    hv_fetch_instruction(&insn);
    if (!hv_interpret(&insn))
        HV_CPU->eflags &= ~HV_AC; /* AVX is not executed here */
}

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

/* A fault that only a mapping cures, of code whose segments are as they were: the state stays in the frame. */
static bool only_fills(int signal, const greg_t *g)
{
    return signal == SIGSEGV && g[REG_TRAPNO] == HV_PAGE_FAULT && !in_slot() && hv_trap.live[HV_DS] == hv_trap.expected[HV_DS] && hv_trap.live[HV_ES] == hv_trap.expected[HV_ES] &&
           hv_trap.live[HV_FS] == hv_trap.expected[HV_FS] && hv_trap.live[HV_GS] == hv_trap.expected[HV_GS] && (uint16_t)g[REG_CSGSFS] == hv_trap.expected[HV_CS];
}

static void try_fill(void)
{
    struct hv_walk walk;
    bool fetch = hv_trap.error & HV_ERROR_FETCH;
    HV_CPU->eip = (uint32_t)hv_frame_registers()[REG_RIP];
    hv_trap.filled = hv_shadow_fault((uint32_t)hv_trap.address, hv_trap.error & HV_ERROR_WRITE, HV_CPU->cpl == 3, fetch, &walk) == HV_SHADOW_MAPPED;
    if (fetch && hv_sites_cover(HV_CPU->eip)) /* hv_resume() knows where to go on */
        hv_trap.filled = false;
}

void hv_account_run(void) { cell.board.crossings.counters->run_ns += cell.entry_ns - running_since; }

void hv_runs_since(uint64_t ns) { running_since = ns; }

/* Not to be compiled into hv_on_signal(): nothing that needs the monitor's own FS may move in front of its coming back. */
__attribute__((noinline)) static void handle(int signal)
{
    greg_t *g = hv_frame_registers();
    cell.area->counters.signals++;
    cell.entry_ns = hv_host_ns();
    if (entered)
        hv_account_run();
    if (!entered) {
        entered = true;
        if (!cell.board.crossings.counters->first_instruction_ns)
            cell.board.crossings.counters->first_instruction_ns = cell.entry_ns;
        hv_fpu_adopt();
        hv_resume();
        return;
    }
    hv_trap.error = (uint32_t)g[REG_ERR];
    hv_trap.address = (uint64_t)g[REG_CR2];
    if ((uint16_t)g[REG_CSGSFS] == HV_HOST_CODE_64 || (uint64_t)g[REG_RIP] >> 32 || (signal == SIGSYS && hv_trap.info->si_arch != AUDIT_ARCH_I386)) {
        was_translated = true;
        if (hv_in_64_bits(signal)) {
            hv_resume();
            was_translated = false;
        }
        return;
    }
    hv_trap.target = NULL;
    if (only_fills(signal, g)) {
        hv_trap.filled = false;
        if (hv_guarded(try_fill) && hv_trap.filled)
            return;
        hv_forget_raised();
    }
    void (*work)(void) = cause_of(signal, (int)g[REG_TRAPNO]);
    hv_take_state();
    if (signal == SIGTRAP && hv_trap.info->si_code == TRAP_PERF) {
        work = nothing; /* a breakpoint was reached: hv_resume() sees to it */
        hv_trap.step_over = HV_CPU->cpl == 3; /* it was not meant for programs */
    }
    if (!work)
        hv_fail("signal %d with trap %lld at %#x", signal, (long long)g[REG_TRAPNO], HV_CPU->eip);
    uint32_t eip = HV_CPU->eip;
    hv_guarded(work);
    if (hv_debugging && HV_CPU->eip != eip)
        hv_debug_executed();
    hv_resume();
}

void hv_on_signal(int signal, siginfo_t *information, void *context)
{
    __asm__ volatile("mov %%ds, %0" : "=r"(hv_trap.live[HV_DS]));
    __asm__ volatile("mov %%es, %0" : "=r"(hv_trap.live[HV_ES]));
    __asm__ volatile("mov %%fs, %0" : "=r"(hv_trap.live[HV_FS]));
    __asm__ volatile("mov %%gs, %0" : "=r"(hv_trap.live[HV_GS]));
    uint64_t flags = __builtin_ia32_readeflags_u64();
    if (flags & HV_AC) /* the host leaves the guest's; the compiler does not align everything */
        __builtin_ia32_writeeflags_u64(flags & ~(uint64_t)HV_AC);
    if (entered)
        __builtin_ia32_wrfsbase64(monitor_fs_base);
    hv_trap.frame = context;
    hv_trap.info = information;
    handle(signal);
    hv_runs_since(hv_host_ns());
    if (was_translated) {
        was_translated = false; /* back to where it came from, whose segments are as they were */
    } else {
        hv_keep_flags();
        if (hv_trap.target)
            __builtin_ia32_wrgsbase64(cell.window);
        else
            hv_load_selectors();
    }
    hv_trap.frame = NULL;
}

void hv_enter_first(void)
{
    monitor_fs_base = cell.monitor_fs = __builtin_ia32_rdfsbase64();
    /* The runner has blocked all signals, so that none came too early: a kick may be pending. */
    sigset_t none;
    sigemptyset(&none);
    for (;;) {
        syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), SIGUSR1);
        sigprocmask(SIG_SETMASK, &none, NULL);
    }
}
