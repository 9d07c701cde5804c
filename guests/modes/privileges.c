/* Call gates, conforming code, stacks from the TSS, far returns and IRET to CPL 3; INT n and IRET of all kinds in the kernel. */
#include "modes.h"

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

void privileges(void)
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

void software_interrupts(void)
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
