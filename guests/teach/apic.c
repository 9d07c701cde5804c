/* Local APIC and IOAPIC (Intel SDM volume 3A, chapter 10; 82093AA data sheet); without MP tables the 8259 pair and the 8254. */
#include "teach.h"

enum { ID = 0x20, EOI = 0xb0, SPURIOUS = 0xf0, TIMER = 0x320, ERROR = 0x370, INITIAL = 0x380, CURRENT = 0x390, DIVIDE = 0x3e0 };
#define ENABLED 0x100u
#define MASKED 0x10000u
#define PERIODIC 0x20000u
#define VECTOR_TIMER 0x40
#define VECTOR_ERROR 0x41
#define VECTOR_SPURIOUS 0xff

uint32_t timer_frequency;
static handler *timer_handler;
static unsigned in_service;

static volatile uint32_t *local(uint32_t offset)
{
	return (volatile uint32_t *)(mp.local_apic + offset);
}

static void io_write(uint8_t index, uint32_t value)
{
	*(volatile uint32_t *)mp.io_apic = index;
	*(volatile uint32_t *)(mp.io_apic + 0x10) = value;
}

static void ignore(struct frame *frame)
{
	(void)frame;
}

/* How far the local APIC's timer counts in 10 ms of the 8254's channel 2, whose gate and output are at port 0x61. */
static uint32_t count_10_ms(void)
{
	unsigned divisor = 11932;

	outb(0x61, (uint8_t)((inb(0x61) & ~2) | 1));
	outb(0x43, 0xb0); /* channel 2, both bytes, mode 0 */
	outb(0x42, (uint8_t)divisor);
	*local(INITIAL) = 0xffffffff;
	outb(0x42, (uint8_t)(divisor >> 8));
	while (!(inb(0x61) & 0x20))
		;
	return 0xffffffff - *local(CURRENT);
}

void apic_init(void)
{
	mp_init();
	if (!mp.found)
		return;
	set_handler(VECTOR_SPURIOUS, ignore);
	set_handler(VECTOR_ERROR, ignore);
	*local(SPURIOUS) = ENABLED | VECTOR_SPURIOUS;
	*local(DIVIDE) = 0x0b; /* by 1 */
	*local(TIMER) = MASKED | VECTOR_TIMER;
	*local(ERROR) = VECTOR_ERROR;
	*local(EOI) = 0;
	timer_frequency = count_10_ms() * 100;
}

static void on_timer(struct frame *frame)
{
	in_service = VECTOR_TIMER;
	timer_handler(frame);
	interrupt_done();
}

void timer_start(handler *handler)
{
	timer_handler = handler;
	if (!mp.found) {
		irq_enable(0, handler);
		pit_periodic(HZ);
		return;
	}
	set_handler(VECTOR_TIMER, on_timer);
	*local(TIMER) = PERIODIC | VECTOR_TIMER;
	*local(INITIAL) = timer_frequency / HZ;
}

static handler *routed[16];

static void on_interrupt(struct frame *frame)
{
	in_service = frame->vector;
	routed[frame->vector - VECTOR_IRQ0](frame);
	interrupt_done();
}

void interrupt_route(unsigned irq, handler *handler)
{
	uint32_t low = (uint32_t)(VECTOR_IRQ0 + irq);

	if (!mp.found) {
		irq_enable(irq, handler);
		return;
	}
	routed[irq] = handler;
	set_handler((uint8_t)(VECTOR_IRQ0 + irq), on_interrupt);
	if ((mp.flags[irq] & 3) == 3)
		low |= 1u << 13; /* active low */
	if ((mp.flags[irq] >> 2 & 3) == 3)
		low |= 1u << 15; /* level */
	io_write((uint8_t)(0x11 + 2 * mp.pin[irq]), *local(ID) & 0xff000000);
	io_write((uint8_t)(0x10 + 2 * mp.pin[irq]), low);
}

void interrupt_done(void)
{
	if (!mp.found) {
		outb(0x20, 0x20); /* the library says it again, which changes nothing */
	} else if (in_service) {
		in_service = 0;
		*local(EOI) = 0;
	}
}
