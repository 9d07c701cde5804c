/* What leaves translated code: ports, CPUID and time stamps, system calls, exceptions and interrupts. */
#include <stdio.h>

#include "shim.h"

#ifdef __x86_64__

static _Thread_local struct hv_emulator *running; /* set by the vcpu thread; for callbacks that carry no user data */

uint64_t hv_linear_rip(const struct hv_emulator *e)
{
    return hv_env64(e, ENV_EIP) + HV_AT(struct segment_cache, e->env, ENV_SEGS + SEG_CS * sizeof(struct segment_cache)).base;
}

uint32_t hv_record_flags(const struct hv_emulator *e)
{
    uint32_t hflags = hv_env32(e, ENV_HFLAGS);
    return ((hflags & HF_CPL) == 3 ? HV_RECORD_USER : 0) | (hflags & HF_CS64 ? HV_RECORD_LONG : 0);
}

struct hv_emulator *hv_hooks_running(void) { return running; }

/* Let the CPU look at the interrupt controllers: at the next block boundary, and not only when something else makes it look. */
void hv_request_interrupt(struct hv_emulator *e)
{
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) |= CPU_INTERRUPT_HARD;
    *(int16_t *)(HV_AT(uint8_t *, e->cpu, CPU_ICOUNT_DECR_PTR) + 2) = -1;
}

void hv_update_interrupt(struct hv_emulator *e)
{
    hv_apic_pull_priority(e);
    if (e->board->lapic.nmi) {
        e->board->lapic.nmi = false;
        hv_request_interrupt(e);
        HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) |= CPU_INTERRUPT_NMI;
    }
    if (e->injected || hv_board_peek(e->board) >= 0)
        hv_request_interrupt(e);
    else
        HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) &= ~CPU_INTERRUPT_HARD;
}

/* CPUClass.cpu_exec_interrupt: called at block boundaries while a request is pending. Stands in for the original, whose case for
 * CPU_INTERRUPT_HARD has no interrupt controller to ask and delivers vector 0. */
static bool exec_interrupt(CPUState *cpu, int request)
{
    struct hv_emulator *e = running;
    if (hv_debug_holds_interrupts(e)) {
        if (e->debug.replay)
            hv_debug_replay_alone(e);
        return false;
    }
    hv_apic_hide_priority(e, true);
    bool other = e->unicorn.x86_cpu_pending_interrupt_x86_64(cpu, request) != CPU_INTERRUPT_HARD;
    bool done = other && e->unicorn.x86_cpu_exec_interrupt_x86_64(cpu, request);
    hv_apic_hide_priority(e, false);
    if (other)
        return done;
    hv_apic_pull_priority(e);
    uint8_t vector;
    if (e->injected) {
        vector = e->injected_vector;
        e->injected = false;
    } else if (hv_board_peek(e->board) >= 0) {
        vector = hv_board_acknowledge(e->board);
    } else {
        HV_AT(uint32_t, cpu, CPU_INTERRUPT_REQUEST) &= ~CPU_INTERRUPT_HARD;
        return false;
    }
    HV_AT(uint32_t, cpu, CPU_INTERRUPT_REQUEST) &= ~CPU_INTERRUPT_HARD;
    if (e->injected || hv_board_peek(e->board) >= 0)
        HV_AT(uint32_t, cpu, CPU_INTERRUPT_REQUEST) |= CPU_INTERRUPT_HARD;
    hv_arm_timer(e); /* with automatic EOI the next tick may have its turn */
    hv_cross(&e->board->crossings, HV_POINT_INTERRUPT, 0, hv_linear_rip(e), hv_record_flags(e), vector, 0, 0, 0);
    e->debug.delivering = true;
    e->unicorn.do_interrupt_x86_hardirq_x86_64(e->env, vector, 1); /* may longjmp: a fault while pushing the frame */
    hv_debug_delivered(e);
    return true;
}

/* Length of the INT that raised a software interrupt, whose next instruction is at `next`: CC, CE and F1 are one byte long, CD ib two. */
static unsigned int_length(struct hv_emulator *e, uint64_t next, int vector)
{
    uint8_t byte = 0;
    if (vector != 3 && vector != 4 && vector != 1)
        return 2;
    uint64_t base = hv_linear_rip(e) - hv_env64(e, ENV_EIP);
    if (e->unicorn.cpu_memory_rw_debug_x86_64(e->cpu, base + next - 1, &byte, 1, false) != 0)
        return 1;
    return byte == (vector == 3 ? 0xCC : vector == 4 ? 0xCE : 0xF1) ? 1 : 2;
}

/* UC_HOOK_INTR: an exception or INT n was raised. Hand it to QEMU's own delivery: IDT, gates, TSS stacks, error codes, double faults.
 * A fault during delivery longjmps out of here; there is nothing to clean up in this frame. */
static void on_exception(uc_engine *uc, uint32_t vector, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    struct hv_crossings *crossings = &e->board->crossings;
    if (HV_AT(uint32_t, e->env, ENV_EXCEPTION_IS_INT)) {
        /* Unicorn moved EIP past the INT already; if the gate refuses (#GP, #NP), the fault must point at the INT itself. */
        uint64_t next = hv_env64(e, ENV_EXCEPTION_NEXT_EIP);
        HV_AT(uint64_t, e->env, ENV_EIP) = next - int_length(e, next, (int)vector);
        hv_cross(crossings, HV_POINT_SOFTWARE_INTERRUPT, 0, hv_linear_rip(e), hv_record_flags(e), vector, hv_env64(e, ENV_REGS), 0, 0);
    } else if (vector < 32) {
        uint64_t error = HV_AT(uint32_t, e->env, ENV_ERROR_CODE);
        bool page_fault = vector == 14;
        hv_cross(crossings, HV_POINT_EXCEPTION_BASE + vector, 0, hv_linear_rip(e), hv_record_flags(e),
                 page_fault ? hv_env64(e, ENV_CR + 8 * 2) : error, page_fault ? error : 0, 0, 0);
        hv_debug_raised(e, vector);
    }
    e->debug.delivering = true;
    e->unicorn.x86_cpu_do_interrupt_x86_64(e->cpu);
    hv_debug_delivered(e);
}

/* UC_HOOK_INSN_INVALID: #UD takes this way instead. */
static bool on_invalid_opcode(uc_engine *uc, void *user)
{
    HV_AT(uint32_t, ((struct hv_emulator *)user)->env, ENV_EXCEPTION_IS_INT) = 0;
    on_exception(uc, 6, user);
    return true;
}

/* Leave the guest in the middle of an instruction and return when the answer is there. */
void hv_hooks_leave(struct hv_emulator *e, uint32_t reason)
{
    e->exit.reason = reason;
    e->in_hook = true;
    hv_coroutine_leave(&e->coroutine);
    e->in_hook = false;
    if (e->abandon) { /* the machine was reset or has ended: this instruction never completes */
        e->abandon = false;
        HV_AT(int32_t, e->cpu, CPU_EXCEPTION_INDEX) = EXCP_INTERRUPT;
        e->unicorn.cpu_loop_exit_x86_64(e->cpu);
    }
}

void hv_hooks_describe(struct hv_emulator *e, uint64_t address, uint32_t size, uint64_t value, uint64_t start_ns)
{
    e->exit.address = address;
    e->exit.size = size;
    e->exit.value = value;
    e->exit.rip = hv_linear_rip(e);
    e->exit.flags = hv_record_flags(e);
    e->exit.start_ns = start_ns;
}

/* IOPL and the TSS's I/O permission bitmap (SDM vol. 1, 19.5). Unicorn's translator leaves this check out: any guest program could reach
 * the devices. The helper raises #GP and does not return; the hook's caller has made the registers whole already. */
static void check_port_permission(struct hv_emulator *e, uint32_t port, int size)
{
    uint64_t eflags = hv_env64(e, ENV_EFLAGS);
    bool virtual_8086 = eflags & EFLAGS_VM;
    if (!(hv_env64(e, ENV_CR) & 1) || (!virtual_8086 && (hv_env32(e, ENV_HFLAGS) & HF_CPL) <= (eflags >> 12 & 3)))
        return;
    (size == 1 ? e->unicorn.helper_check_iob_x86_64 : size == 2 ? e->unicorn.helper_check_iow_x86_64 : e->unicorn.helper_check_iol_x86_64)(e->env, port);
}

/* A data port's window: nothing else changes, and a string instruction comes back in a moment. Taking the time would cost more. */
static void cross_window(struct hv_emulator *e, unsigned point, uint32_t port, int size, uint32_t value)
{
    hv_cross(&e->board->crossings, point, 0, hv_linear_rip(e), hv_record_flags(e), port, (uint64_t)size, value, 0);
}

static uint32_t read_port(struct hv_emulator *e, uint32_t port, int size)
{
    uint32_t value = 0;
    enum hv_port_result result;
    if (hv_window_in(e->board, (uint16_t)port, (unsigned)size, &value)) {
        cross_window(e, HV_POINT_PORT_IN, port, size, value);
        return value;
    }
    uint64_t start = hv_host_ns();
    while ((result = hv_board_port_in(e->board, (uint16_t)port, (unsigned)size, &value)) == HV_PORT_WAIT) {
        hv_hooks_describe(e, port, (uint32_t)size, 0, start);
        hv_hooks_leave(e, HV_EXIT_CONSOLE_FULL);
    }
    if (result == HV_PORT_LEAVE) {
        hv_hooks_describe(e, port, (uint32_t)size, 0, start);
        hv_hooks_leave(e, HV_EXIT_PORT_IN);
        value = (uint32_t)e->exit.value;
    } else {
        hv_cross(&e->board->crossings, HV_POINT_PORT_IN, start, hv_linear_rip(e), hv_record_flags(e), port, (uint64_t)size, value, 0);
    }
    hv_update_interrupt(e);
    hv_arm_timer(e); /* reading the 8254 runs it, polling the 8259 takes an interrupt */
    return value;
}

static uint32_t on_in(uc_engine *uc, uint32_t port, int size, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    uint64_t before;
    check_port_permission(e, port, size);
    if (hv_replay_read(e, true, port, (uint32_t)size, &before))
        return (uint32_t)before;
    uint32_t value = read_port(e, port, size);
    hv_replay_note(e, true, port, (uint32_t)size, value);
    return value;
}

static void on_out(uc_engine *uc, uint32_t port, int size, uint32_t value, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    enum hv_port_result result;
    check_port_permission(e, port, size);
    if (hv_window_out(e->board, (uint16_t)port, (unsigned)size, value)) {
        cross_window(e, HV_POINT_PORT_OUT, port, size, value);
        return;
    }
    uint64_t start = hv_host_ns();
    while ((result = hv_board_port_out(e->board, (uint16_t)port, (unsigned)size, value)) == HV_PORT_WAIT) {
        hv_hooks_describe(e, port, (uint32_t)size, value, start);
        hv_hooks_leave(e, HV_EXIT_CONSOLE_FULL);
    }
    if (result == HV_PORT_LEAVE) {
        hv_hooks_describe(e, port, (uint32_t)size, value, start);
        hv_hooks_leave(e, HV_EXIT_PORT_OUT);
    } else {
        hv_cross(&e->board->crossings, HV_POINT_PORT_OUT, start, hv_linear_rip(e), hv_record_flags(e), port, (uint64_t)size, value, 0);
    }
    hv_update_interrupt(e);
    hv_arm_timer(e); /* the guest may just have programmed it */
}

static const struct hv_cpuid_entry *find_cpuid(const struct hv_emulator *e, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < e->cpuid_count; i++)
        if (e->cpuid[i].leaf == leaf && (e->cpuid[i].any_subleaf || e->cpuid[i].subleaf == subleaf))
            return &e->cpuid[i];
    return NULL;
}

/* Returns whether the instruction is done. Leaves that are not in the table are answered by Unicorn. */
static int on_cpuid(uc_engine *uc, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    uint64_t *regs = &HV_AT(uint64_t, e->env, ENV_REGS);
    uint32_t leaf = (uint32_t)regs[GPR_AX];
    const struct hv_cpuid_entry *entry = find_cpuid(e, leaf, (uint32_t)regs[GPR_CX]);
    if (!entry)
        return 0;
    uint32_t ecx = entry->ecx, edx = entry->edx;
    if (leaf == 1) { /* OSXSAVE mirrors CR4.OSXSAVE, APIC the enable bit of IA32_APIC_BASE (SDM vol. 2A, CPUID) */
        if (!(e->board->lapic.base & HV_LAPIC_BASE_ENABLE))
            edx &= ~(1u << 9);
        ecx &= ~(1u << 27);
        if (ecx & 1u << 26 && hv_env64(e, ENV_CR + 8 * 4) & 1u << 18)
            ecx |= 1u << 27;
    }
    regs[GPR_AX] = entry->eax;
    regs[GPR_BX] = entry->ebx;
    regs[GPR_CX] = ecx;
    regs[GPR_DX] = edx;
    return 1;
}

void hv_emulator_set_tsc(struct hv_emulator *e, uint64_t hz, uint64_t at_zero)
{
    e->tsc_hz = hz;
    e->tsc_at_zero = at_zero;
}

/* The time stamp counter is the guest's virtual clock: 1 GHz, if the guest was not told otherwise elsewhere, standing while it is paused. */
static int on_rdtsc(uc_engine *uc, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    uint64_t *regs = &HV_AT(uint64_t, e->env, ENV_REGS), now = hv_clock_now(&e->board->clock);
    if (e->tsc_hz)
        now = e->tsc_at_zero + (uint64_t)((unsigned __int128)now * e->tsc_hz / 1000000000u);
    regs[GPR_AX] = (uint32_t)now;
    regs[GPR_DX] = now >> 32;
    return 1;
}

static int on_rdtscp(uc_engine *uc, void *user)
{
    struct hv_emulator *e = user;
    on_rdtsc(uc, user);
    HV_AT(uint64_t, e->env, ENV_REGS + 8 * GPR_CX) = HV_AT(uint32_t, e->env, ENV_TSC_AUX);
    return 1;
}

/* Length of the instruction at RIP, which is prefixes and two opcode bytes: 0F 05, 0F 30, 0F 32, 0F 34. */
unsigned hv_instruction_length(struct hv_emulator *e)
{
    uint8_t bytes[15];
    uint64_t rip = hv_linear_rip(e);
    for (unsigned n = 0; n + 1 < sizeof bytes; n++) {
        if (e->unicorn.cpu_memory_rw_debug_x86_64(e->cpu, rip + n, &bytes[n], 1, false) != 0)
            break;
        if (bytes[n] == 0x0F)
            return n + 2;
    }
    return 2;
}

/* SDM vol. 2B, SYSCALL. Unicorn's own helper only calls hooks and then adds the instruction's length to RIP. */
static void on_syscall(uc_engine *uc, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    uint64_t *regs = &HV_AT(uint64_t, e->env, ENV_REGS), *rip = &HV_AT(uint64_t, e->env, ENV_EIP);
    unsigned length = hv_instruction_length(e);
    uint32_t hflags = hv_env32(e, ENV_HFLAGS), star_selector = (uint32_t)(hv_env64(e, ENV_STAR) >> 32) & 0xFFFF;
    hv_cross(&e->board->crossings, HV_POINT_SYSTEM_CALL, 0, hv_linear_rip(e), hv_record_flags(e), regs[GPR_AX], 0, 0, 0);
    uint64_t target;
    if (hflags & HF_LMA) {
        uint64_t flags = e->unicorn.helper_read_eflags_x86_64(e->env), mask = hv_env64(e, ENV_FMASK);
        regs[GPR_CX] = *rip + length;
        regs[GPR_R11] = flags & ~(uint64_t)EFLAGS_RF;
        e->unicorn.helper_write_eflags_x86_64(e->env, flags & ~(mask | EFLAGS_RF), 0xFFFFFFFF);
        target = hflags & HF_CS64 ? hv_env64(e, ENV_LSTAR) : hv_env64(e, ENV_CSTAR);
        hv_load_segment(e, SEG_CS, star_selector & 0xFFFC, 0, 0xFFFFFFFF, DESC_G | DESC_P | DESC_S | DESC_L | 0xB00);
        hv_load_segment(e, SEG_SS, (star_selector + 8) & 0xFFFC, 0, 0xFFFFFFFF, DESC_G | DESC_B | DESC_P | DESC_S | 0x300);
    } else {
        regs[GPR_CX] = (uint32_t)(*rip + length);
        HV_AT(uint64_t, e->env, ENV_EFLAGS) &= ~(uint64_t)(EFLAGS_IF | EFLAGS_RF | EFLAGS_VM);
        target = (uint32_t)hv_env64(e, ENV_STAR);
        hv_load_segment(e, SEG_CS, star_selector & 0xFFFC, 0, 0xFFFFFFFF, DESC_G | DESC_B | DESC_P | DESC_S | 0xB00);
        hv_load_segment(e, SEG_SS, (star_selector + 8) & 0xFFFC, 0, 0xFFFFFFFF, DESC_G | DESC_B | DESC_P | DESC_S | 0x300);
    }
    *rip = target - length;
    hv_debug_delivered(e);
}

/* SDM vol. 2B, SYSENTER. */
static void on_sysenter(uc_engine *uc, void *user)
{
    (void)uc;
    struct hv_emulator *e = user;
    uint32_t selector = HV_AT(uint32_t, e->env, ENV_SYSENTER_CS) & 0xFFFC;
    unsigned length = hv_instruction_length(e);
    hv_cross(&e->board->crossings, HV_POINT_SYSTEM_CALL, 0, hv_linear_rip(e), hv_record_flags(e), hv_env64(e, ENV_REGS), 0, 0, 0);
    bool long_mode = hv_env32(e, ENV_HFLAGS) & HF_LMA;
    HV_AT(uint64_t, e->env, ENV_EFLAGS) &= ~(uint64_t)(EFLAGS_VM | EFLAGS_IF | EFLAGS_RF);
    hv_load_segment(e, SEG_CS, selector, 0, 0xFFFFFFFF, DESC_G | (long_mode ? DESC_L : DESC_B) | DESC_P | DESC_S | 0xB00);
    hv_load_segment(e, SEG_SS, selector + 8, 0, 0xFFFFFFFF, DESC_G | DESC_B | DESC_P | DESC_S | 0x300);
    HV_AT(uint64_t, e->env, ENV_REGS + 8 * GPR_SP) = hv_env64(e, ENV_SYSENTER_ESP);
    HV_AT(uint64_t, e->env, ENV_EIP) = hv_env64(e, ENV_SYSENTER_EIP) - length;
    hv_debug_delivered(e);
}

bool hv_hooks_install(struct hv_emulator *e, char *why, size_t why_size)
{
    static const struct { int type, instruction; void *function; } table[] = {
        { UC_HOOK_INTR_, 0, on_exception },
        { UC_HOOK_INSN_INVALID_, 0, on_invalid_opcode },
        { UC_HOOK_INSN_, UC_X86_INS_SYSCALL_, on_syscall },
        { UC_HOOK_INSN_, UC_X86_INS_SYSENTER_, on_sysenter },
        { UC_HOOK_INSN_, UC_X86_INS_IN_, on_in },
        { UC_HOOK_INSN_, UC_X86_INS_OUT_, on_out },
        { UC_HOOK_INSN_, UC_X86_INS_CPUID_, on_cpuid },
        { UC_HOOK_INSN_, UC_X86_INS_RDTSC_, on_rdtsc },
        { UC_HOOK_INSN_, UC_X86_INS_RDTSCP_, on_rdtscp },
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        size_t handle;
        int error = e->unicorn.uc_hook_add(e->uc, &handle, table[i].type, table[i].function, e, 1, 0, table[i].instruction);
        if (error != UC_ERR_OK_) {
            snprintf(why, why_size, "hook %zu: %s", i, e->unicorn.uc_strerror(error));
            return false;
        }
    }
    HV_AT(void **, e->cpu, CPU_CLASS)[CLASS_EXEC_INTERRUPT] = (void *)exec_interrupt;
    hv_debug_install(e);
    return true;
}

void hv_hooks_enter_thread(struct hv_emulator *e)
{
    running = e;
    hv_code_pages_enter_thread(e);
}
#endif
