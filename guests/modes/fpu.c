/* x87 and SSE state over interrupts, faults, system calls. */
#include "modes.h"

static volatile uint32_t ticks;

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

void floating_point(void)
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
