/* The VGA text screen at 0xb8000: 80x25, the first line is a status bar. print() is the kernel's only output. */
#include <stdarg.h>

#include "teach.h"

#define COLUMNS 80u
#define ROWS 25u
#define CRTC 0x3d4
#define TEXT 0x0700u
#define BAR 0x1f00u

static volatile uint16_t *const cells = (volatile uint16_t *)0xb8000;
static unsigned row, column;

static void move_cursor(void)
{
	unsigned at = row * COLUMNS + column;

	outb(CRTC, 0x0e);
	outb(CRTC + 1, (uint8_t)(at >> 8));
	outb(CRTC, 0x0f);
	outb(CRTC + 1, (uint8_t)at);
}

static void scroll(void)
{
	for (unsigned at = COLUMNS; at < (ROWS - 1) * COLUMNS; at++)
		cells[at] = cells[at + COLUMNS];
	for (unsigned at = (ROWS - 1) * COLUMNS; at < ROWS * COLUMNS; at++)
		cells[at] = TEXT | ' ';
}

void screen_init(void)
{
	for (unsigned at = 0; at < ROWS * COLUMNS; at++)
		cells[at] = (at < COLUMNS ? BAR : TEXT) | ' ';
	for (const char *c = " teach"; *c; c++, column++)
		cells[column] = BAR | (uint8_t)*c;
	row = 1;
	column = 0;
	move_cursor();
}

static void store(char c)
{
	if (c == '\n') {
		column = 0;
		row++;
	} else if (c == '\b') {
		if (column)
			cells[row * COLUMNS + --column] = TEXT | ' ';
	} else if (c != '\r') {
		cells[row * COLUMNS + column] = TEXT | (uint8_t)c;
		if (++column == COLUMNS) {
			column = 0;
			row++;
		}
	}
	if (row == ROWS) {
		scroll();
		row--;
	}
}

void put_char(char c)
{
	bool on = interrupts_save();

	store(c);
	move_cursor();
	interrupts_restore(on);
}

void put_status(const char *text)
{
	unsigned length = 0;

	while (text[length])
		length++;
	for (unsigned at = 0; at < length; at++)
		cells[COLUMNS - 1 - length + at] = BAR | (uint8_t)text[at];
}

static void store_number(uint32_t value, unsigned base)
{
	char digits[12];
	unsigned n = 0;

	do
		digits[n++] = "0123456789abcdef"[value % base];
	while ((value /= base));
	while (n)
		store(digits[--n]);
}

void print(const char *format, ...)
{
	va_list arguments;
	bool on = interrupts_save();

	va_start(arguments, format);
	for (; *format; format++) {
		if (*format != '%') {
			store(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = va_arg(arguments, const char *); *s; s++)
				store(*s);
			break;
		case 'c':
			store((char)va_arg(arguments, int));
			break;
		case 'u':
			store_number(va_arg(arguments, uint32_t), 10);
			break;
		case 'x':
			store_number(va_arg(arguments, uint32_t), 16);
			break;
		default:
			store(*format);
		}
	}
	va_end(arguments);
	move_cursor();
	interrupts_restore(on);
}
