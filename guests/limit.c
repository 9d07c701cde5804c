/* Programs that reach for what lies beyond their limit (docs/paravirtualisation.md, SET_USER_LIMIT) get the page faults that they would get without
 * one, and where the kernel lets them, what they want. */
#include "guest.h"

const char guest_name[] = "limit";

#define P 1u
#define W 2u
#define U 4u
#define TABLES 4
#define END 0x100000u	 /* of the programs' address space */
#define SHARED 0x300000u /* beyond it, and theirs all the same; read only */
#define NOWHERE 0x60000000u

extern char user_start[], user_end[], user_load[];
extern uint32_t user_address, user_value;
extern const char user_stack_top[];
void user_read(void), user_write(void), user_jump(void), user_call(void), user_push(void), user_copy(void), user_sse(void), user_segment(void);
__asm__(".section .user, \"ax\"\n"
	".balign 4096\n"
	".globl user_start, user_read, user_write, user_jump, user_call, user_push, user_copy, user_sse, user_segment, user_address, user_value, user_stack_top\n"
	"user_start:\n"
	"user_read: movl user_address, %eax; movl (%eax), %eax; movl %eax, user_value; int $0x81\n"
	"user_write: movl user_address, %eax; movb $1, (%eax); int $0x81\n"
	"user_jump: jmp *user_address\n"
	"user_call: call *user_address; int $0x81\n"
	"user_push: movl user_address, %esp; pushl $1; int $0x81\n"
	"user_copy: movl user_address, %esi; movl $user_value, %edi; movl $1, %ecx; cld; rep movsl; int $0x81\n"
	"user_sse: movl user_address, %eax; fildl (%eax); int $0x81\n"
	"user_segment: movl %ds, %eax; movl %eax, %es; movl user_address, %eax; movl %es:(%eax), %eax; movl %eax, user_value; int $0x81\n"
	".balign 4\n"
	"user_address: .long 0\n"
	"user_value: .long 0\n"
	".balign 4096\n"
	".skip 4096\n"
	"user_stack_top:\n"
	".text\n");

static uint32_t directory[1024] __attribute__((aligned(4096))), tables[TABLES * 1024] __attribute__((aligned(4096)));
static struct {
	uint32_t vector, error, address;
	bool at_target;
} seen;

static void map(void)
{
	for (uint32_t n = 0; n < TABLES * 1024; n++)
		tables[n] = n << 12 | W | P;
	for (uint32_t at = (uint32_t)user_start; at < (uint32_t)user_end; at += 4096)
		tables[at >> 12] = (at - (uint32_t)user_start + (uint32_t)user_load) | U | W | P;
	tables[SHARED >> 12] = SHARED | U | P;
	for (uint32_t n = 0; n < TABLES; n++)
		directory[n] = (uint32_t)&tables[n * 1024] | U | W | P;
	*(volatile uint8_t *)SHARED = 0xc3; /* ret */
	*(volatile uint8_t *)(SHARED + 0xffe) = 0xb8; /* mov $..., %eax, on into the next page */
	hv_pv_write_cr3((uint32_t)directory);
	__asm__ volatile("movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : : "eax", "memory");
}

static void on_fault(struct frame *frame)
{
	seen.vector = frame->vector;
	seen.error = frame->error;
	seen.address = frame->vector == 14 ? read_cr2() : 0;
	seen.at_target = frame->eip == user_address;
	leave_user();
}

static void on_done(struct frame *frame)
{
	seen.vector = frame->vector;
	leave_user();
}

int main(void)
{
	static void (*const programs[])(void) = {user_read, user_write, user_jump, user_call, user_push, user_copy, user_sse, user_segment};
	static const char *const names[] = {"read", "write", "jump", "call", "push", "copy", "fild", "es"};
	static const uint32_t addresses[] = {END, END - 2, SHARED, SHARED + 0xffe, 0x200000, NOWHERE, 0xfffff000, 0xfffffff0, 0x20000};

	traps_init();
	for (uint8_t vector = 0; vector < 20; vector++)
		set_handler(vector, on_fault);
	set_handler(0x81, on_done);
	set_gate(0x81, NULL, 3);
	map();
	if (hv_pv_present)
		expect("SET_USER_LIMIT", (uint32_t)hv_pv_call(HV_PV_CALL_SET_USER_LIMIT, END, 0, 0, 0), 0);
	for (unsigned n = 0; n < sizeof programs / sizeof *programs; n++)
		for (unsigned k = 0; k < sizeof addresses / sizeof *addresses; k++) {
			if (programs[n] == user_sse && (addresses[k] & ~0xfffu) == SHARED)
				continue; /* a documented limit */
			if (addresses[k] == 0x20000 && (programs[n] == user_jump || programs[n] == user_call || programs[n] == user_write))
				continue; /* their own code */
			user_address = addresses[k];
			seen.vector = seen.error = seen.address = 0;
			enter_user(programs[n], (void *)user_stack_top);
			print("%s %x: %x %x %x %u\n", names[n], addresses[k], seen.vector, seen.error, seen.address, seen.at_target);
		}
	return done();
}
