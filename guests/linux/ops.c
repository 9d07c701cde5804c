/* What a 32-bit Linux costs its programs: single operations, in nanoseconds each, as lines "op NAME NS". It runs in guests and, by the
 * host's own IA-32 emulation, beside them (bench/linux_ops.py). No library, so that it is the same everywhere. */
typedef unsigned u32;
typedef unsigned long long u64;

static long call5(long number, long a, long b, long c, long d, long e)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}
static long call(long number, long a, long b, long c) { return call5(number, a, b, c, 0, 0); }
enum { EXIT = 1, FORK = 2, READ = 3, WRITE = 4, OPEN = 5, CLOSE = 6, WAITPID = 7, UNLINK = 10, EXECVE = 11, LSEEK = 19, GETPID = 20, PIPE = 42, MMAP = 90,
       MUNMAP = 91, CLOCK_GETTIME = 265 };

static u64 now(void)
{
    struct { u32 seconds, nanoseconds; } time;
    call(CLOCK_GETTIME, 1, (long)&time, 0);
    return (u64)time.seconds * 1000000000u + time.nanoseconds;
}

static char *put(char *at, const char *text)
{
    while (*text)
        *at++ = *text++;
    return at;
}

/* 64 by 32 bits without the compiler's library. */
static u64 divide(u64 value, u32 by)
{
    u32 high = (u32)(value >> 32), low, rest = high % by;
    __asm__("divl %4" : "=a"(low), "=d"(rest) : "0"((u32)value), "1"(rest), "r"(by));
    return (u64)(high / by) << 32 | low;
}

static void report(const char *name, u64 elapsed, u32 count)
{
    char line[64], digits[12], *at = digits + sizeof digits;
    u32 each = (u32)divide(elapsed, count);
    *--at = 0;
    do
        *--at = (char)('0' + each % 10);
    while (each /= 10);
    char *end = put(put(put(put(put(line, "op "), name), " "), at), "\n");
    call(WRITE, 1, (long)line, end - line);
}

static char page[4096];

static u32 compute(u32 rounds)
{
    u32 hash = 1;
    for (u32 i = 0; i < rounds; i++)
        hash = (hash ^ i) * 16777619u;
    return hash;
}

static void ping_pong(u32 count)
{
    int there[2], back[2];
    call(PIPE, (long)there, 0, 0);
    call(PIPE, (long)back, 0, 0);
    long child = call(FORK, 0, 0, 0);
    if (!child) {
        for (u32 i = 0; i < count; i++) {
            call(READ, there[0], (long)page, 1);
            call(WRITE, back[1], (long)page, 1);
        }
        call(EXIT, 0, 0, 0);
    }
    u64 start = now();
    for (u32 i = 0; i < count; i++) {
        call(WRITE, there[1], (long)page, 1);
        call(READ, back[0], (long)page, 1);
    }
    report("ping-pong", now() - start, count);
    call(WAITPID, child, 0, 0);
}

static void forks(u32 count, char **arguments, char **environment)
{
    u64 start = now();
    for (u32 i = 0; i < count; i++) {
        long child = call(FORK, 0, 0, 0);
        if (!child) {
            if (arguments)
                call(EXECVE, (long)arguments[0], (long)arguments, (long)environment);
            call(EXIT, 0, 0, 0);
        }
        call(WAITPID, child, 0, 0);
    }
    report(arguments ? "fork-exec" : "fork-exit", now() - start, count);
}

static void touch(u32 pages)
{
    struct { u32 address, length, protection, flags, fd, offset; } wish = {0, pages * 4096, 3, 0x22, ~0u, 0};
    volatile char *memory = (volatile char *)call(MMAP, (long)&wish, 0, 0);
    u64 start = now();
    for (u32 i = 0; i < pages; i++)
        memory[i * 4096] = 1;
    report("page-touch", now() - start, pages);
    call(MUNMAP, (long)memory, (long)(pages * 4096), 0);
}

static void file(u32 count)
{
    static const char name[] = "/tmp/hvd-ops";
    long fd = call(OPEN, (long)name, 0102, 0600); /* O_RDWR | O_CREAT */
    if (fd < 0)
        return;
    u64 start = now();
    for (u32 i = 0; i < count; i++) {
        call(WRITE, fd, (long)page, sizeof page);
        call(LSEEK, fd, 0, 0);
        call(READ, fd, (long)page, sizeof page);
        call(LSEEK, fd, 0, 0);
    }
    report("file-write-read-4k", now() - start, count);
    call(CLOSE, fd, 0, 0);
    call(UNLINK, (long)name, 0, 0);
}

__attribute__((used)) static void run(int count, char **arguments)
{
    if (count > 1)
        call(EXIT, 0, 0, 0); /* it was executed for fork-exec */
    u64 start = now();
    page[1] = (char)compute(20000000);
    report("compute-1000", now() - start, 20000);
    start = now();
    for (int i = 0; i < 20000; i++)
        call(GETPID, 0, 0, 0);
    report("getpid", now() - start, 20000);
    ping_pong(3000);
    forks(200, 0, 0);
    char *again[] = {arguments[0], "x", 0}, *none[] = {0};
    forks(100, again, none);
    touch(2048);
    file(3000);
    call(WRITE, 1, (long)"ops: done\n", 10);
    call(EXIT, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov (%esp), %eax\n\tlea 4(%esp), %edx\n\tand $-16, %esp\n\tsub $8, %esp\n\tpush %edx\n\tpush %eax\n\tcall run\n");
