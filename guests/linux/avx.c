/* Two processes that keep different values in the YMM registers and give the processor away: does each find its own again?
 * For 32-bit Linux guests on hosts with AVX; prints "avx: ok N" or how often a value was another's. */
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}
enum { EXIT = 1, FORK = 2, WRITE = 4, WAITPID = 7, YIELD = 158 };

static void print(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length);
}

static void print_number(unsigned value)
{
    char digits[12], *at = digits + sizeof digits;
    *--at = 0;
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    print(at);
}

static int has_avx(void)
{
    unsigned eax = 1, ebx, ecx = 0, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (ecx >> 27 & 3) == 3; /* OSXSAVE, AVX */
}

#define ROUNDS 2000
static unsigned rounds(unsigned pattern)
{
    unsigned wrong = 0, in[8], out[8];
    for (unsigned i = 0; i < 8; i++)
        in[i] = pattern + i;
    for (unsigned i = 0; i < ROUNDS; i++) {
        /* Yielding stands between the two moves in one piece, so that nothing else touches the register. */
        long result;
        __asm__ volatile("vmovdqu %2, %%ymm5\n\tint $0x80\n\tvmovdqu %%ymm5, %1"
                         : "=a"(result), "=m"(out)
                         : "m"(in), "a"((long)YIELD), "b"(0L), "c"(0L), "d"(0L)
                         : "memory");
        for (unsigned k = 0; k < 8; k++)
            wrong += out[k] != in[k];
    }
    __asm__ volatile("vzeroupper");
    return wrong;
}

void _start(void)
{
    if (!has_avx()) {
        print("avx: none\n");
        call(EXIT, 0, 0, 0);
    }
    long child = call(FORK, 0, 0, 0);
    unsigned wrong = rounds(child ? 0x11110000u : 0x22220000u);
    if (!child)
        call(EXIT, wrong > 255 ? 255 : (long)wrong, 0, 0);
    int status = 0;
    call(WAITPID, child, (long)&status, 0);
    wrong += (unsigned)status >> 8 & 255;
    print(wrong ? "avx: wrong " : "avx: ok ");
    print_number(wrong ? wrong : ROUNDS);
    print("\n");
    call(EXIT, wrong != 0, 0, 0);
}
