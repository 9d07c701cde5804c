/* What kernels do that makes monitors slow. "ticks": a handler that takes longer than the timer's period and does most of its work behind its end of
   interrupt, under a monitor that is slow enough; the kernel must get on all the same, and a tick for which it waits with interrupts disabled must
   come. "device": reads a device's register again and again. */
#include "guest.h"

const char guest_name[] = "busy";

#define PERIOD_NS 1000000u /* the local APIC's timer counts nanoseconds */
#define PIT_HZ 1000
#define LOCAL_APIC 0xfee00000u
enum { ID = 0x20, EOI = 0xb0, SVR = 0xf0, IRR = 0x200, TIMER = 0x320, INITIAL = 0x380, DIVIDE = 0x3e0 };
#define PERIODIC 0x20000u
#define MASKED 0x10000u
#define BY_ONE 0xbu
enum { TICK = 0x50, SPURIOUS = 0xff };

static volatile uint32_t ticks, sum;
static uint32_t work;
static bool by_apic;

static volatile uint32_t *local(uint32_t offset)
{
	return (volatile uint32_t *)(LOCAL_APIC + offset);
}

__attribute__((noinline)) static void step(void)
{
	sum++;
}

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
	if (by_apic)
		*local(EOI) = 0;
	else
		outb(0x20, 0x20); /* the library's own, later, finds nothing in service */
	for (uint32_t i = 0; i < work; i++)
		step();
}

static void start(void)
{
	if (!by_apic) {
		irq_enable(0, on_tick);
		pit_periodic(PIT_HZ);
		return;
	}
	set_handler(TICK, on_tick);
	*local(SVR) = 0x100 | SPURIOUS;
	*local(DIVIDE) = BY_ONE;
	*local(TIMER) = PERIODIC | TICK;
	*local(INITIAL) = PERIOD_NS;
}

static void stop(void)
{
	if (by_apic)
		*local(TIMER) = MASKED | TICK;
	else
		outb(0x21, 0xff);
}

static bool is_requested(void)
{
	return by_apic ? *local(IRR + TICK / 32 * 16) >> TICK % 32 & 1 : irq_requested(0);
}

int main(void)
{
	uint32_t reads = option("device", 0), steps = option("steps", 0), id = 0;

	traps_init();
	for (uint32_t i = 0; i < reads; i++)
		id |= *local(ID) >> 24;
	expect("id", id, 0);
	if (steps) {
		work = option("work", 400);
		by_apic = option("apic", 0);
		start();
		interrupts_on();
		while (!ticks)
			;
		uint32_t before = ticks;
		for (uint32_t i = 0; i < steps; i++)
			step();
		interrupts_off();
		print("busy: %u ticks in %u steps\n", ticks - before, steps);
		for (uint32_t i = option("polls", 0); i; i--) {
			before = ticks;
			while (!is_requested())
				;
			__asm__ volatile("sti; nop; cli" : : : "memory");
			expect("a tick that was requested is taken", ticks != before, true);
		}
		stop();
	}
	return done();
}
