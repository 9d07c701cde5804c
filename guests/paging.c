/* 32-bit paging: 4 KiB and 4 MiB pages, aliases, write protection, INVLPG, CR4.PGE, accessed and dirty bits. Needs 12 MiB of RAM. */
#include "guest.h"

const char guest_name[] = "paging";

#define P 1u
#define W 2u
#define A 0x20u
#define D 0x40u
#define LARGE 0x80u
#define GLOBAL 0x100u

#define LARGE_FRAME 0x00800000u /* guest-physical, 4 MiB of it */
#define OTHER_FRAME 0x00400000u /* the same */
#define LARGE_AT 0x40000000u	/* linear, one 4 MiB page */
#define SMALL_AT 0x50000000u	/* linear, 4 KiB pages of the same memory */

static volatile uint32_t directory[1024] __attribute__((aligned(4096)));
static volatile uint32_t low_table[1024] __attribute__((aligned(4096)));
static volatile uint32_t small_table[1024] __attribute__((aligned(4096)));
static uint32_t faults, error, address;
static volatile uint32_t resume_at;

static volatile uint32_t *at(uint32_t linear)
{
	return (volatile uint32_t *)linear;
}

static void invlpg(uint32_t linear)
{
	__asm__ volatile("invlpg (%0)" : : "r"(linear) : "memory");
}

static void on_page_fault(struct frame *frame)
{
	faults++;
	error = frame->error;
	address = read_cr2();
	frame->eip = resume_at;
}

static void try_write(uint32_t linear, uint32_t value)
{
	faults = 0;
	__asm__ volatile("movl $1f, resume_at; movl %1, (%0); 1:" : : "r"(linear), "r"(value) : "memory");
}

static void try_read(uint32_t linear)
{
	faults = 0;
	__asm__ volatile("movl $1f, resume_at; movl (%0), %%eax; 1:" : : "r"(linear) : "eax", "memory");
}

static void write_protect(bool on)
{
	uint32_t cr0;

	__asm__ volatile("movl %%cr0, %0" : "=r"(cr0));
	cr0 = on ? cr0 | 0x10000 : cr0 & ~0x10000u;
	__asm__ volatile("movl %0, %%cr0" : : "r"(cr0) : "memory");
}

static void paging_on(void)
{
	for (uint32_t n = 0; n < 1024; n++)
		low_table[n] = n << 12 | W | P;
	directory[0] = (uint32_t)low_table | W | P;
	directory[LARGE_AT >> 22] = LARGE_FRAME | LARGE | W | P;
	directory[SMALL_AT >> 22] = (uint32_t)small_table | W | P;
	for (uint32_t n = 0; n < 1024; n++)
		small_table[n] = (LARGE_FRAME + (n << 12)) | W | P;
	__asm__ volatile("movl %%cr4, %%eax; orl $0x10, %%eax; movl %%eax, %%cr4; movl %0, %%cr3;"
			 "movl %%cr0, %%eax; orl $0x80000000, %%eax; movl %%eax, %%cr0"
			 :
			 : "r"(directory)
			 : "eax", "memory");
}

static void change_pge(void)
{
	__asm__ volatile("movl %%cr4, %%eax; xorl $0x80, %%eax; movl %%eax, %%cr4" : : : "eax", "memory");
}

/* mov eax, value; ret */
static void put_function(uint32_t linear, uint8_t value)
{
	volatile uint8_t *to = (volatile uint8_t *)linear;

	to[0] = 0xb8;
	to[1] = value;
	to[2] = to[3] = to[4] = 0;
	to[5] = 0xc3;
}

static uint32_t call(uint32_t linear)
{
	return ((uint32_t (*)(void))linear)();
}

/* A change of CR4.PGE drops everything, global pages too, in both directions. */
static void check_pge(void)
{
	volatile uint32_t *pde = &directory[LARGE_AT >> 22], *pte = &small_table[3];
	uint32_t page = SMALL_AT + 0x3000;

	for (uint32_t n = 0; n < 16; n++)
		small_table[n] = ((n < 8 ? LARGE_FRAME : OTHER_FRAME) + ((n % 8 + 0x10) << 12)) | W | P;
	*pde = LARGE_FRAME | LARGE | GLOBAL | W | P;
	change_pge();
	*at(SMALL_AT) = 0x11;
	*at(SMALL_AT + 0x8000) = 0x22;
	*at(SMALL_AT + 0x9000) = 0x33;
	put_function(SMALL_AT + 0x2000, 1);
	put_function(SMALL_AT + 0xa000, 2);
	expect("a global 4 MiB page", *at(LARGE_AT + 0x10000), 0x11);
	*at(LARGE_AT + 0x11000) = 0x44;
	expect("code in it", call(LARGE_AT + 0x12000), 1);
	*pde = OTHER_FRAME | LARGE | GLOBAL | W | P;
	change_pge();
	expect("the same page elsewhere, CR4.PGE cleared", *at(LARGE_AT + 0x10000), 0x22);
	expect("code in it", call(LARGE_AT + 0x12000), 2);
	*at(LARGE_AT + 0x11000) = 0x55;
	expect("what was there before", *at(SMALL_AT + 0x1000), 0x44);
	expect("what was written there", *at(SMALL_AT + 0x9000), 0x55);
	*pde &= ~(A | D);
	change_pge();
	try_read(LARGE_AT + 0x10000);
	expect("accessed after CR4.PGE was set", *pde & (A | D), A);
	*at(LARGE_AT + 0x11000) = 0x66;
	expect("dirty after a write", *pde & (A | D), A | D);
	*pde &= ~A;
	change_pge();
	try_read(LARGE_AT + 0x10000);
	expect("accessed after CR4.PGE was cleared", *pde & (A | D), A | D);
	write_protect(true);
	*at(LARGE_AT + 0x11000) = 0x67;
	*pde &= ~W;
	change_pge();
	try_write(LARGE_AT + 0x11000, 0x77);
	expect("faults at a write to the page, read-only now", faults, 1);
	*pde |= W;
	change_pge();
	*at(LARGE_AT + 0x11000) = 0x88;
	expect("the page, writable again", *at(SMALL_AT + 0x9000), 0x88);
	write_protect(false);
	*pte |= GLOBAL;
	change_pge();
	*at(page) = 0x99;
	*pte = (OTHER_FRAME + 0x11000) | GLOBAL | W | P;
	expect("a global 4 KiB page", *at(page), 0x99);
	change_pge();
	expect("that page elsewhere", *at(page), 0x88);
	*pde = (uint32_t)small_table | W | P;
	change_pge();
	expect("the 4 MiB page turned into a table", *at(LARGE_AT + 0x3000), 0x88);
	expect("code in it", call(LARGE_AT + 0x2000), 1);
	*pde = 0;
	change_pge();
	try_read(LARGE_AT + 0x3000);
	expect("faults at the page taken away", faults, 1);
}

int main(void)
{
	volatile uint32_t *pte = &small_table[3];
	uint32_t page = SMALL_AT + 0x3000;

	traps_init();
	set_handler(14, on_page_fault);
	paging_on();

	*at(LARGE_AT + 0x3210) = 0xcafe0001;
	expect("4 MiB page seen through a 4 KiB page", *at(SMALL_AT + 0x3210), 0xcafe0001);
	*at(SMALL_AT + 0x3ff000) = 0xcafe0002;
	expect("4 KiB page seen through the 4 MiB page", *at(LARGE_AT + 0x3ff000), 0xcafe0002);

	expect("accessed and dirty of the 4 MiB page", directory[LARGE_AT >> 22] & (A | D), A | D);
	expect("accessed of a page read only", *pte & (A | D), A);
	*at(page) = 1;
	expect("accessed and dirty of a page written", *pte & (A | D), A | D);
	expect("accessed and dirty of a page not touched", small_table[7] & (A | D), 0);
	expect("accessed of the table's entry", directory[SMALL_AT >> 22] & A, A);
	*pte &= ~(A | D);
	invlpg(page);
	try_read(page);
	expect("accessed again after it was cleared", *pte & (A | D), A);

	/* The page goes elsewhere: seen after INVLPG. */
	*at(LARGE_AT + 0x5000) = 0x55555555;
	*at(page) = 0x33333333;
	*pte = (LARGE_FRAME + 0x5000) | W | P;
	invlpg(page);
	expect("a page moved", *at(page), 0x55555555);
	*pte = 0;
	invlpg(page);
	try_read(page + 8);
	expect("faults at a page taken away", faults, 1);
	expect("error code of the read", error, 0);
	expect("cr2 of the read", address, page + 8);

	/* Write protection. */
	*pte = (LARGE_FRAME + 0x3000) | P;
	invlpg(page);
	write_protect(true);
	try_write(page + 4, 0x77777777);
	expect("faults at a write with CR0.WP", faults, 1);
	expect("error code of the write", error, 3);
	expect("cr2 of the write", address, page + 4);
	write_protect(false);
	try_write(page + 4, 0x88888888);
	expect("faults at a write without CR0.WP", faults, 0);
	expect("what was written", *at(LARGE_AT + 0x3004), 0x88888888);

	/* A 4 MiB page becomes a table. */
	directory[LARGE_AT >> 22] = (uint32_t)small_table | W | P;
	invlpg(LARGE_AT);
	invlpg(LARGE_AT + 0x3000);
	expect("a 4 MiB page turned into a table", *at(LARGE_AT + 0x3004), 0x88888888);
	check_pge();
	return done();
}
