/* Breaks where POPF and PUSHF do not trap and the kernel is not privileged (docs/trap.md): a critical section as every kernel has it, which
 * saves the flags, switches interrupts off, and restores the flags. There is no other sensitive instruction in it. "ts=1", "tsd=1", "dr7=1":
 * it sets CR0.TS, CR4.TSD, a breakpoint as well. */
#include "guest.h"

const char guest_name[] = "hole";

#define HZ 100
#define PATIENCE 10000000u /* reads of the interrupt controller */
#define FLAG_IF 0x200u

uint32_t interrupts_save(void);
void interrupts_restore(uint32_t flags);

static volatile uint32_t ticks;

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

/* Not in-line, so that the census has names for what it finds. */
__attribute__((noinline)) uint32_t interrupts_save(void)
{
	uint32_t flags;

#ifdef HV_PARAVIRT
	flags = hv_pv_save_flags();
	hv_pv_cli();
#else
	__asm__ volatile("pushfl; popl %0; cli" : "=r"(flags) : : "memory");
#endif
	return flags;
}

__attribute__((noinline)) void interrupts_restore(uint32_t flags)
{
#ifdef HV_PARAVIRT
	hv_pv_restore_flags(flags);
#else
	__asm__ volatile("pushl %0; popfl" : : "r"(flags) : "memory", "cc");
#endif
}

static void set_task_switched(void)
{
	uint32_t cr0;

	__asm__ volatile("movl %%cr0, %0; orl $8, %0; movl %0, %%cr0" : "=&r"(cr0) : : "cc");
}

static void set_time_stamp_disable(void)
{
	uint32_t cr4;

	__asm__ volatile("movl %%cr4, %0; orl $4, %0; movl %0, %%cr4" : "=&r"(cr4) : : "cc");
}

static void set_breakpoint(void)
{
	__asm__ volatile("movl %0, %%dr0; movl %1, %%dr7" : : "r"(0), "r"(1));
}

static bool wait_requested(void)
{
	for (uint32_t n = 0; n < PATIENCE; n++)
		if (irq_requested(0))
			return true;
	return false;
}

int main(void)
{
	uint32_t flags, off;

	traps_init();
	if (option("ts", 0))
		set_task_switched();
	if (option("tsd", 0))
		set_time_stamp_disable();
	if (option("dr7", 0))
		set_breakpoint();
	irq_enable(0, on_tick);
	pit_periodic(HZ);
	interrupts_on();
	flags = interrupts_save();
	ticks = 0;
	off = interrupts_save(); /* they are off now, and that is what it must see */
	interrupts_restore(off);
	if (!wait_requested() || ticks) {
		print("hole: the timer is broken: %u ticks with interrupts off\n", ticks);
		return 1;
	}
	interrupts_restore(flags); /* on again: the tick that waits must come */
	for (uint32_t n = 0; n < 1000 && !ticks; n++)
		__asm__ volatile("nop");
	interrupts_off();
	print("interrupts on, PUSHF says %s; off, PUSHF says %s; POPF switched them %s\n", flags & FLAG_IF ? "on" : "off",
	      off & FLAG_IF ? "on" : "off", ticks ? "on" : "not on");
	if (ticks && flags & FLAG_IF && !(off & FLAG_IF)) {
		print("HOLE closed\n");
		return done();
	}
	print("HOLE open\n");
	return 12;
}
