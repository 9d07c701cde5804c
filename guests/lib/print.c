/* COM1, 16550: 115200 baud, 8N1, polled. */
#include <stdarg.h>

#include "guest.h"

#define COM1 0x3f8
#define LSR_THRE 0x20

void serial_init(void)
{
	outb(COM1 + 1, 0);    /* no interrupts */
	outb(COM1 + 3, 0x80); /* divisor */
	outb(COM1 + 0, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x03); /* 8N1 */
	outb(COM1 + 2, 0x07); /* FIFOs on and empty */
	outb(COM1 + 4, 0x0b); /* DTR, RTS, OUT2: the interrupt output is connected */
}

static void put(char c)
{
#ifdef HV_PARAVIRT
	if (hv_pv_present) {
		hv_pv_call(HV_PV_CALL_CONSOLE, (uint32_t)(uintptr_t)&c, 1, 0, 0);
		return;
	}
#endif
	while (!(inb(COM1 + 5) & LSR_THRE))
		;
	outb(COM1, (uint8_t)c);
}

static void put_number(unsigned long value, unsigned base)
{
	char digits[24];
	int n = 0;

	do
		digits[n++] = "0123456789abcdef"[value % base];
	while ((value /= base));
	while (n)
		put(digits[--n]);
}

void print(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	for (; *format; format++) {
		bool wide = false;

		if (*format == '\n')
			put('\r');
		if (*format != '%') {
			put(*format);
			continue;
		}
		if (*++format == 'l') {
			wide = true;
			format++;
		}
		switch (*format) {
		case 's':
			for (const char *s = va_arg(arguments, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)va_arg(arguments, int));
			break;
		case 'x':
			put_number(wide ? va_arg(arguments, unsigned long) : va_arg(arguments, unsigned), 16);
			break;
		case 'u':
			put_number(wide ? va_arg(arguments, unsigned long) : va_arg(arguments, unsigned), 10);
			break;
		case 'd': {
			int value = va_arg(arguments, int);

			if (value < 0)
				put('-');
			put_number(value < 0 ? 0u - (unsigned)value : (unsigned)value, 10);
			break;
		}
		case '%':
			put('%');
			break;
		default: /* a mistake in the kernel: show it */
			put('?');
			va_end(arguments);
			return;
		}
	}
	va_end(arguments);
}
