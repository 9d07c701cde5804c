/* Faults with their error codes and return addresses (Intel SDM volume 3A, 6.15), and int 0x80 from ring 3 and back through the TSS. */
#include "guest.h"

const char guest_name[] = "exceptions";

#define NO_PAGE 0x00300000 /* linear address that the page tables below leave out */
#define SUPERVISOR_PAGE 0x00301000

static struct {
	uint32_t count, vector, error, at, address, privilege;
} seen;
static volatile uint32_t fault_at, resume_at;

static void on_breakpoint(struct frame *frame)
{
	seen.count++;
	seen.vector = frame->vector;
	seen.error = frame->error;
	seen.at = frame->eip;
}

static void on_fault(struct frame *frame)
{
	seen.count++;
	seen.vector = frame->vector;
	seen.error = frame->error;
	seen.at = frame->eip;
	seen.address = frame->vector == 14 ? read_cr2() : 0;
	seen.privilege = frame->cs & 3;
	if (seen.privilege == 3)
		leave_user();
	frame->eip = resume_at;
}

/* Run one instruction that must fault, and go on behind it. */
#define FAULT(instruction, ...)                                                                                        \
	do {                                                                                                           \
		seen.count = 0;                                                                                        \
		__asm__ volatile("movl $1f, fault_at; movl $2f, resume_at; 1: " instruction "; 2:"                     \
				 :                                                                                     \
				 : __VA_ARGS__                                                                         \
				 : "eax", "edx", "memory");                                                            \
	} while (0)

static void check(const char *what, uint32_t vector, uint32_t error)
{
	print("%s\n", what);
	expect("number of faults", seen.count, 1);
	expect("vector", seen.vector, vector);
	expect("error code", seen.error, error);
}

static void check_kernel(const char *what, uint32_t vector, uint32_t error)
{
	check(what, vector, error);
	expect("faulting instruction", seen.at, fault_at);
	expect("privilege level", seen.privilege, 0);
}

static void paging_on(void)
{
	static uint32_t directory[1024] __attribute__((aligned(4096)));
	static uint32_t table[1024] __attribute__((aligned(4096)));

	for (uint32_t n = 0; n < 1024; n++)
		table[n] = n << 12 | 7;
	table[NO_PAGE >> 12] = 0;
	table[SUPERVISOR_PAGE >> 12] &= ~4u;
	directory[0] = (uint32_t)table | 7;
	__asm__ volatile("movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "memory");
}

static volatile struct {
	uint32_t eax, ebx, privilege, calls;
} call;
static uint8_t user_stack[4096] __attribute__((aligned(16)));
static volatile uint32_t user_result;

static void on_call(struct frame *frame)
{
	call.calls++;
	call.eax = frame->eax;
	call.ebx = frame->ebx;
	call.privilege = frame->cs & 3;
	frame->eax = frame->eax + frame->ebx;
}

static void user_calls(void)
{
	uint32_t result = 40;

	__asm__ volatile("int $0x80" : "+a"(result) : "b"(2) : "memory");
	user_result = result;
	__asm__ volatile("int $0x80; cli" : : "a"(0), "b"(0) : "memory"); /* CLI at CPL 3, IOPL 0: #GP(0) */
}

static void user_reads_supervisor(void)
{
	(void)*(volatile uint32_t *)SUPERVISOR_PAGE;
}

static void user_writes_absent(void)
{
	*(volatile uint32_t *)NO_PAGE = 1;
}

static void user_ports(void)
{
	__asm__ volatile("outb %%al, $0x80" : : "a"(0));
}

static void user_interrupt(void)
{
	__asm__ volatile("int $0x30"); /* a gate of DPL 0: #GP(vector * 8 + IDT) */
}

static void in_user(void (*code)(void))
{
	seen.count = 0;
	enter_user(code, user_stack + sizeof user_stack);
}

int main(void)
{
	static const uint8_t faults[] = {0, 6, 11, 13, 14};

	traps_init();
	for (unsigned n = 0; n < sizeof faults; n++)
		set_handler(faults[n], on_fault);
	set_handler(VECTOR_SYSCALL, on_call);

	FAULT("divl %0", "c"(0));
	check_kernel("#DE by DIV", 0, 0);
	FAULT("ud2", "c"(0));
	check_kernel("#UD by UD2", 6, 0);
	FAULT("movw %w0, %%fs", "r"(0x1004));
	check_kernel("#GP by a selector behind the table", 13, 0x1004);
	FAULT("movw %w0, %%fs", "r"(ABSENT_DATA));
	check_kernel("#NP by a segment that is absent", 11, ABSENT_DATA);
	set_handler(3, on_breakpoint);
	seen.count = 0;
	__asm__ volatile("movl $1f, fault_at; int3; 1:" : : : "memory");
	check("#BP by INT3, a trap", 3, 0);
	expect("return address", seen.at, fault_at);

	paging_on();
	FAULT("movl (%0), %%eax", "r"(NO_PAGE + 0x123));
	check_kernel("#PF by a read", 14, 0);
	expect("cr2", seen.address, NO_PAGE + 0x123);
	FAULT("movl %%eax, (%0)", "r"(NO_PAGE + 0x456));
	check_kernel("#PF by a write", 14, 2);
	expect("cr2", seen.address, NO_PAGE + 0x456);

	in_user(user_calls);
	check("int 0x80 from ring 3, then #GP by CLI", 13, 0);
	expect("privilege level", seen.privilege, 3);
	expect("number of calls", call.calls, 2);
	expect("privilege level of the call", call.privilege, 3);
	expect("what the call gave back", user_result, 42);
	in_user(user_reads_supervisor);
	check("#PF by a read from ring 3", 14, 5);
	expect("cr2", seen.address, SUPERVISOR_PAGE);
	in_user(user_writes_absent);
	check("#PF by a write from ring 3", 14, 6);
	expect("cr2", seen.address, NO_PAGE);
	in_user(user_ports);
	check("#GP by OUT from ring 3", 13, 0);
	in_user(user_interrupt);
	check("#GP by INT 0x30 from ring 3", 13, 0x30 * 8 + 2);
	return done();
}
