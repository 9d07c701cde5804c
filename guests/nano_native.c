/* What of guests/nano.c has a meaning in a process of the host, as a 32-bit one without a library: the same bytes where no privilege is
 * needed (nano_loops.S, nano_compute.S), and what the host's kernel does of the kind where it is. "nano NAME PICOSECONDS COUNT", as the guest
 * says it; what each is here: client/hvctl/compare/workloads.py. "ms=N": each is measured for about so long. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RUNS 8
#define TRIES 3
#define WINDOW 0x40000000u /* as in the guest; nano_loops.S has it */
#define WINDOW_PAGES 1024u
#define WINDOW_BYTES (WINDOW_PAGES * 4096u)
#define EIP_OF_CONTEXT 76 /* in struct ucontext of i386 */
enum { EXIT = 1, FORK = 2, READ = 3, WRITE = 4, CLOSE = 6, PIPE = 42, GETPPID = 64, RT_SIGACTION = 174, MMAP2 = 192, MADVISE = 219,
	SCHED_SETAFFINITY = 241, SCHED_GETAFFINITY = 242, CLOCK_GETTIME = 265 };
enum { DONTNEED = 4, NO_HUGE_PAGES = 15, POPULATE_READ = 22 }; /* of madvise(2) */

uint32_t compute(uint32_t turns);
void op_call_ret(uint32_t turns), op_copy(uint32_t turns), op_table(uint32_t turns), op_divide_error(uint32_t turns), op_page_fault(uint32_t turns);
uint8_t compute_table[4096] __attribute__((aligned(4096))), compute_copy[4096] __attribute__((aligned(4096)));
uint8_t copy_from[4096] __attribute__((aligned(4096))), copy_to[4096] __attribute__((aligned(4096)));
static int there[2], back[2];

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

	call(CLOCK_GETTIME, 1, (long)&time, 0); /* CLOCK_MONOTONIC */
	return (uint64_t)(uint32_t)time.seconds * 1000000000u + (uint32_t)time.nanoseconds;
}

/* ---- operations */

static void system_calls(uint32_t turns)
{
	while (turns--)
		call(GETPPID, 0, 0, 0);
}

static void computing(uint32_t turns) { compute(turns); }

/* A byte to another process on the same processor, and one back: two switches. */
static void switches(uint32_t turns)
{
	char byte = 0;

	while (turns--) {
		call(WRITE, there[1], (long)&byte, 1);
		call(READ, back[0], (long)&byte, 1);
	}
}

/* Nothing is mapped: a page that is read maps the host's page of zeros. */
static bool unmap_window(void) { return !call(MADVISE, WINDOW, WINDOW_BYTES, DONTNEED); }

/* All is, and the processor has none of it in its TLB. False before Linux 5.14. */
static bool map_window(void) { return unmap_window() && !call(MADVISE, WINDOW, WINDOW_BYTES, POPULATE_READ); }

static const struct row {
	const char *name;
	void (*op)(uint32_t turns);
	bool (*before)(void); /* each run, not timed; false = it cannot be had */
	uint32_t most, operations;
} rows[] = {
	{"system-call", system_calls, NULL, 0, 1},
	{"call-ret", op_call_ret, NULL, 0, 1},
	{"shadow-fill", op_page_fault, map_window, WINDOW_PAGES, 1},
	{"page-fault", op_page_fault, unmap_window, WINDOW_PAGES, 1},
	{"divide-error", op_divide_error, NULL, 0, 1},
	{"context-switch", switches, NULL, 0, 2},
	{"program-int", system_calls, NULL, 0, 1},
	{"copy-4k", op_copy, NULL, 0, 1},
	{"table-4k", op_table, NULL, 0, 1},
	{"kernel-compute", computing, NULL, 0, 1},
	{"user-compute", computing, NULL, 0, 1},
};

/* ---- what they need */

__attribute__((used)) void on_signal(int number, void *information, uint32_t *context)
{
	(void)number;
	(void)information;
	context[EIP_OF_CONTEXT / 4] += 2; /* behind DIV EDX */
}

/* The processor that both processes of a context switch are on: the first that is allowed. */
static void stay(void)
{
	uint32_t mask[32] = {0}, bit = 0;

	if (call(SCHED_GETAFFINITY, 0, sizeof mask, (long)mask) <= 0)
		return;
	for (unsigned n = 0; n < sizeof mask / sizeof *mask; n++) {
		mask[n] = bit ? 0 : mask[n] & -mask[n];
		bit |= mask[n];
	}
	call(SCHED_SETAFFINITY, 0, sizeof mask, (long)mask);
}

static void prepare(void)
{
	const struct {
		void *handler;
		uint32_t flags, restorer;
		uint64_t mask;
	} action = {(void *)on_signal, 4 /* SA_SIGINFO */, 0, 0};
	uint32_t at;

	register long size __asm__("esi") = 8;
	__asm__ volatile("int $0x80" : : "a"(RT_SIGACTION), "b"(8 /* SIGFPE */), "c"(&action), "d"(0), "r"(size) : "memory");
	/* PROT_READ | PROT_WRITE; MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE */
	__asm__ volatile("pushl %%ebp; xorl %%ebp, %%ebp; int $0x80; popl %%ebp"
			 : "=a"(at)
			 : "0"(MMAP2), "b"(WINDOW), "c"(WINDOW_BYTES), "d"(3), "S"(0x100022), "D"(-1)
			 : "memory");
	if (at != WINDOW)
		call(EXIT, 1, 0, 0);
	call(MADVISE, WINDOW, WINDOW_BYTES, NO_HUGE_PAGES);
	stay();
	call(PIPE, (long)there, 0, 0);
	call(PIPE, (long)back, 0, 0);
	if (!call(FORK, 0, 0, 0)) {
		char byte;

		call(CLOSE, there[1], 0, 0); /* the end of the other is the end of input */
		while (call(READ, there[0], (long)&byte, 1) == 1)
			call(WRITE, back[1], (long)&byte, 1);
		call(EXIT, 0, 0, 0);
	}
}

/* Nanoseconds; 0 = it cannot be had here. */
static uint64_t run(const struct row *row, uint32_t turns)
{
	uint64_t spent = 0;

	for (uint32_t left = turns, now; left; left -= now) {
		now = row->most && left > row->most ? row->most : left;
		if (row->before && !row->before())
			return 0;
		uint64_t began = now_ns();

		row->op(now);
		spent += now_ns() - began;
	}
	return spent;
}

/* ---- words */

static char *put(char *end, uint32_t value)
{
	do
		*--end = (char)('0' + value % 10);
	while (value /= 10);
	return end;
}

static char *put_text(char *end, const char *text)
{
	uint32_t length = 0;

	while (text[length])
		length++;
	while (length)
		*--end = text[--length];
	return end;
}

static uint32_t ratio(uint64_t value, uint32_t by) /* the quotient must fit */
{
	uint32_t quotient, rest = (uint32_t)(value >> 32) % by;

	__asm__("divl %3" : "=a"(quotient), "+d"(rest) : "0"((uint32_t)value), "r"(by));
	return quotient;
}

#include "nano_quickest.h" /* 0 = it cannot be had here */

static void measure(const struct row *row, uint64_t least_ns)
{
	uint32_t turns = 16;
	uint64_t best;
	char line[96], *end = line + sizeof line, *at = end;

	while ((best = quickest(row, turns, TRIES)) && best < least_ns && turns < 1u << 30)
		turns *= best < least_ns / 16 ? 8 : 2;
	if (!best)
		return;
	best = quickest(row, turns, RUNS);
	*--at = '\n';
	at = put(at, turns * row->operations);
	*--at = ' ';
	at = put(at, ratio(best * 1000, turns * row->operations));
	*--at = ' ';
	at = put_text(at, row->name);
	at = put_text(at, "nano ");
	call(WRITE, 1, (long)at, end - at);
}

__attribute__((used)) _Noreturn void start(const long *stack)
{
	const char *word = stack[0] > 1 ? (const char *)stack[2] : "ms=20";
	uint32_t milliseconds = 0;

	while (*word && *word++ != '=')
		;
	for (; *word; word++)
		milliseconds = milliseconds * 10 + (uint32_t)(*word - '0');
	prepare();
	for (unsigned n = 0; n < sizeof rows / sizeof *rows; n++)
		measure(&rows[n], milliseconds * 1000000ull / RUNS);
	call(EXIT, 0, 0, 0);
	for (;;)
		;
}

__asm__(".globl _start\n_start: movl %esp, %eax\n pushl %eax\n call start\n");
