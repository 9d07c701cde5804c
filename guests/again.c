/* Programs in address spaces of their own, which have mostly the same read-only pages at the same place, as two of the same program have: unmapped, mapped again, as
 * before or otherwise, all of them or some (docs/cell.md). A program finds what the tables in force say. */
#include "guest.h"

const char guest_name[] = "again";

#define P 1u
#define W 2u
#define U 4u
#define TABLES 4u           /* of the kernel's pages, at their own addresses */
#define DATA 0x8000000u
#define SPACES 3u
#define SHOWN 8u /* pages at DATA, of a space */
#define FRAMES 24u

extern char user_start[], user_end[];
extern const char user_stack_top[];
extern uint32_t user_nothing;
void user_sum(void), user_add(void);
__asm__(".section .user, \"aw\"\n"
	".balign 4096\n"
	".globl user_start, user_sum, user_add, user_nothing, user_stack_top, user_end\n"
	"user_start:\n"
	"user_sum: xorl %esi, %esi; xorl %edi, %edi\n"
	"1: movl %esi, %ebx; shll $12, %ebx; addl $0x8000000, %ebx\n"
	"   movl (%ebx), %eax; imull $31, %edi; addl %eax, %edi; incl %esi; cmpl $8, %esi; jne 1b\n"
	"   movl %edi, %eax; int $0x81\n"
	"user_add: movl $0x8003000, %ebx; addl $7, (%ebx); movl $0, %eax; int $0x81\n"
	".balign 4\n"
	"user_nothing: .long 0\n"
	".balign 4096\n"
	".skip 4096\n"
	"user_stack_top:\n"
	"user_end:\n"
	".text\n");

static uint32_t directories[SPACES][1024] __attribute__((aligned(4096))), tables[SPACES][1024] __attribute__((aligned(4096)));
static uint32_t kernel[TABLES][1024] __attribute__((aligned(4096)));
static uint32_t frames[FRAMES][1024] __attribute__((aligned(4096)));
static uint32_t result, faults;

static void load_space(unsigned n) { __asm__ volatile("movl %0, %%cr3" : : "r"(directories[n]) : "memory"); }

static void map(void)
{
	for (uint32_t page = 0; page < TABLES * 1024; page++)
		kernel[page / 1024][page % 1024] = page << 12 | W | P;
	for (uint32_t at = (uint32_t)user_start; at < (uint32_t)user_end; at += 4096)
		kernel[at >> 22][at >> 12 & 1023] |= U;
	for (unsigned n = 0; n < SPACES; n++) {
		for (unsigned i = 0; i < TABLES; i++)
			directories[n][i] = (uint32_t)kernel[i] | U | W | P;
		directories[n][DATA >> 22] = (uint32_t)tables[n] | U | W | P;
	}
	load_space(0);
	__asm__ volatile("movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : : "eax", "memory");
}

static void on_fault(struct frame *frame)
{
	faults++;
	frame->ebx = (uint32_t)&user_nothing;
}

static void on_done(struct frame *frame)
{
	result = frame->eax;
	leave_user();
}

static uint32_t random(void)
{
	static uint32_t state = 1;
	state = state * 1103515245 + 12345;
	return state >> 16;
}

/* A run of pages, from the same frames as usual, from others, with other rights, or none. */
static void change(uint32_t *table)
{
	unsigned first = random() % SHOWN, end = random() % 2 ? SHOWN : first + 1 + random() % (SHOWN - first), base = random() % 3 ? 0 : random() % (FRAMES - SHOWN);
	uint32_t rights = random() % 4 ? U | P : U | W | P;
	if (random() % 3 == 0)
		first = 0;
	bool none = random() % 3 == 0;
	for (unsigned i = first; i < end; i++)
		table[i] = none ? 0 : (uint32_t)frames[base + i] | rights;
}

static uint32_t expected(const uint32_t *table, uint32_t *wanted_faults)
{
	uint32_t sum = 0;
	for (unsigned i = 0; i < SHOWN; i++) {
		sum *= 31;
		if (table[i] & P)
			sum += *(const uint32_t *)(table[i] & ~0xfffu);
		else
			++*wanted_faults;
	}
	return sum;
}

int main(void)
{
	unsigned wrong = 0;

	traps_init();
	set_handler(14, on_fault);
	set_handler(0x81, on_done);
	set_gate(0x81, NULL, 3);
	for (unsigned n = 0; n < FRAMES; n++)
		frames[n][0] = n * 1000 + 1;
	map();
	for (unsigned round = 1; round <= 4000; round++) {
		unsigned space = random() % SPACES;
		if (random() % 4 == 0)
			change(tables[space]);
		load_space(space);
		uint32_t wanted = 0, sum = expected(tables[space], &wanted);
		faults = 0;
		enter_user(user_sum, (void *)user_stack_top);
		if (result != sum || faults != wanted) {
			wrong++;
			print("round %u: %u instead of %u, %u faults instead of %u\n", round, result, sum, faults, wanted);
		}
		if (random() % 8 == 0) { /* a store, where there may be one */
			uint32_t entry = tables[space][3], *at = (uint32_t *)(entry & ~0xfffu), before = entry & P ? *at : 0;
			faults = 0;
			user_nothing = 0;
			enter_user(user_add, (void *)user_stack_top);
			if (entry & P && *at - before != (entry & W ? 7u : 0u))
				wrong++;
			expect("faults of a store", faults, !(entry & P) || !(entry & W));
			user_nothing = 0;
		}
	}
	expect("wrong", wrong, 0);
	return done();
}
