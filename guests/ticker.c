/* Prints a counter every 100 ms, by the 8254. "count=N" ends it after N lines. */
#include "guest.h"

const char guest_name[] = "ticker";

#define HZ 100
#define TICKS_A_LINE (HZ / 10)

static volatile uint32_t ticks;

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

int main(void)
{
	uint32_t count = option("count", 0);

	traps_init();
	irq_enable(0, on_tick);
	pit_periodic(HZ);
	for (uint32_t line = 0; !count || line < count; line++) {
		while (ticks < (line + 1) * TICKS_A_LINE)
			wait_for_interrupt();
		print("tick %u\n", line);
	}
	return done();
}
