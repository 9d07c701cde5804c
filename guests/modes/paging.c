/* Page tables: stale translations, many address spaces, a directory that maps itself, PAE, much memory. */
#include "modes.h"

static uint32_t directory[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096)));

static void load_cr3(const void *root)
{
	__asm__ volatile("movl %0, %%cr3" : : "r"(root) : "memory");
}

void paging_on(void)
{
	for (uint32_t n = 0; n < 1024; n++)
		table[n] = n << 12 | U | W | P;
	table[HOLE >> 12] = 0;
	directory[0] = (uint32_t)table | U | W | P;
	for (uint32_t n = 1; n < 1024; n++)
		directory[n] = n << 22 | LARGE | W | P;
	__asm__ volatile("movl %%cr4, %%eax; orl $0x10, %%eax; movl %%eax, %%cr4; movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "memory");
}

#define FRAMES 0x00800000u
#define SPACES 64u
static uint32_t windows[SPACES][1024] __attribute__((aligned(4096)));
static uint32_t spaces[SPACES][1024] __attribute__((aligned(4096)));

void address_spaces(void)
{
	volatile uint32_t *window = (volatile uint32_t *)0x40000000, *stale = (volatile uint32_t *)0x40001000;
	uint32_t value;

	for (unsigned n = 0; n < SPACES; n++) {
		for (unsigned i = 0; i < 1024; i++)
			spaces[n][i] = directory[i];
		spaces[n][0x100] = (uint32_t)windows[n] | W | P;
		windows[n][0] = (FRAMES + n * 4096) | W | P;
	}
	for (unsigned round = 0; round < 3; round++)
		for (unsigned n = 0; n < SPACES; n++) {
			load_cr3(spaces[n]);
			if (round)
				expect("a word of an address space", *window, n * 1000 + round - 1);
			*window = n * 1000 + round;
		}
	load_cr3(spaces[0]);
	/* A translation may stay until INVLPG, and must not after it. */
	for (unsigned n = 0; n < 2; n++)
		*(volatile uint32_t *)(FRAMES + 0x100000 + n * 4096) = 0x1000 + n;
	windows[0][1] = (FRAMES + 0x100000) | W | P;
	__asm__ volatile("invlpg (%0)" : : "r"(stale) : "memory");
	expect("a page", *stale, 0x1000);
	windows[0][1] = (FRAMES + 0x101000) | W | P;
	value = *stale;
	expect("another page without INVLPG is the old or the new one", value == 0x1000 || value == 0x1001, 1);
	__asm__ volatile("invlpg (%0)" : : "r"(stale) : "memory");
	expect("another page after INVLPG", *stale, 0x1001);
	windows[0][1] = (FRAMES + 0x100000) | W | P;
	load_cr3(spaces[0]);
	expect("another page after a load of CR3", *stale, 0x1000);
	windows[0][1] = (FRAMES + 0x100000) | P;
	load_cr3(spaces[0]);
	TRY("movl $5, (%0)", "b"(0x40001000));
	faults("a write to a page that has become read-only", 14, 3);
	windows[0][1] |= W;
	TRY("movl $5, (%0)", "b"(0x40001000)); /* more rights need no INVLPG: the fault looks anew */
	if (seen.count)
		faults("a write before INVLPG, at most", 14, 3);
	load_cr3(directory);
	/* The directory itself as a table of tables. */
	directory[0x3ff] = (uint32_t)directory | W | P;
	load_cr3(directory);
	expect("a directory that maps itself", *(volatile uint32_t *)0xffc00000, table[0]);
#ifdef HV_PARAVIRT /* whose last page is the virtual processor's */
	if (!hv_pv_present)
#endif
	expect("and once more", *(volatile uint32_t *)0xfffff000 & ~0xfffu, (uint32_t)table & ~0xfffu);
}

static uint64_t pae_pointers[4] __attribute__((aligned(32)));
static uint64_t pae_directories[4][512] __attribute__((aligned(4096)));
static uint64_t pae_table[512] __attribute__((aligned(4096)));

void physical_extension(void)
{
	volatile uint32_t *window = (volatile uint32_t *)0x40000000;

	for (unsigned n = 0; n < 4; n++) {
		pae_pointers[n] = (uint32_t)pae_directories[n] | P;
		for (unsigned i = 0; i < 512; i++)
			pae_directories[n][i] = (uint64_t)(n << 30 | i << 21) | LARGE | W | P;
	}
	pae_directories[1][0] = (uint32_t)pae_table | W | P;
	pae_table[0] = (FRAMES + 0x3000) | W | P;
	pae_table[1] = (FRAMES + 0x3000) | P;
	__asm__ volatile("movl %%cr0, %%eax; andl $0x7fffffff, %%eax; movl %%eax, %%cr0; movl %%cr4, %%ecx; orl $0x20, %%ecx; movl %%ecx, %%cr4; movl %0, %%cr3;"
			 "orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(pae_pointers)
			 : "eax", "ecx", "memory");
	*window = 0xae;
	expect("a page by PAE", *(volatile uint32_t *)(FRAMES + 0x3000), 0xae);
	expect("accessed and dirty by PAE", (uint32_t)pae_table[0] & 0x60, 0x60);
	expect("accessed of a page of 2 MiB", (uint32_t)pae_directories[0][FRAMES >> 21] & 0x20, 0x20);
	TRY("movl $1, (%0)", "b"(0x40001000));
	faults("a write to a read-only page by PAE", 14, 3);
	TRY("movl (%0), %%eax", "b"(0x40002000));
	faults("a page that is not there by PAE", 14, 0);
	expect("cr2", seen.address, 0x40002000);
	/* And back. */
	__asm__ volatile("movl %%cr0, %%eax; andl $0x7fffffff, %%eax; movl %%eax, %%cr0; movl %%cr4, %%ecx; andl $~0x20, %%ecx; movl %%ecx, %%cr4; movl %0, %%cr3;"
			 "orl $0x80010000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "ecx", "memory");
}

void much_memory(void)
{
	uint32_t pages = option("touch", 64), step = option("step", 8) * 4096, first = 0x00c00000, wrong = 0;

	for (uint32_t n = 0; n < pages; n++)
		*(volatile uint32_t *)(first + n * step) = n;
	for (uint32_t n = 0; n < pages; n++)
		wrong += *(volatile uint32_t *)(first + n * step) != n;
	expect("words that were lost", wrong, 0);
	print("%u pages touched\n", pages);
}
