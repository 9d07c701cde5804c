/* What IA-32 protected mode has beyond flat segments, row by row. "only=N": one of the rows; "skip=N": all but one; "limits=1": whoever
 * runs this checks accesses against their segments; "touch=N step=S": N pages touched at the end, every S-th. */
#include "modes.h"

const char guest_name[] = "modes";

struct seen seen;
volatile uint32_t resume_at, resume_esp;
static uint8_t user_stack[8192] __attribute__((aligned(4096)));

void on_fault(struct frame *frame)
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

void faults(const char *what, uint32_t vector, uint32_t error)
{
	expect(what, seen.count ? seen.vector : 0xff, vector);
	if (vector != 0xff)
		expect(what, seen.error, error);
}

void limit_faults(const char *what, uint32_t vector, uint32_t error)
{
	if (seen.count || option("limits", 0))
		faults(what, vector, error);
}

void no_fault(const char *what)
{
	faults(what, 0xff, 0);
}

void in_user(void (*code)(void))
{
	seen.count = 0;
	enter_user(code, user_stack + sizeof user_stack);
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
