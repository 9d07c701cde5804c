/* Instructions of control, debug and model-specific registers, the time stamp counter, CPUID (Intel SDM vol. 3A, "Control Registers", "Debug
 * Registers"; what MSRs and leaves hold: msr.c). */
#include "debug.h"
#include "sensitive.h"

#define CR4_KNOWN 0x3007ffu /* VME to UMIP, SMEP and SMAP */

enum hv_after hv_execute_mov_from_control(const struct hv_insn *insn)
{
    require_supervisor();
    uint32_t value;
    switch (insn->reg) {
    case 0:
        value = HV_CPU->cr0;
        break;
    case 2:
        value = HV_CPU->cr2;
        break;
    case 3:
        value = HV_CPU->cr3;
        break;
    case 4:
        value = HV_CPU->cr4;
        break;
    default:
        hv_raise(HV_UD);
    }
    HV_CPU->r[insn->rm] = value;
    hv_cross_here(HV_POINT_PRIVILEGED_MOV_FROM_CR, insn->reg, value, 0, 0);
    return NEXT;
}

/* Native code has the host's control and debug registers. Programs are withheld from it; what a kernel does itself is seen only if it is rewritten. */
static void neglect(enum hv_neglected what, uint32_t asked)
{
    if (asked)
        cell.area->counters.neglected |= 1u << what;
}

static void neglect_fpu(uint32_t cr0)
{
    bool native = cell.mode == HV_MODE_TRAP || cell.mode == HV_MODE_PARAVIRT;
    neglect(HV_NEGLECTED_FPU, native ? cr0 & (HV_CR0_TS | HV_CR0_EM) : 0);
}

void hv_write_cr0(uint32_t value)
{
    uint32_t old = HV_CPU->cr0;
    if ((value & HV_CR0_PG && !(value & HV_CR0_PE)) || (value & 0x20000000u && !(value & 0x40000000u)))
        hv_raise_error(HV_GP, 0);
    if (!(value & HV_CR0_PE))
        hv_cannot("a return to real mode:");
    neglect_fpu(value);
    HV_CPU->cr0 = value | 0x10; /* ET */
    if ((old ^ value) & (HV_CR0_PG | HV_CR0_WP))
        hv_shadow_flush(true);
}

void hv_write_cr4(uint32_t value)
{
    uint32_t old = HV_CPU->cr4;
    if (value & ~CR4_KNOWN)
        hv_raise_error(HV_GP, 0);
    HV_CPU->cr4 = value;
    if ((old ^ value) & (HV_CR4_PSE | HV_CR4_PAE))
        hv_shadow_flush(true);
    else if ((old ^ value) & HV_CR4_PGE)
        hv_shadow_change_global();
}

enum hv_after hv_execute_mov_to_control(const struct hv_insn *insn)
{
    require_supervisor();
    uint32_t value = HV_CPU->r[insn->rm];
    switch (insn->reg) {
    case 0:
        hv_write_cr0(value);
        break;
    case 2:
        HV_CPU->cr2 = value;
        break;
    case 3:
        HV_CPU->cr3 = value;
        hv_shadow_load_cr3();
        break;
    case 4:
        hv_write_cr4(value);
        break;
    default:
        hv_raise(HV_UD);
    }
    hv_cross_here(HV_POINT_PRIVILEGED_MOV_TO_CR, insn->reg, value, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_mov_debug(const struct hv_insn *insn)
{
    require_supervisor();
    bool alias = insn->reg == 4 || insn->reg == 5;
    if (alias && HV_CPU->cr4 & HV_CR4_DE)
        hv_raise(HV_UD);
    hv_breaks_detect();
    unsigned index = insn->reg + (alias ? 2u : 0);
    if (insn->opcode == 0x21) {
        HV_CPU->r[insn->rm] = HV_CPU->dr[index];
        hv_cross_here(HV_POINT_PRIVILEGED_MOV_FROM_DR, index, HV_CPU->dr[index], 0, 0);
        return NEXT;
    }
    uint32_t value = HV_CPU->r[insn->rm];
    HV_CPU->dr[index] = index == 6 ? (value & 0xe00fu) | 0xffff0ff0u : index == 7 ? (value & ~0xd000u) | 0x400u : value;
    hv_debug_update();
    hv_cross_here(HV_POINT_PRIVILEGED_MOV_TO_DR, index, value, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_rdmsr(const struct hv_insn *insn)
{
    (void)insn;
    require_supervisor();
    uint64_t value = hv_read_msr(HV_CPU->r[HV_ECX]);
    HV_CPU->r[HV_EAX] = (uint32_t)value;
    HV_CPU->r[HV_EDX] = (uint32_t)(value >> 32);
    hv_cross_here(HV_POINT_PRIVILEGED_RDMSR, HV_CPU->r[HV_ECX], value, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_wrmsr(const struct hv_insn *insn)
{
    (void)insn;
    require_supervisor();
    uint64_t value = (uint64_t)HV_CPU->r[HV_EDX] << 32 | HV_CPU->r[HV_EAX];
    hv_write_msr(HV_CPU->r[HV_ECX], value);
    hv_cross_here(HV_POINT_PRIVILEGED_WRMSR, HV_CPU->r[HV_ECX], value, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_rdtsc(const struct hv_insn *insn)
{
    (void)insn;
    if (HV_CPU->cpl && HV_CPU->cr4 & HV_CR4_TSD)
        hv_raise_error(HV_GP, 0);
    uint64_t now = hv_tsc();
    HV_CPU->r[HV_EAX] = (uint32_t)now;
    HV_CPU->r[HV_EDX] = (uint32_t)(now >> 32);
    hv_cross_here(HV_POINT_PRIVILEGED_RDTSC, now, 0, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_rdpmc(const struct hv_insn *insn)
{
    (void)insn;
    hv_raise_error(HV_GP, 0); /* there is no counter with any number */
}

enum hv_after hv_execute_cpuid(const struct hv_insn *insn)
{
    (void)insn;
    uint32_t out[4], leaf = HV_CPU->r[HV_EAX], subleaf = HV_CPU->r[HV_ECX];
    hv_cpuid(leaf, subleaf, out);
    HV_CPU->r[HV_EAX] = out[0];
    HV_CPU->r[HV_EBX] = out[1];
    HV_CPU->r[HV_ECX] = out[2];
    HV_CPU->r[HV_EDX] = out[3];
    hv_cross_here(HV_POINT_PRIVILEGED_CPUID, leaf, subleaf, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_cache(const struct hv_insn *insn)
{
    (void)insn;
    require_supervisor();
    hv_cross_here(HV_POINT_PRIVILEGED_WBINVD, 0, 0, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_clts(const struct hv_insn *insn)
{
    (void)insn;
    require_supervisor();
    HV_CPU->cr0 &= ~HV_CR0_TS;
    hv_cross_here(HV_POINT_PRIVILEGED_CLTS, 0, 0, 0, 0);
    return NEXT;
}

enum hv_after hv_execute_lmsw(const struct hv_insn *insn)
{
    require_supervisor();
    uint32_t value = hv_get_rm(insn, 2) & 15;
    neglect_fpu(value);
    HV_CPU->cr0 = (HV_CPU->cr0 & ~0xeu) | value; /* it sets PE and never clears it */
    hv_cross_here(HV_POINT_PRIVILEGED_LMSW, value, 0, 0, 0);
    return NEXT;
}
