/* How fast a disk is, seen from inside of a Linux guest: diskrate DEVICE read|write sequential|random direct|cached BYTES COUNT.
 *
 * Makes COUNT requests of BYTES (a power of two from 512) over the whole device, one after the other, flushes what it wrote, and prints
 * one line: "diskrate: COUNT requests, N bytes, T ns". `direct` goes around the page cache (O_DIRECT). Random places come from a
 * fixed sequence, so that every run asks for the same. Freestanding: a guest that has nothing can run it.
 */
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
enum { SYS_WRITE = 1, SYS_OPEN = 2, SYS_LSEEK = 8, SYS_MMAP = 9, SYS_PREAD = 17, SYS_PWRITE = 18, SYS_FSYNC = 74, SYS_EXIT = 60, SYS_CLOCK_GETTIME = 228 };
static long system_call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return number;
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
#else
#error "diskrate is built for x86_64"
#endif

static void finish(int code)
{
    system_call(SYS_EXIT, code, 0, 0, 0, 0, 0);
    __builtin_unreachable();
}

static size_t length_of(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

static void say(const char *text)
{
    system_call(SYS_WRITE, 1, (long)text, (long)length_of(text), 0, 0, 0);
}

static void say_number(uint64_t number)
{
    char digits[24], *at = digits + sizeof digits - 1;
    *at = 0;
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    say(at);
}

static uint64_t number_of(const char *text)
{
    uint64_t number = 0;
    while (*text >= '0' && *text <= '9')
        number = number * 10 + (uint64_t)(*text++ - '0');
    return number;
}

static uint64_t now_ns(void)
{
    struct { int64_t seconds, nanoseconds; } time;
    system_call(SYS_CLOCK_GETTIME, 1, (long)&time, 0, 0, 0, 0);
    return (uint64_t)time.seconds * 1000000000u + (uint64_t)time.nanoseconds;
}

__attribute__((used)) void run(long *stack)
{
    if (stack[0] != 7) {
        say("diskrate DEVICE read|write sequential|random direct|cached BYTES COUNT\n");
        finish(2);
    }
    char **words = (char **)(stack + 1);
    int writes = words[2][0] == 'w', random = words[3][0] == 'r', direct = words[4][0] == 'd';
    uint64_t bytes = number_of(words[5]), count = number_of(words[6]);
    long fd = system_call(SYS_OPEN, (long)words[1], 2 | (direct ? 040000 : 0), 0, 0, 0, 0);
    if (fd < 0) /* a read-only disk */
        fd = system_call(SYS_OPEN, (long)words[1], 0 | (direct ? 040000 : 0), 0, 0, 0, 0);
    long size = system_call(SYS_LSEEK, fd, 0, 2, 0, 0, 0);
    uint8_t *buffer = (uint8_t *)system_call(SYS_MMAP, 0, (long)bytes, 3, 0x22, -1, 0);
    if (fd < 0 || size < (long)bytes || (long)buffer < 0 || !bytes) {
        say("diskrate: cannot be\n");
        finish(1);
    }
    for (uint64_t i = 0; i < bytes; i += 512)
        buffer[i] = (uint8_t)i; /* the pages are there before the clock runs */
    uint64_t places = (uint64_t)size / bytes, state = 42, start = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
        uint64_t place = (random ? (state >> 33) % places : i % places) * bytes;
        if (system_call(writes ? SYS_PWRITE : SYS_PREAD, fd, (long)buffer, (long)bytes, (long)place, 0, 0) != (long)bytes) {
            say("diskrate: an I/O error\n");
            finish(1);
        }
    }
    if (writes && system_call(SYS_FSYNC, fd, 0, 0, 0, 0, 0) != 0) {
        say("diskrate: a flush failed\n");
        finish(1);
    }
    uint64_t took = now_ns() - start;
    say("diskrate: "), say_number(count), say(" requests, "), say_number(count * bytes), say(" bytes, "), say_number(took), say(" ns\n");
    finish(0);
}
