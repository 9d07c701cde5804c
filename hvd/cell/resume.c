/* Everything before the guest's next instruction: exceptions, exits, interrupts, HLT, the debugger; then native or translated code. */
#include "signals.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "breakpoint.h"
#include "debug.h"
#include "pace.h"
#include "sites.h"
#include "translate.h"

static void wait_in_halt(void) { hv_halt(); }
static void leave_interrupted(void) { hv_leave(HV_CELL_INTERRUPTED); }

static void interpret(void) { hv_emulate(); }
static bool natively;
static void interpret_withheld(void) { natively = !hv_withheld_interpret(); }
static void interpret_for_debugger(void)
{
    natively = !hv_debug_execute();
    if (!natively)
        hv_debug_executed();
}
static void find_target(void) { hv_trap.target = hv_translated_target(); }

static bool may_run;
static void find_breakpoint(void) { may_run = hv_breakpoint_prepare(); }

/* Everything before the guest's next instruction: exceptions, exits, interrupts, HLT. Then `hv_trap.target` is where to go on: in translated code,
 * or NULL for native code. */
static void settle(void)
{
    hv_trap.stepping = false;
    for (bool again = false;; again = true) {
        if (again) /* code that is interpreted runs on in here, and time with it */
            cell.entry_ns = hv_host_ns();
        hv_deliver_raised();
        if (hv_was_abandoned()) {
            hv_debug_forget();
            hv_fpu_adopt();
            continue;
        }
        if (hv_kicked()) {
            hv_guarded(leave_interrupted);
            continue;
        }
        if (hv_breaks_hit()) {
            hv_guarded(hv_breaks_trap_here);
            continue;
        }
        if (hv_pace_handling)
            hv_pace();
        if (hv_timer_due() || (again && hv_board_deadline(&cell.board) <= cell.entry_ns)) /* it is armed at the end of this only */
            hv_board_advance(&cell.board);
        bool withheld = hv_withheld(), steps = withheld && hv_trap.step_once;
        hv_trap.step_once = false;
        bool wanted = hv_interrupts_wanted(), translated = cell.mode == HV_MODE_REWRITING && HV_CPU->cpl < 3;
        if (cell.mode == HV_MODE_REWRITING && withheld)
            translated = !steps && !hv_debugging && !HV_CPU->interrupt_shadow && hv_translatable();
        bool interpreted = translated && !hv_translatable(), by_breakpoint = cell.mode == HV_MODE_BREAKPOINT && HV_CPU->cpl < 3;
        if (HV_CPU->cpl == 3 && HV_CPU->user_limit && HV_CPU->eip >= HV_CPU->user_limit)
            interpreted = true; /* its code segment ends there, for now */
        bool in_tail = !hv_debugging && !withheld && !interpreted && hv_sites_interpret();
        if (hv_debugging && hv_debug_stops()) {
            hv_guarded(hv_debug_leave);
            continue;
        }
        if (hv_debugging && hv_debug_holds_interrupts(wanted))
            wanted = false;
        if (wanted && HV_CPU->interrupt_shadow && !HV_CPU->halted) {
            /* One more instruction, then the interrupt. */
            hv_trap.shadow_eip = HV_CPU->eip;
            if (translated || by_breakpoint || (HV_CPU->cpl < 3 && hv_sites_cover(HV_CPU->eip)))
                interpreted = true;
            else if (!withheld)
                hv_trap.stepping = true;
        } else if (wanted) {
            cell.entry_ns = hv_host_ns();
            hv_guarded(hv_take_interrupt);
            continue;
        } else if (HV_CPU->halted) {
            /* In a callout signals are not blocked: one that came before it sleeps would not wake it. */
            uint64_t all = ~0ull, before;
            syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &before, sizeof all);
            hv_guarded(wait_in_halt);
            syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
            continue;
        } else if (HV_CPU->interrupt_shadow) {
            hv_trap.shadow_eip = HV_CPU->eip;
            interpreted |= translated; /* translated code has no such shadow: MOV SS, and ESP is still the old one */
        }
        if (hv_debugging || (withheld && !interpreted && !translated)) {
            natively = !hv_debugging && steps;
            if (!natively)
                hv_guarded(hv_debugging ? interpret_for_debugger : interpret_withheld);
            hv_trap.stepping = natively;
            if (!natively)
                continue;
            hv_trap.shadow_eip = HV_CPU->eip;
        } else if (interpreted || in_tail) {
            hv_guarded(in_tail ? hv_sites_covered : interpret);
            continue;
        }
        if (by_breakpoint && !hv_debugging && (!hv_guarded(find_breakpoint) || !may_run))
            continue;
        if (hv_guarded(translated ? find_target : hv_make_twins)) {
            if (!translated)
                hv_trap.target = NULL;
            break;
        }
    }
    hv_arm_timer();
}

void hv_resume(void)
{
    settle();
    if (!hv_trap.target) {
        hv_give_state();
        if (hv_trap.step_over && HV_CPU->cpl == 3)
            hv_frame_registers()[REG_EFL] |= HV_RF;
        hv_trap.step_over = false;
        return;
    }
    hv_translated_prepare();
    greg_t *g = hv_frame_registers();
    for (int i = 0; i < 8; i++)
        g[hv_general[i]] = HV_CPU->r[i];
    g[REG_RIP] = (greg_t)(uintptr_t)hv_trap.target;
    g[REG_EFL] = cell.host_flags;
    if (hv_debugging) {
        g[REG_EFL] |= HV_TF;
        hv_trap.step = HV_STEP_OUT_OF_BLOCK;
    }
    g[REG_R15] = (greg_t)(uintptr_t)&cell;
    g[REG_R13] = (greg_t)cell.window;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000ffffffff0000ll) | HV_HOST_CODE_64 | (greg_t)((uint64_t)HV_HOST_DATA << 48);
}

/* IRETQ would leave such a stack the upper half of our RSP; the host's own, with which a signal ends, does not. */
static bool is_small_stack(void) { return !(HV_CPU->segment[HV_SS].attributes & HV_SEGMENT_32); }

/* The state is in struct hv_cell, for the stub that loads it. */
static void go_natively(void)
{
    for (unsigned i = 0; i <= HV_GS; i++)
        cell.host_selector[i] = hv_trap.expected[i];
    cell.user_flags = hv_native_flags();
    cell.user_cs = hv_trap.expected[HV_CS];
    cell.user_eip = HV_CPU->cpl == 3 ? hv_sites_enter(&cell.user_cs) : HV_CPU->eip;
    cell.host_flags = HV_IF | 2;
    if (cell.fs_is_taken && cell.host_selector[HV_FS] & ~3u) /* last: it takes the monitor's own away */
        __asm__ volatile("mov %0, %%fs" : : "r"(cell.host_selector[HV_FS]));
    cell.fs_is_taken = 0;
}

uint64_t hv_settle_and_go(void (*work)(void))
{
    hv_guarded(work);
    settle();
    hv_runs_since(cell.back_ns > cell.entry_ns ? cell.back_ns : cell.entry_ns);
    if (hv_trap.target) {
        bool of_kernel = cell.window == HV_WINDOW;
        hv_translated_prepare();
        if (!of_kernel || cell.window != HV_WINDOW)
            __builtin_ia32_wrgsbase64(cell.window);
        if (hv_debugging) { /* at the stub, whose frame hv_resume() can use */
            cell.host_flags |= HV_TF;
            hv_trap.step = HV_STEP_OUT_OF_BLOCK;
        }
        return (uint64_t)(uintptr_t)hv_trap.target;
    }
    if (is_small_stack()) {
        cell.host_flags = HV_IF | 2;
        return (uint64_t)(uintptr_t)hv_stubs.by_signal;
    }
    go_natively();
    return (uint64_t)(uintptr_t)hv_stubs.enter_user;
}

bool hv_go_on_translated(void)
{
    const struct hv_cpu *cpu = HV_CPU;
    if (hv_kicked() || cpu->halted || cpu->interrupt_shadow || cpu->cpl == 3 || hv_debugging || hv_pace_handling || hv_breaks_hit() || hv_interrupts_wanted() ||
        !hv_translatable() || !hv_guarded(find_target))
        return false;
    hv_translated_prepare();
    return true;
}

bool hv_go_straight_on(void)
{
    const struct hv_cpu *cpu = HV_CPU;
    bool program = cpu->cpl == 3;
    if (hv_kicked() || cpu->halted || cpu->interrupt_shadow || hv_debugging || hv_interrupts_wanted() || is_small_stack())
        return false;
    if (program && (hv_withheld() || hv_user_faulted() || (cpu->user_limit && cpu->eip >= cpu->user_limit)))
        return false;
    if (hv_sites_interpret())
        return false;
    hv_make_twins();
    hv_trap.target = NULL;
    go_natively();
    return true;
}
