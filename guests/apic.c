/* Local APIC and IOAPIC, found by the MP tables: virtual wire, self-IPIs and their priorities, the timer, inputs by edge and by level,
   errors (Intel SDM volume 3A, "Advanced Programmable Interrupt Controller"; 82093AA data sheet; MultiProcessor Specification 1.4). */
#include "guest.h"

const char guest_name[] = "apic";

enum {
	ID = 0x20, VERSION = 0x30, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ISR = 0x100, IRR = 0x200, ESR = 0x280,
	ICR = 0x300, ICR_HIGH = 0x310, TIMER = 0x320, LINT0 = 0x350, ERROR = 0x370, INITIAL = 0x380, CURRENT = 0x390, DIVIDE = 0x3e0,
};
#define ENABLED 0x100u
#define MASKED 0x10000u
#define PERIODIC 0x20000u
#define EXTINT 0x700u
#define TO_SELF 0x40000u
#define LEVEL 0x8000u
#define REMOTE_IRR 0x4000u
#define LOGICAL 0x800u

enum { LOW = 0x41, HIGH = 0x81, HIGHER = 0x91, TICK = 0x50, SERIAL = 0x60, FAILED = 0x70, SPURIOUS = 0xff };

static uint32_t local_apic, io_apic;
static uint8_t pins[16]; /* ISA interrupt -> input of the IOAPIC */
static volatile uint32_t seen[256], order;
static volatile uint8_t first;

static volatile uint32_t *local(uint32_t offset)
{
	return (volatile uint32_t *)(local_apic + offset);
}

static uint32_t io_read(uint8_t index)
{
	*(volatile uint32_t *)io_apic = index;
	return *(volatile uint32_t *)(io_apic + 0x10);
}

static void io_write(uint8_t index, uint32_t value)
{
	*(volatile uint32_t *)io_apic = index;
	*(volatile uint32_t *)(io_apic + 0x10) = value;
}

static void route(unsigned irq, uint32_t low)
{
	io_write((uint8_t)(0x11 + 2 * pins[irq]), 0); /* to APIC 0 */
	io_write((uint8_t)(0x10 + 2 * pins[irq]), low);
}

static bool bit(uint32_t set, uint8_t vector)
{
	return *local(set + vector / 32 * 16) >> vector % 32 & 1;
}

static void let_in(void)
{
	__asm__ volatile("sti; nop; nop; cli" : : : "memory");
}

static void on_vector(struct frame *frame)
{
	if (!order++)
		first = (uint8_t)frame->vector;
	seen[frame->vector]++;
	*local(EOI) = 0;
}

/* The transmitter's request goes away when it is looked at. */
static void on_serial(struct frame *frame)
{
	if (++seen[SERIAL] > 2) {
		inb(0x3fa);
		expect("level: asked again while its request stands", seen[SERIAL], 3);
	}
	expect("level: remote IRR in the handler", io_read((uint8_t)(0x10 + 2 * pins[4])) & REMOTE_IRR, REMOTE_IRR);
	*local(EOI) = 0;
	(void)frame;
}

static void on_pic_tick(struct frame *frame)
{
	seen[frame->vector]++;
}

static void on_spurious(struct frame *frame)
{
	seen[frame->vector]++; /* no EOI: nothing is in service */
}

/* ---- MP tables */

static bool sums_up(uint32_t address, uint32_t length)
{
	uint8_t sum = 0;

	while (length--)
		sum = (uint8_t)(sum + *(const uint8_t *)address++);
	return sum == 0;
}

static uint32_t word(uint32_t address)
{
	return *(const uint16_t *)address;
}

static void read_tables(void)
{
	uint32_t floating = 0xf0000, at, end, entries;
	unsigned isa = 256, processors = 0;

	while (floating < 0x100000 && (*(const uint32_t *)floating != 0x5f504d5f || !sums_up(floating, 16)))
		floating += 16;
	if (!expect("the MP floating pointer is there", floating < 0x100000, 1))
		guest_exit(1);
	at = *(const uint32_t *)(floating + 4);
	expect("signature of the MP table", *(const uint32_t *)at, 0x504d4350);
	expect("the MP table sums up to 0", sums_up(at, word(at + 4)), 1);
	local_apic = *(const uint32_t *)(at + 36);
	entries = word(at + 34);
	end = at + word(at + 4);
	for (at += 44; entries--;) {
		const uint8_t *entry = (const uint8_t *)at;

		if (entry[0] == 0)
			processors++;
		else if (entry[0] == 1 && entry[2] == 'I' && entry[3] == 'S' && entry[4] == 'A')
			isa = entry[1];
		else if (entry[0] == 2 && entry[3] & 1)
			io_apic = *(const uint32_t *)(entry + 4);
		else if (entry[0] == 3 && entry[4] == isa && entry[5] < 16)
			pins[entry[5]] = entry[7];
		at += entry[0] ? 8 : 20;
	}
	expect("the entries fill the MP table", at, end);
	expect("processors", processors, 1);
	expect("the timer's input", pins[0], 2);
	expect("COM1's input", pins[4], 4);
}

/* ---- what is tested */

static void virtual_wire(void)
{
	irq_enable(0, on_pic_tick);
	pit_periodic(1000);
	while (!seen[VECTOR_IRQ0])
		wait_for_interrupt();
	/* Once the local APIC is on, LINT0 passes the 8259 on. */
	*local(SVR) = ENABLED | SPURIOUS;
	*local(LINT0) = EXTINT;
	for (uint32_t before = seen[VECTOR_IRQ0]; seen[VECTOR_IRQ0] == before;)
		wait_for_interrupt();
	*local(LINT0) = EXTINT | MASKED;
	while (!irq_requested(0))
		;
	uint32_t before = seen[VECTOR_IRQ0];
	let_in();
	expect("8259 with LINT0 masked", seen[VECTOR_IRQ0], before);
	outb(0x21, 0xff);
}

static void messages(void)
{
	*local(TPR) = 0;
	*local(ICR) = TO_SELF | LOW;
	expect("requested", bit(IRR, LOW), 1);
	let_in();
	expect("self-IPI", seen[LOW], 1);
	expect("requested afterwards", bit(IRR, LOW), 0);
	expect("in service afterwards", bit(ISR, LOW), 0);
	*local(ICR_HIGH) = *local(ID);
	*local(ICR) = LOW;
	let_in();
	expect("IPI to its own id", seen[LOW], 2);
	*local(ICR_HIGH) = 0x7f000000;
	*local(ICR) = LOW;
	let_in();
	expect("IPI to another id", seen[LOW], 2);
	*local(DFR) = 0xffffffff;
	*local(LDR) = 0x04000000;
	*local(ICR_HIGH) = 0x06000000;
	*local(ICR) = LOGICAL | LOW;
	let_in();
	expect("IPI to a logical destination", seen[LOW], 3);
	/* The task priority holds back what is not above its class. */
	*local(TPR) = 0x40;
	*local(ICR) = TO_SELF | LOW;
	let_in();
	expect("IPI below the task priority", seen[LOW], 3);
	expect("processor priority", *local(PPR), 0x40);
	*local(TPR) = 0x30;
	let_in();
	expect("IPI above the task priority", seen[LOW], 4);
	*local(TPR) = 0;
	order = 0;
	*local(ICR) = TO_SELF | LOW;
	*local(ICR) = TO_SELF | HIGH;
	*local(ICR) = TO_SELF | HIGHER;
	let_in();
	while (order < 3)
		let_in();
	expect("first of three", first, HIGHER);
}

static void timer(void)
{
	*local(DIVIDE) = 0x0b; /* by 1 */
	*local(TIMER) = TICK;
	*local(INITIAL) = 2000000;
	uint32_t early = *local(CURRENT);
	while (!seen[TICK])
		wait_for_interrupt();
	expect("the count falls", early <= 2000000 && early, 1);
	expect("a shot leaves 0", *local(CURRENT), 0);
	*local(TIMER) = PERIODIC | TICK;
	*local(INITIAL) = 1000000;
	while (seen[TICK] < 20)
		wait_for_interrupt();
	*local(TIMER) = PERIODIC | MASKED | TICK;
	let_in(); /* one that came just before */
	uint32_t before = seen[TICK];
	for (uint32_t turns = 0, last = *local(CURRENT); turns < 3;) { /* it goes on counting */
		uint32_t now = *local(CURRENT);

		turns += now > last;
		last = now;
	}
	let_in();
	expect("ticks while masked", seen[TICK], before);
	*local(INITIAL) = 0;
}

static void inputs(void)
{
	expect("inputs of the IOAPIC", io_read(1) >> 16 & 0xff, 23);
	/* The 8254 by edge. */
	route(0, LOW);
	uint32_t before = seen[LOW];
	while (seen[LOW] < before + 10)
		wait_for_interrupt();
	route(0, MASKED | LOW);
	/* COM1 by level: comes again as long as its request stands. */
	route(4, LEVEL | SERIAL);
	outb(0x3fc, 0x0b);
	outb(0x3f9, 0x02); /* transmitter empty */
	while (seen[SERIAL] < 3)
		wait_for_interrupt();
	outb(0x3f9, 0);
	let_in();
	expect("interrupts of COM1", seen[SERIAL], 3);
	expect("remote IRR afterwards", io_read((uint8_t)(0x10 + 2 * pins[4])) & REMOTE_IRR, 0);
	route(4, MASKED | SERIAL);
}

static void errors(void)
{
	*local(ERROR) = FAILED;
	*local(ESR) = 0;
	*local(ICR) = TO_SELF | 3; /* no vector */
	let_in();
	expect("error interrupt", seen[FAILED], 1);
	*local(ESR) = 0;
	expect("error status", *local(ESR), 0x60);
	*local(ESR) = 0;
	expect("error status, cleared", *local(ESR), 0);
	expect("spurious interrupts", seen[SPURIOUS], 0);
	*local(SVR) = SPURIOUS; /* off: local vectors are masked */
	expect("local vectors of a disabled APIC are masked", *local(ERROR) & MASKED, MASKED);
	*local(ERROR) = FAILED;
	expect("and stay so", *local(ERROR) & MASKED, MASKED);
}

int main(void)
{
	static const uint8_t vectors[] = {LOW, HIGH, HIGHER, TICK, FAILED};
	uint32_t eax = 1, ebx, ecx, edx;

	traps_init();
	__asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx));
	expect("CPUID: local APIC", edx >> 9 & 1, 1);
	(void)ebx; /* the APIC id in it is the host's where CPUID is */
	read_tables();
	for (unsigned i = 0; i < sizeof vectors; i++)
		set_handler(vectors[i], on_vector);
	set_handler(SERIAL, on_serial);
	set_handler(SPURIOUS, on_spurious);
	expect("id", *local(ID), 0);
	expect("version and local vectors", *local(VERSION) & 0xff00ff, 0x050014);
	virtual_wire();
	messages();
	timer();
	inputs();
	errors();
	return done();
}
