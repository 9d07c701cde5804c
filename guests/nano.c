/* Nanobenchmarks, after Adams and Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006): what one
 * of the operations costs that virtualisation makes dearer, and two that it should not. A line for each: "nano NAME PICOSECONDS COUNT".
 * "ms=N": each is measured for about so long; "only=N": the one in row N. */
#include "guest.h"
#include "hv/hypercall.h"

const char guest_name[] = "nano";

#define P 1u
#define W 2u
#define U 4u
#define WINDOW 0x40000000u /* linear: 4 MiB of one table, pages that come and go */
#define WINDOW_PAGES 1024u
#define PRIVATE 0x40400000u /* linear: a page that is another one in each address space */
#define FRAMES 0x00800000u /* guest-physical: 4 MiB of pages for them */
#define IDENTITY_TABLES 4
#define RUNS 8
#define PM_TIMER 0x608 /* of QEMU's "pc", as SeaBIOS sets it up; 24 bits, 3.579545 MHz */

typedef void op(uint32_t turns);
op op_in, op_cr_write, op_cli, op_shadow_fill, op_cli_sti, op_call_ret, op_divide_error, op_kernel_int, op_page_fault, op_pte_change, op_context_switch, op_copy,
	op_kernel_compute;
extern const char on_divide_error[], on_syscall[], on_kernel_int[], on_page_fault[], user_start[], user_end[], user_stack_bottom[],
	user_stack_top[];
extern uint32_t user_turns;
void user_syscall(void), user_compute(void);

uint32_t fault_table[1024] __attribute__((aligned(4096)));
uint32_t frame_entry = FRAMES | W | P, spaces[2];
uint8_t copy_from[4096] __attribute__((aligned(4096))), copy_to[4096] __attribute__((aligned(4096)));
static uint32_t directories[2][1024] __attribute__((aligned(4096)));
static uint32_t identity[IDENTITY_TABLES][1024] __attribute__((aligned(4096)));
static uint32_t private_table[2][1024] __attribute__((aligned(4096)));

/* ---- time */
static bool hypercalls;

/* Nanoseconds; without hvd's clock, of the ACPI timer, which has 24 bits: intervals of up to 4 s. */
static uint64_t clock_ns(void)
{
	static uint32_t last;
	static uint64_t ticks;
	uint32_t now;

	if (hypercalls)
		return (uint64_t)hv_clock();
	now = hv_port_read(PM_TIMER) & 0xffffff;
	ticks += (now - last) & 0xffffff;
	last = now;
	return ticks * 279365 / 1000;
}

uint64_t __udivdi3(uint64_t value, uint64_t divisor);

/* The compiler calls it for 64-bit divisions; divisors here are of 32 bits. */
uint64_t __udivdi3(uint64_t value, uint64_t divisor)
{
	uint32_t high = (uint32_t)(value >> 32), low = (uint32_t)value, by = (uint32_t)divisor, rest = high % by, quotient;

	__asm__("divl %4" : "=a"(quotient), "=d"(rest) : "0"(low), "1"(rest), "r"(by));
	return (uint64_t)(high / by) << 32 | quotient;
}

/* ---- memory */
static void map(void)
{
	uint32_t *entry = &identity[0][0];

	for (uint32_t n = 0; n < IDENTITY_TABLES * 1024; n++)
		entry[n] = n << 12 | W | P;
	for (uint32_t at = (uint32_t)user_start; at < (uint32_t)user_end; at += 4096)
		entry[at >> 12] |= U;
	entry[(uint32_t)user_stack_bottom >> 12] |= U;
	for (unsigned space = 0; space < 2; space++) {
		for (unsigned n = 0; n < IDENTITY_TABLES; n++)
			directories[space][n] = (uint32_t)identity[n] | U | W | P;
		directories[space][WINDOW >> 22] = (uint32_t)fault_table | W | P;
		directories[space][PRIVATE >> 22] = (uint32_t)private_table[space] | W | P;
		private_table[space][0] = (FRAMES + 0x400000 + space * 0x1000) | W | P;
		spaces[space] = (uint32_t)directories[space];
	}
	__asm__ volatile("movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(spaces[0])
			 : "eax", "memory");
}

static void unmap_window(void)
{
	for (unsigned n = 0; n < WINDOW_PAGES; n++)
		fault_table[n] = 0;
	__asm__ volatile("movl %0, %%cr3" : : "r"(spaces[0]) : "memory");
}

/* All pages of the window, no two neighbours of neighbouring frames. */
static void map_window(void)
{
	unmap_window();
	for (unsigned n = 0; n < WINDOW_PAGES; n++)
		fault_table[n] = (FRAMES + (n * 7 % WINDOW_PAGES & 0x3ff) * 4096) | W | P;
}

/* ---- operations at CPL 3 */
static void on_leave(struct frame *frame)
{
	(void)frame;
	leave_user();
}

static void in_user(void (*code)(void), uint32_t turns)
{
	user_turns = turns;
	enter_user(code, (void *)user_stack_top);
}

static void op_syscall(uint32_t turns)
{
	in_user(user_syscall, turns);
}

static void op_user_compute(uint32_t turns)
{
	in_user(user_compute, turns);
}

static const struct row {
	const char *name;
	op *op;
	void (*before)(void); /* each run, not timed */
	uint32_t most;	      /* turns of a run; 0 = any number */
	uint32_t operations;  /* of a turn */
} rows[] = {
	{"system-call", op_syscall, NULL, 0, 1},
	{"in", op_in, NULL, 0, 1},
	{"cr-write", op_cr_write, NULL, 0, 1},
	{"sti-cli", op_cli_sti, NULL, 0, 1},
	{"call-ret", op_call_ret, NULL, 0, 1},
	{"kernel-int", op_kernel_int, NULL, 0, 1},
	{"cli", op_cli, NULL, 0, 1},
	{"shadow-fill", op_shadow_fill, map_window, WINDOW_PAGES, 1},
	{"page-fault", op_page_fault, unmap_window, WINDOW_PAGES, 1},
	{"divide-error", op_divide_error, NULL, 0, 1},
	{"pte-change", op_pte_change, NULL, 0, 1},
	{"context-switch", op_context_switch, NULL, 0, 2},
	{"copy-4k", op_copy, NULL, 0, 1},
	{"kernel-compute", op_kernel_compute, NULL, 0, 1},
	{"user-compute", op_user_compute, NULL, 0, 1},
};

static uint64_t run(const struct row *row, uint32_t turns)
{
	uint64_t began, spent = 0;

	for (uint32_t left = turns, now; left; left -= now) {
		now = row->most && left > row->most ? row->most : left;
		if (row->before)
			row->before();
		began = clock_ns();
		row->op(now);
		spent += clock_ns() - began;
	}
	return spent;
}

/* The quickest of some runs of equal length: whatever else the host does hits some of them only. */
static void measure(const struct row *row, uint64_t least_ns)
{
	uint32_t turns = 16;
	uint64_t spent, best;

	least_ns /= RUNS;
	while ((best = run(row, turns)) < least_ns && turns < 1u << 30)
		turns *= best < least_ns / 16 ? 8 : 2;
	for (unsigned n = 1; n < RUNS; n++)
		if ((spent = run(row, turns)) < best)
			best = spent;
	print("nano %s %u %u\n", row->name, (uint32_t)(best * 1000 / turns / row->operations), turns * row->operations);
}

int main(void)
{
	uint64_t least_ns = option("ms", 20) * 1000000ull;
	uint32_t only = option("only", sizeof rows / sizeof *rows);

	hypercalls = hv_present();
	traps_init();
	set_gate(0, on_divide_error, 0);
	set_gate(14, on_page_fault, 0);
	set_gate(0x80, on_syscall, 3);
	set_gate(0x82, on_kernel_int, 0);
	set_handler(0x81, on_leave);
	set_gate(0x81, NULL, 3);
	map();
	fault_table[0] = frame_entry;
	for (unsigned n = 0; n < sizeof rows / sizeof *rows; n++)
		if (only == sizeof rows / sizeof *rows || only == n)
			measure(&rows[n], least_ns);
	return done();
}
