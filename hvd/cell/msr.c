/* Model-specific registers and CPUID (Intel SDM vol. 4; vol. 2A, "CPUID"). An MSR that is not here reads as 0 and what is written to it is
 * lost, as under emulation. */
#include "cell.h"

#define MSR_TSC 0x10u
#define MSR_TSC_ADJUST 0x3bu /* SDM vol. 3B, 18.17.3: what software added to the counter since reset; 0 again in a machine that was restored */
#define MSR_ARCH_CAPABILITIES 0x10au
#define RDCL_NO 1u
#define MSR_SYSENTER_CS 0x174u
#define MSR_SYSENTER_ESP 0x175u
#define MSR_SYSENTER_EIP 0x176u
#define MSR_MISC_ENABLE 0x1a0u
#define MSR_PAT 0x277u
#define MSR_MTRR_DEFAULT 0x2ffu
#define MSR_EFER 0xc0000080u
#define EFER_NXE 0x800u
#define CPUID_NX 0x100000u /* 80000001:EDX */

uint64_t hv_read_msr(uint32_t number)
{
    uint64_t value;
    if (hv_board_read_msr(&cell.board, number, &value))
        return value;
    switch (number) {
    case MSR_TSC:
        return hv_tsc();
    case MSR_TSC_ADJUST:
        return HV_CPU->tsc_offset;
    case MSR_ARCH_CAPABILITIES:
        return RDCL_NO;
    case MSR_SYSENTER_CS:
        return HV_CPU->sysenter_cs;
    case MSR_SYSENTER_ESP:
        return HV_CPU->sysenter_esp;
    case MSR_SYSENTER_EIP:
        return HV_CPU->sysenter_eip;
    case MSR_MISC_ENABLE:
        return HV_CPU->misc_enable;
    case MSR_PAT:
        return HV_CPU->pat;
    case MSR_MTRR_DEFAULT:
        return HV_CPU->mtrr_default;
    case MSR_EFER:
        return HV_CPU->efer;
    default:
        return 0;
    }
}

static void write_efer(uint64_t value)
{
    uint32_t features[4];
    hv_cpuid(0x80000001u, 0, features);
    if (value & ~(uint64_t)(features[3] & CPUID_NX ? EFER_NXE : 0))
        hv_raise_error(HV_GP, 0);
    if (value == HV_CPU->efer)
        return;
    HV_CPU->efer = value;
    hv_shadow_flush(true);
}

void hv_write_msr(uint32_t number, uint64_t value)
{
    if (hv_board_write_msr(&cell.board, number, value))
        return;
    switch (number) {
    case MSR_TSC:
        HV_CPU->tsc_offset += value - hv_tsc();
        break;
    case MSR_TSC_ADJUST:
        HV_CPU->tsc_offset = value;
        break;
    case MSR_SYSENTER_CS:
        HV_CPU->sysenter_cs = (uint32_t)value;
        break;
    case MSR_SYSENTER_ESP:
        HV_CPU->sysenter_esp = (uint32_t)value;
        break;
    case MSR_SYSENTER_EIP:
        HV_CPU->sysenter_eip = (uint32_t)value;
        break;
    case MSR_MISC_ENABLE:
        HV_CPU->misc_enable = value;
        break;
    case MSR_PAT:
        HV_CPU->pat = value;
        break;
    case MSR_MTRR_DEFAULT:
        HV_CPU->mtrr_default = value;
        break;
    case MSR_EFER:
        write_efer(value);
        break;
    default:
        break;
    }
}

void hv_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct hv_cell_area *area = cell.area;
    for (int i = 0; i < 4; i++)
        out[i] = 0;
    for (uint32_t i = 0; i < area->cpuid_count && i < HV_AREA_CPUID; i++) {
        const struct hv_cell_cpuid *row = &area->cpuid[i];
        if (row->leaf == leaf && (row->any_subleaf || row->subleaf == subleaf)) {
            out[0] = row->eax;
            out[1] = row->ebx;
            out[2] = row->ecx;
            out[3] = row->edx;
            return;
        }
    }
}
