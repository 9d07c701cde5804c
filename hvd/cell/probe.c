/* hvd-cell --probe: has this host what a cell needs? Each thing is really tried, in a process of its own, since a host may answer by a
 * signal as well as by an error. A line for each on standard output: NAME ok, or NAME failed PROBLEM (hvd/cell/process.py has the words). */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "start.h"

#define HWCAP2_FSGSBASE_ 2u
#define USER_CODE_32 0x23 /* the host's flat 32-bit code segment */
#define LDT_CODE 7        /* entry 0, user */
#define CODE_AT 0x100000u /* above every vm.mmap_min_addr that is usual */
#define TRAP_GP 13

static uint16_t expected_cs;
static uint8_t stack[64 << 10];

static _Noreturn void tell(int status) { _exit(status); }

/* The 32-bit code has run: it is there that the signal came from, and it is the one that was to come. */
static void on_signal(int signal, siginfo_t *info, void *context)
{
    const greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    bool there = (uint16_t)g[REG_CSGSFS] == expected_cs && g[REG_RIP] >> 12 == CODE_AT >> 12;
    bool call = signal == SIGSYS && (uint32_t)info->si_arch == AUDIT_ARCH_I386;
    bool refused = signal == SIGSEGV && g[REG_TRAPNO] == TRAP_GP; /* hosts whose INT 80 is switched off: just as good */
    tell(there && (signal == SIGTRAP || call || refused) ? 0 : EPROTO);
}

/* Run these bytes as 32-bit code; the next signal tells. */
static _Noreturn void run_32(const void *code, size_t length, uint16_t selector)
{
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGSYS, SIGILL, SIGBUS};
    sigaltstack(&alternate, NULL);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    uint8_t *page = mmap((void *)(uintptr_t)CODE_AT, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (page == MAP_FAILED)
        tell(errno);
    memcpy(page, code, length);
    expected_cs = selector;
    struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) target = {CODE_AT, selector};
    __asm__ volatile("ljmpl *%0" : : "m"(target));
    __builtin_unreachable();
}

static const uint8_t breakpoint[] = {0xcc}, call[] = {0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xf4}; /* INT3; getpid by INT 80, HLT */

static void try_segments(void) { run_32(breakpoint, sizeof breakpoint, USER_CODE_32); }

static void try_ldt(void)
{
    struct user_desc segment = {.entry_number = 0, .limit = 0xbffff, .limit_in_pages = 1, .seg_32bit = 1, .contents = 2 /* code */};
    if (syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment) != 0)
        tell(errno);
    run_32(breakpoint, sizeof breakpoint, LDT_CODE);
}

static void try_seccomp(void)
{
    struct sock_filter filter[HV_FILTER_MOST];
    struct sock_fprog program = {.filter = filter};
    /* The code's page is mapped first: the filter allows mappings of the memory file only. */
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, NULL);
    sigaction(SIGSYS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    uint8_t *page = mmap((void *)(uintptr_t)CODE_AT, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (page == MAP_FAILED)
        tell(errno);
    memcpy(page, call, sizeof call);
    expected_cs = USER_CODE_32;
    struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) target = {CODE_AT, USER_CODE_32};
    program.len = (unsigned short)hv_filter(filter, 0, UINT64_MAX, false, (uint32_t)getpid());
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
        tell(errno);
    __asm__ volatile("ljmpl *%0" : : "m"(target));
}

static void try_fsgsbase(void)
{
    if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_))
        tell(ENOTSUP);
    tell(0);
}

static void try_timer(void) { tell(hv_timer_create() ? 0 : errno); }

static void try_page_0(void)
{
    tell(mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == NULL ? 0 : errno);
}

static const struct {
    const char *name;
    void (*try)(void);
} things[] = {
    {"segments", try_segments}, {"ldt", try_ldt}, {"seccomp", try_seccomp}, {"fsgsbase", try_fsgsbase}, {"timer", try_timer}, {"page-0", try_page_0},
};

int hv_probe(void)
{
    int result = 0;
    for (size_t i = 0; i < sizeof things / sizeof *things; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            things[i].try();
            tell(EPROTO);
        }
        int status = 0;
        if (child < 0 || waitpid(child, &status, 0) != child) {
            printf("%s failed no process to try it in: %s\n", things[i].name, strerror(errno));
            result = 1;
        } else if (WIFSIGNALED(status)) {
            printf("%s failed signal %d (%s)\n", things[i].name, WTERMSIG(status), strsignal(WTERMSIG(status)));
            result = 1;
        } else if (WEXITSTATUS(status)) {
            printf("%s failed %s\n", things[i].name, strerror(WEXITSTATUS(status)));
            result = 1;
        } else {
            printf("%s ok\n", things[i].name);
        }
    }
    return result;
}
