/* Signals in 64-bit code: translated code, the stubs between its blocks, or the monitor at work for a callout. */
#include "signals.h"

#include "debug.h"
#include "paravirt.h"
#include "sites.h"
#include "translate.h"

#define PAGE 4096u

static struct hv_found found;

static void take_translated(void)
{
    greg_t *g = hv_frame_registers();
    for (int i = 0; i < 8; i++)
        HV_CPU->r[i] = (uint32_t)g[hv_general[i]];
    if (found.popped)
        HV_CPU->r[HV_ESP] -= 4;
    HV_CPU->eip = found.eip;
    cell.host_flags = (uint32_t)g[REG_EFL];
    hv_translated_state();
    hv_trap.step = HV_STEP_RUN;
}

/* A store to the page that it stands in, which would be mapped writable, and read-only again as soon as the code there goes on: the monitor executes
 * it, unless it is of the x87 or SSE. */
static bool stored_to_itself(uint32_t linear)
{
    struct hv_walk walk;
    struct hv_insn insn;
    if (linear / PAGE != found.eip / PAGE || !found.valid || hv_trap.step != HV_STEP_RUN)
        return false;
    hv_walk(&walk, linear, true, false, false, false);
    if (walk.error || !hv_shadow_is_code(walk.physical))
        return false;
    take_translated();
    hv_fetch_instruction(&insn);
    return hv_interpret(&insn);
}

static void translated_page_fault(void)
{
    struct hv_walk walk = {0};
    uint32_t linear = (uint32_t)hv_trap.address;
    bool write = hv_trap.error & HV_ERROR_WRITE;
    if (write && hv_trap.address >> 32 == HV_WINDOW >> 32 && stored_to_itself(linear))
        return;
    enum hv_shadow result = hv_trap.address >> 32 == cell.window >> 32 ? hv_shadow_fault(linear, write, HV_CPU->cpl == 3, false, &walk) : HV_SHADOW_EMULATE;
    if (result == HV_SHADOW_MAPPED) {
        hv_trap.filled = true;
        return;
    }
    take_translated();
    if (result == HV_SHADOW_EMULATE) {
        if (cell.mode == HV_MODE_REWRITING)
            hv_device_accessed(HV_CPU->eip, walk.physical);
        hv_emulate();
    } else
        hv_raise_page_fault(linear, walk.error);
}

static void translated_fault(void)
{
    unsigned vector = (unsigned)hv_frame_registers()[REG_TRAPNO];
    take_translated();
    if (vector == HV_GP)
        hv_raise_error(HV_GP, 0);
    hv_raise(vector);
}

static void set_step(enum hv_step reason)
{
    greg_t *g = hv_frame_registers();
    hv_trap.step = reason;
    g[REG_EFL] = reason == HV_STEP_RUN ? g[REG_EFL] & ~(greg_t)HV_TF : g[REG_EFL] | HV_TF;
}

/* A timer, a kick, or a step: true = the state has been taken over. */
static bool translated_async(bool known)
{
    cell.scratch_stack[7] &= ~(uint64_t)HV_TF; /* PUSHFQ under our own TF */
    hv_board_advance(&cell.board);
    bool wanted = hv_kicked() || (cell.virtual_if && hv_interrupts_pending());
    if (known && found.exact && (wanted || hv_trap.step == HV_STEP_OUT_OF_BLOCK)) {
        if (hv_trap.step == HV_STEP_OUT_OF_BLOCK)
            hv_debug_executed();
        take_translated();
        return true;
    }
    if (!cell.virtual_if && hv_interrupts_pending())
        cell.pending = 1;
    if (wanted || hv_trap.step == HV_STEP_OUT_OF_BLOCK)
        set_step(hv_trap.step == HV_STEP_OUT_OF_BLOCK ? HV_STEP_OUT_OF_BLOCK : HV_STEP_TO_INTERRUPT);
    else
        set_step(HV_STEP_RUN);
    return false;
}

bool hv_in_64_bits(int signal)
{
    const uint8_t *rip = (const uint8_t *)hv_frame_registers()[REG_RIP];
    bool async = signal == SIGALRM || signal == SIGUSR1 || (signal == SIGTRAP && hv_trap.step != HV_STEP_RUN);
    bool in_monitor = cell.mode == HV_MODE_REWRITING || hv_paravirtual(); /* at work while signals can come */
    bool in_cache = in_monitor && (uint64_t)rip - HV_CACHE < HV_CACHE_BYTES;
    if (hv_paravirtual() && signal == SIGTRAP && hv_frame_registers()[REG_TRAPNO] == HV_DB && (hv_gate_is((uint64_t)rip) || (uint64_t)rip < HV_LOW_END)) {
        set_step(HV_STEP_RUN);
        hv_gate_step();
        return false;
    }
    /* Elsewhere 64-bit code is the guest's own, whatever ends it; so it is below 4 GiB, where only paravirt's gate and the slots of sites.c are ours. */
    bool of_guest = cell.mode == HV_MODE_REWRITING && (uint64_t)rip < HV_LOW_END && !hv_sites_in_slot((uint64_t)rip, HV_HOST_CODE_64);
    if (async && in_monitor && !of_guest && (!in_cache || hv_gate_is((uint64_t)rip) || (rip >= hv_stubs.system_call && rip < hv_stubs.callout_end))) {
        cell.async = 1;
        set_step(HV_STEP_RUN);
        return false;
    }
    if ((async || rip == hv_stubs.by_signal) && in_cache && rip >= hv_stubs.resume && rip < hv_stubs.ready_end) { /* all is in struct hv_cell still */
        set_step(HV_STEP_RUN);
        return true;
    }
    /* The host's kernel has put EIP where its own 32-bit programs go on behind these, into what it takes for their vDSO. */
    if ((uint64_t)rip >= HV_LOW_END && (uint16_t)hv_frame_registers()[REG_CSGSFS] != HV_HOST_CODE_64)
        hv_fail("a program executed SYSCALL or SYSENTER (0f 05, 0f 34), which this host's kernel takes for a system call and does not say where it was: ESP %#x",
                (uint32_t)hv_frame_registers()[REG_RSP]);
    if (!in_cache)
        hv_fail("the guest left its cell's segments: 64-bit code at %#llx%s", (unsigned long long)hv_frame_registers()[REG_RIP],
                signal == SIGSYS ? " made a system call of the host" : "");
    bool known = hv_blocks_locate(rip, &found);
    if (async)
        return translated_async(known);
    if (!known)
        hv_fail("signal %d between blocks of translated code, at %p", signal, (const void *)rip);
    hv_trap.filled = false;
    if (signal == SIGSEGV && hv_frame_registers()[REG_TRAPNO] == HV_PAGE_FAULT) {
        hv_guarded(translated_page_fault);
        if (hv_trap.filled) {
            if (hv_trap.error & HV_ERROR_WRITE && hv_blocks_locate(rip, &found) && !found.valid)
                set_step(HV_STEP_OUT_OF_BLOCK);
            return false;
        }
    } else {
        hv_guarded(translated_fault);
    }
    return true;
}
