/* Code at CPL 3 that tries to reach the kernel's memory, below 3 GiB and above, through its own segments, through selectors that only a host
 * below us would have, and by running kernel code: each try must end in #PF, #GP or #NP, and the memory stay as it was. */
#include "guest.h"

const char guest_name[] = "isolation";

#define P 1u
#define W 2u
#define U 4u
#define LOW_SECRET 0x00900000u	/* linear = physical */
#define HIGH_SECRET 0xc0900000u /* linear: the same memory */
#define SECRET 0x5ec4e7u
#define IDENTITY_TABLES 4

enum { READ, WRITE, EXECUTE, PUSH, STRING, TRIES };
static const char *const try_names[] = {"read", "write", "execute", "push", "string"};

static uint32_t directory[1024] __attribute__((aligned(4096)));
static uint32_t identity[IDENTITY_TABLES * 1024] __attribute__((aligned(4096)));

/* All that code at CPL 3 can see: its code, its orders, its stack. */
extern const char user_start[], user_end[], user_stack_end[];
extern volatile uint32_t order_try, order_selector, order_address, order_value;
extern void user_try(void);
extern const char host_code[];

__asm__(".section .user, \"ax\"\n"
	".balign 4096\n"
	".globl user_start, user_end, user_try, order_try, order_selector, order_address, order_value, user_stack_end, host_code\n"
	"user_start:\n"
	"user_try:\n"
	"	movl	order_address, %ebx\n"
	"	movl	order_try, %ecx\n"
	"	movl	order_selector, %eax\n"
	"	testl	%eax, %eax\n"
	"	jz	1f\n"
	"	cmpl	$2, %ecx\n"
	"	je	7f\n"
	"	movl	%eax, %ds\n"
	"	movl	%eax, %es\n"
	"1:	jecxz	2f\n"
	"	decl	%ecx\n"
	"	jz	3f\n"
	"	decl	%ecx\n"
	"	jz	4f\n"
	"	decl	%ecx\n"
	"	jz	5f\n"
	"	movl	$1, %ecx\n"
	"	movl	%ebx, %esi\n"
	"	movl	%ebx, %edi\n"
	"	rep movsl\n"
	"	jmp	6f\n"
	"2:	movl	(%ebx), %eax\n"
	"	int	$0x81\n" /* it was read: eax */
	"3:	movl	$0x600d, (%ebx)\n"
	"	jmp	6f\n"
	"4:	call	*%ebx\n"
	"	jmp	6f\n"
	"5:	leal	4(%ebx), %esp\n"
	"	pushl	$0x600d\n"
	"6:	xorl	%eax, %eax\n"
	"	int	$0x81\n"
	"7:	movw	%ax, far_selector\n" /* a jump to the host's own code segment, and a read there */
	"	ljmp	*far_pointer\n"
	"host_code:\n"
	"	movl	(%ebx), %eax\n"
	"	int	$0x81\n"
	"	.balign	4\n"
	"far_pointer: .long host_code\n"
	"far_selector: .short 0, 0\n"
	"order_try: .long 0\n"
	"order_selector: .long 0\n"
	"order_address: .long 0\n"
	"order_value: .long 0\n"
	"	.balign	4096\n"
	"	.skip	4096\n"
	"user_stack_end:\n"
	"user_end:\n"
	".text\n");

static struct {
	uint32_t vector, error, address, value;
} seen;

static void on_leave(struct frame *frame)
{
	seen.vector = frame->vector;
	seen.error = frame->error;
	seen.value = frame->eax;
	seen.address = frame->vector == 14 ? read_cr2() : 0;
	leave_user();
}

static void map(void)
{
	for (uint32_t n = 0; n < IDENTITY_TABLES * 1024; n++)
		identity[n] = n << 12 | W | P;
	for (uint32_t at = (uint32_t)user_start; at < (uint32_t)user_end; at += 4096)
		identity[at >> 12] |= U;
	for (unsigned n = 0; n < IDENTITY_TABLES; n++)
		directory[n] = directory[0x300 + n] = ((uint32_t)identity + n * 4096) | U | W | P;
	__asm__ volatile("movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : "r"(directory) : "eax", "memory");
}

static uint32_t tries, reached;

/* wanted: the address at which a #PF must be, if it is one. */
static void attempt(unsigned try, uint32_t selector, uint32_t address)
{
	volatile uint32_t *low = (volatile uint32_t *)LOW_SECRET, *high = (volatile uint32_t *)HIGH_SECRET;

	low[0] = SECRET; /* touched by the kernel just now: whatever caches translations has them */
	high[1] = SECRET;
	low[2] = 0xc3c3c3c3; /* RET, should it be executed */
	order_try = try;
	order_selector = selector;
	order_address = address;
	seen.vector = 0;
	enter_user(user_try, (void *)user_stack_end);
	tries++;
	if (low[0] != SECRET || low[1] != SECRET || (seen.vector != 11 && seen.vector != 13 && seen.vector != 14)) {
		reached++;
		print("isolation: %s of 0x%x with selector 0x%x: vector %u, value 0x%x, memory 0x%x 0x%x\n", try_names[try], address, selector,
		      seen.vector, seen.value, low[0], low[1]);
	} else if (!selector) {
		expect("a page fault", seen.vector, 14);
		expect("at the address", seen.address, address);
		expect("of user code", seen.error & 5, 5);
		expect("by a write", seen.error >> 1 & 1, try == WRITE || try == PUSH);
	}
}

int main(void)
{
	/* The host's: 32-bit code, data, 64-bit code, TLS, the processor's number; and all of a small LDT. */
	static const uint16_t selectors[] = {0x23, 0x2b, 0x33, 0x43, 0x53, 0x63, 0x6b, 0x73, 0x7b, 0x0b, 0x13, 0x10};
	static const uint8_t leaving[] = {11, 12, 13, 14, 0x81};

	traps_init();
	for (unsigned n = 0; n < sizeof leaving; n++)
		set_handler(leaving[n], on_leave);
	set_gate(0x81, NULL, 3);
	map();
	for (unsigned half = 0; half < 2; half++) {
		uint32_t base = half ? HIGH_SECRET : LOW_SECRET;

		for (unsigned try = 0; try < TRIES; try++)
			attempt(try, 0, try == EXECUTE ? base + 8 : base + 4 * half);
		for (unsigned n = 0; n < sizeof selectors / sizeof *selectors; n++)
			for (unsigned try = 0; try <= EXECUTE; try++)
				if (try != EXECUTE || (selectors[n] & ~3u) != 0x30) /* 64-bit code: not isolation's, but the cell's end */
					attempt(try, selectors[n], base);
		for (uint32_t selector = 7; selector < 7 + 8 * 24; selector += 8)
			for (unsigned try = 0; try <= WRITE; try++)
				attempt(try, selector, base);
	}
	print("%u tries, %u of them reached the kernel's memory\n", tries, reached);
	expect("tries that reached it", reached, 0);
	if (!reached)
		print("OK\n");
	return done();
}
