/* Create, run, kick; waiting in HLT; the timer. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

#ifdef __x86_64__

#define COROUTINE_STACK (1u << 20)
#define TIMER_SIGNAL (SIGRTMIN + 5)
#define UC_CTL_WRITE_(type, arguments) ((type) | (arguments) << 26 | 1 << 30)
enum { UC_CTL_USE_EXITS_ = 4, UC_CTL_TCG_BUFFER_SIZE_ = 13 };
#define CODE_CACHE_BYTES (256u << 20) /* reserved, not resident; flushed when full */

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "kick() runs in signal handlers");

/* Inside the coroutine: execute until the emulator itself stops, report, again. */
static void emulate(void *argument)
{
    struct hv_emulator *e = argument;
    for (;;) {
        HV_AT(uint32_t, e->cpu, CPU_HALTED) = 0;
        HV_AT(int32_t, e->cpu, CPU_EXCEPTION_INDEX) = -1;
        HV_AT(uint8_t, e->cpu, CPU_STOP) = 0;
        HV_AT(uint8_t, e->cpu, CPU_STOPPED) = 0;
        HV_AT(int, e->uc, UC_INVALID_ERROR) = UC_ERR_OK_;
        HV_AT(int, e->uc, UC_NESTED_LEVEL) = 1; /* cpu_exec keeps its jump buffer in slot nested_level - 1 */
        e->result = e->unicorn.cpu_exec_x86_64(e->uc, e->cpu);
        HV_AT(int, e->uc, UC_NESTED_LEVEL) = 0;
        hv_coroutine_leave(&e->coroutine);
    }
}

static _Thread_local struct hv_emulator *volatile entered; /* this thread is in its run() */

/* The timer's signal, in the vcpu thread itself: makes translated code stop at the next block boundary. cpu_exit is three plain stores.
 * One that comes late may be of an emulator which this thread does not run any more, which may even be gone: run() looks for itself. */
static void on_timer(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    struct hv_emulator *e = info->si_value.sival_ptr;
    if (e != entered)
        return;
    e->timer_deadline_ns = 0; /* it has to be armed anew, even for the same time */
    e->unicorn.cpu_exit(e->cpu);
}

static void close_partly(struct hv_emulator *e)
{
    if (e->uc)
        e->unicorn.uc_close(e->uc);
    hv_mmio_free(e);
    hv_debug_free(e);
    free(e->code_pages);
    free(e->cpuid);
    hv_coroutine_destroy(&e->coroutine);
    free(e);
}

struct hv_emulator *hv_emulator_create(const char *library, struct hv_board *board, char *why, size_t why_size)
{
    struct hv_emulator *e = calloc(1, sizeof *e);
    if (!e) {
        snprintf(why, why_size, "out of memory");
        return NULL;
    }
    e->board = board;
    if (!hv_unicorn_open(&e->unicorn, library, why, why_size)) {
        free(e);
        return NULL;
    }
    int error = e->unicorn.uc_open(UC_ARCH_X86_, UC_MODE_64_, &e->uc);
    if (error == UC_ERR_OK_)
        error = e->unicorn.uc_ctl(e->uc, UC_CTL_WRITE_(UC_CTL_TCG_BUFFER_SIZE_, 1), CODE_CACHE_BYTES);
    if (error == UC_ERR_OK_)
        error = e->unicorn.uc_ctl(e->uc, UC_CTL_WRITE_(UC_CTL_USE_EXITS_, 1), 1); /* no "until" address: its look-up faults in the guest's MMU */
    uint64_t ignored;
    if (error == UC_ERR_OK_)
        error = e->unicorn.uc_reg_read(e->uc, 35, &ignored); /* makes the CPU */
    if (error != UC_ERR_OK_) {
        snprintf(why, why_size, "uc_open: %s", e->unicorn.uc_strerror(error));
        close_partly(e);
        return NULL;
    }
    e->cpu = HV_AT(CPUState *, e->uc, UC_CPU);
    e->env = (CPUX86State *)((uint8_t *)e->cpu + CPU_ENV);
    if (!hv_unicorn_verify(e, why, why_size)) {
        close_partly(e);
        return NULL;
    }
    /* By default every guest memory access is followed by a check that leaves in the middle of the instruction, half done. */
    HV_AT(uint8_t, e->uc, UC_NO_EXIT_REQUEST) = 1;
    if (!hv_hooks_install(e, why, why_size)) {
        close_partly(e);
        return NULL;
    }
    board->crossings.stack = hv_emulator_call_stack;
    board->crossings.owner = e;
    if (!hv_coroutine_create(&e->coroutine, COROUTINE_STACK, emulate, e)) {
        snprintf(why, why_size, "no memory for a stack");
        close_partly(e);
        return NULL;
    }
    struct sigaction action = { .sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART };
    sigaction(TIMER_SIGNAL, &action, NULL);
    return e;
}

void hv_emulator_abandon(struct hv_emulator *e);

void hv_emulator_close(struct hv_emulator *e)
{
    if (e->timer_made)
        timer_delete(e->timer);
    if (e->board->crossings.owner == e)
        e->board->crossings.stack = NULL;
    hv_emulator_abandon(e); /* Unicorn is closed from outside of its loop only */
    close_partly(e);
}

/* RAM at guest-physical `address`, from `memory`. The range at 0 must come first: RAM addresses equal guest-physical ones there. */
bool hv_emulator_map_ram(struct hv_emulator *e, uint64_t address, uint64_t length, void *memory)
{
    if (address == 0)
        e->low_ram = length, e->low_ram_memory = memory;
    else
        e->high_ram_memory = memory;
    return hv_code_pages_grow(e, length) && e->unicorn.uc_mem_map_ptr(e->uc, address, length, UC_PROT_ALL_, memory) == UC_ERR_OK_;
}

/* After all RAM. The guest reads and executes it; what it writes is lost (run). */
bool hv_emulator_map_rom(struct hv_emulator *e, uint64_t address, uint64_t length, void *memory)
{
    return e->unicorn.uc_mem_map_ptr(e->uc, address, length, UC_PROT_READ_ | UC_PROT_EXEC_, memory) == UC_ERR_OK_;
}

bool hv_emulator_set_cpuid(struct hv_emulator *e, const struct hv_cpuid_entry *entries, unsigned count)
{
    struct hv_cpuid_entry *copy = calloc(count ? count : 1, sizeof *copy);
    if (!copy)
        return false;
    memcpy(copy, entries, count * sizeof *copy);
    free(e->cpuid);
    e->cpuid = copy;
    e->cpuid_count = count;
    return true;
}

void hv_emulator_native_cpuid(struct hv_emulator *e, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    e->unicorn.cpu_x86_cpuid_x86_64(e->env, leaf, subleaf, &out[0], &out[1], &out[2], &out[3]);
}

/* What the CPU itself must refuse, beside not being reported: word 0 = CPUID.1:EDX, 1 = CPUID.1:ECX, ... (FeatureWord). */
void hv_emulator_mask_feature(struct hv_emulator *e, unsigned word, uint32_t bits)
{
    (&HV_AT(uint32_t, e->env, ENV_FEATURES))[word] &= ~bits;
}

/* From any thread: run() returns INTERRUPTED soon. */
void hv_emulator_kick(struct hv_emulator *e)
{
    atomic_store(&e->kicked, 1);
    e->unicorn.cpu_exit(e->cpu);
    syscall(SYS_futex, &e->kicked, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void hv_emulator_inject(struct hv_emulator *e, uint8_t vector)
{
    e->injected = true;
    e->injected_vector = vector;
    hv_update_interrupt(e);
}

void hv_emulator_memory_changed(struct hv_emulator *e, uint64_t address, uint64_t length)
{
    if (address >= 1ull << 32) /* Unicorn numbers RAM in the order in which it was mapped */
        address = address - (1ull << 32) + e->low_ram;
    if (!hv_code_pages_any(e, address, length)) /* DMA into data: nothing to look for */
        return;
    hv_hooks_enter_thread(e);
    e->unicorn.tb_invalidate_phys_range_x86_64(e->uc, address, address + length);
    hv_hooks_enter_thread(NULL);
}

/* Many ranges: addresses and lengths in turn. */
void hv_emulator_memory_changed_at(struct hv_emulator *e, const uint64_t *ranges, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        hv_emulator_memory_changed(e, ranges[2 * i], ranges[2 * i + 1]);
}

/* The timer's signal goes to one thread: the one that runs the emulator now. */
static bool own_timer(struct hv_emulator *e)
{
    pid_t thread = (pid_t)syscall(SYS_gettid);
    if (e->timer_made && e->timer_thread == thread)
        return true;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, TIMER_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    if (e->timer_made)
        timer_delete(e->timer);
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = TIMER_SIGNAL, .sigev_value.sival_ptr = e };
    event._sigev_un._tid = thread;
    e->timer_made = timer_create(CLOCK_MONOTONIC, &event, &e->timer) == 0;
    e->timer_thread = thread;
    e->timer_deadline_ns = 0;
    return e->timer_made;
}

/* Let the signal come when the board's next timer is due. */
void hv_arm_timer(struct hv_emulator *e)
{
    uint64_t deadline_ns = hv_board_deadline(e->board);
    if (deadline_ns == e->timer_deadline_ns)
        return;
    struct itimerspec when = { 0 };
    if (deadline_ns != HV_NEVER) {
        when.it_value.tv_sec = (time_t)(deadline_ns / 1000000000u);
        when.it_value.tv_nsec = (long)(deadline_ns % 1000000000u);
        if (!when.it_value.tv_sec && !when.it_value.tv_nsec)
            when.it_value.tv_nsec = 1; /* zero would disarm */
    }
    e->timer_deadline_ns = deadline_ns; /* first: the signal may come at once */
    timer_settime(e->timer, TIMER_ABSTIME, &when, NULL);
}

/* HLT: sleep until a timer or a kick. */
static void sleep_until(struct hv_emulator *e, uint64_t deadline_ns)
{
    struct timespec when = { (time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u) };
    syscall(SYS_futex, &e->kicked, FUTEX_WAIT_BITSET_PRIVATE, 0, deadline_ns == HV_NEVER ? NULL : &when, NULL, FUTEX_BITSET_MATCH_ANY);
}

static int finish(struct hv_emulator *e, uint32_t reason)
{
    e->exit.reason = reason;
    e->exit.rip = hv_linear_rip(e);
    e->exit.flags = hv_record_flags(e);
    e->exit.start_ns = hv_host_ns();
    return (int)reason;
}

static int fail(struct hv_emulator *e, int error)
{
    e->exit.error = error;
    e->exit.address = hv_linear_rip(e);
    snprintf(e->exit.detail, sizeof e->exit.detail, "%s", e->unicorn.uc_strerror(error));
    return finish(e, HV_EXIT_ERROR);
}

/* Wait for an interrupt. Returns false when a kick came first. */
static bool halt(struct hv_emulator *e)
{
    struct hv_crossings *crossings = &e->board->crossings;
    uint64_t start = hv_host_ns(), rip = hv_linear_rip(e);
    while (!hv_board_advance(e->board) && !e->injected && !e->board->lapic.nmi) {
        if (atomic_load(&e->kicked)) {
            crossings->counters->halted_ns += hv_host_ns() - start;
            HV_AT(uint32_t, e->cpu, CPU_HALTED) = 1; /* still halted when run() is called again */
            return false;
        }
        hv_console_rest(e->board->console, e->board->out_event);
        sleep_until(e, hv_board_deadline(e->board));
    }
    HV_AT(uint32_t, e->cpu, CPU_HALTED) = 0;
    e->debug.waking = e->debug.step;
    crossings->counters->halted_ns += hv_host_ns() - start;
    hv_cross(crossings, HV_POINT_HALT, start, rip, hv_record_flags(e), 1, 0, 0, 0);
    return true;
}

static int run(struct hv_emulator *e)
{
    struct hv_counters *counters = e->board->crossings.counters;
    for (;;) {
        if (e->gave_up)
            return finish(e, HV_EXIT_ERROR);
        if (!e->in_hook) {
            if (atomic_exchange(&e->kicked, 0))
                return finish(e, HV_EXIT_INTERRUPTED);
            if (HV_AT(uint32_t, e->cpu, CPU_HALTED) == 1 && !halt(e))
                continue;
            hv_board_advance(e->board);
            hv_update_interrupt(e);
            hv_debug_before_run(e);
        }
        hv_arm_timer(e);
        uint64_t start = hv_host_ns();
        if (!counters->first_instruction_ns)
            counters->first_instruction_ns = start;
        hv_coroutine_enter(&e->coroutine);
        counters->run_ns += hv_host_ns() - start;
        if (e->gave_up)
            continue;
        if (e->in_hook && !e->protected_pages) { /* translated without a word to us: stores to code would go unnoticed */
            snprintf(e->exit.detail, sizeof e->exit.detail, "Unicorn's code tracking is not wired up");
            return finish(e, HV_EXIT_ERROR);
        }
        if (e->in_hook)
            return (int)e->exit.reason;
        int error = HV_AT(int, e->uc, UC_INVALID_ERROR);
        if (error == UC_ERR_WRITE_PROT_) { /* a store to ROM did nothing, and the block went on to its end: all is well */
            HV_AT(int, e->uc, UC_INVALID_ERROR) = UC_ERR_OK_;
            error = UC_ERR_OK_;
        }
        if (error != UC_ERR_OK_)
            return fail(e, error);
        switch (e->result) {
        case EXCP_INTERRUPT: /* kicked, or a timer is due */
        case EXCP_HALTED:
            break;
        case EXCP_DEBUG:
            if (hv_debug_stopped(e))
                return finish(e, HV_EXIT_DEBUG);
            break;
        case EXCP_HLT:
            if (!HV_AT(uint32_t, e->cpu, CPU_HALTED)) /* QEMU's way of saying triple fault */
                return finish(e, HV_EXIT_SHUTDOWN);
            if (!(hv_env64(e, ENV_EFLAGS) & EFLAGS_IF))
                return finish(e, HV_EXIT_HALT);
            break;
        default:
            snprintf(e->exit.detail, sizeof e->exit.detail, "the emulator stopped with code %#x", e->result);
            return finish(e, HV_EXIT_ERROR);
        }
    }
}

/* Runs the guest; returns and fills e->exit with an enum hv_exit_reason. In any thread, one at a time. */
int hv_emulator_run(struct hv_emulator *e)
{
    e->exit.detail[0] = 0;
    if (!own_timer(e)) {
        snprintf(e->exit.detail, sizeof e->exit.detail, "no timer (%s); its limit is RLIMIT_SIGPENDING", strerror(errno));
        return finish(e, HV_EXIT_ERROR);
    }
    hv_hooks_enter_thread(e);
    entered = e;
    if (e->timer_deadline_ns && hv_host_ns() >= e->timer_deadline_ns) { /* its signal may have come while nobody ran */
        e->timer_deadline_ns = 0;
        e->unicorn.cpu_exit(e->cpu);
    }
    int reason = run(e);
    entered = NULL;
    hv_hooks_enter_thread(NULL); /* what runs in this thread next may be another user of the library, at the same address */
    return reason;
}

/* Drop the instruction that waits for the answer to the last exit, if there is one. hv_emulator_set_state or _close must follow. */
void hv_emulator_abandon(struct hv_emulator *e)
{
    if (!e->in_hook)
        return;
    hv_hooks_enter_thread(e);
    e->abandon = true;
    hv_coroutine_enter(&e->coroutine);
    hv_hooks_enter_thread(NULL);
}

struct hv_exit *hv_emulator_exit(struct hv_emulator *e) { return &e->exit; }
#endif
