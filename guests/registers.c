/* A kernel that accesses the local APIC's registers at the same places, again and again, in whatever shape (docs/cell.md): what is behind the instruction,
 * jumps to there, code that changes, single steps, faults and interrupts there. It has a limit of programs, and none. */
#include "guest.h"

const char guest_name[] = "registers";

#define P 1u
#define W 2u
#define TABLES 4
#define END 0x100000u /* of programs' address space */
#define APIC 0xfee00000u
#define ALIAS 0xe00000u	 /* the code below once more */
#define NOWHERE 0xf00000u
#define ROUNDS "300"
#define ROUNDS_INTERRUPTED 20

extern char code_start[], code_end[], changed[], behind_changed[];
uint32_t usual(void), gates(void), shapes(void), jumps(void), faulting(void), changing(void), stepping(void), writing(void);
/* EDI: the APIC; ESI counts down; EBX: what was seen. */
#define ENTER "pushl %ebx; pushl %esi; pushl %edi; pushl %ebp; movl $0xfee00000, %edi; movl $" ROUNDS ", %esi; xorl %ebx, %ebx; xorl %ecx, %ecx\n"
#define LEAVE "decl %esi; jnz 1b; movl %ebx, %eax; popl %ebp; popl %edi; popl %esi; popl %ebx; ret\n"
__asm__(".text\n"
	".balign 4096\n"
	"code_start:\n"
	"usual: " ENTER "   leal 0x30(%edi), %ebp\n" /* what can be a jump */
	"1: movl (%ebp), %eax; shrl $2, %eax; addl %eax, %ebx\n"
	"   movl 0x30(%edi), %eax; shrl $4, %eax; addl %eax, %ebx\n"
	"   movl 0x30(%edi), %eax; pushl %eax; addl $7, %ebx; popl %eax; addl %eax, %ebx\n"
	"   movl 0xfee00030, %eax; addl %eax, %ebx; movl $0, 0xb0(%edi)\n"
	"   call 8f; addl %eax, %ebx; " LEAVE
	"8: movl 0x30(%edi), %eax; ret; .byte 0x8d, 0xb4, 0x26, 0, 0, 0, 0\n"
	".balign 64\n"
	"gates: " ENTER /* INT n, and IRET to where it stands and into what a jump covers */
	"1: int $0x84; incl %ebx; addl %ecx, %ebx\n"
	"   int $0x84; addl $0x100, %ebx; roll $1, %ebx\n"
	"   int $0x84; int $0x84; movl $3, %edx; addl %edx, %ebx\n"
	"   pushfl; pushl %cs; pushl $2f; iretl\n"
	"   .byte 0x8d, 0xb4, 0x26, 0, 0, 0, 0\n"
	"2: testl $1, %esi; jnz 3f; pushfl; pushl %cs; pushl $4f; jmp 5f\n"
	"3: int $0x84\n"
	"4: addl $5, %ebx; jmp 6f\n"
	"5: iretl; .byte 0x8d, 0xb4, 0x26, 0, 0, 0, 0\n"
	"6: " LEAVE
	".balign 64\n"
	"shapes: " ENTER "   leal 0x30(%edi), %ebp\n"
	"1: movl (%ebp), %eax; shrl $2, %eax; addl %eax, %ebx\n"      /* 2 bytes, then 3 */
	"   movl (%ebp), %eax; incl %ebx; xorl %eax, %ebx\n"	      /* 2, 1 */
	"   movl 0x30(%edi), %eax; shrl $4, %eax; addl %eax, %ebx\n" /* 3, 3 */
	"   movl 0x30(%edi), %eax; pushl %eax; addl $7, %ebx; popl %eax; addl %eax, %ebx\n" /* 3, 1 */
	"   movl 0x30(%edi), %eax; pushl %eax; popl %edx; pushl %edx; popl %eax; addl %eax, %ebx\n" /* 3, 1, 1, 1 */
	"   movl 0x30(%edi,%ecx), %eax; addl %eax, %ebx; roll $1, %ebx\n" /* 4, 2 */
	"   movl 0xfee00030, %eax; addl %eax, %ebx\n"			    /* 5 */
	"   movl 0x30(%edi), %eax; nop; nop; nop; addl %eax, %ebx\n"
	"   movzbl 0x30(%edi), %eax; addl %eax, %ebx\n"
	"   addl 0x30(%edi), %ebx; testl %esi, %esi; jz 9f\n" /* and a jump that is covered */
	"   cmpl $0, 0x20(%edi); jne 9f\n"
	"   call 8f\n"
	"   pushl 0x30(%edi); popl %eax; addl %eax, %ebx\n"
	"9: " LEAVE
	"8: movl 0x30(%edi), %eax; ret; leal 0(%esi), %esi\n"
	".balign 64\n"
	"jumps: " ENTER
	"1: testl $1, %esi; jnz 2f; movl 0x30(%edi), %eax\n" /* every second time the one behind is jumped to */
	"2: addl $3, %ebx; addl $0x100, %ebx\n"
	"   testl $2, %esi; jnz 3f; movl (%edi), %eax\n"
	"3: decl %ebx; addl %eax, %ebx\n"
	"   testl $4, %esi; jnz 4f; movl 0x30(%edi,%ecx), %eax\n"
	"4: addl $5, %ebx; " LEAVE
	".balign 64\n"
	"faulting: " ENTER
	"1: movl $0xf00000, %ebp; movl 0x30(%edi), %eax; movl (%ebp), %edx\n" /* covered, and its fault moves EBP */
	"   addl %edx, %ebx; addl %eax, %ebx; addl 0x100000(%edi), %ebx\n"    /* a page that is not mapped: the fault moves EDI */
	"   movl $0xfee00000, %edi; " LEAVE
	".balign 64\n"
	"changing: " ENTER
	"1: cmpl $200, %esi; jne 2f; movb $0x20, changed + 2\n" /* another register */
	"2: cmpl $100, %esi; jne 3f; movb $0x30, changed + 2\n"
	"3: cmpl $50, %esi; jne changed; movb $0x33, behind_changed\n" /* xor for add */
	"changed: movl 0x30(%edi), %eax\n"
	"behind_changed: addl %eax, %ebx; roll $3, %ebx; " LEAVE
	".balign 64\n"
	"stepping: " ENTER
	"1: pushfl; orl $0x100, (%esp); popfl\n"
	"   movl 0x30(%edi), %eax; addl %eax, %ebx; roll $1, %ebx\n"
	"   pushfl; andl $~0x100, (%esp); popfl\n"
	"   movl 0x30(%edi), %eax; addl %eax, %ebx; " LEAVE
	".balign 64\n"
	"writing: " ENTER
	"1: movl $0x01000000, 0xd0(%edi); addl $0x05000000, 0xd0(%edi); movl 0xd0(%edi), %eax; addl %eax, %ebx\n"
	"   movl %esi, %eax; andl $15, %eax; movl %eax, 0x80(%edi); std; stc; movl 0x80(%edi), %edx; pushfl; cld; popl %eax; andl $0xcc5, %eax\n"
	"   addl %eax, %ebx; addl %edx, %ebx; movl %ecx, 0x80(%edi); roll $5, %ebx; " LEAVE
	"code_end:\n");

static uint32_t directory[1024] __attribute__((aligned(4096))), tables[TABLES * 1024] __attribute__((aligned(4096))), devices[1024] __attribute__((aligned(4096)));
static volatile uint32_t value = 5;
static uint32_t steps, faults, sum, ticks, strayed;
static bool watched;

static void map(void)
{
	for (uint32_t n = 0; n < TABLES * 1024; n++)
		tables[n] = n << 12 | W | P;
	tables[ALIAS >> 12] = (uint32_t)code_start | P;
	tables[NOWHERE >> 12] = 0;
	devices[APIC >> 12 & 1023] = APIC | W | P;
	for (uint32_t n = 0; n < TABLES; n++)
		directory[n] = (uint32_t)&tables[n * 1024] | W | P;
	directory[APIC >> 22] = (uint32_t)devices | W | P;
	hv_pv_write_cr3((uint32_t)directory);
	__asm__ volatile("movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : : "eax", "memory");
}

static uint32_t alias_sum(void)
{
	uint32_t found = 0;
	for (uint32_t at = 0; at < (uint32_t)(code_end - code_start); at++)
		found = found * 31 + *(volatile uint8_t *)(ALIAS + at);
	return found;
}

static void on_fault(struct frame *frame)
{
	faults++;
	sum = sum * 31 + frame->eip + read_cr2() + frame->error + frame->ebx;
	if (read_cr2() == NOWHERE)
		frame->ebp = (uint32_t)&value;
	else
		frame->edi = (uint32_t)&value - 0x100000;
}

static void on_step(struct frame *frame)
{
	steps++;
	sum = sum * 31 + frame->eip;
}

static void on_gate(struct frame *frame)
{
	sum = sum * 31 + frame->eip;
}

static void on_tick(struct frame *frame)
{
	ticks++;
	strayed += watched && frame->eip - (uint32_t)code_start >= (uint32_t)(code_end - code_start);
}

int main(void)
{
	static uint32_t (*const parts[])(void) = {usual, gates, shapes, jumps, faulting, changing, stepping, writing, usual};
	static const char *const names[] = {"usual", "gates", "shapes", "jumps", "faults", "changes", "steps", "writes", "usual, interrupted"};

	traps_init();
	set_handler(1, on_step);
	set_handler(14, on_fault);
	set_handler(0x84, on_gate);
	set_gate(0x84, NULL, 0);
	irq_enable(0, on_tick);
	map();
	if (hv_pv_present && !option("unlimited", 0))
		expect("SET_USER_LIMIT", (uint32_t)hv_pv_call(HV_PV_CALL_SET_USER_LIMIT, END, 0, 0, 0), 0);
	for (unsigned n = 0; n < sizeof parts / sizeof *parts; n++) {
		steps = faults = sum = 0;
		uint32_t seen = 0;
		if (n == 8) {
			pit_periodic(1000);
			for (unsigned round = 0; round < ROUNDS_INTERRUPTED; round++) {
				interrupts_on();
				watched = true;
				__asm__ volatile("" : : : "memory");
				seen += parts[n]();
				__asm__ volatile("" : : : "memory");
				watched = false;
				interrupts_off();
			}
		} else {
			seen = parts[n]();
		}
		print("%s: %x, %u steps, %u faults, %x, code %x\n", names[n], seen, steps, faults, sum, alias_sum());
	}
	expect("interrupted where nothing of this is", strayed > 2 * ROUNDS_INTERRUPTED, 0);
	return done();
}
