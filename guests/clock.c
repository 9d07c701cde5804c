/* The guest's clocks beside one another: the time stamp counter as the kernel and as code at CPL 3 read it, ACPI's timer, ticks of the 8254.
 * Each byte on COM1 asks for a line of them; 'q' ends it with exit code 7. */
#include "guest.h"

const char guest_name[] = "clock";

#define COM1 0x3f8
#define PM_TIMER 0x608
#define HZ 100
#define TRIES 32
#define VECTOR_DONE 0x81

static volatile uint32_t ticks, asked;
static volatile uint8_t last;
static volatile uint64_t users;
static uint8_t user_stack[4096] __attribute__((aligned(16)));
static uint64_t latest;
static uint32_t backwards, apart;

static uint64_t tsc(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static uint32_t pm_timer(void)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"((uint16_t)PM_TIMER) : "memory");
	return value;
}

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

static void on_serial(struct frame *frame)
{
	(void)frame;
	(void)inb(COM1 + 2); /* what it is about */
	while (inb(COM1 + 5) & 1) {
		last = inb(COM1);
		asked++;
	}
}

static void in_user(void)
{
	__asm__ volatile("rdtsc; int $0x81" : : : "eax", "edx", "memory");
}

static void on_done(struct frame *frame)
{
	users = (uint64_t)frame->edx << 32 | frame->eax;
	leave_user();
}

/* The kernel's, never less than the last one. */
static uint64_t forward(void)
{
	uint64_t now = tsc();

	if (now < latest)
		backwards++;
	return latest = now;
}

/* What code at CPL 3 reads lies between what its kernel reads before and after. */
static void compare(void)
{
	uint64_t before = forward();

	enter_user(in_user, user_stack + sizeof user_stack);
	if (users < before || users > forward())
		apart++;
}

/* The counter and the timer as near to one another as they come: somebody may take the processor away between the two. */
static void tell(void)
{
	uint64_t best = ~0ull, at = 0;
	uint32_t timer = 0;

	for (unsigned n = 0; n < TRIES; n++) {
		uint64_t before = forward();
		uint32_t now = pm_timer();
		uint64_t took = forward() - before;

		if (took < best) {
			best = took;
			at = before + took / 2;
			timer = now;
		}
	}
	print("clock: %u tsc=0x%x:0x%x timer=%u ticks=%u backwards=%u apart=%u\n", asked, (uint32_t)(at >> 32), (uint32_t)at, timer, ticks, backwards, apart);
#ifdef HV_PARAVIRT
	uint64_t ns = hv_pv_clock();

	print("clock: page=0x%x:0x%x\n", (uint32_t)(ns >> 32), (uint32_t)ns);
#endif
}

int main(void)
{
	uint32_t answered = 0;

	traps_init();
	irq_enable(0, on_tick);
	irq_enable(4, on_serial);
	set_handler(VECTOR_DONE, on_done);
	set_gate(VECTOR_DONE, NULL, 3);
	pit_periodic(HZ);
	outb(COM1 + 1, 1); /* received data */
	print("clock: q ends\n");
	for (;;) {
		interrupts_off();
		if (asked == answered)
			wait_for_interrupt();
		compare();
		interrupts_on();
		if (asked == answered)
			continue;
		answered = asked;
		if (last == 'q') {
			done();
			return 7;
		}
		tell();
	}
}
