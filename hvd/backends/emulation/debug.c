/* Breakpoints, watchpoints and single steps: the debugger's, and those that the guest sets by its debug registers and TF.
 *
 * QEMU's code for breakpoints and steps is in the library and not wired up: BP_GDB breakpoints end a block with EXCP_DEBUG,
 * singlestep_enabled makes blocks of one instruction that end with it. Of watchpoints Unicorn left the marks in the TLB and cut out what
 * sets and checks them: that is here, between the library's parts (plt.c). Without watchpoints no TLB entry is marked and nothing here is
 * called by a memory access; without breakpoints the translator's list is empty.
 *
 * Both kinds live side by side. The guest's own (BP_CPU) end in #DB delivered to the guest, the debugger's (BP_GDB) in HV_EXIT_DEBUG. A step
 * crosses whatever the instruction does: it ends at the next instruction that the guest would execute, which after a trap, a fault or a
 * system call is the first of its handler. Interrupts from devices wait while the debugger steps (as with QEMU's SSTEP_NOIRQ and KVM's
 * KVM_GUESTDBG_BLOCKIRQ), except that a step over HLT waits for the interrupt that ends it.
 */
#include <stdlib.h>

#include "shim.h"

#ifdef __x86_64__

#define PAGE_OFFSET 0xFFFull
enum { ONE_INSTRUCTION = 1 }; /* cflags of a block: how many */

/* The library's own functions, once it is patched. */
static struct {
    int (*watchpoint_insert)(CPUState *, uint64_t, uint64_t, int, struct cpu_watchpoint **);
    void (*watchpoint_remove_by_ref)(CPUState *, struct cpu_watchpoint *);
    void (*watchpoint_remove_all)(CPUState *, int);
    int (*watchpoint_address_matches)(CPUState *, uint64_t, uint64_t);
    void (*check_watchpoint)(CPUState *, uint64_t, uint64_t, uint32_t, int, uintptr_t);
} original;

/* NULL = another user of the library in this process. */
static struct hv_emulator *emulator_of(CPUState *cpu) { return HV_AT(struct hv_emulator *, cpu, CPU_OPAQUE); }

/* Stop before the next block with EXCP_DEBUG. */
static void request_stop(struct hv_emulator *e)
{
    e->debug.requested = true;
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) |= CPU_INTERRUPT_DEBUG;
    *(int16_t *)(HV_AT(uint8_t *, e->cpu, CPU_ICOUNT_DECR_PTR) + 2) = -1;
}

static bool overlaps(const struct cpu_watchpoint *watchpoint, uint64_t address, uint64_t length)
{
    return address <= watchpoint->address + watchpoint->length - 1 && watchpoint->address <= address + length - 1;
}

/* ---- between the library's parts */

static int watchpoint_insert(CPUState *cpu, uint64_t address, uint64_t length, int flags, struct cpu_watchpoint **made)
{
    struct hv_emulator *e = emulator_of(cpu);
    if (!e)
        return original.watchpoint_insert(cpu, address, length, flags, made);
    struct cpu_watchpoint *watchpoint = calloc(1, sizeof *watchpoint);
    if (!watchpoint || !length || address + length - 1 < address) {
        free(watchpoint);
        return -1;
    }
    *watchpoint = (struct cpu_watchpoint){ .address = address, .length = length, .flags = flags, .next = e->debug.watchpoints };
    e->debug.watchpoints = watchpoint;
    e->unicorn.tlb_flush_x86_64(cpu); /* entries are marked when they are filled */
    if (made)
        *made = watchpoint;
    return 0;
}

static void watchpoint_remove_by_ref(CPUState *cpu, struct cpu_watchpoint *watchpoint)
{
    struct hv_emulator *e = emulator_of(cpu);
    if (!e) {
        original.watchpoint_remove_by_ref(cpu, watchpoint);
        return;
    }
    for (struct cpu_watchpoint **place = &e->debug.watchpoints; *place; place = &(*place)->next) {
        if (*place != watchpoint)
            continue;
        *place = watchpoint->next;
        if (HV_AT(struct cpu_watchpoint *, cpu, CPU_WATCHPOINT_HIT) == watchpoint)
            HV_AT(struct cpu_watchpoint *, cpu, CPU_WATCHPOINT_HIT) = NULL;
        free(watchpoint);
        e->unicorn.tlb_flush_x86_64(cpu);
        return;
    }
}

static void watchpoint_remove_all(CPUState *cpu, int mask)
{
    struct hv_emulator *e = emulator_of(cpu);
    if (!e) {
        original.watchpoint_remove_all(cpu, mask);
        return;
    }
    for (struct cpu_watchpoint *watchpoint = e->debug.watchpoints, *next; watchpoint; watchpoint = next) {
        next = watchpoint->next;
        if (watchpoint->flags & mask)
            watchpoint_remove_by_ref(cpu, watchpoint);
    }
}

/* A TLB entry is filled: which accesses to this page have to be looked at? */
static int watchpoint_address_matches(CPUState *cpu, uint64_t address, uint64_t length)
{
    struct hv_emulator *e = emulator_of(cpu);
    if (!e)
        return original.watchpoint_address_matches(cpu, address, length);
    int flags = 0;
    for (const struct cpu_watchpoint *watchpoint = e->debug.watchpoints; watchpoint; watchpoint = watchpoint->next)
        if (overlaps(watchpoint, address, length))
            flags |= watchpoint->flags;
    return flags;
}

/* An unaligned store is announced in two parts, by page. Within one page (QEMU 5's mistake) the first part's length is the negative offset
 * in the page, and the second part goes from the page's start to the store's end: put together, they are the store. False = no access. */
static bool real_store(struct hv_debug *debug, uint64_t *address, uint64_t *length)
{
    uint64_t start = debug->unaligned;
    debug->unaligned = 0;
    if ((int64_t)*length < 0) {
        debug->unaligned = *address;
        return false;
    }
    if (start && *address == (start & ~PAGE_OFFSET)) {
        *length -= start - *address;
        *address = start;
    }
    return *length != 0;
}

/* An access to a page with a watchpoint is about to happen. At a hit the instruction is given up and executed anew in a block of its own,
 * behind which the guest stops; while an exception is delivered it cannot be given up, and the guest stops behind the delivery. */
static void check_watchpoint(CPUState *cpu, uint64_t address, uint64_t length, uint32_t attributes, int flags, uintptr_t host_pc)
{
    struct hv_emulator *e = emulator_of(cpu);
    if (!e) {
        original.check_watchpoint(cpu, address, length, attributes, flags, host_pc);
        return;
    }
    struct hv_debug *debug = &e->debug;
    struct cpu_watchpoint **hit = &HV_AT(struct cpu_watchpoint *, cpu, CPU_WATCHPOINT_HIT);
    if (flags & BP_MEM_WRITE && !real_store(debug, &address, &length))
        return;
    if (*hit) {
        request_stop(e);
        return;
    }
    for (struct cpu_watchpoint *watchpoint = debug->watchpoints; watchpoint; watchpoint = watchpoint->next) {
        watchpoint->flags &= ~BP_WATCHPOINT_HIT;
        if (!(watchpoint->flags & flags) || !overlaps(watchpoint, address, length))
            continue;
        watchpoint->flags |= flags & BP_MEM_WRITE ? BP_WATCHPOINT_HIT_WRITE : BP_WATCHPOINT_HIT_READ;
        watchpoint->hit_address = address > watchpoint->address ? address : watchpoint->address;
        if (watchpoint->flags & BP_GDB) {
            debug->hit = true;
            debug->hit_address = watchpoint->hit_address;
        }
        if (!*hit || watchpoint->flags & BP_CPU) /* the guest's comes first: its #DB, then the debugger's stop in its handler */
            *hit = watchpoint;
    }
    if (!*hit)
        return;
    if (debug->delivering || !e->unicorn.cpu_restore_state_x86_64(cpu, host_pc, true)) {
        request_stop(e);
        return;
    }
    hv_replay_begin(e);
    hv_debug_replay_alone(e);
    HV_AT(int32_t, cpu, CPU_EXCEPTION_INDEX) = -1;
    e->unicorn.cpu_loop_exit_x86_64(cpu);
}

const struct hv_redirection hv_debug_redirections[] = {
    { "cpu_watchpoint_insert_x86_64", watchpoint_insert, (void **)&original.watchpoint_insert },
    { "cpu_watchpoint_remove_by_ref_x86_64", watchpoint_remove_by_ref, (void **)&original.watchpoint_remove_by_ref },
    { "cpu_watchpoint_remove_all_x86_64", watchpoint_remove_all, (void **)&original.watchpoint_remove_all },
    { "cpu_watchpoint_address_matches_x86_64", watchpoint_address_matches, (void **)&original.watchpoint_address_matches },
    { "cpu_check_watchpoint_x86_64", check_watchpoint, (void **)&original.check_watchpoint },
};
const size_t hv_debug_redirection_count = sizeof hv_debug_redirections / sizeof *hv_debug_redirections;

/* ---- while the guest runs */

static bool has_breakpoint(const struct hv_emulator *e, int flags)
{
    uint64_t rip = hv_linear_rip(e);
    for (const struct cpu_breakpoint *b = HV_AT(struct cpu_breakpoint *, e->cpu, CPU_BREAKPOINTS); b; b = b->next)
        if (b->pc == rip && b->flags & flags)
            return true;
    return false;
}

/* CPUClass.debug_excp_handler, after EXCP_DEBUG: the original raises #DB where the guest has a breakpoint or had a watchpoint hit. A stop
 * that merely came to rest at a breakpoint of the guest is not meant: that raises #DB when it is about to be executed. */
static void debug_exception(CPUState *cpu)
{
    struct hv_emulator *e = emulator_of(cpu);
    if (e->debug.requested || HV_AT(int, cpu, CPU_SINGLESTEP)) {
        e->debug.requested = false;
        if (!HV_AT(void *, cpu, CPU_WATCHPOINT_HIT))
            return;
    }
    e->unicorn.breakpoint_handler_x86_64(cpu);
}

void hv_debug_install(struct hv_emulator *e)
{
    HV_AT(void *, e->cpu, CPU_OPAQUE) = e;
    HV_AT(void **, e->cpu, CPU_CLASS)[CLASS_DEBUG_EXCEPTION] = (void *)debug_exception;
}

static void set_single_step(struct hv_emulator *e, bool on)
{
    int *enabled = &HV_AT(int, e->cpu, CPU_SINGLESTEP);
    if (*enabled == on)
        return;
    *enabled = on;
    e->unicorn.tb_flush_x86_64(e->cpu); /* blocks know it since their translation */
}

/* QEMU's single step is deaf to the guest's own TF and to breakpoints. With either the guest gets #DB after or before this instruction, which
 * ends the step by itself. */
void hv_debug_before_run(struct hv_emulator *e)
{
    if (e->debug.replay)
        hv_debug_replay_alone(e);
    uint64_t eflags = hv_env64(e, ENV_EFLAGS);
    bool guest_traps = eflags & EFLAGS_TF || (!(eflags & EFLAGS_RF) && has_breakpoint(e, BP_CPU));
    set_single_step(e, e->debug.step && !guest_traps);
}

/* The instruction at RIP is to be executed in a block of its own. A signal may come before that block begins: the library has forgotten the
 * wish then, and would go on with the block that it knows. So it has to ask for interrupts, which are held, before each block. */
void hv_debug_replay_alone(struct hv_emulator *e)
{
    HV_AT(uint32_t, e->cpu, CPU_CFLAGS_NEXT_TB) = ONE_INSTRUCTION;
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) |= CPU_INTERRUPT_HARD;
}

bool hv_debug_holds_interrupts(const struct hv_emulator *e)
{
    return (e->debug.step && !e->debug.waking) || e->debug.replay;
}

void hv_debug_delivered(struct hv_emulator *e)
{
    e->debug.delivering = false;
    if (e->debug.step || e->debug.hit)
        request_stop(e);
}

/* An exception that is not INT n's is about to be delivered. #DB: the instruction that hit has been executed, DR6 names the hits, and the next
 * #DB has hits of its own. Another: the guest's breakpoints for data are traps, so that an instruction that faults after a hit has had none (SDM
 * vol. 3B, 18.2), and is executed once more from its start. A debugger is told all the same. */
void hv_debug_raised(struct hv_emulator *e, uint32_t vector)
{
    struct cpu_watchpoint **hit = &HV_AT(struct cpu_watchpoint *, e->cpu, CPU_WATCHPOINT_HIT);
    if (vector != 1 && (!*hit || e->debug.hit || e->debug.delivering))
        return;
    for (struct cpu_watchpoint *watchpoint = e->debug.watchpoints; watchpoint; watchpoint = watchpoint->next)
        if (watchpoint->flags & BP_CPU)
            watchpoint->flags &= ~BP_WATCHPOINT_HIT;
    hv_replay_end(e);
    if (vector == 1)
        return;
    *hit = NULL;
    e->debug.requested = false;
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) &= ~(uint32_t)CPU_INTERRUPT_DEBUG;
}

bool hv_debug_stopped(struct hv_emulator *e)
{
    struct hv_debug *debug = &e->debug;
    bool hit = debug->hit;
    uint64_t rip = hv_linear_rip(e);
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) &= ~(uint32_t)CPU_INTERRUPT_DEBUG;
    HV_AT(void *, e->cpu, CPU_WATCHPOINT_HIT) = NULL;
    debug->hit = debug->requested = debug->waking = debug->delivering = false;
    hv_replay_end(e);
    e->exit.size = 0;
    e->exit.address = hit ? debug->hit_address : rip;
    e->exit.value = hit ? HV_DEBUG_WATCHPOINT : debug->step ? HV_DEBUG_STEP : HV_DEBUG_BREAKPOINT;
    return hit || debug->step || has_breakpoint(e, BP_GDB);
}

/* A hit whose instruction has not been executed anew yet is forgotten: it will be executed from its start, and looked at again. */
void hv_debug_reset(struct hv_emulator *e)
{
    struct hv_debug *debug = &e->debug;
    debug->hit = debug->requested = debug->waking = debug->delivering = false;
    hv_replay_end(e);
    debug->unaligned = 0;
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) &= ~(uint32_t)CPU_INTERRUPT_DEBUG;
    HV_AT(void *, e->cpu, CPU_WATCHPOINT_HIT) = NULL;
    HV_AT(uint32_t, e->cpu, CPU_CFLAGS_NEXT_TB) = ~0u;
}

/* After Unicorn was closed. */
void hv_debug_free(struct hv_emulator *e)
{
    while (e->debug.watchpoints) {
        struct cpu_watchpoint *watchpoint = e->debug.watchpoints;
        e->debug.watchpoints = watchpoint->next;
        free(watchpoint);
    }
}

/* ---- for the debugger, between two run()s */

void hv_emulator_set_step(struct hv_emulator *e, bool step) { e->debug.step = step; }

/* Linear addresses. False: no memory. */
bool hv_emulator_set_breakpoint(struct hv_emulator *e, uint64_t address, bool set)
{
    hv_hooks_enter_thread(e);
    int error = set ? e->unicorn.cpu_breakpoint_insert_x86_64(e->cpu, address, BP_GDB, NULL)
                    : e->unicorn.cpu_breakpoint_remove_x86_64(e->cpu, address, BP_GDB);
    hv_hooks_enter_thread(NULL);
    return error == 0;
}

bool hv_emulator_set_watchpoint(struct hv_emulator *e, uint64_t address, uint64_t length, bool read, bool write, bool set)
{
    int flags = BP_GDB | (read ? BP_MEM_READ : 0) | (write ? BP_MEM_WRITE : 0);
    bool done = false;
    hv_hooks_enter_thread(e);
    if (set) {
        done = watchpoint_insert(e->cpu, address, length, flags, NULL) == 0;
    } else {
        struct cpu_watchpoint *watchpoint = e->debug.watchpoints;
        while (watchpoint && (watchpoint->address != address || watchpoint->length != length ||
                              (watchpoint->flags & ~BP_WATCHPOINT_HIT) != flags))
            watchpoint = watchpoint->next;
        if ((done = watchpoint != NULL))
            watchpoint_remove_by_ref(e->cpu, watchpoint);
        hv_debug_reset(e); /* it may be the one that was hit just before run() was interrupted */
    }
    hv_hooks_enter_thread(NULL);
    return done;
}
#endif
