/* Programs every device with nonsense: random reads and writes of all sizes, single and as strings, to the board's ports, with interrupts
 * on, and to addresses where nothing is ("count=N", "seed=N"). All it avoids is what ends a guest on purpose (reset, exit), and what
 * would keep real hardware from ever running it again (an interrupt line that stays active). */
#include "guest.h"
#include "hv/hypercall.h"

const char guest_name[] = "nonsense";

#define MASTER 0x20
#define SLAVE 0xa0
#define COM1 0x3f8
#define KEYBOARD 0x60
#define KEYBOARD_COMMAND 0x64
#define FAST_RESET 0x92
#define RESET_CONTROL 0xcf9
#define ICW1_LEVEL 0x08

static const struct {
	uint16_t first, last;
} places[] = {
	{0x3b4, 0x3ba}, {0x3c0, 0x3cf}, {0x3d4, 0x3da}, /* VGA */
	{0x20, 0x21},	{0xa0, 0xa1}, {0x40, 0x43}, {0x3f8, 0x3ff},  {0x60, 0x64},	      {0x70, 0x71},	  {0x92, 0x92},
	{0xcf8, 0xcff}, {0x80, 0x80}, {0, 0xffff},  {0x4d0, 0x4d1}, {HV_PORT_CALL, HV_PORT_CALL + 7},
};
#define PLACES (sizeof places / sizeof places[0])

static volatile uint32_t interrupts;
static uint32_t state;

static uint32_t random(void)
{
	state ^= state << 13; /* xorshift32, Marsaglia 2003 */
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

/* Whatever it was: make it stop. */
static void on_any(struct frame *frame)
{
	interrupts++;
	expect("vector is none of the exceptions", frame->vector >= VECTOR_IRQ0, 1);
	outb(COM1 + 3, 0x03);
	outb(COM1 + 1, 0);
	inb(COM1);
	inb(COM1 + 2);
	inb(KEYBOARD);
	outb(0x70, 0x0c);
	inb(0x71);
	pit_periodic(1000);
	outb(SLAVE, 0x20);
	outb(MASTER, 0x20);
}

/* One byte of a write, made harmless where it would end the guest. */
static uint8_t harmless(uint16_t port, uint8_t value)
{
	switch (port) {
	case MASTER:
	case SLAVE:
		return value & 0x10 ? value & ~ICW1_LEVEL : value;
	case MASTER + 1:
	case SLAVE + 1:
		return value | 0x20; /* not among the exceptions, which push error codes */
	case 0x4d0:
	case 0x4d1:
		return 0;
	case KEYBOARD:
		return value | 0x01; /* the output port's reset line */
	case KEYBOARD_COMMAND:
		return value >= 0xf0 ? value & 0x7f : value;
	case FAST_RESET:
		return value & ~1;
	case RESET_CONTROL:
		return value & ~4;
	default:
		return value;
	}
}

static uint32_t chosen(uint16_t port, unsigned size)
{
	uint32_t value = random();

	for (unsigned i = 0; i < size; i++) {
		uint32_t byte = harmless((uint16_t)(port + i), (uint8_t)(value >> 8 * i));

		value = (value & ~(0xffu << 8 * i)) | byte << 8 * i;
	}
	return port == HV_PORT_CALL && value == HV_CALL_EXIT ? 0 : value;
}

static bool ends_guest(uint16_t port, unsigned size)
{
	return port <= HV_PORT_DEBUG_EXIT + 3 && port + size > HV_PORT_DEBUG_EXIT;
}

static void write_port(uint16_t port, unsigned size)
{
	uint32_t value = chosen(port, size);

	/* The hypercalls find nonsense in the argument registers too. */
	if (size == 1)
		__asm__ volatile("outb %b0, %1" : : "a"(value), "d"(port), "b"(random()), "c"(random()), "S"(random()) : "memory");
	else if (size == 2)
		__asm__ volatile("outw %w0, %1" : : "a"(value), "d"(port), "b"(random()), "c"(random()), "S"(random()) : "memory");
	else
		__asm__ volatile("outl %0, %1" : : "a"(value), "d"(port), "b"(random()), "c"(random() & 0x7ff), "S"(random()) : "memory");
}

static void read_port(uint16_t port, unsigned size)
{
	uint32_t value;

	if (size == 1)
		__asm__ volatile("inb %1, %b0" : "=a"(value) : "d"(port) : "memory");
	else if (size == 2)
		__asm__ volatile("inw %1, %w0" : "=a"(value) : "d"(port) : "memory");
	else
		__asm__ volatile("inl %1, %0" : "=a"(value) : "d"(port) : "memory");
}

static void string(uint16_t port, unsigned size)
{
	static uint32_t buffer[16];
	void *at = buffer;
	uint32_t count = random() % 16;

	if (random() & 1) {
		if (size == 1)
			__asm__ volatile("rep insb" : "+D"(at), "+c"(count) : "d"(port) : "memory");
		else if (size == 2)
			__asm__ volatile("rep insw" : "+D"(at), "+c"(count) : "d"(port) : "memory");
		else
			__asm__ volatile("rep insl" : "+D"(at), "+c"(count) : "d"(port) : "memory");
		return;
	}
	for (unsigned i = 0; i < 16; i++) {
		uint32_t value = chosen(port, size);

		if (size == 1)
			((uint8_t *)buffer)[i] = (uint8_t)value;
		else if (size == 2)
			((uint16_t *)buffer)[i] = (uint16_t)value;
		else
			buffer[i] = value;
	}
	if (size == 1)
		__asm__ volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(port) : "memory");
	else if (size == 2)
		__asm__ volatile("rep outsw" : "+S"(at), "+c"(count) : "d"(port) : "memory");
	else
		__asm__ volatile("rep outsl" : "+S"(at), "+c"(count) : "d"(port) : "memory");
}

/* Above RAM and below the top of 4 GiB nothing is but holes and the places of devices to come. */
static void hole(unsigned size)
{
	uint32_t address = 0xc8000000 + random() % 0x36000000;

	if (size == 1)
		*(volatile uint8_t *)address ^= (uint8_t)random();
	else if (size == 2)
		*(volatile uint16_t *)address ^= (uint16_t)random();
	else
		*(volatile uint32_t *)address ^= random();
}

int main(void)
{
	uint32_t count = option("count", 3000000);

	state = option("seed", 1) * 2 + 1;
	traps_init();
	for (unsigned vector = 0x20; vector < 256; vector++)
		set_handler((uint8_t)vector, on_any);
	for (unsigned irq = 0; irq < 16; irq++)
		irq_enable(irq, on_any);
	pit_periodic(1000);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t place = random() % PLACES, what = random() % 64;
		uint32_t span = places[place].last - places[place].first + 1u;
		uint16_t port = (uint16_t)(places[place].first + random() % span);
		unsigned size = 1u << random() % 3;

		if (ends_guest(port, size))
			continue;
		interrupts_on();
		if (what < 30)
			write_port(port, size);
		else if (what < 60)
			read_port(port, size);
		else if (what < 63)
			string(port, size);
		else
			hole(size);
	}
	interrupts_off();
	serial_init();
	print("\n%u accesses, %s\n", count, interrupts ? "interrupts came" : "no interrupt came");
	return done();
}
