/* The calls of the paravirtual ABI with values that make no sense: an error, and nothing else happens (docs/paravirtualisation.md).
 * "seed=N count=N": so many calls at random. "number=N a=N b=N c=N d=N trap=1": this one, whatever becomes of the guest. */
#include "guest.h"
#include "hv/hypercall.h"

const char guest_name[] = "calls";

#define P 1u
#define W 2u
#define TABLES 4
#define NOWHERE 0x40000000u /* linear: nothing is mapped there */
#define SCRATCH_PAGES 4

struct registers {
	uint32_t eax, ebx, ecx, edx, esi, edi, ebp, eflags;
};
/* Makes the call with these, by the page (0) or by the trap; leaves what it left. */
void call_with(struct registers *, uint32_t by_trap);
__asm__(".text\n"
	"call_with:\n"
	"	pushal\n"
	"	movl	36(%esp), %eax\n"
	"	movl	40(%esp), %edx\n"
	"	pushl	%eax\n"
	"	pushl	%edx\n"
	"	movl	4(%eax), %ebx; movl 8(%eax), %ecx; movl 16(%eax), %esi; movl 20(%eax), %edi; movl 24(%eax), %ebp; pushl 28(%eax); popfl\n"
	"	movl	%edx, %edx\n"
	"	movl	12(%eax), %edx\n"
	"	movl	(%eax), %eax\n"
	"	pushfl\n"
	"	cmpl	$0, 4(%esp)\n"
	"	jne	1f\n"
	"	popfl\n"
	"	call	hv_pv_page\n"
	"	jmp	2f\n"
	"1:	popfl\n"
	"	int	$0x82\n"
	"2:	pushfl\n"
	"	pushl	%eax\n"
	"	movl	12(%esp), %eax\n"
	"	movl	%ebx, 4(%eax); movl %ecx, 8(%eax); movl %edx, 12(%eax); movl %esi, 16(%eax); movl %edi, 20(%eax); movl %ebp, 24(%eax)\n"
	"	popl	(%eax)\n"
	"	popl	28(%eax)\n"
	"	addl	$8, %esp\n"
	"	popal\n"
	"	ret\n");

static uint32_t directory[1024] __attribute__((aligned(4096))), tables[TABLES * 1024] __attribute__((aligned(4096)));
static uint32_t scratch[SCRATCH_PAGES * 1024] __attribute__((aligned(4096)));
static uint32_t state;

void *memcpy(void *to, const void *from, size_t length);

static uint32_t random(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static void map(void)
{
	for (uint32_t n = 0; n < TABLES * 1024; n++)
		tables[n] = n << 12 | W | P;
	for (uint32_t n = 0; n < TABLES; n++)
		directory[n] = (uint32_t)&tables[n * 1024] | W | P;
	hv_pv_write_cr3((uint32_t)directory);
	__asm__ volatile("movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : : "eax", "memory");
}

/* An argument: what a call may take for an address, a length, a selector, a bit; never the address of anything that matters here. */
static uint32_t argument(void)
{
	static const uint32_t known[] = {
		0, 1, 2, 3, 4, 8, 0x10, 0x20, 0xff, 0x100, 0x1ff, 0x200, 0x201, 0xfff, 0x1000, 0x8000, 0xffff, 0x10000, NOWHERE, NOWHERE - 4, 0x7fffffff, 0x80000000,
		0xfffff000, 0xfffff004, 0xfffffffc, 0xffffffff, 0xfee00000, 0xa0000,
	};
	uint32_t way = random() % 8;

	if (way < 4)
		return known[random() % (sizeof known / sizeof *known)];
	if (way < 6)
		return (uint32_t)&scratch[random() % (SCRATCH_PAGES * 1024)] + (way == 5 ? random() % 4 : 0);
	return way == 6 ? NOWHERE + random() % 0x10000000 : 0xf0000000 + random() % 0xfffffff;
}

/* Whatever these are called with, the next instruction may be the guest's last. */
static bool fatal(uint32_t number)
{
	return number == HV_CALL_EXIT || number == HV_PV_CALL_SET_CR0 || number == HV_PV_CALL_SET_CR3 || number == HV_PV_CALL_SET_CR4 || number == HV_PV_CALL_IRET ||
		number == HV_PV_CALL_IDLE || number == HV_PV_CALL_POWER || number == HV_PV_CALL_PORT_OUT || number == HV_PV_CALL_WRITE_MSR ||
		number == HV_PV_CALL_CONSOLE;
}

/* Of all that no call of this test may change: code, constants, page tables. */
static uint32_t checksum(void)
{
	extern const uint32_t end_of_text[];
	uint32_t sum = 0;

	for (const uint32_t *at = (const uint32_t *)0x100000; at < (const uint32_t *)hv_pv_page; at++)
		sum = (sum << 1 | sum >> 31) ^ *at;
	for (const uint32_t *at = (const uint32_t *)(hv_pv_page + 4096); at < end_of_text; at++)
		sum = (sum << 1 | sum >> 31) ^ *at;
	for (uint32_t n = 0; n < TABLES * 1024; n++)
		sum = (sum << 1 | sum >> 31) ^ (tables[n] & ~0x60u);
	return sum;
}

struct table {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed));

static void at_random(uint32_t count)
{
	uint32_t sum = checksum(), bad = 0, refused = 0;
	const struct table gdt = *(struct table *)(HV_PV_VCPU + HV_PV_GDTR), idt = *(struct table *)(HV_PV_VCPU + HV_PV_IDTR);

	static uint8_t saved[2][4096]; /* GDT and IDT, which some calls may change */

	memcpy(saved[0], (const void *)gdt.base, gdt.limit + 1u);
	memcpy(saved[1], (const void *)idt.base, idt.limit + 1u);
	for (uint32_t n = 0; n < count && bad < 8; n++) {
		uint32_t number = random() % 8 ? HV_PV_CALL_FIRST + random() % (HV_PV_CALL_END - HV_PV_CALL_FIRST + 4) : random();

		if (fatal(number))
			continue;
		struct registers before = {number, argument(), argument(), random(), argument(), argument(), random(), (random() & 0x8d5) | 2}, after;

		if (number == HV_PV_CALL_SET_USER_LIMIT || number == HV_PV_CALL_PORT_IN)
			before.ebx |= 1; /* not a page's; not the result of the base call */
		if (number == HV_PV_CALL_MULTICALL || number == HV_PV_CALL_SET_PTES || number == HV_PV_CALL_SET_TRAPS) {
			if (before.ebx - (uint32_t)scratch < sizeof scratch) /* what lies behind it might make sense */
				before.ecx %= 64, before.ebx = (uint32_t)scratch + before.ebx % 4096;
			for (uint32_t k = 0; k < SCRATCH_PAGES * 1024; k++)
				scratch[k] = random() % 4 ? 0xffffffff - random() % 4096 : 0; /* numbers, entries and flags that there are not */
		}
		if (number == HV_PV_CALL_LOAD_SEGMENT)
			before.ecx |= 0x400; /* none that there is */
		after = before;
		call_with(&after, random() % 4 == 0);
		int32_t result = (int32_t)after.eax;
		bool same = after.ebx == before.ebx && after.ecx == before.ecx && after.esi == before.esi && after.edi == before.edi && after.ebp == before.ebp &&
			(after.eflags & 0x8d5) == (before.eflags & 0x8d5);

		refused += result < 0 && result > -4096;
		/* What was set is set back. */
		memcpy((void *)gdt.base, saved[0], gdt.limit + 1u);
		memcpy((void *)idt.base, saved[1], idt.limit + 1u);
		hv_pv_call(HV_PV_CALL_SET_GDT, gdt.base, gdt.limit, 0, 0);
		hv_pv_call(HV_PV_CALL_SET_IDT, idt.base, idt.limit, 0, 0);
		hv_pv_call(HV_PV_CALL_SET_LDT, 0, 0, 0, 0);
		hv_pv_call(HV_PV_CALL_LOAD_SEGMENT, 0, KERNEL_DATA, 0, 0);
		hv_pv_call(HV_PV_CALL_LOAD_SEGMENT, 3, KERNEL_DATA, 0, 0);
		hv_pv_cli();
		if (!same || checksum() != sum || (number >= HV_PV_CALL_END && number > 63 && result != -HV_ENOSYS)) {
			print("call %u(%x, %x, %x, %x) = %d: %s\n", number, before.ebx, before.ecx, before.esi, before.edi, result,
			      !same ? "registers changed" : checksum() != sum ? "memory changed" : "it is there");
			bad++;
		}
	}
	expect("calls that did more than they say", bad, 0);
	expect("some were refused", refused > count / 8, 1);
}

int main(void)
{
	uint32_t number = option("number", ~0u);

	if (!hv_pv_present) {
		print("no paravirtual ABI here\n");
		return done();
	}
	traps_init();
	map();
	state = option("seed", 1) * 2654435761u | 1;
	if (number != ~0u) {
		struct registers one = {number, option("a", 0), option("b", 0), 0, option("c", 0), option("d", 0), 0, 2};

		pit_periodic(100);
		call_with(&one, option("trap", 0));
		print("call %u = %d\n", number, (int32_t)one.eax);
		return done();
	}
	at_random(option("count", 3000));
	return done();
}
