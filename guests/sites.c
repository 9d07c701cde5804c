/* System calls by INT 80 at the same places, again and again, of programs that know of nothing else (docs/cell.md): what is behind the instruction, jumps
 * to there, code that changes, single steps, faults and interrupts there. Linked as nano.c's programs are, below a limit. */
#include "guest.h"

const char guest_name[] = "sites";

#define P 1u
#define W 2u
#define U 4u
#define TABLES 4
#define END 0x100000u /* of the programs' address space */
#define STATUS 0xcc5u /* flags that every way of executing shows: IF is the host's for native code, AF is not always defined */

extern char user_start[], user_end[], user_load[];
extern const char user_stack_top[];
extern uint32_t user_seen[4];
void user_shapes(void), user_changes(void), user_steps(void), user_flags(void), user_tails(void);
__asm__(".section .user, \"ax\"\n"
	".balign 4096\n"
	".globl user_start, user_shapes, user_changes, user_steps, user_flags, user_tails, user_stack_top, user_seen\n"
	"user_start:\n"
	/* ESI counts down; EBX counts what the instructions behind INT 80 do. */
	"user_shapes: movl $200, %esi; xorl %ebx, %ebx\n"
	"1: int $0x80; incl %ebx; incl %ebx; pushl %ebx; popl %ebx; movl %ebx, %edx\n"
	"   int $0x80; movl $0x11223344, %ecx; addl %ecx, %ebx\n"
	"   call 4f\n"
	"   testl $1, %esi; jnz 2f; int $0x80\n" /* every second time it is jumped over */
	"2: incl %ebx; addl $0x100, %ebx\n"
	"   int $0x80; decl %esi; jnz 1b\n"
	"   movl %ebx, user_seen; int $0x81\n"
	"4: pushl %ecx; pushl %edx; pushl %ebp; nop; nop; nop; nop; int $0x80; popl %ebp; popl %edx; popl %ecx; ret\n" /* as Linux's vDSO */
	".balign 64\n"
	"user_changes: movl $200, %esi; xorl %ebx, %ebx\n"
	"1: int $0x80; nop; nop; nop; nop; nop; addl $1, %ebx\n"
	"   cmpl $100, %esi; jne 2f; movw $0x4343, 1b\n" /* inc %ebx, twice */
	"2: cmpl $50, %esi; jne 3f; movw $0x80cd, 1b\n"
	"3: decl %esi; jnz 1b\n"
	"   movl %ebx, user_seen; int $0x81\n"
	".balign 64\n"
	"user_steps: movl $40, %esi\n"
	"1: pushfl; orl $0x100, (%esp); popfl\n"
	"   int $0x80; nop; nop; nop; nop; nop\n"
	"   pushfl; andl $~0x100, (%esp); popfl\n"
	"   int $0x80; nop; nop; nop; nop; nop\n"
	"   decl %esi; jnz 1b; int $0x81\n"
	".balign 64\n"
	"user_flags: movl $40, %esi\n"
	"1: std; stc; int $0x80; pushfl; cld; popl user_seen; clc; int $0x80; pushfl; popl user_seen + 4\n"
	"   decl %esi; jnz 1b; int $0x81\n"
	".balign 64\n"
	"user_tails: movl user_seen + 12, %esi; xorl %ebx, %ebx\n"
	"1: int $0x80; call 5f\n"
	"   int $0x80; jmp 2f; nop; nop; nop; nop\n"
	"2: testl $1, %esi; int $0x80; jnz 3f; addl $7, %ebx\n"
	"3: call 6f\n"
	"   movl $0x100000, %edi; int $0x80; movl (%edi), %ecx; addl %ecx, %ebx\n" /* a page of the kernel: its fault moves EDI */
	"   int $0x80; movl %cs:user_seen + 8, %ecx\n"
	"   addl %ecx, %ebx; int $0x80; pushl %ebx; popl %ebx; movl %ebx, %eax\n"
	"   int $0x80; decl %esi; jnz 1b; int $0x81\n" /* all of it is covered; EBX is what was seen */
	"5: addl $3, %ebx; ret\n"
	"6: int $0x80; incl %ebx; ret; nop; nop; nop\n"
	".balign 4\n"
	"user_seen: .long 0, 0, 0, 0\n"
	".balign 4096\n"
	".skip 4096\n"
	"user_stack_top:\n"
	".text\n");

static uint32_t directory[1024] __attribute__((aligned(4096))), tables[TABLES * 1024] __attribute__((aligned(4096)));
static uint32_t calls, steps, sum, faults, strayed;
static bool interrupted; /* programs run with interrupts on, behind their first call */

static void map(void)
{
	for (uint32_t n = 0; n < TABLES * 1024; n++)
		tables[n] = n << 12 | W | P;
	for (uint32_t at = (uint32_t)user_start; at < (uint32_t)user_end; at += 4096)
		tables[at >> 12] = (at - (uint32_t)user_start + (uint32_t)user_load) | U | W | P;
	for (uint32_t n = 0; n < TABLES; n++)
		directory[n] = (uint32_t)&tables[n * 1024] | U | W | P;
	hv_pv_write_cr3((uint32_t)directory);
	__asm__ volatile("movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : : "eax", "memory");
}

static void on_call(struct frame *frame)
{
	calls++;
	sum = sum * 31 + frame->eip + frame->esi + (frame->eflags & STATUS);
	if (interrupted)
		frame->eflags |= 0x200;
}

static void on_fault(struct frame *frame)
{
	faults++;
	sum = sum * 31 + frame->eip + read_cr2() + frame->error + frame->ebx;
	frame->edi = (uint32_t)&user_seen[2];
}

static void on_tick(struct frame *frame)
{
	strayed += frame->eip - (uint32_t)user_start >= (uint32_t)(user_end - user_start);
}

static void on_step(struct frame *frame)
{
	steps++;
	sum = sum * 31 + frame->eip;
}

static void on_done(struct frame *frame)
{
	if (faults)
		user_seen[0] = frame->ebx;
	leave_user();
}

int main(void)
{
	static void (*const programs[])(void) = {user_shapes, user_changes, user_steps, user_flags, user_shapes, user_tails, user_tails};
	static const char *const names[] = {"shapes", "changes", "steps", "flags", "shapes again", "tails", "tails, interrupted"};

	traps_init();
	set_handler(1, on_step);
	set_handler(14, on_fault);
	irq_enable(0, on_tick);
	pit_periodic(4000);
	set_handler(0x80, on_call);
	set_gate(0x80, NULL, 3);
	set_handler(0x81, on_done);
	set_gate(0x81, NULL, 3);
	map();
	if (hv_pv_present)
		expect("SET_USER_LIMIT", (uint32_t)hv_pv_call(HV_PV_CALL_SET_USER_LIMIT, END, 0, 0, 0), 0);
	for (unsigned n = 0; n < sizeof programs / sizeof *programs; n++) {
		calls = steps = sum = faults = 0;
		user_seen[0] = user_seen[1] = 0;
		user_seen[2] = 5;
		interrupted = n == 6;
		user_seen[3] = interrupted ? 3000 : 200;
		enter_user(programs[n], (void *)user_stack_top);
		print("%s: %u calls, %u steps, %u faults, %x, seen %x %x\n", names[n], calls, steps, faults, sum, n == 3 ? user_seen[0] & STATUS : user_seen[0], user_seen[1] & STATUS);
	}
	expect("interrupted where no program is", strayed, 0);
	return done();
}
