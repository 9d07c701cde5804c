/* Code that is changed through another mapping of its page, one that cannot execute: what a kernel does when it copies a program into
 * the page cache or patches itself. Whoever keeps translated code must notice by physical page, not by virtual address. */
#include "guest.h"

const char guest_name[] = "alias";

#define FUNCTIONS 16
#define SPACING 256 /* bytes from one to the next: all in one page */
#define ROUNDS 200
#define ALIAS 0x40000000ul /* guest-virtual: the first GiB once more, not executable */

static uint8_t code[4096] __attribute__((aligned(4096)));
static uint64_t alias_directory[512] __attribute__((aligned(4096)));

static void map_alias(void)
{
	uint64_t cr3, *pml4, *pointers;
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xc0000080));
	__asm__ volatile("wrmsr" : : "a"(low | 1u << 11), "d"(high), "c"(0xc0000080)); /* EFER.NXE */
	__asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
	pml4 = (uint64_t *)cr3;
	pointers = (uint64_t *)(pml4[0] & ~0xffful);
	for (uint64_t n = 0; n < 512; n++)
		alias_directory[n] = n << 21 | 0x83 | 1ul << 63; /* present, writable, 2 MiB, execute-disable */
	pointers[1] = (uint64_t)alias_directory + 3;
	__asm__ volatile("mov %0, %%cr3" : : "r"(cr3) : "memory");
}

/* mov $value, %eax; ret */
static void write_function(volatile uint8_t *page, unsigned index, uint32_t value)
{
	volatile uint8_t *at = page + index * SPACING;

	at[0] = 0xb8;
	for (unsigned n = 0; n < 4; n++)
		at[1 + n] = (uint8_t)(value >> 8 * n);
	at[5] = 0xc3;
}

static uint32_t call_function(unsigned index)
{
	uint32_t (*function)(void) = (uint32_t (*)(void))(code + index * SPACING);

	return function();
}

int main(void)
{
	volatile uint8_t *alias = (volatile uint8_t *)((uintptr_t)code + ALIAS);
	unsigned stale = 0;

	map_alias();
	for (uint32_t round = 0; round < ROUNDS; round++) {
		/* One at a time, each run at once, so that the page has code and the alias was just written. */
		for (unsigned n = 0; n < FUNCTIONS; n++) {
			write_function(alias, n, round << 8 | n);
			stale += call_function(n) != (round << 8 | n);
		}
		/* All, then all. */
		for (unsigned n = 0; n < FUNCTIONS; n++)
			write_function(alias, n, ~(round << 8 | n));
		for (unsigned n = 0; n < FUNCTIONS; n++)
			stale += call_function(n) != ~(round << 8 | n);
		/* Through the mapping that executes. */
		write_function(code, round % FUNCTIONS, round);
		stale += call_function(round % FUNCTIONS) != round;
	}
	expect("functions that ran as they were before", stale, 0);
	return done();
}
