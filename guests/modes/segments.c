/* Segments with base and limit, expand-down, read-only, from an LDT; selectors that must not be loaded. */
#include "modes.h"

volatile uint32_t words[1024] __attribute__((aligned(4096)));

void segments(void)
{
	uint32_t value;

	words[0] = 0x11111111;
	words[3] = 0x33333333;
	__asm__ volatile("movw %w1, %%fs; movl %%fs:12, %0" : "=r"(value) : "r"(SMALL));
	expect("fs:12 of a segment with a base", value, 0x33333333);
	__asm__ volatile("movw %w1, %%gs; movl $0x44444444, %%gs:8; xorl %0, %0" : "=r"(value) : "r"(SMALL));
	expect("gs:8 written", words[2], 0x44444444);
	TRY("movl %%fs:13, %%eax", "b"(0));
	limit_faults("a read over the limit", 13, 0);
	TRY("movb $1, %%fs:16", "b"(0));
	limit_faults("a write behind the limit", 13, 0);
	TRY("movb %%fs:15, %%al", "b"(0));
	no_fault("the last byte within the limit");
	TRY("movl %%fs:(%0), %%eax", "b"(0xfffffff0));
	limit_faults("a read far outside", 13, 0);
	TRY("movw %w0, %%fs; movl %%fs:4, %%eax", "b"(READ_ONLY));
	no_fault("a read of a segment that is read-only");
	TRY("movl %%eax, %%fs:4", "b"(0));
	limit_faults("a write to a segment that is read-only", 13, 0);
	TRY("movw %w0, %%fs; movl %%fs:0xffc, %%eax", "b"(EXPAND_DOWN));
	limit_faults("a read below an expand-down segment", 13, 0);
	TRY("movl %%fs:0x1000, %%eax", "b"(0));
	no_fault("a read within an expand-down segment");
	TRY("movw %w0, %%gs; movl %%gs:0, %%eax", "b"(0));
	limit_faults("a read by the null selector", 13, 0);
	TRY("movw %w0, %%gs", "b"(EXECUTE_ONLY));
	faults("an execute-only code segment as data", 13, EXECUTE_ONLY);
	TRY("movw %w0, %%ss", "b"(READ_ONLY));
	faults("a stack that is read-only", 13, READ_ONLY);
	TRY("movw %w0, %%ss", "b"(0));
	faults("the null selector as stack", 13, 0);
	TRY("movl $0x98, %%eax; movl %%eax, %%ss; movl %%ss:(%0), %%eax", "b"(0x900000));
	limit_faults("a read behind the stack segment's limit", 12, 0);
	__asm__ volatile("movl $0x10, %%eax; movl %%eax, %%ss" : : : "eax");
	/* DS itself, with everything that uses it without a prefix. */
	reload_segments = true;
	__asm__ volatile("movl %2, %%esi; movl $0x80, %%eax; movl %%eax, %%ds; xorl %%esi, %%esi; lodsl; movl %%ss:8(%%edx), %%ecx; movl 8, %%ecx;"
			 "movl %%ecx, %1; movl %%eax, %0; movl $0x10, %%eax; movl %%eax, %%ds"
			 : "=b"(value), "=D"(words[5])
			 : "d"(words)
			 : "eax", "ecx", "esi", "memory");
	expect("LODS by a DS with a base", value, 0x11111111);
	expect("ds:8 with a base", words[5], 0x44444444);
	TRY_DATA("movl %%eax, %%ds; movl 16, %%eax");
	limit_faults("a read behind DS' limit", 13, 0);
	TRY_DATA("movl %%eax, %%es; movl $12, %%edi; movl $2, %%ecx; rep stosl");
	limit_faults("STOS behind ES' limit", 13, 0);
	expect("what STOS wrote before", words[3], 0x80);
	/* Pointers with a selector. */
	static const struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) pointer = {4, SMALL};
	__asm__ volatile("lfs %2, %1; movl %%fs:(%1), %0" : "=r"(value), "=&r"(words[6]) : "m"(pointer));
	expect("LFS, and a read there", value, words[1]);
	__asm__ volatile("lgs %1, %0" : "=r"(value) : "m"(pointer));
	expect("LGS", value, 4);
	reload_segments = false;
	__asm__ volatile("movw %w0, %%fs; movw %w0, %%gs; movw %w1, %%es" : : "r"(0), "r"(KERNEL_DATA));
}

static uint64_t ldt[4];

void local(void)
{
	uint32_t value;
	static struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) target = {0, LDT_CODE};

	ldt[0] = descriptor((uint32_t)&words[8], 7, 0x4092);
	ldt[1] = descriptor((uint32_t)based_code, 0xfff, 0x409a);
	set_descriptor(LDT, descriptor((uint32_t)ldt, sizeof ldt - 1, 0x82));
	words[9] = 0x99999999;
	__asm__ volatile("lldt %w0" : : "r"(LDT));
	__asm__ volatile("movw %w1, %%fs; movl %%fs:4, %0" : "=r"(value) : "r"(LDT_DATA));
	expect("a read by an LDT segment", value, 0x99999999);
	TRY("movl %%fs:8, %%eax", "b"(0));
	limit_faults("a read behind its limit", 13, 0);
	__asm__ volatile("lcall *%1" : "=a"(value) : "m"(target) : "memory");
	expect("a call into an LDT code segment", value, 5);
	/* Changed in place: a load sees the new one. */
	ldt[0] = descriptor((uint32_t)&words[16], 7, 0x4092);
	words[17] = 0x17171717;
	__asm__ volatile("movw %w1, %%fs; movl %%fs:4, %0" : "=r"(value) : "r"(LDT_DATA));
	expect("a descriptor that was changed", value, 0x17171717);
	ldt[0] = 0;
	TRY("movw %w0, %%fs", "b"(LDT_DATA));
	faults("an empty LDT descriptor", 13, LDT_DATA);
	TRY("movw %w0, %%fs", "b"(0x24));
	faults("a selector behind the LDT", 13, 0x24);
	__asm__ volatile("lldt %w0" : : "r"(0));
	TRY("movw %w0, %%fs", "b"(LDT_DATA));
	faults("an LDT selector without an LDT", 13, LDT_DATA);
	TRY("lldt %w0", "b"(SMALL));
	faults("LLDT of a data segment", 13, SMALL);
	__asm__ volatile("movw %w0, %%fs" : : "r"(0));
}
