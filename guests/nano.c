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
#define TRIES 3
#define PM_TIMER 0x608 /* of QEMU's "pc", as SeaBIOS sets it up; 24 bits, 3.579545 MHz */

typedef void op(uint32_t turns);
op op_in, op_cr_write, op_cli, op_shadow_fill, op_cli_sti, op_call_ret, op_divide_error, op_kernel_int, op_page_fault, op_pte_change, op_pte_batch, op_context_switch,
	op_hypercall, op_copy, op_table, op_kernel_compute;
extern const char on_divide_error[], on_syscall[], on_kernel_int[], on_page_fault[], user_start[], user_end[], user_stack_top[],
	user_load[];
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

#ifdef HV_PARAVIRT
	if (hv_pv_present)
		return hv_pv_clock();
#endif
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
		entry[at >> 12] = (at - (uint32_t)user_start + (uint32_t)user_load) | U | W | P;
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
#ifdef HV_PARAVIRT
	hv_pv_write_cr3(spaces[0]);
#else
	__asm__ volatile("movl %0, %%cr3" : : "r"(spaces[0]) : "memory");
#endif
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

/* The same, of a program that knows of nothing else under the paravirtual ABI, either. */
static void op_program_int(uint32_t turns)
{
	in_user(user_syscall, turns);
}

static void op_user_compute(uint32_t turns)
{
	in_user(user_compute, turns);
}

static struct row {
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
	{"pte-batch", op_pte_batch, unmap_window, 0, 1},
	{"context-switch", op_context_switch, NULL, 0, 2},
	{"hypercall", op_hypercall, NULL, 0, 1},
	{"program-int", op_program_int, NULL, 0, 1},
	{"copy-4k", op_copy, NULL, 0, 1},
	{"table-4k", op_table, NULL, 0, 1},
	{"kernel-compute", op_kernel_compute, NULL, 0, 1},
	{"user-compute", op_user_compute, NULL, 0, 1},
};

#ifdef HV_PARAVIRT
op pv_in, pv_cr_write, pv_cli, pv_shadow_fill, pv_cli_sti, pv_divide_error, pv_kernel_int, pv_page_fault, pv_pte_change, pv_pte_batch, pv_context_switch,
	pv_hypercall;
extern const char pv_on_divide_error[], pv_on_kernel_int[], pv_on_page_fault[], hv_pv_programs[];
struct hv_pv_pte pte_batch[64];
void user_pv_syscall(void);

static void pv_syscall(uint32_t turns)
{
	in_user(user_pv_syscall, turns);
}

static const struct {
	op *native, *paravirtual;
} replacements[] = {
	{op_syscall, pv_syscall}, {op_in, pv_in}, {op_cr_write, pv_cr_write}, {op_cli_sti, pv_cli_sti}, {op_kernel_int, pv_kernel_int}, {op_cli, pv_cli},
	{op_page_fault, pv_page_fault}, {op_divide_error, pv_divide_error}, {op_pte_change, pv_pte_change}, {op_pte_batch, pv_pte_batch},
	{op_context_switch, pv_context_switch}, {op_hypercall, pv_hypercall},
};

/* The same operations by the ABI's means. */
static void paravirtualise(void)
{
	for (unsigned n = 0; n < sizeof rows / sizeof *rows; n++)
		for (unsigned k = 0; k < sizeof replacements / sizeof *replacements; k++)
			if (rows[n].op == replacements[k].native) {
				rows[n].op = replacements[k].paravirtual;
				break;
			}
	set_gate(0, pv_on_divide_error, 0);
	set_gate(14, pv_on_page_fault, 0);
	set_gate(0x80, pv_on_kernel_int, 3);
	set_gate(0x84, pv_on_kernel_int, 0);
	for (uint32_t n = 0; n < 64; n++)
		pte_batch[n] = (struct hv_pv_pte){(uint32_t)&fault_table[n], frame_entry, (WINDOW + n * 4096) | HV_PV_PTE_INVALIDATE, 0};
	hv_pv_call(HV_PV_CALL_SET_USER_LIMIT, 0x100000, 0, 0, 0);
	hv_pv_call(HV_PV_CALL_FILL_PAGE, (uint32_t)hv_pv_programs, 0, 0, 0);
}
#endif

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

#include "nano_quickest.h"

static void measure(const struct row *row, uint64_t least_ns)
{
	uint32_t turns = 16;
	uint64_t best;

	least_ns /= RUNS;
	/* Not by one run alone: the first has to be translated, or is interrupted, and so few turns are mostly the clock's time. */
	while ((best = quickest(row, turns, TRIES)) < least_ns && turns < 1u << 30)
		turns *= best < least_ns / 16 ? 8 : 2;
	best = quickest(row, turns, RUNS);
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
	set_gate(0x84, on_kernel_int, 0);
	set_handler(0x81, on_leave);
	set_gate(0x81, NULL, 3);
	map();
	fault_table[0] = frame_entry;
#ifdef HV_PARAVIRT
	if (hv_pv_present)
		paravirtualise();
#endif
	for (unsigned n = 0; n < sizeof rows / sizeof *rows; n++)
		if (only == sizeof rows / sizeof *rows || only == n)
			measure(&rows[n], least_ns);
	return done();
}
