/* Threads of the kernel, one after the other: the timer preempts, who waits yields. */
#include "teach.h"

#define TASKS 4
#define STACK 8192

volatile uint32_t ticks;

/* Saves the registers that a function keeps, and the stack pointer; goes on where the other stack was left. */
void task_switch(uint32_t *saved, uint32_t next);
__asm__(".globl task_switch\n"
	"task_switch: movl 4(%esp), %eax\n"
	"movl 8(%esp), %edx\n"
	"pushl %ebx; pushl %esi; pushl %edi; pushl %ebp\n"
	"movl %esp, (%eax)\n"
	"movl %edx, %esp\n"
	"popl %ebp; popl %edi; popl %esi; popl %ebx\n"
	"ret\n");

static uint32_t stacks[TASKS]; /* pointers into them; task 0 is the one that began */
static void (*bodies[TASKS])(void);
static uint8_t memory[TASKS][STACK] __attribute__((aligned(16)));
static unsigned tasks = 1, current;

static void begin(void)
{
	interrupts_on();
	bodies[current]();
	for (;;)
		wait_for_interrupt();
}

static void on_tick(struct frame *frame)
{
	unsigned before = current;

	(void)frame;
	ticks++;
	current = (current + 1) % tasks;
	if (current == before)
		return;
	/* The other task may have been left anywhere: its interrupt is done with here, not when this one goes on. */
	interrupt_done();
	task_switch(&stacks[before], stacks[current]);
}

void task_start(void (*body)(void))
{
	uint32_t *top = (uint32_t *)(memory[tasks] + STACK);
	bool on = interrupts_save();

	*--top = 0; /* begin() returns to nobody */
	*--top = (uint32_t)begin;
	top -= 4; /* ebx, esi, edi, ebp */
	bodies[tasks] = body;
	stacks[tasks] = (uint32_t)top;
	tasks++;
	interrupts_restore(on);
}

void task_yield(void)
{
	wait_for_interrupt();
}

void tasks_init(void)
{
	timer_start(on_tick);
}
