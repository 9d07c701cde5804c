/* Crossings from the innermost of several functions, built with frame pointers, over and over: for call stacks in traces. "n=N" is how often;
 * "paging=1" behind page tables that map the first 3 GiB by 4 MiB pages where they are, and everything once more from 3 GiB on. */
#include "guest.h"
#include "hv/hypercall.h"

#pragma GCC optimize("no-omit-frame-pointer")

const char guest_name[] = "callers";
static uint32_t directory[1024] __attribute__((aligned(4096)));

__attribute__((noipa)) static void inner(uint32_t n)
{
	outb(0x80, (uint8_t)n);
	hv_annotate(n, 0);
	interrupts_off();
	__asm__ volatile(""); /* or the last call would become a jump, which no stack shows */
}

__attribute__((noipa)) static void middle(uint32_t n)
{
	inner(n);
	__asm__ volatile("");
}

__attribute__((noipa)) static void outer(uint32_t n)
{
	middle(n);
	__asm__ volatile("");
}

static void page(void)
{
	for (uint32_t n = 0; n < 1024; n++)
		directory[n] = (n % 768) << 22 | 0x83; /* present, writable, 4 MiB */
	__asm__ volatile("mov %%cr4, %%eax; or $0x10, %%eax; mov %%eax, %%cr4; mov %0, %%cr3;"
			 "mov %%cr0, %%eax; or $0x80000000, %%eax; mov %%eax, %%cr0" : : "r"(directory) : "eax", "memory");
}

int main(void)
{
	if (option("paging", 0))
		page();
	for (uint32_t n = 0; n < option("n", 100); n++)
		outer(n);
	return done();
}
