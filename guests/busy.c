/* What kernels do that makes monitors slow. "ticks": a handler that takes longer than the timer's period and does most of its work behind its end of
   interrupt, under a monitor that is slow enough; the kernel must get on all the same, and a tick for which it waits with interrupts disabled must
   come. "device": reads a device's register again and again. "ports": accesses devices' ports while ticks come, and by an access lets one come. */
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

#define SCRATCH 0x3ff /* the UART's register that only keeps a byte */
#define PIC_MASK 0x21

/* A byte comes back as it was written, and nothing else changes: not the rest of EAX, not the flags. */
static void access_ports(uint32_t count)
{
	uint32_t wrong = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t out = i * 0x01010101u ^ 0x12345678u, eax = out;
		uint8_t carry;
		__asm__ volatile("stc; outb %%al, %w2; movl %3, %%eax; inb %w2, %%al; setc %1"
				 : "+a"(eax), "=&q"(carry)
				 : "d"(SCRATCH), "r"(~out)
				 : "memory", "cc");
		wrong += eax != ((~out & ~0xffu) | (out & 0xff)) || !carry;
	}
	expect("wrong accesses", wrong, 0);
}

static void let_ticks_come(uint32_t count)
{
	while (count--) {
		uint32_t mask = inb(PIC_MASK), before, behind;
		outb(PIC_MASK, (uint8_t)(mask | 1));
		while (!irq_requested(0))
			;
		before = ticks;
		outb(PIC_MASK, (uint8_t)mask);
		for (behind = 0; ticks == before && behind < 1000; behind++)
			step();
		expect("a tick that an access lets come is taken", ticks != before, true);
	}
}

int main(void)
{
	uint32_t reads = option("device", 0), steps = option("steps", 0), id = 0;

	traps_init();
	for (uint32_t i = 0; i < reads; i++)
		id |= *local(ID) >> 24;
	expect("id", id, 0);
	if (option("ports", 0)) {
		start();
		interrupts_on();
		while (!ticks)
			;
		access_ports(option("ports", 0));
		let_ticks_come(option("polls", 0));
		interrupts_off();
		stop();
	}
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
