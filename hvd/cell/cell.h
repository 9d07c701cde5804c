/* The cell: the C core under trap, rewriting and paravirt (docs/cell.md). One process that runs one guest's code natively, in ring 3.
 *
 *   area.h       what runner and cell share                  host.c       the runner's side of it (in libhv.so)
 *   main.c       start: descriptors, mappings, signals       sandbox.c    namespaces, capabilities, seccomp
 *   ahead.c      a start in two parts                        landlock.c   a wall of sandbox.c's
 *   signals.h    from the guest into the monitor and back    leave.c      exits to the runner, HLT, timers
 *   segments.c   descriptors, segment registers              twins.c      their doubles in the host's LDT
 *   walk.c       the guest's page tables                     shadow.c     its pages mapped into this process: a TLB made of mmaps
 *   drops.c      what drops them again                       mappings.c   the mappings themselves
 *   access.c     the monitor's own reads and writes of guest memory, MMIO included
 *   deliver.c    exceptions and interrupts                   far.c        far JMP, CALL, RET, IRET
 *   emulate.c    fetch, decode, and one of:                  decode.c     the decoder
 *   sensitive.c  privileged and sensitive instructions       control.c    those of control and debug registers, MSRs, CPUID
 *   msr.c        what MSRs and CPUID leaves hold
 *   execute.c    ordinary ones, for MMIO and steps           strings.c    INS, OUTS, MOVS and the like
 *   flow.c       near jumps, calls and the stack             alu.c        arithmetic and its flags
 *   fpu.c        FXSAVE, FXRSTOR                             debug.c      breakpoints, watchpoints, steps
 *   x87.c        x87 instructions                            sse.c        those of MMX and SSE; with forms.S, what executes them
 *   entropy.c    random numbers for virtio-rng
 *   withheld.c   programs that may not run natively now
 *   plain.c      memcpy without SSE                          runs.c       pages that only the kernel may touch
 *   paravirt.h   hypercalls                                  sites.h      INT 80 of programs without a signal
 *   lookaside.h  a TLB for access.c                          slots.h      sets of pages
 *   jumps.h      near.c, beyond.c: what sites.h's INT 80 becomes          straight.c  usual crossings under paravirt
 *
 * Everything runs on the signal stack, with signals blocked, until signals.c returns to the guest. What finds that the guest has
 * faulted does not return: hv_raise() unwinds to signals.c, which delivers the exception. So an instruction's effects on registers come
 * after its last access to memory.
 */
#ifndef HV_CELL_H
#define HV_CELL_H

#include <signal.h>

#include "area.h"

#define HV_CACHE 0x200000000ull  /* translated code */
#define HV_CACHE_BYTES (64ull << 20)
#define HV_LOOKUP (1u << 16)

struct hv_cell {
    struct hv_cpu cpu;
    struct hv_board board;
    struct hv_cell_area *area;
    uint8_t *memory; /* the whole memory file, readable and writable */
    enum hv_cell_mode mode;
    uint64_t part_ns;  /* when the last of several crossings in a row, of one entry, ended; before entry_ns: there was none */
    uint64_t entry_ns; /* CLOCK_MONOTONIC at which the monitor was entered; start of records */
    uint64_t began_tsc; /* not 0: it is not known yet, only the time stamp counter (straight.c) */
    uint64_t back_ns; /* and at which the runner last gave it its turn */
    /* EIP has moved on while the instruction may still fault: INT n. A fault puts it back to fault_eip. */
    uint32_t fault_eip;
    bool fault_eip_valid;
    /* ---- what translated code works with (translate.h) */
    uint32_t virtual_if;    /* 0 or HV_IF */
    uint32_t virtual_flags; /* those that are neither the host's nor IF */
    uint32_t pending;       /* an interrupt waits for IF, or the runner wants the state */
    uint32_t async;         /* a signal came while the monitor worked */
    uint32_t host_flags;    /* in and out of translated code */
    uint32_t user_flags;    /* of native code */
    uint32_t callout_kind, callout_argument;
    uint16_t host_selector[8]; /* for native code: twins */
    uint32_t fpu_traps[5];  /* by enum hv_fpu: such an instruction faults now */
    uint32_t segment_base[8];
    uint64_t window; /* what translated code sees: HV_WINDOW, or 0, the low view, for programs (withheld.c) */
    uint64_t segment_window[8]; /* the same; of a segment that only the monitor can access, an address that faults */
    uint64_t callout, resume, monitor_sp, monitor_fs, system_call;
    uint32_t user_eip;             /* native code: where it is entered, as a far pointer (sites.h) */
    uint16_t user_cs, stale_segments; /* stale_segments: the host's LDT has changed since segment registers were loaded */
    uint16_t live_selector[8];     /* that it had when it came by itself: system calls, the gate */
    uint32_t fs_is_taken;          /* under paravirt: FS has the guest's selector and the monitor's base */
    uint64_t load_segment;         /* hv_translated_load_segment() */
    uint64_t access_port;          /* hv_translated_access_port() */
    uint64_t time;                 /* of RDTSC, in the middle of it */
    uint32_t load_flags;           /* meanwhile */
    uint64_t scratch_stack[8];  /* grows down from its end; PUSHF and POPF in translated code */
    struct hv_lookup {
        uint32_t negative_eip, reserved;
        uint64_t host;
    } lookup[HV_LOOKUP], user_lookup[HV_LOOKUP];
};
extern struct hv_cell cell;
#define HV_CPU (&cell.cpu)

/* ---- unwind.c, deliver.c */
_Noreturn void hv_raise(unsigned vector);                      /* a fault without an error code */
_Noreturn void hv_raise_error(unsigned vector, uint32_t error);
_Noreturn void hv_raise_page_fault(uint32_t linear, uint32_t error);
void hv_deliver(unsigned vector, bool has_error, uint32_t error, bool software); /* software: INT n, INT3, INTO; eip is behind it */
void hv_software_interrupt(unsigned vector, unsigned length); /* the same; what faults on the way belongs to the instruction of that length */
bool hv_interrupts_wanted(void);                               /* an interrupt or NMI could be taken now, the interrupt shadow aside */
bool hv_interrupts_pending(void);                              /* the same, were IF set */
void hv_take_interrupt(void);

/* ---- access.c: by linear address, with the rights of the present CPL (user) or those of the processor itself (system). Sizes 1, 2, 4, 8.
 * Raise #PF. MMIO goes to the board or leaves to the runner. */
uint64_t hv_read(uint32_t linear, unsigned size);
void hv_write(uint32_t linear, unsigned size, uint64_t value);
uint64_t hv_read_system(uint32_t linear, unsigned size);
void hv_write_system(uint32_t linear, unsigned size, uint64_t value);
bool hv_in_memory(uint32_t linear); /* it is mapped, and neither a device's nor nothing */
void hv_check_write(uint32_t linear, unsigned size); /* would a write fault? raises #PF now, before anything is changed */
void hv_check_read(uint32_t linear, unsigned size);
/* Code bytes at CS:EIP, as many as can be fetched, at most 15. Raises #PF or #GP when there is none. */
unsigned hv_fetch(uint8_t bytes[HV_LONGEST_INSTRUCTION]);
unsigned hv_fetch_at(uint32_t eip, uint8_t bytes[HV_LONGEST_INSTRUCTION]); /* elsewhere in CS; raises nothing, 0 = none can be fetched */

/* ---- segments.c */
/* offset in a segment register's segment to a linear address, limit, type and null checked: raises #GP(0), of SS #SS(0). */
uint32_t hv_linear(unsigned segment, uint32_t offset, unsigned size, bool write);
void hv_load_segment(unsigned segment, uint16_t selector); /* MOV, POP, LDS...: DS ES FS GS SS; raises #GP, #NP, #SS */
void hv_load_ldtr(uint16_t selector);
void hv_load_tr(uint16_t selector);
bool hv_descriptor(uint16_t selector, uint32_t words[2]);  /* false: null, beyond its table; system access, raises #PF */
void hv_unpack(struct hv_segment *, uint16_t selector, const uint32_t words[2]);
void hv_mark_accessed(uint16_t selector, const uint32_t words[2]); /* of a code or data descriptor; raises #PF */
/* Descriptor words of a stack segment for that privilege level, checked; raises #GP or, if switching stacks, #TS, and #SS. */
void hv_check_stack_segment(uint16_t selector, unsigned level, bool switching, uint32_t external, uint32_t words[2]);
void hv_new_stack(unsigned level, uint32_t external, uint16_t *selector, uint32_t *esp); /* of the TSS; raises #TS */

/* ---- far.c: EIP is that of the instruction, next the one behind it; size 2 or 4 */
void hv_far_jump(uint16_t selector, uint32_t offset);
void hv_far_call(uint16_t selector, uint32_t offset, unsigned size, uint32_t next);
void hv_far_return(unsigned size, uint32_t release);
void hv_interrupt_return(unsigned size);
void hv_drop_inner_segments(void); /* data segments that an outer level, which is returned to, may not use are lost (SDM vol. 2B, "RET") */

/* ---- sensitive.c */
void hv_check_io(uint16_t port, unsigned size); /* IOPL and the TSS's bit map; raises #GP(0) */

/* ---- control.c */
void hv_write_cr0(uint32_t value); /* raise #GP(0) */
void hv_write_cr4(uint32_t value);

/* ---- msr.c */
uint64_t hv_read_msr(uint32_t number);
void hv_write_msr(uint32_t number, uint64_t value); /* raises #GP(0) */
void hv_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/* ---- fpu.c */
bool hv_fpu_instruction(const struct hv_insn *); /* 0F AE: FXSAVE, FXRSTOR; false: another one */

/* ---- emulate.c's last resort, x87.c and sse.c: x87, MMX, SSE and SSE2 instructions, by the processor on an operand of ours. Raise #MF, #XM */
bool hv_x87(const struct hv_insn *);
bool hv_sse(const struct hv_insn *);

/* ---- twins.c: the guest's segments in the host's LDT */
uint16_t hv_twin(const struct hv_segment *);              /* the host selector that acts like this one */
uint16_t hv_twin_below(const struct hv_segment *, uint32_t end); /* and ends there; of a page */
uint16_t hv_twin_above(const struct hv_segment *, uint32_t start); /* or begins there; of flat data segments and null, of the GDT's first HV_TWINS_ABOVE */
#define HV_TWINS_ABOVE 32u
unsigned hv_twin_place(uint16_t host); /* of one of the guest's GDT: its index there */
void hv_twin_code(unsigned entry); /* no twin, but a flat segment for the monitor's own 32-bit code, at that place of the host's LDT */
bool hv_twin_guest_selector(uint16_t host, uint16_t *guest); /* false: no twin, but a selector of the host's own GDT */

/* ---- signals.c */
void hv_on_signal(int signal, siginfo_t *, void *context);
bool hv_fpu_publish(void); /* the guest's x87 and SSE registers into cell.cpu.fxsave; true: they are live in the processor, with all beyond them */
void hv_fpu_adopt(void);   /* the reverse, after the runner has changed the state */
void hv_fpu_return(void);  /* the reverse, after an instruction: what is beyond them stays */
void hv_enter_first(void) __attribute__((noreturn)); /* the guest's first instruction, from main() */
_Noreturn void hv_abandon(void);                     /* the runner has replaced the state: unwind, and go on from it */

/* ---- emulate.c */
/* The memory operand's linear address (ModRM, SIB, displacement, segment, wrapped to the address size). */
uint32_t hv_operand_offset(const struct hv_insn *);        /* effective address */
unsigned hv_operand_segment(const struct hv_insn *);       /* its segment register */
uint32_t hv_operand_linear(const struct hv_insn *, unsigned size, bool write);
uint32_t hv_get_register(unsigned index, unsigned size);   /* size 1: AL CL DL BL AH CH DH BH */
void hv_set_register(unsigned index, unsigned size, uint32_t value);
uint32_t hv_get_rm(const struct hv_insn *, unsigned size); /* register or memory operand */
void hv_set_rm(const struct hv_insn *, unsigned size, uint32_t value);
/* Stack of the present SS; size 2 or 4. Push writes, then moves ESP; the other two access depth bytes below and above ESP, which they
 * do not move. */
void hv_push(unsigned size, uint32_t value);
void hv_push_at(unsigned size, uint32_t depth, uint32_t value);
uint32_t hv_pop_at(unsigned size, uint32_t depth);
void hv_add_esp(int32_t bytes); /* SS.B decides on SP or ESP */
bool hv_done(const struct hv_insn *); /* EIP to the next instruction; true */

/* What an instruction needs of x87, MMX and SSE (SDM vol. 3A, 2.5 and 13.1). */
enum hv_fpu { HV_FPU_NONE, HV_FPU_X87, HV_FPU_SSE, HV_FPU_WAIT, HV_FPU_AVX /* which only programs know of */, HV_FPU_KINDS };
enum hv_fpu hv_fpu_kind(const struct hv_insn *);
bool hv_fpu_traps(enum hv_fpu); /* with CR0 and CR4 as they are */

/* Execute the instruction at CS:EIP in the monitor. An instruction that the decoder or the interpreters do not know ends in
 * hv_fail() with its bytes; one that IA-32 does not define raises #UD. */
void hv_emulate(void);
void hv_fetch_instruction(struct hv_insn *);   /* its two halves; the first raises what fetching and decoding do */
bool hv_may_lock(const struct hv_insn *);      /* LOCK before it is no #UD */
bool hv_interpret(const struct hv_insn *);     /* false: nothing was changed, the interpreters do not know it */
/* The guest's end: "the monitor cannot execute", what, bytes and address of an instruction; the other finds that at EIP itself. */
_Noreturn void hv_cannot_execute(const char *what, const uint8_t *bytes, unsigned length);
_Noreturn void hv_cannot(const char *what);
void hv_single_step_trap(const struct hv_insn *); /* it was executed with TF set: the #DB behind it, if it has one */
/* ---- withheld.c: a program that may not run natively now, because something that its kernel has asked for would not stop it there. */
static inline bool hv_withheld(void)
{
    const struct hv_cpu *cpu = HV_CPU;
    return cpu->cpl == 3 && (cpu->cr0 & (HV_CR0_TS | HV_CR0_EM) || cpu->cr4 & HV_CR4_TSD);
}
bool hv_shows_processor(const struct hv_insn *); /* it tells programs what the host's processor is; they must not hear different things at different times */
/* Executes some of its instructions, or one; false: the next one is to be executed by the processor, for one step (EFLAGS.TF). */
bool hv_withheld_interpret(void);
bool hv_withheld_interpret_one(void);

/* The interpreters: true = done, EIP included; false = not one of theirs, nothing was changed. */
bool hv_sensitive(const struct hv_insn *);
bool hv_execute(const struct hv_insn *);
bool hv_flow(const struct hv_insn *); /* of hv_execute */
bool hv_strings(const struct hv_insn *);
static inline uint32_t hv_sign_extended(uint32_t value, unsigned size)
{
    return size == 1 ? (uint32_t)(int8_t)value : size == 2 ? (uint32_t)(int16_t)value : value;
}

/* ---- leave.c */
uint32_t hv_port_in(uint16_t port, unsigned size);
void hv_port_out(uint16_t port, unsigned size, uint32_t value);
/* The same for elements of INS and OUTS, at least one and at most `count` (up to HV_AREA_STRING); they return how many. */
unsigned hv_port_in_string(uint16_t port, unsigned size, uint32_t *values, unsigned count);
unsigned hv_port_out_string(uint16_t port, unsigned size, const uint32_t *values, unsigned count);
void hv_serial_write(uint8_t byte); /* as to COM1, without a record */
uint64_t hv_mmio_read(uint64_t physical, unsigned size);
void hv_mmio_write(uint64_t physical, unsigned size, uint64_t value);
void hv_halt(void);                    /* HLT: until an interrupt; leaves when it will never come */
void hv_leave(enum hv_cell_reason);    /* to the runner and back; unwinds when the runner has changed the state */
_Noreturn void hv_fail(const char *format, ...) __attribute__((format(printf, 1, 2))); /* HV_CELL_ERROR: the guest cannot go on */
bool hv_timer_due(void);               /* it was when the monitor was entered, or nothing is known of it yet */
bool hv_timer_is_right(void);          /* there is no other next timer than the one that was armed */
void hv_arm_timer(void);               /* SIGALRM when the board's next timer is due */
bool hv_kicked(void);                  /* the runner wants the state at the next boundary: repeated instructions stop between turns */
uint64_t hv_tsc(void);                 /* the guest's time stamp counter */
void hv_cross_here(unsigned point, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3); /* a record of this instruction, timed since entry_ns or part_ns */
void hv_cross_next(void); /* what is recorded from here on begins now: an element of a string or of a multicall */

/* ---- entropy.c */
bool hv_entropy_serve(uint64_t physical); /* a write there asks for random numbers that are here; false: it is for the runner */

/* ---- callstack.c */
void hv_callstack_init(void); /* records have the guest's call stack, if that is wanted */

/* ---- walk.c, shadow.c */
struct hv_walk {
    uint64_t physical;
    bool writable, user, global, large, no_execute; /* of the entries, whatever CR0.WP says */
    bool accessed, dirty;                           /* of all entries on the way; of the last */
    uint32_t error;                            /* of a fault: the error code; bit 31 = there is one */
#define HV_WALK_FAULT 0x80000000u
};
void hv_walk(struct hv_walk *, uint32_t linear, bool write, bool user, bool fetch, bool set_bits); /* set_bits: accessed and dirty */
bool hv_directory_present(uint32_t linear); /* may anything be mapped in its 2 or 4 MiB? */
enum hv_shadow {
    HV_SHADOW_MAPPED,      /* try again */
    HV_SHADOW_GUEST_FAULT, /* the guest's own tables say so: walk->error */
    HV_SHADOW_EMULATE,     /* rightful, but nothing can be mapped there: MMIO, a hole, ROM, a page that the host reserves */
};
/* The guest touched a page that is not mapped, or not with these rights: map it. */
enum hv_shadow hv_shadow_fault(uint32_t linear, bool write, bool user, bool fetch, struct hv_walk *walk);
void hv_shadow_init(uint32_t least_address, unsigned most_mappings); /* vm.mmap_min_addr, or 0 with CAP_SYS_RAWIO; vm.max_map_count */
void hv_shadow_prefill(uint32_t linear, bool user); /* it is about to be touched, now that the guest has mapped it: if its entry says accessed */
void hv_shadow_load_cr3(void);
void hv_shadow_change_global(void); /* CR4.PGE has changed, and nothing else */
void hv_shadow_enter_programs(void); /* before they run, and before anything else of their view is looked at */
uint32_t hv_shadow_stale_end(void); /* under paravirt: below that address it is not looked at yet, and a kernel must not access it. 0 = it is */
void hv_shadow_flush(bool globals);
void hv_shadow_flush_page(uint32_t linear);
void hv_shadow_flush_pages(uint32_t linear, uint32_t count); /* the same as so many of them */
void hv_shadow_mode(unsigned cpl);   /* before the guest runs: supervisor pages out of user code's reach, and back */
void hv_shadow_physical_changed(uint64_t physical, uint64_t length);
uint8_t *hv_memory_at(uint64_t physical, bool write, uint64_t *left); /* RAM or ROM (not for write); NULL = MMIO or nothing. left: bytes to the region's end */
const struct hv_cell_region *hv_region_at(uint64_t physical); /* NULL = floats */

#endif
