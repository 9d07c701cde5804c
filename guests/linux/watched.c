/* A debugger that sets its program's breakpoint registers, by ptrace(2), as gdb does for watchpoints and hardware breakpoints. For 32-bit Linux;
 * prints "watched: ok 12", or what went wrong. */
enum { EXIT = 1, FORK = 2, WRITE = 4, WAITPID = 7, GETPID = 20, PTRACE = 26, KILL = 37 };
enum { TRACEME, PEEKUSER = 3, POKEUSER = 6, CONTINUE, GETREGS = 12 };
#define SIGKILL 9
#define SIGSTOP 19
#define SIGTRAP 5
#define DEBUG_REGISTER(n) (252 + 4 * (n)) /* of struct user */
#define EIP 12                            /* of struct user_regs_struct, in words */
#define WRITES 0xd0101u                   /* DR7: DR0, four bytes */
#define ACCESSES 0xf0101u
#define EXECUTION 0x00101u
#define TURNS 4

static long call(long number, long a, long b, long c, long d)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return result;
}

static void print(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length, 0);
}

static int wrong;
static void check(int good, const char *what)
{
    if (good || wrong)
        return;
    wrong = 1;
    print("watched: wrong: ");
    print(what);
    print("\n");
}

static volatile long other, variable;
extern char place[];
static __attribute__((noinline)) void step(long n)
{
    __asm__ volatile("place: nop");
    other = n;
    variable = n;
    other = n + 1;
}

static void child(void)
{
    call(PTRACE, TRACEME, 0, 0, 0);
    call(KILL, call(GETPID, 0, 0, 0, 0), SIGSTOP, 0, 0);
    for (long n = 1; n <= TURNS; n++)
        step(n);
    call(KILL, call(GETPID, 0, 0, 0, 0), SIGSTOP, 0, 0);
    for (long n = 1; n <= TURNS; n++)
        step(n);
    call(KILL, call(GETPID, 0, 0, 0, 0), SIGSTOP, 0, 0);
    for (long n = 1; n <= TURNS; n++)
        other += variable;
    call(KILL, call(GETPID, 0, 0, 0, 0), SIGSTOP, 0, 0);
    call(EXIT, 0, 0, 0, 0);
}

/* The signal that it has stopped by. */
static long wait_for(long pid)
{
    int status = 0;
    call(WAITPID, pid, (long)&status, 0, 0);
    return (status & 0xff) == 0x7f ? status >> 8 & 0xff : -1;
}

/* How often the register stops it before it stops by itself; eip: where, or 0 for anywhere. */
static int stops(long pid, unsigned long address, unsigned long dr7, unsigned long eip)
{
    int count = 0;
    check(call(PTRACE, POKEUSER, pid, DEBUG_REGISTER(0), (long)address) == 0, "DR0 cannot be set");
    check(call(PTRACE, POKEUSER, pid, DEBUG_REGISTER(7), (long)dr7) == 0, "DR7 cannot be set");
    for (;;) {
        unsigned long registers[17], dr6 = 0;
        call(PTRACE, CONTINUE, pid, 0, 0);
        long signal = wait_for(pid);
        if (signal != SIGTRAP) {
            check(signal == SIGSTOP, "another signal");
            break;
        }
        call(PTRACE, PEEKUSER, pid, DEBUG_REGISTER(6), (long)&dr6);
        call(PTRACE, GETREGS, pid, 0, (long)registers);
        check((dr6 & 15) == 1, "DR6");
        check(!eip || registers[EIP] == eip, "EIP");
        count++;
    }
    call(PTRACE, POKEUSER, pid, DEBUG_REGISTER(7), 0);
    return count;
}

void _start(void)
{
    long pid = call(FORK, 0, 0, 0, 0);
    if (!pid)
        child();
    check(wait_for(pid) == SIGSTOP, "it does not stop at its beginning");
    check(stops(pid, (unsigned long)&variable, WRITES, 0) == TURNS, "how often it writes");
    check(stops(pid, (unsigned long)place, EXECUTION, (unsigned long)place) == TURNS, "how often it is there");
    check(stops(pid, (unsigned long)&variable, ACCESSES, 0) == TURNS, "how often it reads");
    call(KILL, pid, SIGKILL, 0, 0);
    if (!wrong)
        print("watched: ok 12 \n");
    call(EXIT, wrong, 0, 0, 0);
}
