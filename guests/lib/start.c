/* From the entry to main() and from main() out; the command line. */
#include "guest.h"
#include "hv/hypercall.h"

#define MULTIBOOT_MAGIC 0x2badb002
#define PVH_MAGIC 0x336ec578

const char *command_line = "";

struct multiboot_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
};
struct hvm_start_info {
	uint32_t magic, version, flags, modules;
	uint64_t module_list, cmdline;
};

_Noreturn void guest_start(uint32_t magic, void *info);

_Noreturn void guest_exit(uint32_t code)
{
	if (hv_present())
		hv_exit(code);
	outb(HV_PORT_DEBUG_EXIT, (uint8_t)code);
	for (;;) /* neither is there */
		__asm__ volatile("cli; hlt");
}

_Noreturn void guest_start(uint32_t magic, void *info)
{
#ifdef HV_PARAVIRT
	hv_pv_detect();
#endif
	serial_init();
	if (magic == MULTIBOOT_MAGIC) {
		const struct multiboot_info *multiboot = info;

		if (multiboot->flags & 4)
			command_line = (const char *)(uintptr_t)multiboot->cmdline;
	} else if (magic == PVH_MAGIC) {
		const struct hvm_start_info *pvh = info;

		if (pvh->cmdline)
			command_line = (const char *)(uintptr_t)pvh->cmdline;
	} else {
		print("%s: entered with magic %x, neither Multiboot nor PVH\n", guest_name, magic);
		guest_exit(2);
	}
	guest_exit((uint32_t)main());
}

static uint32_t number(const char *text)
{
	uint32_t value = 0, base = 10;

	if (text[0] == '0' && text[1] == 'x') {
		base = 16;
		text += 2;
	}
	for (;; text++) {
		uint32_t digit = *text >= '0' && *text <= '9' ? (uint32_t)(*text - '0')
			: *text >= 'a' && *text <= 'f' ? (uint32_t)(*text - 'a' + 10) : 99;

		if (digit >= base)
			return value;
		value = value * base + digit;
	}
}

uint32_t option(const char *name, uint32_t otherwise)
{
	const char *word = command_line;

	while (*word) {
		const char *a = word, *b = name;

		while (*b && *a == *b)
			a++, b++;
		if (!*b && *a == '=')
			return number(a + 1);
		while (*word && *word != ' ')
			word++;
		while (*word == ' ')
			word++;
	}
	return otherwise;
}

/* The compiler may call these for what it makes of assignments and loops. */
void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);

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
