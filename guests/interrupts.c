/* 8254 at 100 Hz through the 8259 pair: counts 20 ticks with HLT, and the interrupt shadow of STI (Intel SDM volume 2, STI). */
#include "guest.h"

const char guest_name[] = "interrupts";

#define HZ 100
#define TICKS 20

static volatile uint32_t ticks;
/* The next one masks the input: a second may be due at once on a host that is busy. */
static volatile uint32_t once;

static void on_tick(struct frame *frame)
{
	ticks++;
	if (once)
		outb(0x21, 0xff);
	expect("vector of the timer", frame->vector, VECTOR_IRQ0);
	expect("interrupts in the handler's caller are on", frame->eflags >> 9 & 1, 1);
}

static void wait_requested(void)
{
	while (!irq_requested(0))
		;
}

int main(void)
{
	uint32_t passed = 0;
	uint8_t mask;

	traps_init();
	irq_enable(0, on_tick);
	pit_periodic(HZ);
	while (ticks < TICKS)
		wait_for_interrupt();
	print("%u ticks\n", TICKS);
	once = 1;
	mask = inb(0x21);

	/* With a request waiting: none comes between STI and CLI, ... */
	wait_requested();
	ticks = 0;
	__asm__ volatile("sti; cli" : : : "memory");
	expect("ticks between STI and CLI", ticks, 0);
	/* ... one comes as soon as there is an instruction more, ... */
	__asm__ volatile("sti; nop; cli" : : : "memory");
	expect("ticks after STI, NOP", ticks, 1);
	/* ... and the instruction after STI is executed before it. */
	wait_requested();
	ticks = 0;
	outb(0x21, mask);
	__asm__ volatile("sti; movl %1, %0; cli" : "=r"(passed) : "m"(ticks) : "memory");
	expect("ticks seen by the instruction after STI", passed, 0);
	expect("ticks after it", ticks, 1);

	/* A masked input stays silent. */
	outb(0x21, 0xff);
	ticks = 0;
	wait_requested();
	__asm__ volatile("sti; nop; nop; cli" : : : "memory");
	expect("ticks while masked", ticks, 0);
	return done();
}
