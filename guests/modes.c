/* What IA-32 protected mode has beyond flat segments: segments with base and limit, expand-down, 16-bit code and stacks, prefixes, LDT,
 * conforming code, call gates, stacks from the TSS, INT n and IRET of all kinds, string I/O with faults in the middle, x87 and SSE state over
 * interrupts, PAE, stale translations, many address spaces, much memory. "only=N": one of the rows; "touch=N": pages touched at the end. */
#include "guest.h"

const char guest_name[] = "modes";

/* Selectors of this kernel's own segments. From 0x80 on no Linux host has any. */
#define SMALL 0x80	 /* data, 16 bytes */
#define READ_ONLY 0x88
#define EXPAND_DOWN 0x90 /* valid from 0x1000 on */
#define LIMITED 0x98	 /* data, flat, 8 MiB */
#define CODE16 0xa0
#define STACK16 0xa8
#define LDT 0xb0
#define CONFORMING 0xb8
#define CALL_GATE 0xc3 /* RPL 3 */
#define EXECUTE_ONLY 0xc8
#define BASED_CODE 0xd0
#define USER_BASED 0xdb
#define LDT_DATA 0x04
#define LDT_CODE 0x0c

#define P 1u
#define W 2u
#define U 4u
#define LARGE 0x80u
#define HOLE 0x00300000u /* linear: a page that is not there */
#define SPACES 64u

static struct {
	uint32_t count, vector, error, at, address, cs, eflags, esp;
} seen;
static volatile uint32_t resume_at, resume_esp;
static uint8_t user_stack[8192] __attribute__((aligned(4096)));
static uint32_t directory[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096)));

static void on_fault(struct frame *frame)
{
	seen.count++;
	seen.vector = frame->vector;
	seen.error = frame->error;
	seen.at = frame->eip;
	seen.address = frame->vector == 14 ? read_cr2() : 0;
	seen.cs = frame->cs;
	seen.eflags = frame->eflags;
	seen.esp = (uint32_t)frame;
	if (frame->cs & 3)
		leave_user();
	frame->cs = KERNEL_CODE;
	frame->eip = resume_at;
	frame->eflags &= ~0x100u; /* no further step */
}

/* Run what may fault; it goes on behind it either way. */
#define TRY(code, ...)                                                                                                 \
	do {                                                                                                           \
		seen.count = seen.vector = seen.error = 0;                                                             \
		__asm__ volatile("movl $9f, resume_at; movl %%esp, resume_esp\n" code "\n9: movl %%ss:resume_esp, %%esp" : : __VA_ARGS__ : "eax", "ecx", "edx", "esi", "edi", "memory", "cc"); \
	} while (0)

/* The same with DS or ES changed. */
#define TRY_DATA(code) TRY("movl $0x80, %%eax; " code "\n9: movl $0x10, %%eax; movl %%eax, %%ds; movl %%eax, %%es", "b"(0))

static void faults(const char *what, uint32_t vector, uint32_t error)
{
	expect(what, seen.count ? seen.vector : 0xff, vector);
	if (vector != 0xff)
		expect(what, seen.error, error);
}

/* QEMU's translator checks no access against its segment. "limits=1": whoever runs this does. */
static void limit_faults(const char *what, uint32_t vector, uint32_t error)
{
	if (seen.count || option("limits", 0))
		faults(what, vector, error);
}

static void no_fault(const char *what)
{
	faults(what, 0xff, 0);
}

static void in_user(void (*code)(void))
{
	seen.count = 0;
	enter_user(code, user_stack + sizeof user_stack);
}

/* ---- segments */
static volatile uint32_t words[1024] __attribute__((aligned(4096)));

static void segments(void)
{
	uint32_t value;

	words[0] = 0x11111111;
	words[3] = 0x33333333;
	__asm__ volatile("movw %w1, %%fs; movl %%fs:12, %0" : "=r"(value) : "r"(SMALL));
	expect("fs:12 of a segment with a base", value, 0x33333333);
	__asm__ volatile("movw %w1, %%gs; movl $0x44444444, %%gs:8; xorl %0, %0" : "=r"(value) : "r"(SMALL));
	expect("gs:8 written", words[2], 0x44444444);
	TRY("movl %%fs:13, %%eax", "b"(0));
	limit_faults("a read over the limit", 13, 0);
	TRY("movb $1, %%fs:16", "b"(0));
	limit_faults("a write behind the limit", 13, 0);
	TRY("movb %%fs:15, %%al", "b"(0));
	no_fault("the last byte within the limit");
	TRY("movl %%fs:(%0), %%eax", "b"(0xfffffff0));
	limit_faults("a read far outside", 13, 0);
	TRY("movw %w0, %%fs; movl %%fs:4, %%eax", "b"(READ_ONLY));
	no_fault("a read of a segment that is read-only");
	TRY("movl %%eax, %%fs:4", "b"(0));
	limit_faults("a write to a segment that is read-only", 13, 0);
	TRY("movw %w0, %%fs; movl %%fs:0xffc, %%eax", "b"(EXPAND_DOWN));
	limit_faults("a read below an expand-down segment", 13, 0);
	TRY("movl %%fs:0x1000, %%eax", "b"(0));
	no_fault("a read within an expand-down segment");
	TRY("movw %w0, %%gs; movl %%gs:0, %%eax", "b"(0));
	limit_faults("a read by the null selector", 13, 0);
	TRY("movw %w0, %%gs", "b"(EXECUTE_ONLY));
	faults("an execute-only code segment as data", 13, EXECUTE_ONLY);
	TRY("movw %w0, %%ss", "b"(READ_ONLY));
	faults("a stack that is read-only", 13, READ_ONLY);
	TRY("movw %w0, %%ss", "b"(0));
	faults("the null selector as stack", 13, 0);
	TRY("movl $0x98, %%eax; movl %%eax, %%ss; movl %%ss:(%0), %%eax", "b"(0x900000));
	limit_faults("a read behind the stack segment's limit", 12, 0);
	__asm__ volatile("movl $0x10, %%eax; movl %%eax, %%ss" : : : "eax");
	/* DS itself, with everything that uses it without a prefix. */
	reload_segments = true;
	__asm__ volatile("movl %2, %%esi; movl $0x80, %%eax; movl %%eax, %%ds; xorl %%esi, %%esi; lodsl; movl %%ss:8(%%edx), %%ecx; movl 8, %%ecx;"
			 "movl %%ecx, %1; movl %%eax, %0; movl $0x10, %%eax; movl %%eax, %%ds"
			 : "=b"(value), "=D"(words[5])
			 : "d"(words)
			 : "eax", "ecx", "esi", "memory");
	expect("LODS by a DS with a base", value, 0x11111111);
	expect("ds:8 with a base", words[5], 0x44444444);
	TRY_DATA("movl %%eax, %%ds; movl 16, %%eax");
	limit_faults("a read behind DS' limit", 13, 0);
	TRY_DATA("movl %%eax, %%es; movl $12, %%edi; movl $2, %%ecx; rep stosl");
	limit_faults("STOS behind ES' limit", 13, 0);
	expect("what STOS wrote before", words[3], 0x80);
	/* Pointers with a selector. */
	static const struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) pointer = {4, SMALL};
	__asm__ volatile("lfs %2, %1; movl %%fs:(%1), %0" : "=r"(value), "=&r"(words[6]) : "m"(pointer));
	expect("LFS, and a read there", value, words[1]);
	__asm__ volatile("lgs %1, %0" : "=r"(value) : "m"(pointer));
	expect("LGS", value, 4);
	reload_segments = false;
	__asm__ volatile("movw %w0, %%fs; movw %w0, %%gs; movw %w1, %%es" : : "r"(0), "r"(KERNEL_DATA));
}

/* ---- 16-bit code, stacks, prefixes */
extern const char code16[], code16_end[], based_code[];
__asm__(".text\n"
	"code16: .code16\n"
	"	movw	$0x1234, %ax\n"
	"	addl	$0x10000, %eax\n" /* 66 */
	"	movl	%eax, %edx\n"
	"	movw	%bx, %si\n"
	"	addr32 movw (%ebx), %cx\n" /* 67 */
	"	movw	$7, %di\n"
	"	pushw	$0x5678\n"
	"	popw	%di\n"
	"	movw	$3, %cx\n"
	"1:	incw	%ax\n"
	"	loop	1b\n"
	"	jmp	2f\n"
	"	hlt\n"
	"2:	call	3f\n"
	"	lretl\n" /* 66 cb */
	"3:	addw	$0x100, %ax\n"
	"	ret\n"
	"code16_end: .code32\n"
	"based_code:\n"
	"	call	1f\n"
	"1:	popl	%eax\n" /* an offset in the segment: 5 */
	"	lretl\n");

static void sixteen(void)
{
	static struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) target = {0, CODE16};
	uint32_t a = 0xabcd0000, d, di = 0xffff0000, esp;

	__asm__ volatile("lcall *%3" : "+a"(a), "=d"(d), "+D"(di) : "m"(target), "b"(words) : "ecx", "esi", "memory", "cc");
	expect("eax of 16-bit code", a, 0xabce1337);
	expect("edx of 16-bit code", d, 0xabce1234);
	expect("edi of 16-bit code", di, 0xffff5678);
	target.selector = BASED_CODE;
	__asm__ volatile("lcall *%1" : "=a"(a) : "m"(target) : "memory");
	expect("return address in a code segment with a base", a, 5);

	/* A 16-bit stack: SP wraps, the upper half of ESP stays. */
	words[64] = 0;
	__asm__ volatile("movl %%esp, %0; movl $0xa8, %%eax; movl %%eax, %%ss; movl $0x12340100, %%esp; pushl $0x66666666; pushw $0x7777; movl %%esp, %1;"
			 "movw $0, %%sp; pushw $0x8888; movl %%esp, %%ecx; addl $2, %%esp; movw $0x10, %%ax; movl %%eax, %%ss; movl %0, %%esp"
			 : "=&b"(esp), "=&d"(d), "=&c"(a)
			 :
			 : "eax", "memory");
	expect("esp after pushes to a 16-bit stack", d, 0x123400fa);
	expect("esp after a push at SP 0", a, 0x1234fffe);
	expect("what was pushed", words[63], 0x66666666);
	expect("a word that was pushed", words[62] >> 16, 0x7777);

	/* Prefixes in 32-bit code. */
	__asm__ volatile("movl $0x11112222, %%eax; pushw %%ax; pushw %%ax; popl %%edx; movw $0x3333, %%ax; data16 pushl %%eax; popw %%cx; addr16 leal -1(%%bx), %%ebx"
			 : "=&a"(a), "=&d"(d), "=&c"(di), "=b"(esp)
			 : "b"(0x10000));
	expect("eax after a 16-bit MOV", a, 0x11113333);
	expect("two words pushed, popped as one", d, 0x22222222);
	expect("pushed with 66", di & 0xffff, 0x3333);
	expect("LEA with 67", esp, 0xffff);
	words[0] = 0xaaaaaaaa;
	__asm__ volatile("movl $0x10010, %%ecx; movl $0, %%eax; 1: incl %%eax; addr16 loop 1b" : "=a"(a), "=c"(d) : : "cc");
	expect("LOOP with 67 counts CX", a, 0x10);
	expect("and leaves the upper half", d, 0x10000);
}

/* ---- LDT */
static uint64_t ldt[4];

static void local(void)
{
	uint32_t value;
	static struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) target = {0, LDT_CODE};

	ldt[0] = descriptor((uint32_t)&words[8], 7, 0x4092);
	ldt[1] = descriptor((uint32_t)based_code, 0xfff, 0x409a);
	set_descriptor(LDT, descriptor((uint32_t)ldt, sizeof ldt - 1, 0x82));
	words[9] = 0x99999999;
	__asm__ volatile("lldt %w0" : : "r"(LDT));
	__asm__ volatile("movw %w1, %%fs; movl %%fs:4, %0" : "=r"(value) : "r"(LDT_DATA));
	expect("a read by an LDT segment", value, 0x99999999);
	TRY("movl %%fs:8, %%eax", "b"(0));
	limit_faults("a read behind its limit", 13, 0);
	__asm__ volatile("lcall *%1" : "=a"(value) : "m"(target) : "memory");
	expect("a call into an LDT code segment", value, 5);
	/* Changed in place: a load sees the new one. */
	ldt[0] = descriptor((uint32_t)&words[16], 7, 0x4092);
	words[17] = 0x17171717;
	__asm__ volatile("movw %w1, %%fs; movl %%fs:4, %0" : "=r"(value) : "r"(LDT_DATA));
	expect("a descriptor that was changed", value, 0x17171717);
	ldt[0] = 0;
	TRY("movw %w0, %%fs", "b"(LDT_DATA));
	faults("an empty LDT descriptor", 13, LDT_DATA);
	TRY("movw %w0, %%fs", "b"(0x24));
	faults("a selector behind the LDT", 13, 0x24);
	__asm__ volatile("lldt %w0" : : "r"(0));
	TRY("movw %w0, %%fs", "b"(LDT_DATA));
	faults("an LDT selector without an LDT", 13, LDT_DATA);
	TRY("lldt %w0", "b"(SMALL));
	faults("LLDT of a data segment", 13, SMALL);
	__asm__ volatile("movw %w0, %%fs" : : "r"(0));
}

/* ---- privileges */
static volatile uint32_t gate_sum, gate_esp;
extern const char on_gate[];
__asm__(".text\n"
	"on_gate:\n" /* EIP, CS, two parameters, ESP, SS */
	"	movl	8(%esp), %eax\n"
	"	addl	12(%esp), %eax\n"
	"	movl	%eax, %ss:gate_sum\n"
	"	movl	%esp, %ss:gate_esp\n"
	"	lretl	$8\n");

static void user_call_gate(void)
{
	__asm__ volatile("pushl $40; pushl $2; lcall $0xc3, $0; cli" : : : "memory"); /* CLI: back at CPL 3 */
}

static void user_conforming(void)
{
	__asm__ volatile("lcall $0xbb, $0" : : : "memory"); /* conforming_code below */
}

static void user_far_return(void)
{
	__asm__ volatile("pushl $0x1b; pushl $1f; lretl; 1: cli" : : : "memory");
}

static void user_iret(void)
{
	__asm__ volatile("pushl $0x23; pushl %%esp; pushl $0x3202; pushl $0x1b; pushl $1f; iretl; 1: cli" : : : "memory");
}

static void user_based_data(void)
{
	__asm__ volatile("movl $0xdb, %%eax; movl %%eax, %%ds; movl 4, %%eax; cli" : : : "eax", "memory");
}

static void user_kernel_data(void)
{
	__asm__ volatile("movl $0x10, %%eax; movl %%eax, %%ds" : : : "eax", "memory");
}

static void user_kernel_code(void)
{
	__asm__ volatile("lcall $0x08, $0" : : : "memory");
}

static void user_int_0x83(void)
{
	__asm__ volatile("int $0x83" : : : "memory");
}

static void user_step(void) /* TF: #DB behind the instruction after POPF's or IRET's */
{
	__asm__ volatile("pushl $0x302; popfl; nop; nop" : : : "memory");
}

extern const char conforming_code[];
__asm__(".text\nconforming_code: cli\n lretl\n");

static void privileges(void)
{
	struct task_state *task = task_state();
	uint32_t esp0 = task->esp0;

	set_descriptor(CALL_GATE, (uint64_t)((uint32_t)on_gate & 0xffff0000) << 32 | 0xec02ull << 32 | KERNEL_CODE << 16 | ((uint32_t)on_gate & 0xffff));
	in_user(user_call_gate);
	faults("CLI behind a call gate", 13, 0);
	expect("at CPL 3", seen.cs, USER_CODE);
	expect("parameters through a call gate", gate_sum, 42);
	expect("on the TSS' stack", gate_esp, esp0 - 24);
	set_descriptor(CONFORMING, descriptor((uint32_t)conforming_code, 0xfff, 0x409e));
	in_user(user_conforming);
	faults("CLI in conforming code called from CPL 3", 13, 0);
	expect("whose CPL stays", seen.cs, CONFORMING | 3);
	in_user(user_far_return);
	faults("CLI behind a far return in CPL 3", 13, 0);
	expect("of the same code segment", seen.cs, USER_CODE);
	in_user(user_iret);
	faults("CLI behind IRET in CPL 3", 13, 0);
	expect("IF and IOPL are not the user's", seen.eflags & 0x3200, 0);
	in_user(user_based_data);
	faults("CLI behind a read by a user segment with a base", 13, 0);
	in_user(user_kernel_data);
	faults("the kernel's data segment for user code", 13, KERNEL_DATA);
	in_user(user_kernel_code);
	faults("the kernel's code segment for user code", 13, KERNEL_CODE);
	in_user(user_int_0x83);
	faults("an interrupt whose gate is not the user's", 13, 0x83 * 8 + 2);
	task->esp0 = esp0 - 256;
	in_user(user_int_0x83);
	expect("the stack is where the TSS says", seen.esp, esp0 - 256 - 60);
	task->esp0 = esp0;
	in_user(user_step);
	faults("a step in CPL 3", 1, 0);
	set_handler(0x83, on_fault);
	set_gate(0x83, NULL, 3);
	in_user(user_int_0x83);
	faults("an interrupt whose gate is the user's", 0x83, 0);
	set_gate(0x83, NULL, 0);
}

/* ---- INT and IRET in the kernel */
static void software_interrupts(void)
{
	uint32_t value;

	TRY("int $0x83", "b"(0));
	faults("INT 0x83", 0x83, 0);
	TRY("int $3", "b"(0));
	faults("INT 3 of two bytes", 3, 0);
	TRY("movb $0x7f, %%al; addb $1, %%al; into", "b"(0));
	faults("INTO", 4, 0);
	TRY("movb $1, %%al; addb $1, %%al; into", "b"(0));
	no_fault("INTO without OF");
	static const int32_t bounds[2] = {1, 4};
	TRY("movl $5, %%eax; bound %%eax, %0", "m"(bounds));
	faults("BOUND", 5, 0);
	TRY("movl $4, %%eax; bound %%eax, %0", "m"(bounds));
	no_fault("BOUND within");
	/* IRET to the same level, in both sizes. */
	__asm__ volatile("xorl %0, %0; pushl $0x2; pushl $0x08; pushl $1f; iretl; hlt; 1: incl %0" : "=&a"(value) : : "memory", "cc");
	expect("IRET to the same level", value, 1);
	TRY("pushl $2; pushl $0; pushl $0; iretl", "b"(0));
	faults("IRET to the null selector", 13, 0);
	TRY("pushl $2; pushl $0x10; pushl $0; iretl", "b"(0));
	faults("IRET to a data segment", 13, KERNEL_DATA);
	TRY("ljmp $0x38, $0", "b"(0));
	faults("a far jump to a data segment", 13, ABSENT_DATA);
	TRY("ljmp $0x08, $8f; hlt; 8: movl $77, %%eax", "b"(0));
	no_fault("a far jump");
	__asm__ volatile("xorl %0, %0; pushl $0x08; pushl $1f; lretl; hlt; 1: incl %0" : "=&a"(value) : : "memory", "cc");
	expect("a far return", value, 1);
	/* Into a step, in the kernel: TF by IRET. */
	TRY("pushl $0x102; pushl $0x08; pushl $8f; iretl; 8: nop; nop; nop", "b"(0));
	faults("a step in the kernel", 1, 0);
}

/* ---- string I/O */
static void string_io(void)
{
	static uint8_t buffer[8192 + 64] __attribute__((aligned(4096)));
	uint32_t count, end;

	__asm__ volatile("cld; rep insb" : "=c"(count), "=D"(end) : "0"(100), "1"(buffer + 4000), "d"(0x3fd) : "memory");
	expect("ECX after REP INSB", count, 0);
	expect("EDI after REP INSB", end, (uint32_t)buffer + 4100);
	for (unsigned n = 4000; n < 4100; n++)
		expect("a byte of REP INSB", buffer[n] & 0x60, 0x60);
	expect("the byte behind them", buffer[4100], 0);
	__asm__ volatile("std; rep insw; cld" : "=c"(count), "=D"(end) : "0"(4), "1"(buffer + 1000), "d"(0xed) : "memory");
	expect("EDI after REP INSW backwards", end, (uint32_t)buffer + 992);
	__asm__ volatile("rep outsb" : "=c"(count), "=S"(end) : "0"(200), "1"(buffer + 4000), "d"(0x80) : "memory");
	expect("ESI after REP OUTSB", end, (uint32_t)buffer + 4200);
	__asm__ volatile("outsl" : "=S"(end) : "0"(buffer), "d"(0x80) : "memory");
	expect("ESI after OUTSL", end, (uint32_t)buffer + 4);
	/* Over the border into a page that is not there: what was done is done. */
	seen.count = 0;
	__asm__ volatile("movl $9f, resume_at; rep insb; 9:" : "=c"(count), "=D"(end) : "0"(100), "1"(HOLE - 30), "d"(0x3fd) : "memory");
	faults("REP INSB into a hole", 14, 2);
	expect("cr2", seen.address, HOLE);
	expect("ECX at the fault", count, 70);
	expect("EDI at the fault", end, HOLE);
	seen.count = 0;
	__asm__ volatile("movl $9f, resume_at; rep outsb; 9:" : "=c"(count), "=S"(end) : "0"(100), "1"(HOLE - 10), "d"(0x80) : "memory");
	faults("REP OUTSB from a hole", 14, 0);
	expect("ECX at the fault", count, 90);
	seen.count = 0;
	__asm__ volatile("movl $9f, resume_at; rep movsb; 9:" : "=c"(count), "=D"(end) : "0"(100), "1"(HOLE - 20), "S"(buffer) : "memory");
	faults("REP MOVSB into a hole", 14, 2);
	expect("ECX at the fault", count, 80);
	__asm__ volatile("movl $0x10005, %%ecx; movl $0, %%eax; movl %1, %%edi; addr16 rep stosb" : "=c"(count) : "r"(0x7000) : "eax", "edi", "memory");
	expect("REP with 67 counts CX", count, 0x10000);
}

/* ---- x87 and SSE */
static volatile uint32_t ticks;

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

static void floating_point(void)
{
	static const uint32_t pattern[8] __attribute__((aligned(16))) = {1, 2, 3, 4, 0x5a5a5a5a, 6, 7, 8};
	static uint32_t found[8] __attribute__((aligned(16)));
	static const double third = 1.0 / 3;
	static union {
		double number;
		uint32_t words[2];
	} sum;
	uint32_t low;

	__asm__ volatile("movl %%cr0, %%eax; andl $~12, %%eax; orl $2, %%eax; movl %%eax, %%cr0; movl %%cr4, %%eax; orl $0x600, %%eax; movl %%eax, %%cr4; fninit"
			 :
			 :
			 : "eax");
	__asm__ volatile("movaps %0, %%xmm0; movaps %1, %%xmm7; fldl %2; fldpi" : : "m"(pattern[0]), "m"(pattern[4]), "m"(third));
	ticks = 0;
	irq_enable(0, on_tick);
	pit_periodic(1000);
	interrupts_on();
	while (ticks < 5) { /* interrupts, faults, ports, a system call meanwhile */
		TRY("movl (%0), %%eax", "b"(HOLE));
		outb(0x80, 1);
		TRY("int $0x83", "b"(0));
	}
	interrupts_off();
	outb(0x21, 0xff);
	__asm__ volatile("movaps %%xmm0, %0; movaps %%xmm7, %1; faddp; fstpl %2" : "=m"(found[0]), "=m"(found[4]), "=m"(sum.number));
	for (unsigned n = 0; n < 8; n++)
		expect("a word of XMM0 or XMM7", found[n], pattern[n]);
	expect("pi and a third, high", sum.words[1], 0x400bcca5);
	expect("pi and a third, low", sum.words[0], 0xfeeed7c3);
	__asm__ volatile("fnstsw %%ax; andl $0x3800, %%eax" : "=a"(low));
	expect("the x87 stack is empty", low, 0);
}

/* ---- paging */
static void load_cr3(const void *root)
{
	__asm__ volatile("movl %0, %%cr3" : : "r"(root) : "memory");
}

static void paging_on(void)
{
	for (uint32_t n = 0; n < 1024; n++)
		table[n] = n << 12 | U | W | P;
	table[HOLE >> 12] = 0;
	directory[0] = (uint32_t)table | U | W | P;
	for (uint32_t n = 1; n < 1024; n++)
		directory[n] = n << 22 | LARGE | W | P;
	__asm__ volatile("movl %%cr4, %%eax; orl $0x10, %%eax; movl %%eax, %%cr4; movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "memory");
}

#define FRAMES 0x00800000u
static uint32_t windows[SPACES][1024] __attribute__((aligned(4096)));
static uint32_t spaces[SPACES][1024] __attribute__((aligned(4096)));

static void address_spaces(void)
{
	volatile uint32_t *window = (volatile uint32_t *)0x40000000, *stale = (volatile uint32_t *)0x40001000;
	uint32_t value;

	for (unsigned n = 0; n < SPACES; n++) {
		for (unsigned i = 0; i < 1024; i++)
			spaces[n][i] = directory[i];
		spaces[n][0x100] = (uint32_t)windows[n] | W | P;
		windows[n][0] = (FRAMES + n * 4096) | W | P;
	}
	for (unsigned round = 0; round < 3; round++)
		for (unsigned n = 0; n < SPACES; n++) {
			load_cr3(spaces[n]);
			if (round)
				expect("a word of an address space", *window, n * 1000 + round - 1);
			*window = n * 1000 + round;
		}
	load_cr3(spaces[0]);
	/* A translation may stay until INVLPG, and must not after it. */
	for (unsigned n = 0; n < 2; n++)
		*(volatile uint32_t *)(FRAMES + 0x100000 + n * 4096) = 0x1000 + n;
	windows[0][1] = (FRAMES + 0x100000) | W | P;
	__asm__ volatile("invlpg (%0)" : : "r"(stale) : "memory");
	expect("a page", *stale, 0x1000);
	windows[0][1] = (FRAMES + 0x101000) | W | P;
	value = *stale;
	expect("another page without INVLPG is the old or the new one", value == 0x1000 || value == 0x1001, 1);
	__asm__ volatile("invlpg (%0)" : : "r"(stale) : "memory");
	expect("another page after INVLPG", *stale, 0x1001);
	windows[0][1] = (FRAMES + 0x100000) | W | P;
	load_cr3(spaces[0]);
	expect("another page after a load of CR3", *stale, 0x1000);
	windows[0][1] = (FRAMES + 0x100000) | P;
	load_cr3(spaces[0]);
	TRY("movl $5, (%0)", "b"(0x40001000));
	faults("a write to a page that has become read-only", 14, 3);
	windows[0][1] |= W;
	TRY("movl $5, (%0)", "b"(0x40001000)); /* more rights need no INVLPG: the fault looks anew */
	if (seen.count)
		faults("a write before INVLPG, at most", 14, 3);
	load_cr3(directory);
	/* The directory itself as a table of tables. */
	directory[0x3ff] = (uint32_t)directory | W | P;
	load_cr3(directory);
	expect("a directory that maps itself", *(volatile uint32_t *)0xffc00000, table[0]);
#ifdef HV_PARAVIRT /* whose last page is the virtual processor's */
	if (!hv_pv_present)
#endif
	expect("and once more", *(volatile uint32_t *)0xfffff000 & ~0xfffu, (uint32_t)table & ~0xfffu);
}

static uint64_t pae_pointers[4] __attribute__((aligned(32)));
static uint64_t pae_directories[4][512] __attribute__((aligned(4096)));
static uint64_t pae_table[512] __attribute__((aligned(4096)));

static void physical_extension(void)
{
	volatile uint32_t *window = (volatile uint32_t *)0x40000000;

	for (unsigned n = 0; n < 4; n++) {
		pae_pointers[n] = (uint32_t)pae_directories[n] | P;
		for (unsigned i = 0; i < 512; i++)
			pae_directories[n][i] = (uint64_t)(n << 30 | i << 21) | LARGE | W | P;
	}
	pae_directories[1][0] = (uint32_t)pae_table | W | P;
	pae_table[0] = (FRAMES + 0x3000) | W | P;
	pae_table[1] = (FRAMES + 0x3000) | P;
	__asm__ volatile("movl %%cr0, %%eax; andl $0x7fffffff, %%eax; movl %%eax, %%cr0; movl %%cr4, %%ecx; orl $0x20, %%ecx; movl %%ecx, %%cr4; movl %0, %%cr3;"
			 "orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(pae_pointers)
			 : "eax", "ecx", "memory");
	*window = 0xae;
	expect("a page by PAE", *(volatile uint32_t *)(FRAMES + 0x3000), 0xae);
	expect("accessed and dirty by PAE", (uint32_t)pae_table[0] & 0x60, 0x60);
	expect("accessed of a page of 2 MiB", (uint32_t)pae_directories[0][FRAMES >> 21] & 0x20, 0x20);
	TRY("movl $1, (%0)", "b"(0x40001000));
	faults("a write to a read-only page by PAE", 14, 3);
	TRY("movl (%0), %%eax", "b"(0x40002000));
	faults("a page that is not there by PAE", 14, 0);
	expect("cr2", seen.address, 0x40002000);
	/* And back. */
	__asm__ volatile("movl %%cr0, %%eax; andl $0x7fffffff, %%eax; movl %%eax, %%cr0; movl %%cr4, %%ecx; andl $~0x20, %%ecx; movl %%ecx, %%cr4; movl %0, %%cr3;"
			 "orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "ecx", "memory");
}

static void much_memory(void)
{
	uint32_t pages = option("touch", 64), step = option("step", 8) * 4096, first = 0x00c00000, wrong = 0;

	for (uint32_t n = 0; n < pages; n++)
		*(volatile uint32_t *)(first + n * step) = n;
	for (uint32_t n = 0; n < pages; n++)
		wrong += *(volatile uint32_t *)(first + n * step) != n;
	expect("words that were lost", wrong, 0);
	print("%u pages touched\n", pages);
}

int main(void)
{
	static void (*const rows[])(void) = {segments, sixteen, local, privileges, software_interrupts, string_io, floating_point, address_spaces,
					     physical_extension, much_memory};
	static const char *const names[] = {"segments", "16 bits", "LDT", "privileges", "INT and IRET", "string I/O", "x87 and SSE", "address spaces",
					    "PAE", "memory"};
	uint32_t only = option("only", 99), skip = option("skip", 99);

	traps_init();
	for (unsigned n = 0; n < 18; n++)
		if (n != 2 && n != 8 && n != 9 && n != 15)
			set_handler((uint8_t)n, on_fault);
	set_handler(0x83, on_fault);
	set_descriptor(SMALL, descriptor((uint32_t)words, 15, 0x4092));
	set_descriptor(READ_ONLY, descriptor((uint32_t)words, 15, 0x4090));
	set_descriptor(EXPAND_DOWN, descriptor(0, 0xfff, 0x4096));
	set_descriptor(LIMITED, descriptor(0, 0x7ff, 0xc092));
	set_descriptor(CODE16, descriptor((uint32_t)code16, 0xfff, 0x009a));
	set_descriptor(STACK16, descriptor((uint32_t)words, 0xffff, 0x0092));
	set_descriptor(EXECUTE_ONLY, descriptor(0, 0xfffff, 0xc098));
	set_descriptor(BASED_CODE, descriptor((uint32_t)based_code, 0xfff, 0x409a));
	set_descriptor(USER_BASED, descriptor((uint32_t)words, 0xfff, 0x40f2));
	paging_on();
	for (unsigned n = 0; n < sizeof rows / sizeof *rows; n++) {
		if ((only != 99 && only != n) || skip == n)
			continue;
		print("%s\n", names[n]);
		rows[n]();
	}
	return done();
}
