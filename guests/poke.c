/* A kernel that patches its code as Linux does: an address space of its own maps the page of the code, writably, for as long as the store takes, with
 * interrupts disabled. What was stored must run at once; elsewhere, and when it is not mapped so, nobody reaches the page by that address, however
 * often it was so before. */
#include "guest.h"

const char guest_name[] = "poke";

#define P 1u
#define W 2u
#define A 0x20u
#define D 0x40u
#define LARGE 0x80u
#define GLOBAL 0x100u
#define PAGE 4096u
#define WINDOW 0x40005000u /* where the page is mapped for a moment */
#define PAGES 6
#define FUNCTIONS 3
#define SPACING 1024u
#define ROUNDS 40

static uint32_t home[1024] __attribute__((aligned(4096))), poking[1024] __attribute__((aligned(4096)));
static uint32_t table[1024] __attribute__((aligned(4096)));
static uint8_t code[PAGES * PAGE] __attribute__((aligned(4096))), data[PAGE] __attribute__((aligned(4096)));
static volatile uint32_t *const entry = &table[WINDOW >> 12 & 0x3ff];

volatile uint32_t go_on;
static uint32_t faults;

static void on_fault(struct frame *frame)
{
	expect("the address of the fault", read_cr2() & ~(PAGE - 1), WINDOW);
	faults++;
	frame->eip = go_on;
}

static void load(uint32_t *directory)
{
	__asm__ volatile("mov %0, %%cr3" : : "r"(directory) : "memory");
}

/* Through the window; whether it faulted. */
static uint32_t store(uint32_t offset, uint8_t value)
{
	uint32_t before = faults;

	__asm__ volatile("movl $1f, go_on; movb %b0, (%1); 1:" : : "q"(value), "r"(WINDOW + offset) : "memory");
	return faults - before;
}

static uint32_t fetch(uint32_t offset)
{
	uint32_t before = faults, value;

	__asm__ volatile("movl $1f, go_on; movzbl (%1), %0; 1:" : "=q"(value) : "r"(WINDOW + offset) : "memory");
	return faults - before;
}

static void map(const void *page, uint32_t flags)
{
	*entry = (uint32_t)page | flags;
}

/* movb $value, %al; ret, in the middle of other functions */
static void make(uint8_t *at, uint8_t value)
{
	at[0] = 0xb0;
	at[1] = value;
	at[2] = 0xc3;
}

static uint8_t call(unsigned page, unsigned index)
{
	uint8_t (*function)(void) = (uint8_t(*)(void))(code + page * PAGE + index * SPACING);

	return function();
}

static void poke(unsigned page, unsigned index, uint8_t value, uint32_t flags)
{
	map(code + page * PAGE, flags);
	load(poking);
	expect("faults of a store", store(index * SPACING + 1, value), 0);
	*entry = 0;
	load(home);
}

static uint8_t values[PAGES][FUNCTIONS];

static void check(void)
{
	for (unsigned page = 0; page < PAGES; page++)
		for (unsigned n = 0; n < FUNCTIONS; n++)
			expect("what a function returns", call(page, n), values[page][n]);
}

static void poke_all(uint8_t round, uint32_t flags)
{
	for (unsigned page = 0; page < PAGES; page++) {
		for (unsigned n = 0; n < FUNCTIONS; n++) {
			poke(page, n, values[page][n] = (uint8_t)(round * 7 + page * FUNCTIONS + n), flags);
			expect("what a patched function returns", call(page, n), values[page][n]);
		}
		if (page == round % PAGES)
			expect("faults elsewhere", store(1, 0xee) + fetch(1), 2);
	}
	check();
}

/* After many of them, what does not go the same way. */
static void poke_otherwise(void)
{
	map(code, P | W | A | D); /* mapped, and nothing is stored */
	load(poking);
	check();
	*entry = 0;
	load(home);
	check();

	*entry = 0;
	load(poking);
	expect("faults where nothing is mapped", store(1, 0xee) + fetch(1), 2);
	load(home);

	map(code, P | A | D); /* not writable */
	load(poking);
	expect("faults of stores to what is read-only", store(1, 0xee), 1);
	expect("faults of loads from there", fetch(1), 0);
	*entry = 0;
	load(home);
	check();

	map(data, P | W | A | D); /* another page */
	load(poking);
	expect("faults of a store to data", store(1, 0xdd), 0);
	*entry = 0;
	load(home);
	expect("data", data[1], 0xdd);
	check();

	map(code, P | W); /* the first access marks it */
	load(poking);
	expect("marks before", *entry & (A | D), 0);
	expect("faults of a load", fetch(1), 0);
	expect("marks of a load", *entry & (A | D), A);
	expect("faults of a store", store(1, values[0][0] = 0x55), 0);
	expect("marks of a store", *entry & (A | D), A | D);
	*entry = 0;
	load(home);
	check();

	map(code, P | W | A | D); /* two pages while it is loaded */
	load(poking);
	expect("faults of the first", store(1, values[0][0] = 0x66), 0);
	map(code + PAGE, P | W | A | D);
	__asm__ volatile("invlpg (%0)" : : "r"(WINDOW) : "memory");
	expect("faults of the second", store(1, values[1][0] = 0x77), 0);
	check();
	load(home); /* and left as it is */
	check();
	load(poking);
	expect("faults of one that stayed mapped", store(1, values[1][0] = 0x78), 0);
	*entry = 0;
	load(home);
	check();
	expect("faults in the end", store(1, 0xee) + fetch(1), 2);
}

int main(void)
{
	uint32_t global = option("global", 0) ? GLOBAL : 0, cr;

	traps_init();
	set_handler(14, on_fault);
	for (uint32_t n = 0; n < 4; n++)
		home[n] = poking[n] = n << 22 | P | W | LARGE | global;
	poking[WINDOW >> 22] = (uint32_t)table | P | W | A;
	for (unsigned page = 0; page < PAGES; page++)
		for (unsigned n = 0; n < FUNCTIONS; n++)
			make(code + page * PAGE + n * SPACING, values[page][n] = 1);
	__asm__ volatile("mov %%cr4, %0" : "=r"(cr));
	__asm__ volatile("mov %0, %%cr4" : : "r"(cr | 0x10u | (global ? 0x80u : 0)) : "memory");
	load(home);
	__asm__ volatile("mov %%cr0, %0" : "=r"(cr));
	__asm__ volatile("mov %0, %%cr0" : : "r"(cr | 0x80010000u) : "memory");
	check();
	for (uint8_t round = 0; round < ROUNDS; round++)
		poke_all(round, P | W | A | D);
	poke_otherwise();
	poke_all(ROUNDS, P | W);
	poke_all(ROUNDS + 1, P | W | A | D);
	poke_otherwise();
	return done();
}
