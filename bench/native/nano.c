/* The operations of guests/nano.c that a process of the host can do, and the host's kernel's own for those that need ring 0, as a 32-bit
 * process without a library: "nano NAME PICOSECONDS COUNT", as the guest says it. Argument: milliseconds for each. */
#include <stdint.h>

#define RUNS 8
#define PAGES 1024u
#define EIP_OF_CONTEXT 76 /* in struct ucontext of i386 */
enum { EXIT = 1, FORK = 2, READ = 3, WRITE = 4, GETPPID = 64, PIPE = 42, MADVISE = 219, MMAP2 = 192, RT_SIGACTION = 174, SCHED_SETAFFINITY = 241, CLOCK_GETTIME = 265 };

uint32_t compute(uint32_t turns);
void op_call_ret(uint32_t turns), op_copy(uint32_t turns), op_divide_error(uint32_t turns), op_page_fault(uint32_t turns, uint32_t address);
uint8_t compute_table[4096] __attribute__((aligned(4096))), compute_copy[4096] __attribute__((aligned(4096)));
uint8_t copy_from[4096] __attribute__((aligned(4096))), copy_to[4096] __attribute__((aligned(4096)));
static uint32_t window;
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

static void page_faults(uint32_t turns) { op_page_fault(turns, window); }

/* A byte to another process on the same processor, and one back: two switches. */
static void switches(uint32_t turns)
{
	char byte = 0;

	while (turns--) {
		call(WRITE, there[1], (long)&byte, 1);
		call(READ, back[0], (long)&byte, 1);
	}
}

static void untouched(void) { call(MADVISE, (long)window, PAGES * 4096, 4); /* MADV_DONTNEED */ }

static const struct row {
	const char *name;
	void (*op)(uint32_t turns);
	void (*before)(void);
	uint32_t most, operations;
} rows[] = {
	{"system-call", system_calls, 0, 0, 1},
	{"call-ret", op_call_ret, 0, 0, 1},
	{"page-fault", page_faults, untouched, PAGES, 1},
	{"divide-error", op_divide_error, 0, 0, 1},
	{"context-switch", switches, 0, 0, 2},
	{"copy-4k", op_copy, 0, 0, 1},
	{"kernel-compute", computing, 0, 0, 1},
	{"user-compute", computing, 0, 0, 1},
};

/* ---- what they need */

__attribute__((used)) void on_signal(int number, void *information, uint32_t *context)
{
	(void)number;
	(void)information;
	context[EIP_OF_CONTEXT / 4] += 2; /* behind DIV EDX */
}

static void prepare(void)
{
	const struct {
		void *handler;
		uint32_t flags, restorer;
		uint64_t mask;
	} action = {(void *)on_signal, 4 /* SA_SIGINFO */, 0, 0};
	uint32_t one = 1;

	register long size __asm__("esi") = 8;
	__asm__ volatile("int $0x80" : : "a"(RT_SIGACTION), "b"(8 /* SIGFPE */), "c"(&action), "d"(0), "r"(size) : "memory");
	/* mmap2: private, anonymous */
	__asm__ volatile("pushl %%ebp; xorl %%ebp, %%ebp; int $0x80; popl %%ebp"
			 : "=a"(window)
			 : "0"(MMAP2), "b"(0), "c"(PAGES * 4096), "d"(3), "S"(0x22), "D"(-1)
			 : "memory");
	call(SCHED_SETAFFINITY, 0, sizeof one, (long)&one);
	call(PIPE, (long)there, 0, 0);
	call(PIPE, (long)back, 0, 0);
	if (!call(FORK, 0, 0, 0)) {
		char byte;

		call(6, there[1], 0, 0); /* close: the end of the other is the end of input */
		while (call(READ, there[0], (long)&byte, 1) == 1)
			call(WRITE, back[1], (long)&byte, 1);
		call(EXIT, 0, 0, 0);
	}
}

static uint64_t run(const struct row *row, uint32_t turns)
{
	uint64_t spent = 0;

	for (uint32_t left = turns, now; left; left -= now) {
		now = row->most && left > row->most ? row->most : left;
		if (row->before)
			row->before();
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

/* As in the guest: the quickest of some runs. */
static void measure(const struct row *row, uint64_t least_ns)
{
	uint32_t turns = 16;
	uint64_t spent, best;
	char line[96], *end = line + sizeof line, *at = end;

	while ((best = run(row, turns)) < least_ns && turns < 1u << 30)
		turns *= best < least_ns / 16 ? 8 : 2;
	for (unsigned n = 1; n < RUNS; n++)
		if ((spent = run(row, turns)) < best)
			best = spent;
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
	const char *word = stack[0] > 1 ? (const char *)stack[2] : "40";
	uint32_t milliseconds = 0;

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
/* The same loops as guests/nano_ops.S. */
__asm__(".macro OP name\n .globl \\name\n\\name: movl 4(%esp), %ecx\n.endm\n"
	"OP op_call_ret\n1: call 2f\n decl %ecx\n jnz 1b\n ret\n2: ret\n"
	"OP op_divide_error\n xorl %edx, %edx\n1: movl $1, %eax\n divl %edx\n decl %ecx\n jnz 1b\n ret\n"
	"OP op_page_fault\n movl 8(%esp), %eax\n1: incl (%eax)\n addl $4096, %eax\n decl %ecx\n jnz 1b\n ret\n"
	"OP op_copy\n pushl %esi\n pushl %edi\n movl %ecx, %edx\n1: movl $copy_from, %esi\n movl $copy_to, %edi\n movl $1024, %ecx\n"
	" rep movsl\n decl %edx\n jnz 1b\n popl %edi\n popl %esi\n ret\n");
