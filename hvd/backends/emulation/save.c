/* What a snapshot needs of the vcpu beyond the registers of state.c: MSRs, debug registers, x87 and SSE, and what is pending. */
#include <stdio.h>
#include <string.h>

#include "shim.h"

#ifdef __x86_64__

/* Intel SDM volume 1, 13.4: the XSAVE area's legacy region, which is FXSAVE's image (fpu.c), and header. The translator has neither AVX
 * nor MPX. */
struct xsave_area {
    uint8_t legacy[512];
    uint64_t xstate_bv, xcomp_bv;
    uint8_t reserved[48];
};
_Static_assert(sizeof(struct xsave_area) == 576, "XSAVE area");
enum { XSTATE_X87 = 1, XSTATE_SSE = 2, MXCSR = 24, ST = 32, XMM = 160, XMM_END = 416, MXCSR_DEFAULT = 0x1f80, FCW_DEFAULT = 0x37f };

/* The MSRs that a guest can set: all that Unicorn's WRMSR keeps, but those that are registers of their own in a snapshot (EFER, the bases
 * of FS and GS) and the machine check banks, which nothing reports. */
static const struct msr {
    uint32_t index;
    uint16_t offset, width;
} msrs[] = {
    { 0x174, ENV_SYSENTER_CS, 4 }, { 0x175, ENV_SYSENTER_ESP, 8 }, { 0x176, ENV_SYSENTER_EIP, 8 }, { 0x17a, ENV_MCG_STATUS, 8 },
    { 0x1a0, ENV_MISC_ENABLE, 8 }, { 0x200, ENV_MTRR_VARIABLE, 8 }, { 0x201, ENV_MTRR_VARIABLE + 8, 8 },
    { 0x202, ENV_MTRR_VARIABLE + 16, 8 }, { 0x203, ENV_MTRR_VARIABLE + 24, 8 }, { 0x204, ENV_MTRR_VARIABLE + 32, 8 },
    { 0x205, ENV_MTRR_VARIABLE + 40, 8 }, { 0x206, ENV_MTRR_VARIABLE + 48, 8 }, { 0x207, ENV_MTRR_VARIABLE + 56, 8 },
    { 0x208, ENV_MTRR_VARIABLE + 64, 8 }, { 0x209, ENV_MTRR_VARIABLE + 72, 8 }, { 0x20a, ENV_MTRR_VARIABLE + 80, 8 },
    { 0x20b, ENV_MTRR_VARIABLE + 88, 8 }, { 0x20c, ENV_MTRR_VARIABLE + 96, 8 }, { 0x20d, ENV_MTRR_VARIABLE + 104, 8 },
    { 0x20e, ENV_MTRR_VARIABLE + 112, 8 }, { 0x20f, ENV_MTRR_VARIABLE + 120, 8 }, { 0x250, ENV_MTRR_FIXED, 8 },
    { 0x258, ENV_MTRR_FIXED + 8, 8 }, { 0x259, ENV_MTRR_FIXED + 16, 8 }, { 0x268, ENV_MTRR_FIXED + 24, 8 },
    { 0x269, ENV_MTRR_FIXED + 32, 8 }, { 0x26a, ENV_MTRR_FIXED + 40, 8 }, { 0x26b, ENV_MTRR_FIXED + 48, 8 },
    { 0x26c, ENV_MTRR_FIXED + 56, 8 }, { 0x26d, ENV_MTRR_FIXED + 64, 8 }, { 0x26e, ENV_MTRR_FIXED + 72, 8 },
    { 0x26f, ENV_MTRR_FIXED + 80, 8 }, { 0x277, ENV_PAT, 8 }, { 0x2ff, ENV_MTRR_DEF_TYPE, 8 }, { 0xc0000081, ENV_STAR, 8 },
    { 0xc0000082, ENV_LSTAR, 8 }, { 0xc0000083, ENV_CSTAR, 8 }, { 0xc0000084, ENV_FMASK, 8 }, { 0xc0000102, ENV_KERNEL_GS_BASE, 8 },
    { 0xc0000103, ENV_TSC_AUX, 8 },
};

static uint64_t get(const struct hv_emulator *e, const struct msr *msr)
{
    return msr->width == 4 ? hv_env32(e, msr->offset) : hv_env64(e, msr->offset);
}

static void put(struct hv_emulator *e, const struct msr *msr, uint64_t value)
{
    if (msr->width == 4)
        HV_AT(uint32_t, e->env, msr->offset) = (uint32_t)value;
    else
        HV_AT(uint64_t, e->env, msr->offset) = value;
}

/* The index-th MSR of the table; false behind the last. */
bool hv_emulator_get_msr(struct hv_emulator *e, unsigned index, uint32_t *number, uint64_t *value)
{
    if (index >= sizeof msrs / sizeof *msrs)
        return false;
    *number = msrs[index].index;
    *value = get(e, &msrs[index]);
    return true;
}

bool hv_emulator_set_msr(struct hv_emulator *e, uint32_t number, uint64_t value)
{
    for (size_t i = 0; i < sizeof msrs / sizeof *msrs; i++)
        if (msrs[i].index == number) {
            put(e, &msrs[i], value);
            return true;
        }
    return false;
}

struct hv_more_state { /* hvd/backends/emulation/saving.py */
    uint64_t dr[8], xcr0;
    uint32_t pkru;
    uint8_t halted, interrupt_shadow, nmi_blocked, nmi_pending, injected, injected_vector;
    uint8_t xsave[sizeof(struct xsave_area)];
};

void hv_emulator_get_more(struct hv_emulator *e, struct hv_more_state *more)
{
    memset(more, 0, sizeof *more);
    memcpy(more->dr, &HV_AT(uint8_t, e->env, ENV_DR), sizeof more->dr);
    more->xcr0 = hv_env64(e, ENV_XCR0);
    more->pkru = hv_env32(e, ENV_PKRU);
    more->halted = HV_AT(uint32_t, e->cpu, CPU_HALTED) == 1;
    more->interrupt_shadow = (hv_env32(e, ENV_HFLAGS) & HF_INHIBIT_IRQ) != 0;
    more->nmi_blocked = (hv_env32(e, ENV_HFLAGS2) & HF2_NMI) != 0;
    more->nmi_pending = (HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) & CPU_INTERRUPT_NMI) != 0;
    more->injected = e->injected;
    more->injected_vector = e->injected ? e->injected_vector : 0;

    struct xsave_area area = { .xstate_bv = XSTATE_X87 | XSTATE_SSE };
    hv_emulator_get_fpu(e, (struct hv_fpu *)area.legacy);
    memcpy(more->xsave, &area, sizeof area);
}

/* After hv_emulator_set_state, which resets all that is set here. */
void hv_emulator_set_more(struct hv_emulator *e, const struct hv_more_state *more)
{
    struct xsave_area area;
    memcpy(&area, more->xsave, sizeof area);
    if (!(area.xstate_bv & XSTATE_X87)) { /* SDM volume 1, 13.6: in its initial configuration */
        memset(area.legacy, 0, MXCSR);
        memset(area.legacy + ST, 0, XMM - ST);
        memcpy(area.legacy, &(uint16_t){ FCW_DEFAULT }, sizeof(uint16_t));
    }
    if (!(area.xstate_bv & XSTATE_SSE)) {
        memset(area.legacy + XMM, 0, XMM_END - XMM);
        memcpy(area.legacy + MXCSR, &(uint32_t){ MXCSR_DEFAULT }, sizeof(uint32_t));
    }
    hv_emulator_set_fpu(e, (const struct hv_fpu *)area.legacy);
    HV_AT(uint64_t, e->env, ENV_XCR0) = more->xcr0;
    HV_AT(uint32_t, e->env, ENV_PKRU) = more->pkru;
    for (unsigned i = 0; i < 7; i++)
        HV_AT(uint64_t, e->env, ENV_DR + 8 * i) = more->dr[i];
    e->unicorn.cpu_x86_update_dr7_x86_64(e->env, (uint32_t)more->dr[7]);
    uint32_t *hflags = &HV_AT(uint32_t, e->env, ENV_HFLAGS), *hflags2 = &HV_AT(uint32_t, e->env, ENV_HFLAGS2);
    *hflags = (*hflags & ~HF_INHIBIT_IRQ) | (more->interrupt_shadow ? HF_INHIBIT_IRQ : 0);
    *hflags2 = (*hflags2 & ~HF2_NMI) | (more->nmi_blocked ? HF2_NMI : 0);
    HV_AT(uint32_t, e->cpu, CPU_HALTED) = more->halted != 0;
    if (more->nmi_pending)
        HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) |= CPU_INTERRUPT_NMI;
    if (more->injected)
        hv_emulator_inject(e, more->injected_vector);
}

/* The offsets that only this file uses, as hv_unicorn_verify does it: what is written through the library's own functions appears there. */
bool hv_save_verify(struct hv_emulator *e, char *why, size_t why_size)
{
#define REFUSE(...)                                                                            \
    do {                                                                                       \
        int length = snprintf(why, why_size, "its structures differ from release 2.1.4 (");    \
        snprintf(why + length, why_size - (size_t)length, __VA_ARGS__);                        \
        return false;                                                                          \
    } while (0)
    uint64_t *regs = &HV_AT(uint64_t, e->env, ENV_REGS);
    for (size_t i = 0; i < sizeof msrs / sizeof *msrs; i++) {
        uint64_t before = get(e, &msrs[i]);
        uint32_t pattern = 0x1200u + (uint32_t)i; /* within the 16 bits of SYSENTER_CS */
        regs[GPR_CX] = msrs[i].index;
        regs[GPR_AX] = pattern;
        regs[GPR_DX] = 0;
        e->unicorn.helper_wrmsr_x86_64(e->env);
        uint64_t found = get(e, &msrs[i]);
        put(e, &msrs[i], before);
        if (found != pattern)
            REFUSE("MSR %#x is not at %u)", msrs[i].index, msrs[i].offset);
    }
    regs[GPR_CX] = regs[GPR_AX] = regs[GPR_DX] = 0;

    uint64_t dr0 = 0x1122334455667788, back = 0;
    HV_AT(uint64_t, e->env, ENV_DR) = dr0;
    e->unicorn.uc_reg_read(e->uc, 66, &back); /* UC_X86_REG_DR0 */
    HV_AT(uint64_t, e->env, ENV_DR) = 0;
    if (back != dr0)
        REFUSE("DR0 is not at %u)", ENV_DR);
    uint64_t *cr4 = &HV_AT(uint64_t, e->env, ENV_CR + 8 * 4), cr4_before = *cr4;
    uint64_t xcr0_before = hv_env64(e, ENV_XCR0);
    uint32_t pkru_before = hv_env32(e, ENV_PKRU);
    *cr4 |= 1u << 18 | 1u << 22; /* OSXSAVE, PKE */
    HV_AT(uint64_t, e->env, ENV_XCR0) = 0x1234567;
    HV_AT(uint32_t, e->env, ENV_PKRU) = 0x7654321;
    bool right = e->unicorn.helper_xgetbv_x86_64(e->env, 0) == 0x1234567 && e->unicorn.helper_rdpkru_x86_64(e->env, 0) == 0x7654321;
    HV_AT(uint64_t, e->env, ENV_XCR0) = xcr0_before;
    HV_AT(uint32_t, e->env, ENV_PKRU) = pkru_before;
    *cr4 = cr4_before;
    if (!right)
        REFUSE("XCR0 or PKRU is not at %u, %u)", ENV_XCR0, ENV_PKRU);
    return true;
#undef REFUSE
}
#endif
