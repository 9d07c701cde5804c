/* System calls by INT 80, again and again at the same places, as no careful compiler would write them: what is behind the instruction, jumps
 * to there, code that changes, signals, single steps. For 32-bit Linux; prints "sites: ok 40", or what went wrong. */
typedef unsigned u32;
enum { EXIT = 1, FORK = 2, READ = 3, WRITE = 4, GETPID = 20, PIPE = 42, GETPPID = 64, SIGACTION = 67, MMAP = 90, SETITIMER = 104, WAITPID = 7, SIGRETURN = 119 };
#define TURNS 40 /* enough to be noticed; said in the end */
#define SIGALRM 14
#define SIGTRAP 5

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static void print(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length);
}

static int wrong;
static void check(int good, const char *what)
{
    if (good || wrong)
        return;
    wrong = 1;
    print("sites: wrong: ");
    print(what);
    print("\n");
}

/* Pieces of code with INT 80; each returns EAX, and says in EDX what else it did. */
extern char site_return[], site_short[], site_long[], site_jump[], site_calls[], site_trap[], site_trap_int[];
__asm__(".text\n"
        "site_return: int $0x80\n\t ret\n"
        "site_short: xor %edx, %edx\n\t int $0x80\n\t inc %edx\n\t inc %edx\n\t push %edx\n\t pop %edx\n\t ret\n"
        "site_long: int $0x80\n\t mov $0x11223344, %edx\n\t ret\n"
        /* with ESI set it jumps over INT 80, to the instruction behind it */
        "site_jump: xor %edx, %edx\n\t test %esi, %esi\n\t jnz 1f\n\t int $0x80\n1:\t inc %edx\n\t add $0x100, %edx\n\t ret\n"
        /* a conditional jump close behind it */
        "site_calls: mov $20, %edx\n2:\t mov $20, %eax\n\t int $0x80\n\t dec %edx\n\t jnz 2b\n\t ret\n"
        "site_trap: pushf\n\t orl $0x100, (%esp)\n\t mov $20, %eax\n\t popf\n"
        "site_trap_int: int $0x80\n\t nop\n\t nop\n\t nop\n\t nop\n\t ret\n");

static long go(const char *code, long eax, long esi, long *edx)
{
    long result;
    __asm__ volatile("call *%3" : "=a"(result), "=d"(*edx) : "a"(eax), "r"(code), "S"(esi), "b"(0) : "memory", "cc", "ecx");
    return result;
}

static void shapes(long pid, long parent)
{
    long edx;
    for (int i = 0; i < TURNS; i++) {
        check(go(site_return, GETPID, 0, &edx) == pid, "a return behind it");
        check(go(site_short, GETPPID, 0, &edx) == parent && edx == 2, "short instructions behind it");
        check(go(site_long, GETPID, 0, &edx) == pid && edx == 0x11223344, "a long instruction behind it");
        check(go(site_jump, GETPID, 0, &edx) == pid && edx == 0x101, "one that is jumped over");
        check(go(site_calls, 0, 0, &edx) == pid && edx == 0, "a jump behind it");
    }
    for (int i = 0; i < TURNS; i++)
        check(go(site_jump, 77, 1, &edx) == 77 && edx == 0x101, "a jump behind it instead of INT 80");
}

static void registers(long pid)
{
    for (int i = 0; i < TURNS; i++) {
        u32 ebx = 0x1b, ecx = 0x2c, edx = 0x3d, esi = 0x4e, edi = 0x5f, eax = GETPID, flags;
        __asm__ volatile("push %%ebp\n\t mov $0x6a6a6a6a, %%ebp\n\t std\n\t stc\n\t int $0x80\n\t pushf\n\t cld\n\t cmp $0x6a6a6a6a, %%ebp\n\t"
                         "pop %%ebp\n\t xchg %%ebp, (%%esp)\n\t je 1f\n\t xor %%eax, %%eax\n1:\t mov %%eax, %%eax\n\t pop %0\n\t"
                         : "=r"(flags), "+a"(eax), "+b"(ebx), "+c"(ecx), "+d"(edx), "+S"(esi)
                         : "D"(edi)
                         : "memory", "cc");
        check(eax == (u32)pid && ebx == 0x1b && ecx == 0x2c && edx == 0x3d && esi == 0x4e, "registers");
        check((flags & 0x401) == 0x401, "flags");
    }
}

static void changing(long pid, long parent)
{
    struct { u32 address, length, protection, flags, fd, offset; } wish = {0, 4096, 7, 0x22, ~0u, 0};
    volatile unsigned char *code = (volatile unsigned char *)call(MMAP, (long)&wish, 0, 0);
    static const unsigned char text[] = {0xb8, GETPID, 0, 0, 0, 0xcd, 0x80, 0x42, 0x42, 0x42, 0xc3}; /* mov eax; int 80; inc edx, thrice; ret */
    long edx;
    for (unsigned i = 0; i < sizeof text; i++)
        code[i] = text[i];
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < TURNS; i++)
            check(go((const char *)code, 0, 0, &edx) == pid, "made code");
        code[1] = GETPPID;
        check(go((const char *)code, 0, 0, &edx) == parent, "made code that was changed");
        code[1] = GETPID;
        code[5] = code[6] = 0x90;
        check(go((const char *)code, 0, 0, &edx) == GETPID, "made code without INT 80");
        code[5] = 0xcd;
        code[6] = 0x80;
    }
}

static void seen_by_the_kernel(void)
{
    int ends[2];
    unsigned char bytes[2] = {0, 0};
    call(PIPE, (long)ends, 0, 0);
    call(WRITE, ends[1], (long)site_return, 2);
    call(READ, ends[0], (long)bytes, 2);
    check(bytes[0] == 0xcd && bytes[1] == 0x80, "what the kernel reads there");
}

static volatile u32 signals, trap_eip;
static void on_alarm(int number) { signals += number == SIGALRM; }
/* i386's old signal frame: the number, then struct sigcontext, EIP at 14 words, EFLAGS at 16. */
struct context { u32 words[22]; };
static void on_trap(int number, volatile struct context context)
{
    signals += number == SIGTRAP;
    trap_eip = context.words[14];
    context.words[16] &= ~0x100u;
}

static void handle(int number, void *handler)
{
    struct { void *handler; u32 mask, flags; void *restorer; } action = {handler, 0, 0, 0};
    call(SIGACTION, number, (long)&action, 0);
}

static void interrupted(long pid)
{
    struct { long interval[2], value[2]; } timer = {{0, 1000}, {0, 1000}}, none = {{0, 0}, {0, 0}};
    long edx;
    handle(SIGALRM, (void *)on_alarm);
    call(SETITIMER, 0, (long)&timer, 0);
    for (u32 i = 0; signals < 30 && i < 100000000; i++)
        check(go(site_short, GETPID, 0, &edx) == pid && edx == 2, "with signals");
    call(SETITIMER, 0, (long)&none, 0);
    check(signals >= 30, "signals");
}

static void stepped(long pid)
{
    long edx;
    handle(SIGTRAP, (void *)on_trap);
    for (int i = 0; i < TURNS; i++) {
        signals = 0;
        check(go(site_trap, 0, 0, &edx) == pid, "with TF");
        check(signals == 1, "how often TF traps");
        check(trap_eip - (u32)site_trap_int >= 2 && trap_eip - (u32)site_trap_int <= 3, "where TF traps");
        check(go(site_short, GETPID, 0, &edx) == pid && edx == 2, "behind TF");
    }
}

__asm__(".globl _start\n_start: push %esp\n\t call begin\n\t hlt\n");
__attribute__((used)) static void begin(const long *stack)
{
    long pid = call(GETPID, 0, 0, 0), parent = call(GETPPID, 0, 0, 0);
    shapes(pid, parent);
    registers(pid);
    changing(pid, parent);
    if (stack[0] < 2)
        seen_by_the_kernel();
    long child = call(FORK, 0, 0, 0);
    if (!child) {
        shapes(call(GETPID, 0, 0, 0), pid);
        call(EXIT, wrong, 0, 0);
    }
    int status = 0;
    call(WAITPID, child, (long)&status, 0);
    check(!status, "in a child");
    interrupted(pid);
    stepped(pid);
    print(wrong ? "sites: failed\n" : "sites: ok 40\n");
    call(EXIT, wrong, 0, 0);
}
