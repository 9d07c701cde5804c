/* GDT, TSS, IDT and the way from a vector to its handler (Intel SDM volume 3A, chapters 3, 6 and 8). */
#include "guest.h"

struct pointer {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed));

extern const uint32_t stubs[256];
void load_tables(const struct pointer *gdt, const struct pointer *idt);
void trap(struct frame *);

static uint64_t gdt[64] = {
	0,
	0x00cf9a000000ffff, /* KERNEL_CODE */
	0x00cf92000000ffff, /* KERNEL_DATA */
	0x00cffa000000ffff, /* USER_CODE */
	0x00cff2000000ffff, /* USER_DATA */
	0,		    /* TASK_STATE */
	0,
	0x00cf12000000ffff, /* ABSENT_DATA */
};
static uint64_t idt[256];
static struct task_state task;
static uint8_t trap_stack[8192] __attribute__((aligned(16))); /* for traps from CPL 3 */
static handler *handlers[256];

static uint64_t gate(uint32_t target, uint32_t privilege)
{
	uint64_t high = (target & 0xffff0000) | 0x8e00 | privilege << 13; /* 32-bit interrupt gate */

	return high << 32 | (uint32_t)KERNEL_CODE << 16 | (target & 0xffff);
}

void traps_init(void)
{
	uint32_t base = (uint32_t)&task;

	task.ss0 = KERNEL_DATA;
	task.esp0 = (uint32_t)(trap_stack + sizeof trap_stack);
	task.io_map = sizeof task;
	gdt[TASK_STATE / 8] = (uint64_t)((base & 0xff000000) | 0x8900 | (base >> 16 & 0xff)) << 32
		| (base & 0xffff) << 16 | (sizeof task - 1);
	for (unsigned vector = 0; vector < 256; vector++)
		idt[vector] = gate(stubs[vector], vector == 3 || vector == 4 || vector == VECTOR_SYSCALL ? 3 : 0);
	const struct pointer gdt_pointer = {sizeof gdt - 1, (uint32_t)gdt};
	const struct pointer idt_pointer = {sizeof idt - 1, (uint32_t)idt};

	load_tables(&gdt_pointer, &idt_pointer);
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

void set_descriptor(uint16_t selector, uint64_t descriptor)
{
	gdt[selector / 8] = descriptor;
}

uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t attributes)
{
	uint64_t high = (base & 0xff000000) | (attributes & 0xf0ff) << 8 | (limit & 0xf0000) | (base >> 16 & 0xff);

	return high << 32 | (base & 0xffff) << 16 | (limit & 0xffff);
}

struct task_state *task_state(void)
{
	return &task;
}

void set_gate(uint8_t vector, const void *target, uint32_t privilege)
{
	idt[vector] = gate(target ? (uint32_t)target : stubs[vector], privilege);
}

void set_handler(uint8_t vector, handler *handler)
{
	handlers[vector] = handler;
}

void trap(struct frame *frame)
{
	handler *handler = handlers[frame->vector & 0xff];

	if (handler) {
		handler(frame);
		return;
	}
	print("%s: unexpected vector 0x%x, error code 0x%x, eip 0x%x, cs 0x%x, cr2 0x%x\n", guest_name, frame->vector,
	      frame->error, frame->eip, frame->cs, read_cr2());
	guest_exit(1);
}
