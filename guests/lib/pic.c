/* The 8259 pair and channel 0 of the 8254 (Intel's data sheets). */
#include "guest.h"

#define MASTER 0x20
#define SLAVE 0xa0
#define EOI 0x20
#define PIT_HZ 1193182

static bool ready;
static handler *irq_handlers[16];

static void pic_init(void)
{
	outb(MASTER, 0x11); /* ICW1: edges, cascade, ICW4 follows */
	outb(SLAVE, 0x11);
	outb(MASTER + 1, VECTOR_IRQ0);
	outb(SLAVE + 1, VECTOR_IRQ0 + 8);
	outb(MASTER + 1, 1 << 2); /* the slave is at input 2 */
	outb(SLAVE + 1, 2);
	outb(MASTER + 1, 0x01); /* 8086 mode */
	outb(SLAVE + 1, 0x01);
	outb(MASTER + 1, 0xff);
	outb(SLAVE + 1, 0xff);
	ready = true;
}

static void on_irq(struct frame *frame)
{
	unsigned irq = frame->vector - VECTOR_IRQ0;

	irq_handlers[irq](frame);
	if (irq >= 8)
		outb(SLAVE, EOI);
	outb(MASTER, EOI);
}

void irq_enable(unsigned irq, handler *handler)
{
	if (!ready)
		pic_init();
	irq_handlers[irq] = handler;
	set_handler((uint8_t)(VECTOR_IRQ0 + irq), on_irq);
	if (irq >= 8) {
		outb(SLAVE + 1, (uint8_t)(inb(SLAVE + 1) & ~(1u << (irq - 8))));
		irq = 2;
	}
	outb(MASTER + 1, (uint8_t)(inb(MASTER + 1) & ~(1u << irq)));
}

bool irq_requested(unsigned irq)
{
	outb(MASTER, 0x0a); /* OCW3: read IRR */
	return inb(MASTER) >> irq & 1;
}

void pit_periodic(unsigned hz)
{
	unsigned divisor = (PIT_HZ + hz / 2) / hz;

	outb(0x43, 0x34); /* channel 0, both bytes, mode 2 */
	outb(0x40, (uint8_t)divisor);
	outb(0x40, (uint8_t)(divisor >> 8));
}
