/* What the shim knows of Unicorn 2.1.4's x86-64 build: the few structure offsets and internal functions it reaches behind the public API.
 *
 * Why at all: with the public API alone an asynchronous stop may hit the middle of an instruction, exceptions cannot be delivered by the
 * emulator's own (correct, fast) code, and interrupts cannot be injected at an instruction boundary; each silently corrupts real kernels.
 * QEMU's code for all of it is in the library and exported, merely not wired up. The build is pinned (pyproject.toml), every offset is
 * verified against the running library before a guest starts (hv_unicorn_verify), and any other build is refused.
 */
#ifndef HV_UNICORN_ABI_H
#define HV_UNICORN_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HV_UNICORN_VERSION ((2u << 24) | (1u << 16) | (4u << 8) | 255u) /* uc_version() of the 2.1.4 release */

/* Public API (unicorn.h), as needed. */
enum { UC_ARCH_X86_ = 4, UC_MODE_64_ = 8, UC_PROT_READ_ = 1, UC_PROT_EXEC_ = 4, UC_PROT_ALL_ = 7, UC_ERR_OK_ = 0, UC_ERR_WRITE_PROT_ = 12 };
enum { UC_HOOK_INTR_ = 1 << 0, UC_HOOK_INSN_ = 1 << 1, UC_HOOK_INSN_INVALID_ = 1 << 14 };
enum {
    UC_X86_INS_CPUID_ = 113, UC_X86_INS_IN_ = 218, UC_X86_INS_OUT_ = 500, UC_X86_INS_RDTSC_ = 608, UC_X86_INS_RDTSCP_ = 609,
    UC_X86_INS_SYSCALL_ = 699, UC_X86_INS_SYSENTER_ = 700,
};

/* struct uc_struct (include/uc_priv.h) */
enum {
    UC_CPU = 440,             /* CPUState * */
    UC_STOP_REQUEST = 1389,   /* bool */
    UC_QUIT_REQUEST = 1390,   /* bool */
    UC_INVALID_ERROR = 1424,  /* int: uc_err of a failed memory access */
    UC_USE_EXITS = 1428,      /* bool */
    UC_NO_EXIT_REQUEST = 2034, /* bool: no check for stops after each memory access, where state is not canonical */
    UC_NESTED_LEVEL = 14840,  /* int: index of the jump buffer in use + 1 */
};
/* CPUState (qemu/include/hw/core/cpu.h) */
enum {
    CPU_MEM_IO_PC = 33144, /* uintptr_t: where translated code is that accesses MMIO; means nothing outside of its buffer */
    CPU_STOP = 17, CPU_STOPPED = 18, CPU_EXIT_REQUEST = 21, CPU_CFLAGS_NEXT_TB = 24, CPU_INTERRUPT_REQUEST = 28, CPU_SINGLESTEP = 32,
    CPU_ENV_PTR = 296, CPU_ICOUNT_DECR_PTR = 304, CPU_BREAKPOINTS = 33096, CPU_WATCHPOINT_HIT = 33128,
    CPU_OPAQUE = 33136, /* void *: nobody's; the shim's emulator */
    CPU_HALTED = 33176, CPU_EXCEPTION_INDEX = 33184, CPU_UC = 33192, CPU_CLASS = 33200, CPU_ENV = 35408,
};
/* CPUClass: index of function pointers */
enum { CLASS_RESET = 0, CLASS_DO_INTERRUPT = 2, CLASS_DEBUG_EXCEPTION = 15, CLASS_EXEC_INTERRUPT = 18 };
/* CPUX86State (qemu/target/i386/cpu.h) */
enum {
    ENV_REGS = 0, ENV_EIP = 128, ENV_EFLAGS = 136, ENV_HFLAGS = 176, ENV_HFLAGS2 = 180, ENV_SEGS = 184, ENV_LDT = 328, ENV_TR = 352,
    ENV_GDT = 376, ENV_IDT = 400, ENV_CR = 424, ENV_EFER = 592, ENV_SYSENTER_CS = 4800, ENV_SYSENTER_ESP = 4808, ENV_SYSENTER_EIP = 4816,
    ENV_STAR = 4824, ENV_LSTAR = 4840, ENV_CSTAR = 4848, ENV_FMASK = 4856, ENV_KERNEL_GS_BASE = 4864, ENV_TSC_AUX = 4896,
    ENV_XCR0 = 4904, ENV_MCG_STATUS = 4912, ENV_MISC_ENABLE = 4920,
    ENV_PAT = 5280, ENV_PKRU = 5304, ENV_MTRR_FIXED = 6320, ENV_MTRR_DEF_TYPE = 6408, ENV_MTRR_VARIABLE = 6416,
    ENV_ERROR_CODE = 5384, ENV_EXCEPTION_IS_INT = 5388, ENV_EXCEPTION_NEXT_EIP = 5392, ENV_DR = 5400, ENV_V_TPR = 5556, ENV_FEATURES = 5632,
};
enum { HF2_NMI = 1 << 2 };
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS };
enum { GPR_AX, GPR_CX, GPR_DX, GPR_BX, GPR_SP, GPR_BP, GPR_SI, GPR_DI, GPR_R11 = 11 };

struct segment_cache { /* SegmentCache */
    uint32_t selector;
    uint64_t base;
    uint32_t limit, flags; /* flags: bits 8-23 of the descriptor's second word, in place */
};
_Static_assert(sizeof(struct segment_cache) == 24, "SegmentCache");

struct cpu_breakpoint { /* CPUBreakpoint */
    uint64_t pc; /* linear */
    int flags;   /* BP_* */
    struct cpu_breakpoint *next, **previous;
};
struct cpu_watchpoint { /* CPUWatchpoint, up to its place in a list, which is ours */
    uint64_t address, length, hit_address;
    uint32_t hit_attributes;
    int flags; /* BP_* */
    struct cpu_watchpoint *next;
};
enum {
    BP_MEM_READ = 0x01, BP_MEM_WRITE = 0x02, BP_GDB = 0x10, BP_CPU = 0x20, BP_WATCHPOINT_HIT_READ = 0x40, BP_WATCHPOINT_HIT_WRITE = 0x80,
    BP_WATCHPOINT_HIT = 0xC0,
};

enum { CPU_INTERRUPT_HARD = 2, CPU_INTERRUPT_DEBUG = 0x80, CPU_INTERRUPT_NMI = 0x200 };
enum { HF2_VINTR_MASK = 1 << 3 };
enum { EXCP_INTERRUPT = 0x10000, EXCP_HLT = 0x10001, EXCP_DEBUG = 0x10002, EXCP_HALTED = 0x10003 };
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_ADDSEG = 1 << 6, HF_LMA = 1 << 14, HF_CS64 = 1 << 15 };
enum { DESC_B = 1 << 22, DESC_L = 1 << 21, DESC_P = 1 << 15, DESC_S = 1 << 12, DESC_G = 1 << 23, DESC_TSS_BUSY = 1 << 9 };
enum { EFLAGS_TF = 1 << 8, EFLAGS_IF = 1 << 9, EFLAGS_RF = 1 << 16, EFLAGS_VM = 1 << 17 };

#define HV_AT(type, base, offset) (*(type *)((uint8_t *)(base) + (offset)))

typedef struct uc_struct uc_engine;
typedef struct CPUState CPUState;
typedef struct CPUX86State CPUX86State;

/* Functions of the library: public ones and, behind the blank, exported internals. Resolved by name; a missing one is a refusal. */
#define HV_UNICORN_SYMBOLS(X)                                                                                                      \
    X(unsigned, uc_version, (unsigned *, unsigned *))                                                                              \
    X(int, uc_open, (int, int, uc_engine **))                                                                                      \
    X(int, uc_close, (uc_engine *))                                                                                                \
    X(const char *, uc_strerror, (int))                                                                                            \
    X(int, uc_ctl, (uc_engine *, int, ...))                                                                                        \
    X(int, uc_reg_read, (uc_engine *, int, void *))                                                                                \
    X(int, uc_reg_write, (uc_engine *, int, const void *))                                                                         \
    X(int, uc_mem_map_ptr, (uc_engine *, uint64_t, size_t, uint32_t, void *))                                                      \
    X(int, uc_mmio_map, (uc_engine *, uint64_t, size_t, uint64_t (*)(uc_engine *, uint64_t, unsigned, void *), void *,             \
                         void (*)(uc_engine *, uint64_t, unsigned, uint64_t, void *), void *))                                     \
    X(int, uc_hook_add, (uc_engine *, size_t *, int, void *, void *, uint64_t, uint64_t, ...))                                     \
    X(int, cpu_exec_x86_64, (uc_engine *, CPUState *))                                                                             \
    X(void, cpu_exit, (CPUState *))                                                                                                \
    X(bool, cpu_restore_state_x86_64, (CPUState *, uintptr_t, bool))                                                               \
    X(void, cpu_loop_exit_x86_64, (CPUState *))                                                                                    \
    X(bool, x86_cpu_exec_interrupt_x86_64, (CPUState *, int))                                                                      \
    X(int, x86_cpu_pending_interrupt_x86_64, (CPUState *, int))                                                                    \
    X(void, do_interrupt_x86_hardirq_x86_64, (CPUX86State *, int, int))                                                            \
    X(void, x86_cpu_do_interrupt_x86_64, (CPUState *))                                                                             \
    X(int, cpu_memory_rw_debug_x86_64, (CPUState *, uint64_t, void *, uint64_t, bool))                                             \
    X(uint64_t, helper_read_eflags_x86_64, (CPUX86State *))                                                                        \
    X(void, helper_write_eflags_x86_64, (CPUX86State *, uint64_t, uint32_t))                                                       \
    X(void, helper_check_iob_x86_64, (CPUX86State *, uint32_t))                                                                    \
    X(void, helper_check_iow_x86_64, (CPUX86State *, uint32_t))                                                                    \
    X(void, helper_check_iol_x86_64, (CPUX86State *, uint32_t))                                                                    \
    X(void, cpu_x86_update_cr0_x86_64, (CPUX86State *, uint32_t))                                                                  \
    X(void, cpu_x86_update_cr3_x86_64, (CPUX86State *, uint64_t))                                                                  \
    X(void, cpu_x86_update_cr4_x86_64, (CPUX86State *, uint32_t))                                                                  \
    X(void, cpu_x86_update_dr7_x86_64, (CPUX86State *, uint32_t))                                                                  \
    X(void, helper_wrmsr_x86_64, (CPUX86State *))                                                                                  \
    X(uint64_t, helper_xgetbv_x86_64, (CPUX86State *, uint32_t))                                                                   \
    X(uint64_t, helper_rdpkru_x86_64, (CPUX86State *, uint32_t))                                                                   \
    X(void, cpu_x86_cpuid_x86_64, (CPUX86State *, uint32_t, uint32_t, uint32_t *, uint32_t *, uint32_t *, uint32_t *))             \
    X(void, breakpoint_handler_x86_64, (CPUState *))                                                                               \
    X(int, cpu_breakpoint_insert_x86_64, (CPUState *, uint64_t, int, struct cpu_breakpoint **))                                    \
    X(int, cpu_breakpoint_remove_x86_64, (CPUState *, uint64_t, int))                                                              \
    X(void, cpu_breakpoint_remove_all_x86_64, (CPUState *, int))                                                                   \
    X(uint64_t, helper_read_crN_x86_64, (CPUX86State *, int))                                                                      \
    X(void, helper_write_crN_x86_64, (CPUX86State *, int, uint64_t))                                                               \
    X(void, tlb_flush_x86_64, (CPUState *))                                                                                        \
    X(void, tlb_reset_dirty_x86_64, (CPUState *, uint64_t, uint64_t))                                                              \
    X(void, tb_flush_x86_64, (CPUState *))                                                                                         \
    X(void, tb_invalidate_phys_range_x86_64, (uc_engine *, uint64_t, uint64_t))

struct unicorn {
#define X(type, name, arguments) type(*name) arguments;
    HV_UNICORN_SYMBOLS(X)
#undef X
};

#endif
