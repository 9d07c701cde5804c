/* Echoes what comes in on COM1, by interrupt; 'q' ends it with exit code 7. */
#include "guest.h"

const char guest_name[] = "echo";

#define COM1 0x3f8
#define RING 256u

static volatile uint8_t ring[RING];
static volatile uint32_t head, tail;

static void on_serial(struct frame *frame)
{
	(void)frame;
	(void)inb(COM1 + 2); /* what it is about */
	while (inb(COM1 + 5) & 1) {
		uint8_t byte = inb(COM1);

		if (head - tail < RING)
			ring[head++ % RING] = byte;
	}
}

int main(void)
{
	traps_init();
	irq_enable(4, on_serial);
	outb(COM1 + 1, 1); /* received data */
	print("echo: type, q ends\n");
	for (;;) {
		/* With interrupts off between the look and HLT no byte is missed. */
		interrupts_off();
		if (head == tail)
			wait_for_interrupt();
		interrupts_on();
		while (head != tail) {
			uint8_t byte = ring[tail++ % RING];

			if (byte == 'q') {
				print("\n");
				done();
				return 7;
			}
			print(byte == '\r' ? "\n" : "%c", byte);
		}
	}
}
