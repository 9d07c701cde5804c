/* What kernels do by mistake: descriptors, page tables and stacks that make no sense, an IDT that points nowhere, code that changes itself or lies
 * across pages, instructions that are none. Without "case=" all that a kernel survives, one after the other. "case=N": the Nth deadly one of the
 * table below, which must end in a triple fault; the last three are what some backends cannot do. */
#include "guest.h"

const char guest_name[] = "garbage";

#define P 1u
#define W 2u
#define U 4u
#define WINDOW 0x00400000u  /* linear: pages of the second table, that come and go */
#define FRAMES 0x00800000u  /* guest-physical: what lies behind them */
#define NOWHERE 0x40000000u /* linear, not mapped */

static uint32_t directory[1024] __attribute__((aligned(4096))), low[1024] __attribute__((aligned(4096))),
	window[1024] __attribute__((aligned(4096))), high[1024] __attribute__((aligned(4096)));
static struct {
	uint32_t count, vector, error, at, address;
} seen;
static volatile uint32_t resume_at, resume_esp;

struct pointer {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed));

static void on_fault(struct frame *frame)
{
	seen.count++;
	seen.vector = frame->vector;
	seen.error = frame->error;
	seen.at = frame->eip;
	seen.address = frame->vector == 14 ? read_cr2() : 0;
	if (frame->cs & 3)
		leave_user();
	frame->eip = resume_at;
}

#define TRY(code, value)                                                                                               \
	do {                                                                                                           \
		seen.count = seen.vector = seen.error = 0;                                                             \
		__asm__ volatile("movl $9f, resume_at; movl %%esp, resume_esp\n" code "\n9: movl resume_esp, %%esp"     \
				 : : "b"(value) : "eax", "ecx", "edx", "esi", "edi", "memory", "cc");                  \
	} while (0)

static void faults(const char *what, uint32_t vector, uint32_t error)
{
	expect(what, seen.count ? seen.vector : 0xff, vector);
	if (vector != 0xff)
		expect(what, seen.error, error);
}

static void map(uint32_t page, uint32_t entry)
{
	window[page] = entry;
	__asm__ volatile("invlpg (%0)" : : "r"(WINDOW + page * 4096) : "memory");
}

static uint8_t *at(uint32_t linear)
{
	return (uint8_t *)linear;
}

static void write_code(uint32_t where, const uint8_t *code, unsigned length)
{
	for (unsigned n = 0; n < length; n++)
		((volatile uint8_t *)at(where))[n] = code[n];
}
#define WRITE_CODE(where, ...)                                                                                         \
	do {                                                                                                           \
		static const uint8_t code[] = {__VA_ARGS__};                                                           \
		write_code(where, code, sizeof code);                                                                  \
	} while (0)

static uint32_t call(uint32_t where)
{
	uint32_t result;

	__asm__ volatile("call *%1" : "=a"(result) : "r"(where) : "ecx", "edx", "memory", "cc");
	return result;
}

/* ---- survived */
static void no_instructions(void)
{
	TRY(".byte 0x0f, 0x0b", 0);
	faults("UD2", 6, 0);
	TRY(".byte 0x0f, 0xb9, 0xc0", 0);
	faults("UD1", 6, 0);
	TRY(".byte 0x0f, 0x04", 0);
	faults("0f 04", 6, 0);
	TRY(".byte 0x0f, 0x24, 0xc0", 0);
	faults("MOV of a test register", 6, 0);
	TRY(".byte 0xf0, 0x90", 0);
	faults("LOCK NOP", 6, 0);
	TRY(".byte 0xf0, 0x01, 0xc0", 0);
	faults("LOCK ADD of registers", 6, 0);
	TRY(".byte 0x8e, 0xc8", 0);
	faults("MOV to CS", 6, 0);
	TRY(".byte 0x8d, 0xc0", 0);
	faults("LEA of a register", 6, 0);
	TRY(".byte 0xff, 0xf8", 0);
	faults("ff /7", 6, 0);
	TRY(".byte 0xfe, 0xd0", 0);
	faults("fe /2", 6, 0);
	TRY("movl %%ebx, %%cr5", 0);
	faults("MOV to CR5", 6, 0);
	TRY(".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90", 0);
	faults("an instruction of 16 bytes", 13, 0);
	TRY(".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90", 0);
	faults("an instruction of 15 bytes", 0xff, 0);
	TRY(".byte 0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0x2e,0xfa", 0);
	faults("CLI of 15 bytes", 0xff, 0);
}

/* What of this QEMU's translator checks. */
static void control_registers(void)
{
	TRY("ltr %%bx", KERNEL_DATA);
	faults("LTR of a data segment", 13, KERNEL_DATA);
	TRY("ltr %%bx", 0xfff8);
	faults("LTR behind the table", 13, 0xfff8);
	TRY("lldt %%bx", TASK_STATE);
	faults("LLDT of a TSS", 13, TASK_STATE);
	TRY("movl %%ebx, %%ds", KERNEL_CODE | 0x1000);
	faults("a selector behind the table", 13, 0x1008);
	TRY("movl %%ebx, %%ss", KERNEL_CODE);
	faults("code as a stack", 13, KERNEL_CODE);
	TRY("movl %%ebx, %%ss", USER_DATA);
	faults("a user segment as the kernel's stack", 13, USER_DATA & ~3u);
	TRY("pushl $2; pushl $0xfff8; pushl $0; iretl", 0);
	faults("IRET to a selector behind the table", 13, 0xfff8);
	TRY("lgdt (%%ebx)", NOWHERE);
	faults("LGDT from nowhere", 14, 0);
	expect("cr2", seen.address, NOWHERE);
	TRY("lidt (%%ebx)", NOWHERE + 8);
	faults("LIDT from nowhere", 14, 0);
	TRY("movl %%ebx, %%cr3; movl %%ebx, %%eax", (uint32_t)directory | 0x18);
	faults("CR3 with PWT and PCD", 0xff, 0);
}

static void gates(void)
{
	set_gate(0x90, (void *)NOWHERE, 0);
	TRY("int $0x90", 0);
	faults("a handler that is nowhere", 14, 0);
	expect("cr2", seen.address, NOWHERE);
	set_gate(0x90, NULL, 0);
	TRY("int $0x91", 0);
	faults("a gate that was never made", 0x91, 0);
}

/* Code across two pages, the second of which comes later. */
static void across_pages(void)
{
	uint32_t border = WINDOW + 0x1000;

	map(0, FRAMES | W | P);
	map(1, (FRAMES + 0x5000) | W | P);
	WRITE_CODE(border - 3, 0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3); /* movl $0x12345678, %eax; ret */
	expect("MOV across two pages", call(border - 3), 0x12345678);
	WRITE_CODE(border - 1, 0x0f, 0x20, 0xc0, 0xc3); /* movl %cr0, %eax; ret */
	expect("MOV from CR0 across two pages", call(border - 1) & 0x80000001, 0x80000001);
	WRITE_CODE(border - 2, 0x31, 0xc0, 0xfa, 0x40, 0xc3); /* xorl; cli; incl; ret */
	expect("CLI behind the border", call(border - 2), 1);
	WRITE_CODE(border - 1, 0xe4, 0x21, 0xc3); /* inb $0x21, %al; ret */
	expect("IN across two pages", call(border - 1) & 0xff, 0xff);
	map(1, 0);
	TRY("call *%%ebx", border - 1);
	faults("an instruction whose second page is not there", 14, 0);
	expect("cr2", seen.address, border);
	expect("eip", seen.at, border - 1);
	/* Data. */
	map(1, (FRAMES + 0x5000) | W | P);
	*(volatile uint32_t *)at(border - 2) = 0xddccbbaa;
	expect("a write across two pages, first", *(volatile uint16_t *)at(border - 2), 0xbbaa);
	expect("second", *(volatile uint16_t *)(FRAMES + 0x5000), 0xddcc);
	expect("a read across two pages", *(volatile uint32_t *)at(border - 1), (*(volatile uint32_t *)at(border) << 8) | 0xbb);
	map(1, (FRAMES + 0x5000) | P);
	TRY("movl $0x11111111, (%%ebx)", border - 2);
	faults("a write whose second page is read-only", 14, 3);
	expect("cr2", seen.address, border);
	expect("nothing was written", *(volatile uint16_t *)at(border - 2), 0xbbaa);
	TRY("incl (%%ebx)", border - 3);
	faults("INC across it", 14, 3);
}

static void self_modifying(void)
{
	uint32_t sum = 0;

	map(2, (FRAMES + 0x2000) | W | P);
	map(3, (FRAMES + 0x2000) | W | P); /* the same page once more */
	WRITE_CODE(WINDOW + 0x2000, 0xb8, 0, 0, 0, 0, 0xc3);
	for (uint32_t n = 0; n < 1000; n++) {
		*(volatile uint32_t *)at(WINDOW + (n & 1 ? 0x2001 : 0x3001)) = n;
		sum += call(WINDOW + 0x2000);
	}
	expect("code that was changed 1000 times", sum, 499500);
	/* An instruction changes the next one. */
	WRITE_CODE(WINDOW + 0x2100, 0xc6, 0x05, 0x08, 0x21, 0x40, 0x00, 0x07, 0xb0, 0x01, 0x0f, 0xb6, 0xc0, 0xc3);
	expect("an instruction that changes the next one", call(WINDOW + 0x2100), 7);
	/* A privileged instruction becomes another one, at the same place. */
	WRITE_CODE(WINDOW + 0x2200, 0x31, 0xc0, 0xfa, 0x40, 0xc3);
	expect("with CLI", call(WINDOW + 0x2200), 1);
	WRITE_CODE(WINDOW + 0x2202, 0x40);
	expect("with INC in its place", call(WINDOW + 0x2200), 2);
	WRITE_CODE(WINDOW + 0x2202, 0xf8);
	expect("with CLC in its place", call(WINDOW + 0x2200), 1);
}

static void page_zero(void)
{
	volatile uint32_t *zero = (volatile uint32_t *)0;
	uint32_t was;

	__asm__ volatile("" : "+r"(zero));
	was = zero[0];
	zero[0] = 0x600df00d;
	expect("memory at 0", zero[0], 0x600df00d);
	zero[0] = was;
	WRITE_CODE(0x500, 0xb8, 0x0d, 0xf0, 0, 0, 0xc3);
	expect("code at 0x500", call(0x500), 0xf00d);
}

static void edges(void)
{
	uint32_t top;

	/* A stack that ends where a page begins, with nothing below. */
	map(8, (FRAMES + 0x8000) | W | P);
	map(7, 0);
	TRY("movl %%ebx, %%esp; pushl $1; pushl $2; popl %%eax; popl %%eax", WINDOW + 0x8008);
	faults("two pushes down to a page's first byte", 0xff, 0);
	map(9, 0);
	TRY("movl (%%ebx), %%eax", WINDOW + 0x8ffd);
	faults("a read over a page's end", 14, 0);
	expect("cr2", seen.address, WINDOW + 0x9000);
	/* The last bytes of the address space. */
	high[1023] = (FRAMES + 0x9000) | W | P;
	__asm__ volatile("invlpg 0xfffff000" : : : "memory");
	*(volatile uint32_t *)at(0xfffffffc) = 0x70707070;
	__asm__ volatile("movl $0xffffffff, %%ebx; movl -3(%%ebx), %0" : "=r"(top) : : "ebx");
	expect("the last word", top, 0x70707070);
	/* Addresses wrap at 4 GiB. */
	__asm__ volatile("movl $0xffffff00, %%ebx; movl %1, %%ecx; addl $0x100, %%ecx; movl (%%ebx, %%ecx), %0" : "=r"(top) : "r"(directory) : "ebx", "ecx");
	expect("an address that wraps", top, directory[0]);
	/* No RAM behind a page: it floats. */
	map(10, 0xd0000000 | W | P);
	*(volatile uint32_t *)at(WINDOW + 0xa000) = 1;
	expect("a page of no memory", *(volatile uint32_t *)at(WINDOW + 0xa000), 0xffffffff);
}

static void (*const survived[])(void) = {no_instructions, control_registers, gates, across_pages, self_modifying, page_zero, edges};

/* ---- deadly: each ends in a triple fault */
static void load_idt(uint32_t base, uint16_t limit)
{
	struct pointer pointer = {limit, base};

	__asm__ volatile("lidt %0" : : "m"(pointer));
}

static void idt_nowhere(void)
{
	load_idt(NOWHERE, 0x7ff);
	__asm__ volatile("ud2");
}

static void idt_empty(void)
{
	load_idt(0, 0);
	__asm__ volatile("int3");
}

static void idt_garbage(void)
{
	for (unsigned n = 0; n < 1024; n++)
		((volatile uint32_t *)FRAMES)[n] = n * 2654435761u | 0x8000;
	load_idt(FRAMES, 0xfff);
	__asm__ volatile("divl %0" : : "r"(0), "a"(0), "d"(0));
}

static void gdt_garbage(void)
{
	struct pointer pointer = {0xffff, FRAMES};

	__asm__ volatile("lgdt %0; ud2" : : "m"(pointer));
}

static void gdt_nowhere(void)
{
	struct pointer pointer = {0xffff, NOWHERE};

	__asm__ volatile("lgdt %0; int3" : : "m"(pointer));
}

static void no_stack(void)
{
	__asm__ volatile("movl %0, %%esp; pushl $1" : : "r"(NOWHERE));
}

static void stack_at_edge(void) /* there is room for 8 bytes, and an exception wants 12 */
{
	map(8, (FRAMES + 0x8000) | W | P);
	map(7, 0);
	__asm__ volatile("movl %0, %%esp; ud2" : : "r"(WINDOW + 0x8008));
}

static void no_tables(void)
{
	for (unsigned n = 0; n < 1024; n++)
		((volatile uint32_t *)FRAMES)[n] = 0;
	__asm__ volatile("movl %0, %%cr3; nop" : : "r"(FRAMES));
}

static void cyclic_tables(void) /* every page is the directory */
{
	for (unsigned n = 0; n < 1024; n++)
		((volatile uint32_t *)FRAMES)[n] = FRAMES | W | P;
	__asm__ volatile("movl %0, %%cr3; nop; nop" : : "r"(FRAMES));
}

static void no_task_state(void) /* an interrupt from CPL 3 finds no stack */
{
	static uint8_t stack[4096] __attribute__((aligned(4096)));

	task_state()->ss0 = 0;
	enter_user((void (*)(void))at(WINDOW + 0x4000), stack + sizeof stack);
}

/* ---- what some backends cannot do, and must say so */
static void sse_device(void)
{
	directory[0xfee00000u >> 22] = 0xfec00000u | 0x80 | W | P;
	__asm__ volatile("movl %%cr4, %%eax; orl $0x200, %%eax; movl %%eax, %%cr4; movddup 0xfee00020, %%xmm0" /* SSE3 */ : : : "eax");
}

static void virtual_8086(void)
{
	__asm__ volatile("pushl $0; pushl $0; pushl $0; pushl $0; pushl $0; pushl $0x1000; pushl $0x20002; pushl $0; pushl $0x500; iretl");
}

static void task_switch(void)
{
	static struct task_state other;

	set_descriptor(0x80, descriptor((uint32_t)&other, sizeof other - 1, 0x89));
	__asm__ volatile("ljmp $0x80, $0");
}

static void (*const deadly[])(void) = {idt_nowhere, idt_empty, idt_garbage, gdt_garbage, gdt_nowhere, no_stack, stack_at_edge, no_tables, cyclic_tables,
				       no_task_state, sse_device, virtual_8086, task_switch};
static const char *const deadly_names[] = {"IDT nowhere", "IDT empty", "IDT garbage", "GDT garbage", "GDT nowhere", "no stack", "stack at a page's edge",
					   "no page tables", "cyclic page tables", "no stack in the TSS", "SSE at a device", "virtual-8086 mode", "a task switch"};

int main(void)
{
	static const uint8_t vectors[] = {0, 1, 3, 6, 10, 11, 12, 13, 14, 0x90, 0x91};
	uint32_t number = option("case", 99), only = option("only", 99);

	traps_init();
	for (unsigned n = 0; n < sizeof vectors; n++)
		set_handler(vectors[n], on_fault);
	for (uint32_t n = 0; n < 1024; n++) {
		low[n] = n << 12 | U | W | P;
		directory[n] = 0;
	}
	directory[0] = (uint32_t)low | U | W | P;
	directory[1] = (uint32_t)window | U | W | P;
	directory[FRAMES >> 22] = FRAMES | 0x80 | W | P;
	directory[1023] = (uint32_t)high | W | P;
	__asm__ volatile("movl %%cr4, %%eax; orl $0x10, %%eax; movl %%eax, %%cr4; movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "memory");
	if (number < sizeof deadly / sizeof *deadly) {
		print("%s\n", deadly_names[number]);
		map(4, (FRAMES + 0x4000) | U | W | P);
		WRITE_CODE(WINDOW + 0x4000, 0xcd, 0x91, 0xeb, 0xfe);
		set_gate(0x91, NULL, 3);
		deadly[number]();
		print("garbage: it was survived\n");
		return 1;
	}
	for (unsigned n = 0; n < sizeof survived / sizeof *survived; n++)
		if (only == 99 || only == n)
			survived[n]();
	return done();
}
