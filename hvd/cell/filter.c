/* The seccomp filter: what leaves a cell. It is loaded when all is set up, and then nothing but this table gets through.
 *
 * The monitor needs these few calls. Guest code that has jumped to a 64-bit segment could make them, too, even out of the monitor's own
 * text, so that the arguments are what keeps it in: mappings of the guest's memory file below 4 GiB (and in the kernel's window), its own
 * LDT and timer, the eventfds in their direction. The host's 32-bit system calls (INT 80 of guests) become SIGSYS; everything else is
 * the end of the process.
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "area.h"
#include "start.h"

#define X32 0x40000000u /* the bit in the numbers of its calls */
#define LDT_WRITE 0x11u

enum check { END, EQUAL /* 32 bits */, ONE_OF /* a or b */, SUBSET /* no bits but those of a, and all of b */, RANGE /* argument, and its length in a */ };

struct rule {
    unsigned call;
    struct {
        enum check check;
        unsigned argument;
        uint32_t a, b;
    } checks[5];
};

#define PROTECTION (PROT_READ | PROT_WRITE | PROT_EXEC)
#define MAPPING (MAP_SHARED | MAP_FIXED)

/* From anywhere: they do nothing to others, and a filter that does not look further is answered from the kernel's cache. */
static const unsigned anywhere[] = {SYS_rt_sigreturn, SYS_clock_gettime};

/* From the monitor's text; the most frequent first. */
static const struct rule rules[] = {
    {SYS_mmap, {{RANGE, 0, 1, 0}, {SUBSET, 2, PROTECTION, 0}, {SUBSET, 3, MAPPING | MAP_POPULATE, MAPPING}, {ONE_OF, 4, HV_CELL_FD_MEMORY, HV_CELL_FD_SITES}}},
    {SYS_munmap, {{RANGE, 0, 1, 0}}},
    {SYS_mprotect, {{RANGE, 0, 1, 0}, {SUBSET, 2, PROTECTION, 0}}},
    {SYS_madvise, {{ONE_OF, 2, MADV_POPULATE_WRITE, MADV_POPULATE_READ}}}, /* what a store to each page, or a load, would do */
    {SYS_timer_settime, {{END, 0, 0, 0}}},
    {SYS_write, {{ONE_OF, 0, HV_CELL_FD_LEFT, HV_CELL_FD_CONSOLE}, {EQUAL, 2, sizeof(uint64_t), 0}}},
    {SYS_read, {{EQUAL, 0, HV_CELL_FD_GO, 0}, {EQUAL, 2, sizeof(uint64_t), 0}}},
    {SYS_rt_sigtimedwait, {{END, 0, 0, 0}}},
    {SYS_modify_ldt, {{EQUAL, 0, LDT_WRITE, 0}}},
    {SYS_restart_syscall, {{END, 0, 0, 0}}},
    {SYS_exit_group, {{END, 0, 0, 0}}},
    {SYS_getpid, {{END, 0, 0, 0}}},
    {SYS_gettid, {{END, 0, 0, 0}}},
    {SYS_ioctl, {{EQUAL, 0, HV_CELL_FD_BREAKPOINT, 0}, {EQUAL, 1, (uint32_t)PERF_EVENT_IOC_MODIFY_ATTRIBUTES, 0}}},
    {SYS_prctl, {{EQUAL, 0, PR_SET_TSC, 0}}},
    {SYS_rt_sigprocmask, {{END, 0, 0, 0}}}, /* once, at the start; a signal frame can do the same */
};

struct program {
    struct sock_filter *at;
    unsigned length;
};

static void emit(struct program *p, struct sock_filter instruction) { p->at[p->length++] = instruction; }

static void load(struct program *p, unsigned offset) { emit(p, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)); }
static void load_low(struct program *p, unsigned argument) { load(p, offsetof(struct seccomp_data, args) + 8 * argument); }
static void load_high(struct program *p, unsigned argument) { load(p, offsetof(struct seccomp_data, args) + 8 * argument + 4); }
static void jump(struct program *p, unsigned kind, uint32_t k, uint8_t yes, uint8_t no)
{
    emit(p, (struct sock_filter)BPF_JUMP(BPF_JMP | kind, k, yes, no));
}
static void answer(struct program *p, uint32_t action) { emit(p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action)); }
static void end(struct program *p) { answer(p, SECCOMP_RET_KILL_PROCESS); }

/* Does [argument, argument + length) lie in the guest's views: [0, 4 GiB), and with the window [12 GiB, 16 GiB)? */
static void range(struct program *p, unsigned argument, unsigned length, bool window)
{
    load_high(p, argument);
    jump(p, BPF_JEQ | BPF_K, 0, window ? 2 : 1, 0);
    if (window)
        jump(p, BPF_JEQ | BPF_K, (uint32_t)(HV_WINDOW >> 32), 1, 0);
    end(p);
    /* length < 4 GiB: it fits if the start is 0, or if length <= 4 GiB - start, which is -start in 32 bits */
    load_low(p, argument);
    jump(p, BPF_JEQ | BPF_K, 0, 8, 0);
    load_high(p, length);
    jump(p, BPF_JEQ | BPF_K, 0, 1, 0);
    end(p);
    load_low(p, length);
    emit(p, (struct sock_filter)BPF_STMT(BPF_MISC | BPF_TAX, 0));
    load_low(p, argument);
    emit(p, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_NEG, 0));
    jump(p, BPF_JGE | BPF_X, 0, 6, 5);
    /* start 0: up to 4 GiB */
    load_high(p, length);
    jump(p, BPF_JEQ | BPF_K, 0, 4, 0);
    jump(p, BPF_JEQ | BPF_K, 1, 0, 2);
    load_low(p, length);
    jump(p, BPF_JEQ | BPF_K, 0, 1, 0);
    end(p);
}

static void check(struct program *p, enum check kind, unsigned argument, uint32_t a, uint32_t b, bool window)
{
    switch (kind) {
    case END:
        return;
    case EQUAL:
        load_low(p, argument);
        jump(p, BPF_JEQ | BPF_K, a, 1, 0);
        break;
    case ONE_OF:
        load_low(p, argument);
        jump(p, BPF_JEQ | BPF_K, a, 2, 0);
        jump(p, BPF_JEQ | BPF_K, b, 1, 0);
        break;
    case SUBSET: /* (value & (~a | b)) == b */
        load_low(p, argument);
        emit(p, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~a | b));
        jump(p, BPF_JEQ | BPF_K, b, 1, 0);
        break;
    case RANGE:
        range(p, argument, a, window);
        return;
    }
    end(p);
}

static void allow(struct program *p, const struct rule *rule, bool window)
{
    struct sock_filter body[80];
    struct program inner = {body, 0};
    for (unsigned i = 0; i < sizeof rule->checks / sizeof *rule->checks && rule->checks[i].check != END; i++)
        check(&inner, rule->checks[i].check, rule->checks[i].argument, rule->checks[i].a, rule->checks[i].b, window);
    answer(&inner, SECCOMP_RET_ALLOW);
    jump(p, BPF_JEQ | BPF_K, rule->call, 0, (uint8_t)inner.length);
    for (unsigned i = 0; i < inner.length; i++)
        emit(p, body[i]);
}

/* Out of the filter unless the instruction pointer is in [start, end). */
static void require_text(struct program *p, uint64_t start, uint64_t end_address)
{
    const unsigned ip = offsetof(struct seccomp_data, instruction_pointer);
    for (int part = 0; part < 2; part++) { /* at least start; then at most end */
        uint64_t bound = part ? end_address : start;
        uint32_t high = (uint32_t)(bound >> 32), low = (uint32_t)bound;
        load(p, ip + 4);
        jump(p, BPF_JGT | BPF_K, high, part ? 3 : 4, 0);
        jump(p, BPF_JEQ | BPF_K, high, 0, part ? 3 : 2);
        load(p, ip);
        jump(p, part ? BPF_JGT | BPF_K : BPF_JGE | BPF_K, low, part ? 0 : 1, part ? 1 : 0);
        end(p);
    }
}

unsigned hv_filter(struct sock_filter *at, uint64_t text_start, uint64_t text_end, bool window, uint32_t pid)
{
    struct program program = {at, 0}, *p = &program;
    load(p, offsetof(struct seccomp_data, arch));
    jump(p, BPF_JEQ | BPF_K, AUDIT_ARCH_I386, 0, 1);
    answer(p, SECCOMP_RET_TRAP);
    jump(p, BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    end(p);
    load(p, offsetof(struct seccomp_data, nr));
    jump(p, BPF_JGE | BPF_K, X32, 0, 1);
    end(p);
    for (unsigned i = 0; i < sizeof anywhere / sizeof *anywhere; i++) {
        jump(p, BPF_JEQ | BPF_K, anywhere[i], 0, 1);
        answer(p, SECCOMP_RET_ALLOW);
    }
    require_text(p, text_start, text_end);
    load(p, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < sizeof rules / sizeof *rules; i++)
        allow(p, &rules[i], window);
    /* The first way into the guest: a signal to itself. */
    const struct rule itself = {SYS_tgkill, {{EQUAL, 0, pid, 0}, {EQUAL, 1, pid, 0}, {EQUAL, 2, HV_CELL_KICK_SIGNAL, 0}}};
    allow(p, &itself, window);
    end(p);
    return program.length;
}
