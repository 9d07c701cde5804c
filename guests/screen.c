/* The VGA text screen and the keyboard: a banner in colours, then an echo of what is typed; Esc ends it with exit code 7.
   Scan codes (set 1, as the 8042 translates) are told on COM1. */
#include "guest.h"

const char guest_name[] = "screen";

#define COLUMNS 80
#define ROWS 25
#define CRTC 0x3d4
#define KEYBOARD 0x60
#define RING 256u

static volatile uint16_t *const cells = (volatile uint16_t *)0xb8000;
static volatile uint8_t ring[RING];
static volatile uint32_t head, tail;
static unsigned row, column;
static uint8_t color = 0x07;

/* Scan code -> character, without and with Shift; 0 = none. */
static const char plain[] = "\0\0331234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

static void crtc(uint8_t index, uint8_t value)
{
	outb(CRTC, index);
	outb(CRTC + 1, value);
}

static void move_cursor(void)
{
	unsigned at = row * COLUMNS + column;

	crtc(0x0e, (uint8_t)(at >> 8));
	crtc(0x0f, (uint8_t)at);
}

static void scroll(void)
{
	for (unsigned at = 0; at < (ROWS - 1) * COLUMNS; at++)
		cells[at] = cells[at + COLUMNS];
	for (unsigned at = (ROWS - 1) * COLUMNS; at < ROWS * COLUMNS; at++)
		cells[at] = 0x0720;
	row = ROWS - 1;
}

static void put(char c)
{
	if (c == '\n') {
		column = 0;
		row++;
	} else if (c == '\b') {
		if (column)
			cells[row * COLUMNS + --column] = 0x0720;
	} else {
		cells[row * COLUMNS + column++] = (uint16_t)(color << 8 | (uint8_t)c);
		if (column == COLUMNS) {
			column = 0;
			row++;
		}
	}
	if (row == ROWS)
		scroll();
}

static void write(const char *text)
{
	while (*text)
		put(*text++);
}

static void on_key(struct frame *frame)
{
	uint8_t code = inb(KEYBOARD);

	(void)frame;
	if (head - tail < RING)
		ring[head++ % RING] = code;
}

int main(void)
{
	bool shift = false;

	for (unsigned at = 0; at < ROWS * COLUMNS; at++)
		cells[at] = 0x0720;
	color = 0x1f;
	write("\xc9\xcd\xcd screen \xcd\xcd\xbb");
	color = 0x07;
	write("\n");
	for (unsigned n = 0; n < 16; n++) {
		color = (uint8_t)n;
		put('\xdb');
	}
	color = 0x07;
	write("\ntype, Esc ends\n");
	move_cursor();
	traps_init();
	irq_enable(1, on_key);
	print("screen: ready\n");
	for (;;) {
		uint8_t code;
		char c;

		interrupts_off();
		while (head == tail)
			wait_for_interrupt();
		interrupts_on();
		code = ring[tail++ % RING];
		print("%x ", code);
		if ((code & 0x7f) == 0x2a || (code & 0x7f) == 0x36)
			shift = !(code & 0x80);
		if (code >= sizeof plain - 1)
			continue;
		c = shift ? shifted[code] : plain[code];
		if (c == '\033') {
			print("\n");
			done();
			return 7;
		}
		if (c) {
			put(c);
			move_cursor();
		}
	}
}
