/* What a 32-bit Linux costs its programs: single operations, in nanoseconds each, as lines "op NAME NS COUNT". It runs in guests, in containers
 * and, by the host's own IA-32 emulation, beside them (bench/linux_ops.py, hvctl compare). No library, so that it is the same everywhere. */
typedef unsigned u32;
typedef unsigned long long u64;

static long call5(long number, long a, long b, long c, long d, long e)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}
static long call(long number, long a, long b, long c) { return call5(number, a, b, c, 0, 0); }
enum { EXIT = 1, FORK = 2, READ = 3, WRITE = 4, OPEN = 5, CLOSE = 6, WAITPID = 7, UNLINK = 10, EXECVE = 11, LSEEK = 19, GETPID = 20, PAUSE = 29, PIPE = 42, MMAP = 90,
       MUNMAP = 91, GETPGID = 132, FDATASYNC = 148, FADVISE = 250, CLOCK_GETTIME = 265 };

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

static char *put_number(char *to, u64 value)
{
    char digits[24], *at = digits + sizeof digits;
    *--at = 0;
    do {
        u64 tenth = divide(value, 10);
        *--at = (char)('0' + (u32)(value - tenth * 10));
        value = tenth;
    } while (value);
    return put(to, at);
}

static u32 slices = 1;

/* Of each slice; the line is of the quickest, and of the operations of all. */
static void report(const char *name, u64 elapsed, u32 count)
{
    static u32 slice;
    static u64 best;
    if (!slice++ || elapsed < best)
        best = elapsed;
    if (slice < slices)
        return;
    slice = 0;
    char line[96], *end = put_number(put(put(put(line, "op "), name), " "), divide(best, count));
    end = put(put_number(put(end, " "), count * slices), "\n");
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

static void disk(u32 count)
{
    static const char name[] = "hvd-ops.disk"; /* in the working directory: on a disk, where /tmp may be memory */
    static char block[65536];
    long fd = call(OPEN, (long)name, 01102, 0600); /* O_RDWR | O_CREAT | O_TRUNC */
    if (fd < 0)
        return;
    u64 start = now();
    for (u32 i = 1; i <= count; i++) {
        block[0] = (char)i;
        call(WRITE, fd, (long)block, sizeof block);
        if (i % 16 == 0 || i == count)
            call(FDATASYNC, fd, 0, 0);
    }
    call5(FADVISE, fd, 0, 0, 0, 4); /* POSIX_FADV_DONTNEED, the whole file: it is read from the disk, not from the page cache */
    call(LSEEK, fd, 0, 0);
    while (call(READ, fd, (long)block, sizeof block) > 0)
        ;
    report("disk-64k", now() - start, count);
    call(CLOSE, fd, 0, 0);
    call(UNLINK, (long)name, 0, 0);
}

static char **self, *no_environment[] = {0};

static void fork_exit(u32 count) { forks(count, 0, 0); }

static void fork_exec(u32 count)
{
    static char word[] = "exit";
    char *again[] = {self[0], word, 0};
    forks(count, again, no_environment);
}

/* No work, and a line as long as others': what running this program costs. */
static void nothing(u32 count) { report("nothing", (u64)123456 * count, count); }

static void compute_rounds(u32 count)
{
    u64 start = now();
    page[1] = (char)compute(count * 1000);
    report("compute-1000", now() - start, count);
}

static void getpid(u32 count)
{
    u64 start = now();
    for (u32 i = 0; i < count; i++)
        call(GETPID, 0, 0, 0);
    report("getpid", now() - start, count);
}

/* A whole command, by the same clock: "op run NS 1". Its exit code is ours, 128 + a signal that killed it. */
static void command(char **words, char **environment)
{
    int status = 0;
    u64 start = now();
    long child = call(FORK, 0, 0, 0);
    if (!child) {
        call(EXECVE, (long)words[0], (long)words, (long)environment);
        call(EXIT, 127, 0, 0);
    }
    call(WAITPID, child, (long)&status, 0);
    report("run", now() - start, 1);
    call(EXIT, status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff, 0, 0);
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static const struct {
    const char *name;
    void (*run)(u32 count);
    u32 count;
    int asked; /* only when it is named */
} rows[] = {
    {"compute-1000", compute_rounds, 20000, 0}, {"getpid", getpid, 20000, 0},  {"ping-pong", ping_pong, 3000, 0},
    {"fork-exit", fork_exit, 200, 0},           {"fork-exec", fork_exec, 100, 0}, {"page-touch", touch, 2048, 0},
    {"file-write-read-4k", file, 3000, 0},      {"disk-64k", disk, 128, 1},
    {"nothing", nothing, 1000, 1},
};

/* ops [n=N] [s=S] [NAME...]: all operations, or these; n=N: so many of each, S times, of which the quickest counts.   ops run COMMAND [ARGUMENT...]   ops wait: until it is killed.
 * ops mark: one getpgid(2), which nothing else calls: who counts calls has counted all before it. */
__attribute__((used)) static void run(int count, char **arguments)
{
    u32 number = 0;
    int first = 1;

    self = arguments;
    if (count > 1 && same(arguments[1], "exit"))
        call(EXIT, 0, 0, 0); /* it was executed for fork-exec */
    if (count > 1 && same(arguments[1], "mark"))
        call(EXIT, call(GETPGID, 0, 0, 0) < 0, 0, 0);
    if (count > 1 && same(arguments[1], "wait"))
        for (;;)
            call(PAUSE, 0, 0, 0);
    if (count > 2 && same(arguments[1], "run"))
        command(arguments + 2, arguments + count + 1);
    for (; first < count && arguments[first][0] && arguments[first][1] == '='; first++) {
        u32 value = 0;
        for (const char *digit = arguments[first] + 2; *digit; digit++)
            value = value * 10 + (u32)(*digit - '0');
        if (arguments[first][0] == 'n')
            number = value;
        else if (value)
            slices = value;
    }
    for (u32 n = 0; n < sizeof rows / sizeof *rows; n++) {
        int wanted = count == first && !rows[n].asked;
        for (int i = first; i < count; i++)
            wanted |= same(arguments[i], rows[n].name);
        for (u32 slice = 0; wanted && slice < slices; slice++)
            rows[n].run(number ? number : rows[n].count);
    }
    call(WRITE, 1, (long)"ops: done\n", 10);
    call(EXIT, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov (%esp), %eax\n\tlea 4(%esp), %edx\n\tand $-16, %esp\n\tsub $8, %esp\n\tpush %edx\n\tpush %eax\n\tcall run\n");
