/* The emulation backend's vcpu: Unicorn's translator with QEMU's own exception and interrupt delivery, shaped like KVM_RUN.
 *
 *   unicorn.c   finds the library and verifies that it is the build we know
 *   shim.c      create, run, kick, the halt wait and the timer
 *   mmio.c      devices' registers and what is no memory at all
 *   hooks.c     what else leaves translated code: ports, CPUID, time stamps, system calls, exceptions, interrupts
 *   state.c     registers in and out
 *   save.c      what a snapshot needs beyond those
 *   fpu.c       x87 and SSE registers in and out
 *   callstack.c what called the instruction that crosses
 *   debug.c     breakpoints, watchpoints and single steps, the debugger's and the guest's own
 *   replay.c    what an instruction that hit a watchpoint had read from devices
 *   plt.c       puts functions of ours between the library's parts: those of debug.c and of the four below
 *   abort.c     the library may not end the process
 *   flags.c     status flags without garbage
 *   apic.c      the board's local APIC in the vcpu's registers
 *   code_pages.c  which pages hold translated code: what a store must drop
 */
#ifndef HV_SHIM_H
#define HV_SHIM_H

#include <stdatomic.h>
#include <sys/types.h>
#include <time.h>

#include "board.h"
#include "coroutine.h"
#include "unicorn_abi.h"

/* hvd/board/vcpu.py ExitReason */
enum hv_exit_reason {
    HV_EXIT_INTERRUPTED, HV_EXIT_PORT_IN, HV_EXIT_PORT_OUT, HV_EXIT_MMIO_READ, HV_EXIT_MMIO_WRITE, HV_EXIT_HALT, HV_EXIT_HYPERCALL,
    HV_EXIT_SHUTDOWN, HV_EXIT_DEBUG, HV_EXIT_ERROR, HV_EXIT_CONSOLE_FULL,
};

struct hv_exit {
    uint32_t reason, size;
    uint64_t address, value; /* value: in for *_OUT and *_WRITE, out for *_IN and *_READ */
    uint64_t rip, start_ns;
    uint32_t flags;          /* HV_RECORD_USER, HV_RECORD_LONG */
    int32_t error;           /* of HV_EXIT_ERROR: uc_err */
    char detail[112];        /* of HV_EXIT_ERROR */
};

/* hvd/board/vcpu.py DebugCause; exit.value of HV_EXIT_DEBUG, whose address is the breakpoint's or that of the access. */
enum hv_debug_cause { HV_DEBUG_STEP = 1, HV_DEBUG_BREAKPOINT, HV_DEBUG_WATCHPOINT };

/* Of devices, by one instruction, in its order. */
enum { HV_MOST_READS = 4 };
struct hv_reads {
    uint64_t rip, registers[16];
    unsigned count, next; /* next: that is to be answered while the instruction is executed once more */
    struct hv_read {
        bool port;
        uint32_t size;
        uint64_t address, value;
    } read[HV_MOST_READS];
};

/* What a debugger asked for; all zero without one. */
struct hv_debug {
    bool step;       /* return after one instruction */
    bool requested;  /* a stop before the next block */
    bool waking;     /* a step over HLT got the interrupt it waited for */
    bool replay;     /* the instruction that hit a watchpoint is executed once more, alone, and then it stops */
    bool delivering; /* an exception or interrupt is being delivered: not to be cut short */
    bool hit;        /* a watchpoint of the debugger */
    uint64_t hit_address;
    struct hv_reads reads;
    uint64_t unaligned; /* linear address of the store that is being looked at; 0 = none */
    struct cpu_watchpoint *watchpoints; /* BP_GDB: the debugger's; BP_CPU: the guest's, from its debug registers */
};

struct hv_cpuid_entry {
    uint32_t leaf, subleaf, any_subleaf, eax, ebx, ecx, edx;
};

struct hv_emulator {
    struct unicorn unicorn;
    uc_engine *uc;
    CPUState *cpu;
    CPUX86State *env;
    struct hv_board *board;
    struct hv_coroutine coroutine;
    struct hv_exit exit;
    bool in_hook;   /* the coroutine waits in a hook for the answer to `exit` */
    bool gave_up;   /* the library cannot go on */
    bool abandon;   /* drop the instruction that the hook belongs to */
    int result;     /* of cpu_exec */
    atomic_uint kicked;
    bool injected;
    uint8_t injected_vector;
    timer_t timer;
    bool timer_made;
    pid_t timer_thread; /* gets its signal: the last that ran this emulator */
    volatile uint64_t timer_deadline_ns; /* 0 = not armed */
    /* RAM by Unicorn's numbering: in the order in which it was mapped, what lies at 0 first, then what lies at 4 GiB */
    uint64_t low_ram; /* bytes */
    void *low_ram_memory, *high_ram_memory;
    uint64_t ram_pages;
    uint8_t *code_pages; /* bit per RAM page: blocks were translated from it */
    uint64_t protected_pages; /* how often a page got its first block; 0 after running = not wired up */
    struct hv_cpuid_entry *cpuid;
    unsigned cpuid_count;
    struct mmio_region *regions;
    struct hv_debug debug;
    uint64_t tsc_hz, tsc_at_zero; /* of the guest's virtual clock: ticks a second, and the counter when the clock was 0 */
};

/* unicorn.c */
bool hv_unicorn_open(struct unicorn *, const char *library, char *why, size_t why_size);
bool hv_unicorn_verify(struct hv_emulator *, char *why, size_t why_size);

/* shim.c */
void hv_emulator_inject(struct hv_emulator *, uint8_t vector);
void hv_arm_timer(struct hv_emulator *);

/* hooks.c */
bool hv_hooks_install(struct hv_emulator *, char *why, size_t why_size);
void hv_request_interrupt(struct hv_emulator *); /* the CPU asks the board at the next block boundary */
void hv_update_interrupt(struct hv_emulator *);
struct hv_emulator *hv_hooks_running(void); /* of this thread; NULL = none */
unsigned hv_instruction_length(struct hv_emulator *);
uint64_t hv_linear_rip(const struct hv_emulator *);
uint32_t hv_record_flags(const struct hv_emulator *);
void hv_hooks_enter_thread(struct hv_emulator *); /* this thread works on this emulator now; NULL = on none */
void hv_hooks_describe(struct hv_emulator *, uint64_t address, uint32_t size, uint64_t value, uint64_t start_ns); /* the exit */
void hv_hooks_leave(struct hv_emulator *, uint32_t reason); /* the guest, in the middle of an instruction; returns when the answer is there */

/* mmio.c */
void hv_mmio_free(struct hv_emulator *); /* after Unicorn was closed */
bool hv_emulator_map_hole(struct hv_emulator *, uint64_t base, uint64_t length);   /* floats */
bool hv_emulator_map_device(struct hv_emulator *, uint64_t base, uint64_t length); /* leaves with Mmio */
bool hv_emulator_map_board(struct hv_emulator *, uint64_t base, uint64_t length);  /* answered by hv_board_mmio_* */

/* plt.c */
struct hv_redirection {
    const char *name; /* the library's function */
    void *ours;
    void **original;
};
bool hv_plt_redirect(void *handle, char *why, size_t why_size);

/* debug.c */
extern const struct hv_redirection hv_debug_redirections[];
extern const size_t hv_debug_redirection_count;
void hv_debug_install(struct hv_emulator *);
void hv_debug_before_run(struct hv_emulator *);  /* prepare the step, if it is to be one */
bool hv_debug_stopped(struct hv_emulator *);     /* EXCP_DEBUG: fills exit; false = nothing that anybody asked for */
void hv_debug_replay_alone(struct hv_emulator *); /* before the block of an instruction that hit a watchpoint, each time that it may be lost */
bool hv_debug_holds_interrupts(const struct hv_emulator *);
void hv_debug_raised(struct hv_emulator *, uint32_t vector);
void hv_debug_delivered(struct hv_emulator *);   /* RIP is at the first instruction of a handler: a step ends here */
void hv_debug_reset(struct hv_emulator *);       /* RIP was moved; what the debugger set stays */
void hv_debug_free(struct hv_emulator *);

/* replay.c */
void hv_replay_begin(struct hv_emulator *); /* the instruction at RIP is given up */
void hv_replay_end(struct hv_emulator *);   /* it has been executed, or never will be */
void hv_replay_note(struct hv_emulator *, bool port, uint64_t address, uint32_t size, uint64_t value); /* has been read */
bool hv_replay_read(struct hv_emulator *, bool port, uint64_t address, uint32_t size, uint64_t *value); /* has it been read, and what was it */

/* flags.c */
extern const struct hv_redirection hv_flags_redirection;

/* abort.c */
extern const struct hv_redirection hv_abort_redirection;

/* apic.c */
extern const struct hv_redirection hv_apic_redirection;
void hv_apic_hide_priority(struct hv_emulator *, bool hide);
void hv_apic_pull_priority(struct hv_emulator *); /* CR8 to the local APIC */
void hv_apic_push_priority(struct hv_emulator *); /* the local APIC's task priority to CR8 */

/* code_pages.c */
extern const struct hv_redirection hv_code_page_redirections[];
extern const size_t hv_code_page_redirection_count;
void hv_code_pages_enter_thread(struct hv_emulator *);
bool hv_code_pages_grow(struct hv_emulator *, uint64_t length);
bool hv_code_pages_any(const struct hv_emulator *, uint64_t ram_address, uint64_t length); /* is there code in one of these pages */

/* callstack.c */
unsigned hv_emulator_call_stack(void *emulator, uint64_t *addresses, unsigned most);

/* fpu.c */
struct hv_fpu;
void hv_emulator_get_fpu(struct hv_emulator *, struct hv_fpu *);
void hv_emulator_set_fpu(struct hv_emulator *, const struct hv_fpu *);

/* save.c */
bool hv_save_verify(struct hv_emulator *, char *why, size_t why_size);

/* state.c */
void hv_load_segment(struct hv_emulator *, unsigned index, uint32_t selector, uint64_t base, uint32_t limit, uint32_t flags);

static inline uint64_t hv_env64(const struct hv_emulator *e, unsigned offset) { return HV_AT(uint64_t, e->env, offset); }
static inline uint32_t hv_env32(const struct hv_emulator *e, unsigned offset) { return HV_AT(uint32_t, e->env, offset); }

#endif
