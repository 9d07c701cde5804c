/* The shell: help, ls, cat FILE, cpu, uptime, halt. */
#include "teach.h"

static bool is(const char *word, const char *name)
{
	while (*word && *word == *name) {
		word++;
		name++;
	}
	return *word == *name;
}

static void read_line(char *line, unsigned size)
{
	unsigned length = 0;

	for (;;) {
		char c = key_wait();

		if (c == '\n') {
			put_char(c);
			line[length] = 0;
			return;
		}
		if (c == '\b') {
			if (length) {
				length--;
				put_char(c);
			}
		} else if (c >= ' ' && length + 1 < size) {
			line[length++] = c;
			put_char(c);
		}
	}
}

static void list(void)
{
	const struct file *file;

	for (unsigned n = 0; (file = file_at(n)); n++)
		print("%s  %u bytes\n", file->name, file->bytes);
}

static void show(const char *name)
{
	static char sector[SECTOR];
	const struct file *file = file_find(name);

	if (!file) {
		print("cat: no file '%s'\n", name);
		return;
	}
	for (uint32_t at = 0; at < file->bytes; at++) {
		if (at % SECTOR == 0 && !disk_read(file->sector + at / SECTOR, sector)) {
			print("cat: the disk does not answer\n");
			return;
		}
		put_char(sector[at % SECTOR]);
	}
}

static void describe(void)
{
	if (!mp.found) {
		print("no MP tables: 8259 and 8254\n");
		return;
	}
	print("%u processor(s), local APIC at 0x%x, timer of %u Hz\n", mp.processors, mp.local_apic, timer_frequency);
	print("IOAPIC %u at 0x%x: keyboard at pin %u, disk at pin %u\n", mp.io_apic_id, mp.io_apic, mp.pin[1], mp.pin[14]);
}

static void run(char *line)
{
	char *argument = line;

	while (*argument && *argument != ' ')
		argument++;
	while (*argument == ' ')
		*argument++ = 0;
	if (is(line, "help"))
		print("help, ls, cat FILE, cpu, uptime, halt\n");
	else if (is(line, "ls"))
		list();
	else if (is(line, "cat"))
		show(argument);
	else if (is(line, "cpu"))
		describe();
	else if (is(line, "uptime"))
		print("up %u.%u%u s\n", ticks / HZ, ticks % HZ / 10, ticks % 10);
	else if (is(line, "halt"))
		for (;;)
			__asm__ volatile("cli; hlt");
	else if (*line)
		print("%s: what is that? Try help.\n", line);
}

void shell(void)
{
	static char line[78];

	for (;;) {
		print("teach> ");
		read_line(line, sizeof line);
		run(line);
	}
}
