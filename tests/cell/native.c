/* The interpreters against the host's own processor: cases from standard input are executed by both, natively in compatibility mode and
 * one instruction at a time (EFLAGS.TF). Everything must be the same, flags that the manuals leave undefined included.
 *
 * Memory is mapped at its own addresses below 4 GiB; this program must be position-independent, so that nothing else is there.
 * Exit code 77: this host does not let us (page 0, 32-bit code).
 */
#define _GNU_SOURCE
#include "rig.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define SIZE 0x40000u
#define CODE 0x30000u
#define CODE32 0x23 /* Linux: __USER32_CS and __USER_DS */
#define CODE64 0x33
#define DATA 0x2b

struct input { /* differential.py */
    uint8_t code[16];
    uint32_t r[8], eflags, length, repeated, reserved;
};
struct state {
    uint32_t r[8], eip, eflags, vector, error, address;
};

static struct state state;
static uint64_t saved_rsp;
extern char native_back[];
static const int registers[8] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI};

static void trapped(int signal, siginfo_t *info, void *context)
{
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    (void)info;
    if ((g[REG_CSGSFS] & 0xffff) != CODE32)
        _exit(128 + signal);
    for (unsigned i = 0; i < 8; i++)
        state.r[i] = (uint32_t)g[registers[i]];
    state.eip = (uint32_t)g[REG_RIP];
    state.eflags = (uint32_t)g[REG_EFL];
    state.vector = (uint32_t)g[REG_TRAPNO];
    state.error = (uint32_t)g[REG_ERR];
    state.address = (uint32_t)g[REG_CR2];
    g[REG_RIP] = (greg_t)native_back;
    g[REG_RSP] = (greg_t)saved_rsp;
    g[REG_EFL] = 0x202;
    g[REG_CSGSFS] = CODE64 | (greg_t)DATA << 48;
}

__attribute__((noinline)) static void run_native(void)
{
    static uint32_t r[8];
    memcpy(r, state.r, sizeof r);
    uint64_t flags = state.eflags | HV_TF | HV_IF | 2, eip = state.eip, esp = state.r[HV_ESP];
    __asm__ volatile("push %%rbx; push %%rbp; mov %%rsp, %[saved]\n\t"
                     "mov %[data], %%eax; mov %%eax, %%ds; mov %%eax, %%es\n\t"
                     "push %[data64]; push %[esp]; push %[flags]; push %[code]; push %[eip]\n\t"
                     "mov 0(%[r]), %%eax; mov 4(%[r]), %%ecx; mov 8(%[r]), %%edx; mov 12(%[r]), %%ebx\n\t"
                     "mov 20(%[r]), %%ebp; mov 24(%[r]), %%esi; mov 28(%[r]), %%edi; iretq\n"
                     "native_back: pop %%rbp; pop %%rbx"
                     : [saved] "=m"(saved_rsp)
                     : [data] "i"(DATA), [data64] "i"(DATA), [code] "i"(CODE32), [esp] "r"(esp), [flags] "r"(flags), [eip] "r"(eip),
                       [r] "r"((uint64_t)r)
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r12", "r13", "r14", "r15", "cc", "memory");
}

/* A repeated string instruction traps after each turn. */
static void step_native(const struct input *input, uint32_t at)
{
    memcpy(state.r, input->r, sizeof state.r);
    state.eflags = input->eflags;
    state.eip = at;
    do
        run_native();
    while (state.vector == HV_DB && state.eip == at && input->repeated);
}

static unsigned failures;
static void report(const struct input *input, const char *what)
{
    if (++failures > 40)
        return;
    for (unsigned i = 0; i < input->length; i++)
        printf("%02x ", input->code[i]);
    printf(": %s; eflags %x\n", what, input->eflags);
    for (unsigned i = 0; i < 8; i++)
        printf("  r%u %08x: %08x, processor %08x%s\n", i, input->r[i], HV_CPU->r[i], state.r[i], HV_CPU->r[i] != state.r[i] ? " <--" : "");
    printf("  eip %x, processor %x; eflags %x, processor %x; vector %d error %x address %x, processor %d %x %x\n", HV_CPU->eip, state.eip,
           HV_CPU->eflags, state.eflags, (int)rig.vector, rig.error, rig.address, (int)state.vector, state.error, state.address);
}

static bool same_memory(const uint8_t *native)
{
    for (unsigned page = 0; page < CODE / RIG_PAGE; page++)
        if (rig.rights[page] == RIG_WRITABLE && memcmp(native + page * RIG_PAGE, rig.memory + page * RIG_PAGE, RIG_PAGE))
            return false;
    return true;
}

static void copy_to(volatile uint8_t *native)
{
    for (unsigned i = 0; i < SIZE; i++)
        if (rig.rights[i / RIG_PAGE] == RIG_WRITABLE || i >= CODE)
            native[i] = rig.memory[i];
}

static bool is_string(const struct input *input) /* has two operands in memory: it is not defined which is looked at first */
{
    uint8_t opcode = input->code[input->length - 1] & ~1u;
    return opcode == 0xa4 || opcode == 0xa6;
}

/* The flags that decimal adjustment leaves undefined are computed differently by every processor; it cannot be executed in 64-bit mode. */
static uint32_t defined_flags(const struct input *input)
{
    const uint32_t flags = HV_STATUS_FLAGS | HV_DF;
    unsigned last = input->code[input->length - 1], before = input->length > 1 ? input->code[input->length - 2] : 0;
    bool simple = before == 0 || before == 0x66 || before == 0x67 || before == 0x26 || before == 0x2e || before == 0x36 || before == 0x3e;
    if (simple && (last == 0x27 || last == 0x2f))
        return flags & ~HV_OF;
    if (simple && (last == 0x37 || last == 0x3f))
        return flags & ~(HV_OF | HV_SF | HV_ZF | HV_PF);
    return before == 0xd4 || before == 0xd5 ? flags & ~(HV_OF | HV_AF | HV_CF) : flags;
}

static void compare(const struct input *input, const uint8_t *native, int outcome)
{
    const uint32_t flags = defined_flags(input);
    bool fault = state.vector != HV_DB;
    if (outcome == RIG_FAILED) {
        report(input, rig.failure);
    } else if (outcome == RIG_RAISED && rig.vector == HV_PAGE_FAULT && rig.address >= CODE && rig.address < SIZE) {
        /* natively code can be written */
    } else if (outcome == RIG_RAISED && rig.vector == HV_PAGE_FAULT && (state.vector == HV_GP || state.vector == HV_STACK)
               && (rig.address < 8 || rig.address > 0xfffffff8)) {
        /* across the end of 4 GiB: with a limit there a processor may fault or wrap (SDM vol. 3, 5.3) */
    } else if (fault && outcome == RIG_RAISED && is_string(input)) {
        /* either operand's */
    } else if (fault != (outcome == RIG_RAISED) || (fault && state.vector != rig.vector)) {
        report(input, "exception");
    } else if (fault && state.vector == HV_PAGE_FAULT) {
        if (state.address != rig.address || (state.error & 3) != (rig.error & 3))
            report(input, "page fault");
    } else if (!fault) {
        if (memcmp(HV_CPU->r, state.r, sizeof state.r) || HV_CPU->eip != state.eip || ((HV_CPU->eflags ^ state.eflags) & flags))
            report(input, "registers");
        if (!same_memory(native))
            report(input, "memory");
    }
}

int main(void)
{
    static uint8_t alternate[65536];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    static const int signals[] = {SIGSEGV, SIGTRAP, SIGFPE, SIGILL, SIGBUS};
    sigaltstack(&stack, NULL);
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    uint8_t *native = mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    static uint8_t memory[SIZE];
    if (native != NULL)
        return 77;
    __asm__ volatile("" : "+r"(native)); /* the compiler must not know that it is 0 */

    rig_reset(memory, SIZE);
    if (fread(rig.rights, 1, SIZE / RIG_PAGE, stdin) != SIZE / RIG_PAGE || fread(memory, 1, SIZE, stdin) != SIZE)
        return 2;
    volatile uint8_t *low = native;
    copy_to(low);
    for (unsigned page = 0; page < CODE / RIG_PAGE; page++) {
        static const int protections[] = {PROT_NONE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC};
        for (unsigned i = 0; i < RIG_PAGE && rig.rights[page] == RIG_READ_ONLY; i++)
            low[page * RIG_PAGE + i] = memory[page * RIG_PAGE + i];
        mprotect(native + page * RIG_PAGE, RIG_PAGE, protections[rig.rights[page]]);
    }

    struct input input;
    uint32_t at = CODE, cases = 0;
    for (; fread(&input, 1, sizeof input, stdin) == sizeof input; cases++) {
        at = at + 64 > SIZE - 0x1000 ? CODE : at + 32;
        for (unsigned i = 0; i < 32; i++)
            low[at + i] = memory[at + i] = i < input.length ? input.code[i] : 0x90;
        memcpy(HV_CPU->r, input.r, sizeof input.r);
        HV_CPU->eip = at;
        HV_CPU->eflags = input.eflags;
        int outcome = rig_step();
        step_native(&input, at);
        unsigned before = failures;
        compare(&input, native, outcome);
        if (failures != before || outcome != RIG_DONE)
            copy_to(low);
    }
    printf("%u cases, %u disagreements\n", cases, failures);
    return failures ? 1 : 0;
}
