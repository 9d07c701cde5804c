/* Address spaces that are changed all the time, and a kernel that accesses what its programs have there at once, or only after others, or never before a program
 * runs (docs/cell.md): it finds what the tables in force say, in the spaces of programs and in one without any. */
#include "guest.h"

const char guest_name[] = "spaces";

#define P 1u
#define W 2u
#define U 4u
#define END 0x400000u  /* of programs' address space */
#define DATA 0x40000u  /* in each space another page, or none */
#define SPACES 3u /* the last has no programs */
#define FRAMES 4u

extern char user_start[], user_end[], user_load[];
extern const char user_stack_top[];
void user_touch(void);
__asm__(".section .user, \"ax\"\n"
	".balign 4096\n"
	".globl user_start, user_touch, user_stack_top\n"
	"user_start:\n"
	"user_touch: movl 0x40000, %eax; leal 1(%eax,%eax,2), %eax; movl %eax, 0x40000; int $0x81\n"
	".balign 4096\n"
	".skip 4096\n"
	"user_stack_top:\n"
	".text\n");

static uint32_t directories[SPACES][1024] __attribute__((aligned(4096))), tables[SPACES][1024] __attribute__((aligned(4096))), kernel[2][1024] __attribute__((aligned(4096)));
static uint32_t frames[FRAMES][1024] __attribute__((aligned(4096)));
static uint32_t value = 77, faults, sum, ticks;

/* EBX is DATA; the fault moves it. */
static uint32_t load(uint32_t at) { uint32_t v; __asm__ volatile("movl (%1), %0" : "=a"(v), "+b"(at) : : "memory"); return v; }
static uint32_t exchange(uint32_t at) { uint32_t v = sum; __asm__ volatile("xchgl %0, (%1)" : "+a"(v), "+b"(at) : : "memory"); return v; }
static uint32_t add(uint32_t at) { __asm__ volatile("addl $3, 4(%0)" : "+b"(at) : : "memory"); return load(at); }
static uint32_t by_extra(uint32_t at) { uint32_t v; __asm__ volatile("movl %%es:4(%1), %0" : "=a"(v), "+b"(at) : : "memory"); return v; }
static uint32_t push(uint32_t at) { uint32_t v; __asm__ volatile("pushl (%1); popl %0" : "=a"(v), "+b"(at) : : "memory"); return v; }
static uint32_t nothing(uint32_t at) { return at; }
static uint32_t by_stack(uint32_t at) /* a kernel's stack that lies there */
{
	uint32_t v;
	at += 0x100;
	__asm__ volatile("movl %%esp, %%edx; movl %1, %%esp; pushl %%edx; movl (%%esp), %0; popl %%esp" : "=a"(v) : "b"(at) : "edx", "memory");
	return v == at;
}

static void load_space(unsigned n) { hv_pv_write_cr3((uint32_t)directories[n]); }

static void map(void)
{
	for (unsigned n = 0; n < SPACES; n++) {
		for (uint32_t page = 0; page < 2048; page++)
			kernel[page / 1024][page % 1024] = (page + 1024) << 12 | W | P;
		for (uint32_t at = (uint32_t)user_start; at < (uint32_t)user_end; at += 4096)
			tables[n][at >> 12] = (at - (uint32_t)user_start + (uint32_t)user_load) | U | W | P;
		tables[n][DATA >> 12] = (uint32_t)frames[n] | U | W | P;
		directories[n][0] = n == SPACES - 1 ? 0 : (uint32_t)tables[n] | U | W | P;
		directories[n][1] = (uint32_t)kernel[0] | W | P;
		directories[n][2] = (uint32_t)kernel[1] | W | P;
	}
	load_space(0);
	__asm__ volatile("movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" : : : "eax", "memory");
}

static void on_fault(struct frame *frame)
{
	faults++;
	sum = sum * 31 + read_cr2() + frame->error;
	frame->ebx = (uint32_t)&value;
}

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

static void on_done(struct frame *frame)
{
	sum = sum * 31 + frame->eax;
	leave_user();
}

static uint32_t random(void)
{
	static uint32_t state = 1;
	state = state * 1103515245 + 12345;
	return state >> 16;
}

int main(void)
{
	static uint32_t (*const ways[])(uint32_t) = {load, exchange, add, by_extra, push, nothing, nothing, by_stack};
	unsigned space = 0, frame = 0;

	traps_init();
	set_handler(14, on_fault);
	irq_enable(0, on_tick);
	pit_periodic(1000);
	set_handler(0x81, on_done);
	set_gate(0x81, NULL, 3);
	for (unsigned n = 0; n < FRAMES; n++)
		frames[n][0] = frames[n][1] = n * 1000 + 1;
	map();
	if (hv_pv_present)
		expect("SET_USER_LIMIT", (uint32_t)hv_pv_call(HV_PV_CALL_SET_USER_LIMIT, END, 0, 0, 0), 0);
	for (unsigned round = 1; round <= 4000; round++) {
		if (random() % 8 == 0) { /* another page, which a load of CR3 tells of */
			frame = random() % FRAMES;
			tables[0][DATA >> 12] = (uint32_t)frames[frame] | U | W | P;
		}
		for (unsigned loads = 1 + random() % 3; loads; loads--)
			load_space(space = random() % SPACES);
		interrupts_on();
		unsigned way = random() % (sizeof ways / sizeof *ways);
		if (ways[way] != by_stack || space != SPACES - 1) /* whose fault would be a double one */
			sum = sum * 31 + ways[way](DATA);
		interrupts_off();
		if (space != SPACES - 1 && random() % 2)
			enter_user(user_touch, (void *)user_stack_top);
		if (round % 1000 == 0)
			print("%u: %x, %u faults\n", round, sum, faults);
	}
	expect("no ticks", !ticks, 0);
	return done();
}
