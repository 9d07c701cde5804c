/* The loop of guests/nano.c (guests/nano_compute.S, the same bytes) as a 32-bit process of the host: "native-compute PICOSECONDS COUNT", a turn
 * and how many. Argument: turns. No library. */
#include <stdint.h>

#define RUNS 8

uint32_t compute(uint32_t turns);
uint8_t compute_table[4096] __attribute__((aligned(4096))), compute_copy[4096] __attribute__((aligned(4096)));

static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

static uint64_t now_ns(void)
{
	struct {
		int32_t seconds, nanoseconds;
	} time;

	call(265, 1, (long)&time, 0); /* clock_gettime(CLOCK_MONOTONIC) */
	return (uint64_t)(uint32_t)time.seconds * 1000000000u + (uint32_t)time.nanoseconds;
}

static char *put(char *end, uint32_t value)
{
	do
		*--end = (char)('0' + value % 10);
	while (value /= 10);
	return end;
}

static uint32_t ratio(uint64_t value, uint32_t by) /* the quotient must fit */
{
	uint32_t quotient, rest = (uint32_t)(value >> 32) % by;

	__asm__("divl %3" : "=a"(quotient), "+d"(rest) : "0"((uint32_t)value), "r"(by));
	return quotient;
}

__attribute__((used)) _Noreturn void start(const long *stack)
{
	const char *word = stack[0] > 1 ? (const char *)stack[2] : "1000";
	uint32_t turns = 0;
	char line[64], *end = line + sizeof line, *at;

	for (; *word; word++)
		turns = turns * 10 + (uint32_t)(*word - '0');
	uint64_t best = (uint64_t)-1;

	turns = turns / RUNS + 1;
	for (unsigned n = 0; n < RUNS; n++) { /* the quickest, as in the guest */
		uint64_t began = now_ns(), spent;

		compute(turns);
		spent = now_ns() - began;
		if (spent < best)
			best = spent;
	}
	*--end = '\n';
	at = put(end, turns);
	*--at = ' ';
	at = put(at, ratio(best * 1000, turns));
	static const char name[] = "native-compute ";
	at -= sizeof name - 1;
	for (unsigned n = 0; n < sizeof name - 1; n++)
		at[n] = name[n];
	call(4, 1, (long)at, end + 1 - at);
	call(1, 0, 0, 0);
	for (;;)
		;
}

__asm__(".globl _start\n_start: movl %esp, %eax\n pushl %eax\n call start\n");
