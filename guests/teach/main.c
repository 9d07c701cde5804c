/* From the entry to the shell; a second thread shows a clock, a third one counts. */
#include "teach.h"

const char guest_name[] = "teach";
static volatile uint32_t counted;

_Noreturn void guest_start(uint32_t magic, void *info);
void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);

static void clock(void)
{
	for (;;) {
		char text[] = "00:00:00";
		uint32_t seconds = ticks / HZ;

		for (unsigned n = 0, value = seconds / 3600 % 100; n < 3; n++, value = n == 1 ? seconds / 60 % 60 : seconds % 60) {
			text[3 * n] = (char)('0' + value / 10);
			text[3 * n + 1] = (char)('0' + value % 10);
		}
		put_status(text);
		while (ticks / HZ == seconds) {
			interrupts_off();
			wait_for_interrupt();
			interrupts_on();
		}
	}
}

/* Never gives the processor up by itself: that the others run shows that the timer preempts. It rests after a second. */
static void count(void)
{
	uint32_t end = ticks + HZ;

	while ((int32_t)(ticks - end) < 0)
		counted++;
}

/* traps.c calls it for an exception that nobody expected; what it was stands on the screen. */
_Noreturn void guest_exit(uint32_t code)
{
	(void)code;
	for (;;)
		__asm__ volatile("cli; hlt");
}

_Noreturn void guest_start(uint32_t magic, void *info)
{
	(void)info;
	screen_init();
	print("teach, booted by %s\n", magic == 0x2badb002 ? "Multiboot" : "its own boot sector");
	traps_init();
	apic_init();
	print(mp.found ? "MP tables found\n" : "no MP tables: 8259 and 8254\n");
	print(disk_init() ? "disk found\n" : "no disk with files\n");
	keyboard_init();
	task_start(clock);
	task_start(count);
	tasks_init();
	interrupts_on();
	shell();
	guest_exit(0);
}

void *memcpy(void *to, const void *from, size_t length)
{
	void *result = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
	return result;
}

void *memset(void *to, int value, size_t length)
{
	void *result = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
	return result;
}
