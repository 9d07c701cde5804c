/* Each call of the paravirtual ABI (docs/paravirtualisation.md), and each entry of its page: what it is for, what it answers, and its errors. Where
 * the ABI is absent there is nothing to be seen. "multicalls=N": so many of 512 calls each. */
#include "guest.h"
#include "hv/hypercall.h"

const char guest_name[] = "abi";

#define P 1u
#define W 2u
#define TABLES 4
#define NOWHERE 0x40000000u /* linear: nothing is mapped there */
#define SEEN 0x60000000u    /* linear, for SET_PTE: a table, and nothing in it */
#define DATA 0x4092u	    /* attributes of a data segment, 32 bits, bytes */
#define LDT 0x0082u
#define FREE 0x40 /* selectors */
#define TRAP 0x44
#define CALL(name, a, b, c, d) ((int32_t)hv_pv_call(HV_PV_CALL_##name, (uint32_t)(a), (uint32_t)(b), (uint32_t)(c), (uint32_t)(d)))
#define CHECK(name, a, b, c, d, wanted) expect(#name "(" #a ", " #b ", " #c ", " #d ")", (uint32_t)CALL(name, a, b, c, d), (uint32_t)(wanted))

struct table {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed));

static uint32_t directory[1024] __attribute__((aligned(4096))), tables[TABLES * 1024] __attribute__((aligned(4096))), seen_table[1024] __attribute__((aligned(4096)));
static uint32_t first[1024] __attribute__((aligned(4096))), second[1024] __attribute__((aligned(4096)));
static uint8_t other_page[4096] __attribute__((aligned(4096)));
static uint32_t here[16] = {0x11111111, 0x22222222};
static volatile uint32_t ticks, traps;

static uint32_t word(uint32_t offset) { return *hv_pv_word(offset); }
static struct table table_at(uint32_t offset) { return *(struct table *)(HV_PV_VCPU + offset); }

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

static void on_trap(struct frame *frame)
{
	(void)frame;
	traps++;
}

static void map(void)
{
	for (uint32_t n = 0; n < TABLES * 1024; n++)
		tables[n] = n << 12 | W | P;
	for (uint32_t n = 0; n < TABLES; n++)
		directory[n] = (uint32_t)&tables[n * 1024] | W | P;
	directory[SEEN >> 22] = (uint32_t)seen_table | W | P;
	CHECK(SET_CR3, directory, 0, 0, 0, 0);
	CHECK(SET_CR0, word(HV_PV_CR0) | 0x80010000, 0, 0, 0, 0);
	expect("CR3", word(HV_PV_CR3), (uint32_t)directory);
	expect("CR0 has PG and WP", word(HV_PV_CR0) & 0x80010000, 0x80010000);
}

static void control_registers(void)
{
	uint32_t cr0 = word(HV_PV_CR0), cr4 = word(HV_PV_CR4);

	CHECK(VERSION, 0, 0, 0, 0, HV_PV_VERSION);
	expect("number 94", (uint32_t)hv_pv_call(HV_PV_CALL_END, 0, 0, 0, 0), (uint32_t)-HV_ENOSYS);
	expect("number 7", (uint32_t)hv_pv_call(7, 0, 0, 0, 0), (uint32_t)-HV_ENOSYS);
	expect("by trap", (uint32_t)hv_pv_call_by_trap(HV_PV_CALL_VERSION, 0, 0, 0, 0), HV_PV_VERSION);
	CHECK(SET_CR0, 0x80000000, 0, 0, 0, -HV_EINVAL); /* paging without protection */
	expect("CR0 is as it was", word(HV_PV_CR0), cr0);
	CHECK(SET_CR0, cr0 ^ 0x40000, 0, 0, 0, 0);
	expect("CR0.AM", word(HV_PV_CR0), cr0 ^ 0x40000);
	CHECK(SET_CR0, cr0, 0, 0, 0, 0);
	CHECK(SET_CR4, 0x80000000, 0, 0, 0, -HV_EINVAL);
	CHECK(SET_CR4, cr4 ^ 0x80, 0, 0, 0, 0);
	expect("CR4.PGE", word(HV_PV_CR4), cr4 ^ 0x80);
	CHECK(SET_CR4, cr4, 0, 0, 0, 0);
}

static void page_tables(void)
{
	volatile uint32_t *seen = (volatile uint32_t *)SEEN;
	struct hv_pv_pte ptes[3] = {{(uint32_t)&seen_table[0], (uint32_t)second | W | P, SEEN | HV_PV_PTE_INVALIDATE, 0},
				    {(uint32_t)&seen_table[1], (uint32_t)first | W | P, (SEEN + 4096) | HV_PV_PTE_TOUCH, 0},
				    {2, 0, 0, 0}};

	first[0] = 1;
	second[0] = 2;
	CHECK(SET_PTE, &seen_table[0], (uint32_t)first | W | P, SEEN | HV_PV_PTE_TOUCH, 0, 0);
	expect("the first page", seen[0], 1);
	expect("the entry, with its accessed bit", seen_table[0] & ~0x40u, (uint32_t)first | 0x20 | W | P);
	CHECK(SET_PTE, &seen_table[0], 0, SEEN | 4, 0, -HV_EINVAL);
	CHECK(SET_PTE, (uint32_t)seen_table + 1, 0, SEEN, 0, -HV_EINVAL);
	CHECK(SET_PTE, &seen_table[0], 0, SEEN, 1, -HV_EINVAL);
	CHECK(SET_PTE, 0xf0000000, 0, SEEN, 0, -HV_EFAULT);
	CHECK(SET_PTES, ptes, 3, 0, 0, 2);
	expect("the other page", seen[0], 2);
	expect("its neighbour", seen[1024], 1);
	CHECK(SET_PTES, &ptes[2], 1, 0, 0, -HV_EINVAL);
	CHECK(SET_PTES, ptes, HV_PV_BATCH + 1, 0, 0, -HV_EINVAL);
	CHECK(SET_PTES, NOWHERE, 1, 0, 0, -HV_EFAULT);
	CHECK(SET_PTES, NOWHERE, 0, 0, 0, 0);
	seen_table[0] = (uint32_t)first | W | P; /* by itself, as without the ABI */
	CHECK(INVLPG, SEEN, 1, 0, 0, 0);
	expect("after INVLPG", seen[0], 1);
	seen_table[0] = (uint32_t)second | W | P;
	CHECK(FLUSH, 0, 0, 0, 0, 0);
	expect("after FLUSH", seen[0], 2);
	CHECK(FLUSH, 1, 0, 0, 0, 0);
	CHECK(FLUSH, 2, 0, 0, 0, -HV_EINVAL);
	CHECK(INVLPG, 0xfffff000, 2, 0, 0, -HV_EINVAL);
}

static void descriptors(void)
{
	const struct table gdt = table_at(HV_PV_GDTR), idt = table_at(HV_PV_IDTR);
	uint64_t segment = descriptor((uint32_t)here, 7, DATA), ldt = descriptor((uint32_t)here, 63, LDT);
	const volatile uint64_t *entries = (const volatile uint64_t *)gdt.base;
	uint32_t found = 0;

	CHECK(SET_DESCRIPTOR, FREE / 8, segment, segment >> 32, 0, 0);
	expect("the descriptor, low", (uint32_t)entries[FREE / 8], (uint32_t)segment);
	expect("the descriptor, high", (uint32_t)(entries[FREE / 8] >> 32), (uint32_t)(segment >> 32));
	CHECK(SET_DESCRIPTOR, (gdt.limit + 1) / 8, 0, 0, 0, -HV_EINVAL);
	CHECK(LOAD_SEGMENT, 4, FREE, 0, 0, 0);
	__asm__ volatile("movl %%fs:4, %0" : "=r"(found));
	expect("FS", found, 0x22222222);
	expect("its selector", word(HV_PV_FS), FREE);
	CHECK(LOAD_SEGMENT, 1, FREE, 0, 0, -HV_EINVAL);
	CHECK(LOAD_SEGMENT, 4, ABSENT_DATA, 0, 0, -HV_EINVAL);
	CHECK(LOAD_SEGMENT, 4, 0x10000, 0, 0, -HV_EINVAL);
	expect("FS is as it was", word(HV_PV_FS), FREE);
	CHECK(LOAD_SEGMENT, 4, 0, 0, 0, 0);
	CHECK(SET_DESCRIPTOR, FREE / 8 + 1, ldt, ldt >> 32, 0, 0);
	CHECK(SET_LDT, FREE + 8, 0, 0, 0, 0);
	expect("LDTR", word(HV_PV_LDTR), FREE + 8);
	CHECK(SET_LDT, FREE, 0, 0, 0, -HV_EINVAL);
	CHECK(SET_LDT, 0, 0, 0, 0, 0);
	set_descriptor(FREE + 16, entries[TASK_STATE / 8] & ~(2ull << 40)); /* not busy */
	CHECK(SET_TR, FREE + 16, 0, 0, 0, 0);
	expect("TR", word(HV_PV_TR), FREE + 16);
	expect("busy", entries[FREE / 8 + 2] >> 41 & 1, 1);
	CHECK(SET_TR, FREE + 16, 0, 0, 0, -HV_EINVAL);
	CHECK(SET_STACK, KERNEL_DATA, task_state()->esp0 - 16, 0, 0, 0);
	CHECK(SET_STACK, 0x10000, 0, 0, 0, -HV_EINVAL);
	expect("SS0", task_state()->ss0, KERNEL_DATA);
	CHECK(SET_GDT, gdt.base, 0x10000, 0, 0, -HV_EINVAL);
	CHECK(SET_GDT, gdt.base, gdt.limit - 8, 0, 0, 0);
	expect("limit of the GDT", table_at(HV_PV_GDTR).limit, gdt.limit - 8u);
	CHECK(SET_GDT, gdt.base, gdt.limit, 0, 0, 0);
	CHECK(SET_IDT, idt.base, 0x10000, 0, 0, -HV_EINVAL);
	CHECK(SET_IDT, idt.base, idt.limit, 0, 0, 0);
	expect("base of the IDT", table_at(HV_PV_IDTR).base, idt.base);
}

static void gates(void)
{
	const volatile uint32_t *gate = (const volatile uint32_t *)table_at(HV_PV_IDTR).base + 2 * TRAP;
	uint32_t target = gate[0] & 0xffff;
	struct hv_pv_trap wanted[2] = {{TRAP, HV_PV_TRAP_INTERRUPT | 3, KERNEL_CODE, 0}, {TRAP, 8, KERNEL_CODE, 0}};

	target |= gate[1] & 0xffff0000;
	wanted[0].address = wanted[1].address = target;
	set_handler(TRAP, on_trap);
	set_gate(TRAP, (const void *)0x1234, 0);
	CHECK(SET_TRAPS, wanted, 2, 0, 0, 1);
	expect("the gate", gate[1], (target & 0xffff0000) | 0xee00);
	__asm__ volatile("int %0" : : "i"(TRAP) : "memory");
	expect("the trap came", traps, 1);
	CHECK(SET_TRAPS, &wanted[1], 1, 0, 0, -HV_EINVAL);
	CHECK(SET_TRAPS, wanted, 257, 0, 0, -HV_EINVAL);
	CHECK(SET_TRAPS, NOWHERE, 1, 0, 0, -HV_EFAULT);
}

static void interrupts(void)
{
	irq_enable(0, on_tick);
	CHECK(SET_TIMER, 0, 0, 0, 0, -HV_EINVAL);
	CHECK(SET_TIMER, 60000000, 0, 0, 0, -HV_EINVAL);
	CHECK(SET_TIMER, 1000000, 0, 0, 0, 0);
	hv_pv_idle();
	expect("a tick by IDLE", ticks, 1);
	expect("interrupts are on", word(HV_PV_IF), 0x200);
	hv_pv_cli();
	CHECK(SET_TIMER, 1000000, 0, 0, 0, 0);
	while (!word(HV_PV_PENDING))
		;
	expect("none while they are off", ticks, 1);
	*(volatile uint8_t *)(HV_PV_VCPU + HV_PV_IF + 1) = 2;
	hv_pv_deliver();
	expect("a tick by DELIVER", ticks, 2);
	hv_pv_cli();
	CHECK(SET_TIMER, 1000000, 0, 0, 0, 0);
	while (!word(HV_PV_PENDING))
		;
	*(volatile uint8_t *)(HV_PV_VCPU + HV_PV_IF + 1) = 2;
	CHECK(DELIVER, 0, 0, 0, 0, 0);
	expect("a tick by the call", ticks, 3);
	CHECK(SET_TIMER, 1000000, 0, 0, 0, 0);
	CHECK(IDLE, 0, 0, 0, 0, 0);
	expect("a tick by the call IDLE", ticks, 4);
	hv_pv_cli();
}

static void devices(void)
{
	static const char text[] = "by CONSOLE\r\n";
	static uint8_t masks[16384];
	void *to = masks;
	uint32_t count = sizeof masks;

	CHECK(CONSOLE, text, sizeof text - 1, 0, 0, sizeof text - 1);
	CHECK(CONSOLE, text, HV_PV_CONSOLE_MAX + 1, 0, 0, -HV_EINVAL);
	CHECK(CONSOLE, NOWHERE, 1, 0, 0, -HV_EFAULT);
	CHECK(PORT_OUT, 0x21, 1, 0x1fe, 0, 0);
	CHECK(PORT_IN, 0x21, 1, 0, 0, 0xfe);
	__asm__ volatile("cld; rep insb" : "+D"(to), "+c"(count) : "d"(0x21) : "memory");
	expect("REP INSB", masks[sizeof masks - 1], 0xfe);
	CHECK(PORT_IN, 0x21, 3, 0, 0, -HV_EINVAL);
	CHECK(PORT_IN, 0x10000, 1, 0, 0, -HV_EINVAL);
	CHECK(PORT_OUT, 0x21, 8, 0, 0, -HV_EINVAL);
	CHECK(WRITE_MSR, 0x174, 0x1234, 0, 0, 0); /* IA32_SYSENTER_CS */
	CHECK(READ_MSR, 0x174, 0, 0, 0, 0x1234);
	CHECK(WRITE_MSR, 0x3b, 0x1000, 0, 0, 0); /* IA32_TSC_ADJUST */
	CHECK(READ_MSR, 0x3b, 0, 0, 0, 0x1000);
	CHECK(WRITE_MSR, 0x3b, 0, 0, 0, 0);
	CHECK(WRITE_MSR, 0xc0000080, 2, 0, 0, -HV_EINVAL); /* IA32_EFER: a bit that there is not */
	CHECK(DEBUG, 1, 0, 0, 0, 0);
	CHECK(POWER, 2, 0, 0, 0, -HV_EINVAL);
	int64_t before = (int64_t)hv_pv_clock(), between = hv_pv_call(HV_CALL_CLOCK, 0, 0, 0, 0), after = (int64_t)hv_pv_clock();

	expect("CLOCK of the base is the page's time", before <= between && between <= after, 1);
}

static void entries(void)
{
	int32_t result = 0;

	CHECK(FILL_PAGE, other_page + 1, 0, 0, 0, -HV_EINVAL);
	CHECK(FILL_PAGE, NOWHERE, 0, 0, 0, -HV_EFAULT);
	CHECK(FILL_PAGE, other_page, 0, 0, 0, 0);
	__asm__ volatile("call *%2" : "=a"(result) : "0"(HV_PV_CALL_VERSION), "r"(other_page) : "edx", "memory");
	expect("VERSION by another page", (uint32_t)result, HV_PV_VERSION);
	CHECK(SET_USER_LIMIT, 1, 0, 0, 0, -HV_EINVAL);
	CHECK(SET_USER_LIMIT, 0x80000000, 0, 0, 0, 0);
	CHECK(SET_USER_LIMIT, 0, 0, 0, 0, 0);
	/* Each way of IRET, with a frame of CPL 0. */
	__asm__ volatile("pushl $2; pushl $8; call 1f; jmp 2f; 1: jmp hv_pv_page + %c0; 2:" : : "i"(HV_PV_ENTRY_IRET) : "memory", "cc");
	__asm__ volatile("pushl $2; pushl $8; call 1f; jmp 2f; 1: call hv_pv_page + %c0; 2:" : : "i"(HV_PV_ENTRY_IRET_SITE) : "memory", "cc");
	__asm__ volatile("pushl $2; pushl $8; call 1f; jmp 2f; 1: movl %0, %%eax; int %1; 2:"
			 : : "i"(HV_PV_CALL_IRET), "i"(HV_PV_TRAP_CALL) : "eax", "edx", "memory", "cc");
}

static void several(uint32_t rounds)
{
	static struct hv_pv_call calls[HV_PV_BATCH];
	uint32_t bad = 0;

	calls[0] = (struct hv_pv_call){HV_PV_CALL_VERSION, {0}, 7};
	calls[1] = (struct hv_pv_call){HV_PV_CALL_MULTICALL, {0}, 7};
	calls[2] = (struct hv_pv_call){HV_PV_CALL_IRET, {0}, 7};
	calls[3] = (struct hv_pv_call){HV_PV_CALL_IDLE, {0}, 7};
	calls[4] = (struct hv_pv_call){HV_CALL_YIELD, {0}, 7};
	calls[5] = (struct hv_pv_call){HV_PV_CALL_END, {0}, 7};
	calls[6] = (struct hv_pv_call){HV_PV_CALL_PORT_IN, {0x21, 1}, 7};
	CHECK(MULTICALL, calls, 7, 0, 0, 7);
	expect("of VERSION", (uint32_t)calls[0].result, HV_PV_VERSION);
	for (unsigned n = 1; n < 6; n++)
		bad += calls[n].result != -HV_EINVAL;
	expect("those that MULTICALL does not take", bad, 0);
	expect("of PORT_IN", (uint32_t)calls[6].result, 0xfe);
	CHECK(MULTICALL, calls, HV_PV_BATCH + 1, 0, 0, -HV_EINVAL);
	CHECK(MULTICALL, NOWHERE, 1, 0, 0, -HV_EFAULT);
	for (unsigned n = 0; n < HV_PV_BATCH; n++)
		calls[n] = (struct hv_pv_call){HV_PV_CALL_DEBUG, {n}, 7};
	while (rounds--)
		CHECK(MULTICALL, calls, HV_PV_BATCH, 0, 0, HV_PV_BATCH);
}

int main(void)
{
	if (!hv_pv_present) {
		print("no paravirtual ABI here\n");
		return done();
	}
	traps_init();
	map();
	control_registers();
	page_tables();
	descriptors();
	gates();
	interrupts();
	devices();
	entries();
	several(option("multicalls", 4));
	return done();
}
