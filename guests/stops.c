/* What control registers stop: x87, MMX, SSE instructions and WAIT by CR0.TS, EM and MP (Intel SDM volume 3A, 2.5 and tables 9-3, 13-1), RDTSC by
 * CR4.TSD, in the kernel (unless "kernel=0") and in programs; what breakpoint registers stop in both; and two programs whose x87 and SSE registers are switched only when they are used.
 * "spin=N": a program counts to N, with "ts=1" while CR0.TS is set, with "dr7=1" while a breakpoint register is enabled. */
#include "guest.h"

const char guest_name[] = "stops";

#define CR0_MP 2u
#define CR0_EM 4u
#define CR0_TS 8u
#define CR4_TSD 4u
#define NOTHING 0xffu
#define TURNS 200u

/* Each is executed as it stands; what it needs is in EAX, an address of 512 bytes. */
static const struct {
	const char *name;
	uint8_t length, code[7];
} rows[] = {
	{"fninit", 2, {0xdb, 0xe3}}, {"fld1", 2, {0xd9, 0xe8}}, {"fnstsw ax", 2, {0xdf, 0xe0}}, {"fnstcw", 2, {0xd9, 0x38}}, {"wait", 1, {0x9b}},
	{"emms", 2, {0x0f, 0x77}}, {"movd mm0", 3, {0x0f, 0x6e, 0xc1}}, {"movd xmm0", 4, {0x66, 0x0f, 0x6e, 0xc1}}, {"movups", 3, {0x0f, 0x10, 0x00}},
	{"fxsave", 3, {0x0f, 0xae, 0x00}}, {"stmxcsr", 3, {0x0f, 0xae, 0x18}}, {"sfence", 3, {0x0f, 0xae, 0xf8}}, {"movnti", 3, {0x0f, 0xc3, 0x08}},
	{"prefetch", 3, {0x0f, 0x18, 0x08}}, {"add", 2, {0x01, 0xc8}}, {"lock add", 3, {0xf0, 0x01, 0x08}},
};

static uint8_t area[512] __attribute__((aligned(16)));
static uint8_t code[4096] __attribute__((aligned(4096))); /* a page of its own: what is stored beside code may be executed otherwise */
static uint8_t stack[4096] __attribute__((aligned(16)));
static volatile uint32_t vector, fault_at, resume_at;

static uint32_t read_cr0(void)
{
	uint32_t value;

	__asm__ volatile("movl %%cr0, %0" : "=r"(value));
	return value;
}

static void write_cr0(uint32_t value)
{
	__asm__ volatile("movl %0, %%cr0" : : "r"(value) : "memory");
}

static void set_cr4(uint32_t bits, bool on)
{
	uint32_t value;

	__asm__ volatile("movl %%cr4, %0" : "=r"(value));
	__asm__ volatile("movl %0, %%cr4" : : "r"(on ? value | bits : value & ~bits) : "memory");
}

static void on_fault(struct frame *frame)
{
	vector = frame->vector;
	fault_at = frame->eip;
	if (frame->cs & 3)
		leave_user();
	frame->eip = resume_at;
}

static void on_end(struct frame *frame)
{
	(void)frame;
	leave_user();
}

static void put(const uint8_t *bytes, unsigned length, bool user)
{
	unsigned n = 0;

	code[n++] = 0xb8; /* MOV EAX, area */
	*(uint32_t *)(code + n) = (uint32_t)area;
	for (n += 4; length; length--)
		code[n++] = *bytes++;
	code[n++] = user ? 0xcd : 0xc3; /* INT 80, RET */
	code[n] = 0x80;
}

/* The vector that it raises in ring 3, or in ring 0. */
static uint32_t run(bool user)
{
	vector = NOTHING;
	fault_at = (uint32_t)code + 5;
	if (user)
		enter_user((void (*)(void))code, stack + sizeof stack);
	else
		__asm__ volatile("movl $1f, resume_at; movl %%esp, %%ebx; pushl $1f; jmp *%0; 1: movl %%ebx, %%esp"
				 :
				 : "r"(code)
				 : "eax", "ebx", "edx", "memory", "cc");
	return vector;
}

static void look(bool user)
{
	bool both = option("both", 0); /* TS and EM: of MMX and SSE emulation looks at TS first, which is wrong */

	for (uint32_t bits = 0; bits < 8; bits++) {
		if (both != ((bits & 6) == 6))
			continue;
		print("%s%s%s%s:", user ? "program" : "kernel", bits & 1 ? " mp" : "", bits & 2 ? " em" : "", bits & 4 ? " ts" : "");
		for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
			uint32_t cr0 = read_cr0();

			put(rows[i].code, rows[i].length, user);
			write_cr0(cr0 | bits << 1);
			uint32_t found = run(user);
			write_cr0(cr0);
			if (found != NOTHING)
				print(" %s #%u", rows[i].name, found);
			expect("faulting address", fault_at, (uint32_t)code + 5);
			__asm__ volatile("fninit");
		}
		print("\n");
	}
}

static void look_at_time(void)
{
	static const uint8_t rdtsc[] = {0x0f, 0x31};

	for (unsigned n = 0; n < 6; n++) {
		bool off = n & 1, user = n < 4;

		put(rdtsc, sizeof rdtsc, user);
		set_cr4(CR4_TSD, off);
		expect("vector of RDTSC", run(user), off && user ? 13 : NOTHING);
		set_cr4(CR4_TSD, false);
	}
	print("rdtsc: done\n");
}

/* ---- breakpoint registers */

static volatile uint32_t stops, stopped_at[4], causes;

static uint32_t read_dr6(void)
{
	uint32_t value;

	__asm__ volatile("movl %%dr6, %0" : "=r"(value));
	return value;
}

static void set_breakpoint(uint32_t address, uint32_t dr7)
{
	__asm__ volatile("movl %0, %%dr1; movl %2, %%dr6; movl %1, %%dr7" : : "r"(address), "r"(dr7), "r"(0));
}

static void on_debug(struct frame *frame)
{
	stopped_at[stops++ & 3] = frame->eip - (uint32_t)code;
	causes = read_dr6() & 0xe00f;
	__asm__ volatile("movl %0, %%dr6" : : "r"(0));
	if (frame->eip == (uint32_t)code + 9 && stops == 1)
		frame->eflags |= 0x10000; /* RF: the instruction there is executed */
}

static void look_at_breakpoints(void)
{
	/* MOV [EAX], EAX; MOV ECX, [EAX]; NOP; LOCK ADD [EAX], EAX */
	static const uint8_t accesses[] = {0x89, 0x00, 0x8b, 0x08, 0x90, 0xf0, 0x01, 0x00};
	static const struct {
		const char *name;
		uint32_t dr7, address;
	} kinds[] = {
		{"none", 0xd00000, 0}, {"writes", 0xd00004, 0}, {"accesses", 0xf00008, 0}, {"a byte", 0x300004, 3}, {"beside", 0x300004, 4},
		{"an instruction", 0x000004, 1},
	};

	for (unsigned n = 0; n < 2 * sizeof kinds / sizeof *kinds; n++) {
		unsigned kind = n / 2;
		bool user = n & 1;

		put(accesses, sizeof accesses, user);
		stops = causes = 0;
		set_breakpoint(kinds[kind].address == 1 ? (uint32_t)code + 9 : (uint32_t)area + kinds[kind].address, kinds[kind].dr7);
		run(user);
		set_breakpoint(0, 0);
		print("%s, %s: %u stops", user ? "program" : "kernel", kinds[kind].name, stops);
		for (unsigned i = 0; i < stops && i < 4; i++)
			print(" +%u", stopped_at[i]);
		print(", DR6 %x\n", causes);
	}
}

/* Emulation knows nothing of these. */
static void look_at_debug_registers(void)
{
	set_handler(1, on_fault);
	set_cr4(8, true); /* DE */
	put((const uint8_t[]){0x0f, 0x21, 0xe0}, 3, false);
	expect("vector of MOV from DR4 with CR4.DE", run(false), 6);
	put((const uint8_t[]){0xe4, 0x80}, 2, false);
	set_breakpoint(0x80, 0x200004);
	expect("vector behind IN from a port", run(false), 1);
	expect("return address", fault_at, (uint32_t)code + 7);
	expect("DR6", read_dr6() & 0xe00f, 2);
	set_breakpoint(0, 0x2000);
	put((const uint8_t[]){0x0f, 0x21, 0xc0}, 3, false);
	expect("vector of MOV from DR0 with DR7.GD", run(false), 1);
	expect("DR6", read_dr6() & 0xe00f, 0x2000);
	set_cr4(8, false);
	set_breakpoint(0, 0);
}

/* ---- pages of a program that may not run natively: what is known of its code goes with its mapping */

static uint32_t directory[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096)));
static uint8_t other_code[4096] __attribute__((aligned(4096)));
static volatile uint32_t address;

static void on_page_fault(struct frame *frame)
{
	address = read_cr2();
	on_fault(frame);
}

static void look_at_pages(void)
{
	static const uint8_t one[] = {0x6b, 0xc0, 0x01}, two[] = {0x0f, 0x0b}; /* IMUL; UD2 */
	uint32_t *entry = &table[(uint32_t)code >> 12];

	set_handler(14, on_page_fault);
	for (uint32_t n = 0; n < 1024; n++)
		table[n] = n << 12 | 7;
	directory[0] = (uint32_t)table | 7;
	put(two, sizeof two, true);
	for (unsigned n = 0; n < sizeof code; n++)
		other_code[n] = code[n];
	put(one, sizeof one, true);
	__asm__ volatile("movl %0, %%cr3" : : "r"(directory) : "memory");
	write_cr0(read_cr0() | 0x80010000 | CR0_TS);
	expect("a page of the program: vector", run(true), NOTHING);
	*entry &= ~4u;
	__asm__ volatile("invlpg (%0)" : : "r"(code) : "memory");
	expect("the kernel's page: vector", run(true), 14);
	expect("address", address, (uint32_t)code);
	*entry |= 4;
	__asm__ volatile("invlpg (%0)" : : "r"(code) : "memory");
	expect("the program's once more: vector", run(true), NOTHING);
	*entry = (uint32_t)other_code | 7;
	__asm__ volatile("movl %0, %%cr3" : : "r"(directory) : "memory");
	expect("another page: vector", run(true), 6);
	*entry = 0;
	__asm__ volatile("movl %0, %%cr3" : : "r"(directory) : "memory");
	expect("no page: vector", run(true), 14);
	*entry = (uint32_t)code | 7;
	__asm__ volatile("invlpg (%0)" : : "r"(code) : "memory");
	put(two, sizeof two, true); /* written by the kernel while it is known */
	expect("changed code: vector", run(true), 6);
	write_cr0(read_cr0() & ~(0x80010000 | CR0_TS));
	print("pages: done\n");
}

/* ---- two programs, switched by each of their calls */

static struct program {
	uint8_t fpu[512] __attribute__((aligned(16)));
	uint8_t stack[4096] __attribute__((aligned(16)));
	struct frame frame;
	volatile uint32_t turns, wrong;
} programs[2];
static unsigned running, owner;
static volatile uint32_t switches;

/* Keeps its number in ST(0) and XMM1, counts in XMM1, and looks at both after each switch. */
static void work(struct program *self, uint32_t seed)
{
	uint32_t x87 = 0, sse = seed;

	__asm__ volatile("fninit; fildl %0; movd %0, %%xmm1" : : "m"(seed));
	for (uint32_t n = 1; n <= TURNS; n++) {
		__asm__ volatile("int $0x80" : : "a"(1) : "memory");
		if (n % 3)
			continue; /* not in each turn */
		__asm__ volatile("fistl %0; movd %%xmm1, %1; movd %2, %%xmm2; paddd %%xmm2, %%xmm1" : "=m"(x87), "=r"(sse) : "r"(1) : "memory");
		self->wrong += x87 != seed || sse != seed + n / 3 - 1;
	}
	self->turns = TURNS;
	for (;;)
		__asm__ volatile("int $0x80" : : "a"(1) : "memory");
}

static void first(void) { work(&programs[0], 1000); }
static void second(void) { work(&programs[1], 2000); }

static void on_call(struct frame *frame)
{
	struct program *now = &programs[running];

	if (programs[0].turns && programs[1].turns)
		leave_user();
	now->frame = *frame;
	running ^= 1;
	now = &programs[running];
	if (!now->frame.eip) { /* it starts */
		now->frame = *frame;
		now->frame.eip = (uint32_t)second;
		now->frame.user_esp = (uint32_t)(now->stack + sizeof now->stack);
	}
	uint32_t esp = frame->esp_ignored;
	*frame = now->frame;
	frame->esp_ignored = esp;
	if (owner == running)
		__asm__ volatile("clts");
	else
		write_cr0(read_cr0() | CR0_TS);
}

static void on_wanted(struct frame *frame)
{
	expect("privilege of who wants the FPU", frame->cs & 3, 3);
	__asm__ volatile("clts");
	__asm__ volatile("fxsave %0" : "=m"(programs[owner].fpu));
	owner = running;
	__asm__ volatile("fxrstor %0" : : "m"(programs[owner].fpu));
	switches++;
}

static void look_at_programs(void)
{
	set_handler(7, on_wanted);
	set_handler(VECTOR_SYSCALL, on_call);
	for (unsigned n = 0; n < 2; n++)
		__asm__ volatile("fninit; fxsave %0" : "=m"(programs[n].fpu));
	enter_user(first, programs[0].stack + sizeof programs[0].stack);
	write_cr0(read_cr0() & ~CR0_TS);
	expect("wrong numbers of the first program", programs[0].wrong, 0);
	expect("wrong numbers of the second program", programs[1].wrong, 0);
	print("programs: %u times the registers were given to another one\n", switches);
}

static void spin(void)
{
	static const uint8_t loop[] = {0xb9, 0, 0, 0, 0, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0, 0x01, 0xc8, 0x49, 0x75, 0xf5}; /* MOV ECX; IMUL; ADD; DEC; JNZ */

	put(loop, sizeof loop, true);
	*(uint32_t *)(code + 6) = option("spin", 0);
	if (option("ts", 0))
		write_cr0(read_cr0() | CR0_TS);
	if (option("dr7", 0))
		set_breakpoint((uint32_t)area, 0xd00004);
	run(true);
	expect("vector", vector, NOTHING);
}

int main(void)
{
	traps_init();
	set_cr4(0x600, true); /* OSFXSR, OSXMMEXCPT */
	set_handler(6, on_fault);
	set_handler(7, on_fault);
	set_handler(13, on_fault);
	set_handler(VECTOR_SYSCALL, on_end);
	if (option("spin", 0)) {
		spin();
		return done();
	}
	look(true);
	if (option("kernel", 1))
		look(false);
	look_at_time();
	set_handler(1, on_debug);
	look_at_breakpoints();
	if (option("both", 0))
		look_at_debug_registers();
	set_handler(1, on_debug);
	look_at_pages();
	look_at_programs();
	return done();
}
