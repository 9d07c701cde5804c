/* The board's local APIC in the vcpu's registers: its MSRs, CR8, and non-maskable interrupts.
 *
 * Unicorn left QEMU's APIC out: it reads IA32_APIC_BASE as 0, and CR8 as 0 unless the bit is set that says that a hypervisor keeps the task
 * priority (V_INTR_MASKING), when it is env->v_tpr, which every write of CR8 sets. So that bit is set always, but hidden from the code
 * that decides on interrupts. The helpers of RDMSR, WRMSR and CRn ask first whether such a hypervisor intercepts them: that question comes
 * here. At that point EIP is that of the instruction, and the flags are whole.
 */
#include "shim.h"

#ifdef __x86_64__

/* Exit codes of AMD's virtualization (AMD64 APM vol. 2, appendix C), which QEMU's helpers pass. */
enum { INTERCEPT_WRITE_CR8 = 0x018, INTERCEPT_MSR = 0x07c };

static void (*check_intercept)(CPUX86State *, uint32_t, uint64_t, uintptr_t);

void hv_apic_hide_priority(struct hv_emulator *e, bool hide)
{
    uint32_t *hflags2 = &HV_AT(uint32_t, e->env, ENV_HFLAGS2);
    *hflags2 = hide ? *hflags2 & ~HF2_VINTR_MASK : *hflags2 | HF2_VINTR_MASK;
}

void hv_apic_pull_priority(struct hv_emulator *e)
{
    hv_board_set_cr8(e->board, HV_AT(uint8_t, e->env, ENV_V_TPR));
}

void hv_apic_push_priority(struct hv_emulator *e)
{
    HV_AT(uint8_t, e->env, ENV_V_TPR) = hv_board_cr8(e->board);
}

/* The instruction is done: go on behind it. */
static void skip_instruction(struct hv_emulator *e)
{
    HV_AT(uint64_t, e->env, ENV_EIP) += hv_instruction_length(e);
    HV_AT(int32_t, e->cpu, CPU_EXCEPTION_INDEX) = -1;
    e->unicorn.cpu_loop_exit_x86_64(e->cpu);
}

static void access_msr(struct hv_emulator *e, bool write)
{
    uint64_t *regs = &HV_AT(uint64_t, e->env, ENV_REGS);
    uint32_t number = (uint32_t)regs[GPR_CX];
    uint64_t value = (uint32_t)regs[GPR_DX] * (1ull << 32) + (uint32_t)regs[GPR_AX];
    if (write) {
        if (!hv_board_write_msr(e->board, number, value))
            return;
        hv_apic_push_priority(e); /* disabling the APIC resets it */
        hv_update_interrupt(e);
        hv_arm_timer(e);
    } else {
        if (!hv_board_read_msr(e->board, number, &value))
            return;
        regs[GPR_AX] = (uint32_t)value;
        regs[GPR_DX] = value >> 32;
    }
    skip_instruction(e);
}

static void on_check_intercept(CPUX86State *env, uint32_t type, uint64_t parameter, uintptr_t return_address)
{
    struct hv_emulator *e = hv_hooks_running();
    if (e && e->env == env) {
        if (type == INTERCEPT_MSR)
            access_msr(e, parameter != 0);
        else if (type == INTERCEPT_WRITE_CR8) /* not done yet, but before the next block: look then whether it lets something in */
            hv_request_interrupt(e);
    }
    check_intercept(env, type, parameter, return_address);
}

const struct hv_redirection hv_apic_redirection = { "cpu_svm_check_intercept_param_x86_64", (void *)on_check_intercept, (void **)&check_intercept };
#endif
