/* Finding Unicorn, and making sure that it is the build whose structures unicorn_abi.h describes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#include "shim.h"

#ifdef __x86_64__

bool hv_unicorn_open(struct unicorn *unicorn, const char *library, char *why, size_t why_size)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(why, why_size, "cannot load %s: %s", library, dlerror());
        return false;
    }
#define X(type, symbol, arguments)                                                          \
    unicorn->symbol = (__typeof__(unicorn->symbol))dlsym(handle, #symbol);                  \
    if (!unicorn->symbol) {                                                                 \
        snprintf(why, why_size, "%s does not export " #symbol, library);                    \
        return false;                                                                       \
    }
    HV_UNICORN_SYMBOLS(X)
#undef X
    unsigned version = unicorn->uc_version(NULL, NULL);
    if (version != HV_UNICORN_VERSION) {
        snprintf(why, why_size, "it is Unicorn %u.%u.%u, this shim knows 2.1.4 only", version >> 24, version >> 16 & 255, version >> 8 & 255);
        return false;
    }
    return hv_plt_redirect(handle, why, why_size);
}

/* Every offset is tested by what can be known about the object behind it: pointers that must be equal, values written through the public
 * API that must appear, functions that must stand in the class. */
bool hv_unicorn_verify(struct hv_emulator *e, char *why, size_t why_size)
{
#define VERIFY(condition)                                                                                    \
    if (!(condition)) {                                                                                      \
        snprintf(why, why_size, "its structures differ from release 2.1.4 (check failed: " #condition ")"); \
        return false;                                                                                        \
    }
    CPUState *cpu = e->cpu;
    VERIFY(cpu != NULL);
    VERIFY(HV_AT(void *, cpu, CPU_UC) == e->uc);
    VERIFY(HV_AT(void *, cpu, CPU_ENV_PTR) == (uint8_t *)cpu + CPU_ENV);
    void **class = HV_AT(void **, cpu, CPU_CLASS);
    VERIFY(class[CLASS_DO_INTERRUPT] == (void *)e->unicorn.x86_cpu_do_interrupt_x86_64);
    VERIFY(class[CLASS_EXEC_INTERRUPT] == (void *)e->unicorn.x86_cpu_exec_interrupt_x86_64);
    VERIFY(class[CLASS_DEBUG_EXCEPTION] == (void *)e->unicorn.breakpoint_handler_x86_64);
    VERIFY(HV_AT(uint8_t, e->uc, UC_USE_EXITS) == 1);
    VERIFY(HV_AT(int, e->uc, UC_NESTED_LEVEL) == 0);
    VERIFY(HV_AT(int, e->uc, UC_INVALID_ERROR) == 0);
    VERIFY(HV_AT(uint8_t, e->uc, UC_NO_EXIT_REQUEST) == 0);

    /* cpu_exit() sets exactly these three. */
    int16_t *icount_high = (int16_t *)(HV_AT(uint8_t *, cpu, CPU_ICOUNT_DECR_PTR) + 2);
    VERIFY(HV_AT(uint8_t, cpu, CPU_EXIT_REQUEST) == 0 && *icount_high == 0);
    e->unicorn.cpu_exit(cpu);
    VERIFY(HV_AT(uint8_t, cpu, CPU_EXIT_REQUEST) == 1 && *icount_high == -1);
    HV_AT(uint8_t, cpu, CPU_EXIT_REQUEST) = 0;
    *icount_high = 0;

    /* The debugger's places: a breakpoint that is inserted stands at the head of the list. */
    VERIFY(HV_AT(void *, cpu, CPU_OPAQUE) == NULL && HV_AT(void *, cpu, CPU_WATCHPOINT_HIT) == NULL);
    VERIFY(HV_AT(uint32_t, cpu, CPU_CFLAGS_NEXT_TB) == ~0u && HV_AT(int, cpu, CPU_SINGLESTEP) == 0);
    VERIFY(HV_AT(struct cpu_breakpoint *, cpu, CPU_BREAKPOINTS) == NULL);
    struct cpu_breakpoint *breakpoint = NULL;
    VERIFY(e->unicorn.cpu_breakpoint_insert_x86_64(cpu, 0x12345678, BP_GDB, &breakpoint) == 0 && breakpoint);
    VERIFY(HV_AT(struct cpu_breakpoint *, cpu, CPU_BREAKPOINTS) == breakpoint);
    VERIFY(breakpoint->pc == 0x12345678 && breakpoint->flags == BP_GDB && breakpoint->next == NULL);
    e->unicorn.cpu_breakpoint_remove_all_x86_64(cpu, BP_GDB);
    VERIFY(HV_AT(struct cpu_breakpoint *, cpu, CPU_BREAKPOINTS) == NULL);

    /* Registers, by their public names (unicorn/x86.h). */
    static const struct { int reg; unsigned offset; } sample[] = {
        { 35, ENV_REGS + 8 * GPR_AX }, { 40, ENV_REGS + 8 * GPR_DX }, { 113, ENV_REGS + 8 * 15 }, { 41, ENV_EIP }, { 52, ENV_CR + 8 * 2 },
    };
    for (size_t i = 0; i < sizeof sample / sizeof *sample; i++) {
        uint64_t pattern = 0x1122334455667700ull + i, back = 0;
        HV_AT(uint64_t, e->env, sample[i].offset) = pattern;
        e->unicorn.uc_reg_read(e->uc, sample[i].reg, &back);
        HV_AT(uint64_t, e->env, sample[i].offset) = 0;
        if (back != pattern) {
            snprintf(why, why_size, "its structures differ from release 2.1.4 (register %d is not at %u)", sample[i].reg, sample[i].offset);
            return false;
        }
    }
    /* CR8: kept where it is kept while V_INTR_MASKING is on. */
    e->unicorn.helper_write_crN_x86_64(e->env, 8, 5);
    HV_AT(uint32_t, e->env, ENV_HFLAGS2) |= HF2_VINTR_MASK;
    VERIFY(HV_AT(uint8_t, e->env, ENV_V_TPR) == 5 && e->unicorn.helper_read_crN_x86_64(e->env, 8) == 5);
    HV_AT(uint8_t, e->env, ENV_V_TPR) = 0;
    /* The MSRs' places: CPUID's extended leaf must agree with the feature words. */
    uint32_t eax, ebx, ecx, edx;
    e->unicorn.cpu_x86_cpuid_x86_64(e->env, 1, 0, &eax, &ebx, &ecx, &edx);
    VERIFY(HV_AT(uint32_t, e->env, ENV_FEATURES) == edx);
    VERIFY(HV_AT(uint64_t, e->env, ENV_DR + 8 * 6) == 0xffff0ff0u);
    VERIFY(HV_AT(uint64_t, e->env, ENV_DR + 8 * 7) == 0x400u);
    return hv_save_verify(e, why, why_size);
#undef VERIFY
}
#endif
