/* The keyboard, by interrupt 1: scan codes of set 1, as the 8042 translates, to characters of a US keyboard. */
#include "teach.h"

#define DATA 0x60
#define RING 64u
#define LEFT_SHIFT 0x2a
#define RIGHT_SHIFT 0x36

static const char plain[] = "\0\0331234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

static volatile char ring[RING];
static volatile unsigned head, tail;
static bool shift;

static void on_key(struct frame *frame)
{
	uint8_t code = inb(DATA);
	char c;

	(void)frame;
	if ((code & 0x7f) == LEFT_SHIFT || (code & 0x7f) == RIGHT_SHIFT)
		shift = !(code & 0x80);
	if (code >= sizeof plain - 1)
		return;
	c = shift ? shifted[code] : plain[code];
	if (c && head - tail < RING)
		ring[head++ % RING] = c;
}

void keyboard_init(void)
{
	while (inb(DATA + 4) & 1) /* what was typed before */
		(void)inb(DATA);
	interrupt_route(1, on_key);
}

char key_wait(void)
{
	char c;

	interrupts_off();
	while (head == tail)
		task_yield();
	c = ring[tail++ % RING];
	interrupts_on();
	return c;
}
