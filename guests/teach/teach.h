/* A small teaching kernel: it prints to the VGA text screen only, and needs what such kernels need of a PC: MP tables, the local APIC's
   timer, a keyboard through the IOAPIC, an IDE disk read by PIO. README.md of this folder describes it. */
#ifndef TEACH_H
#define TEACH_H

#include "guest.h"

#define HZ 100u /* of the clock and of the scheduler */
#define SECTOR 512u

/* screen.c */
void screen_init(void);
void put_char(char c);
void put_status(const char *text); /* at the right of the first line, which does not scroll */

/* mp.c: Intel's MultiProcessor Specification 1.4, chapter 4 */
struct mp {
	bool found;
	uint32_t local_apic, io_apic; /* addresses */
	uint8_t io_apic_id;
	unsigned processors;
	uint8_t isa_bus;
	uint8_t pin[16];   /* of the IOAPIC, by ISA interrupt */
	uint16_t flags[16]; /* polarity and trigger mode, ditto */
};
extern struct mp mp;
void mp_init(void);

/* apic.c: with MP tables local APIC and IOAPIC, without them the 8259 pair and the 8254 */
extern uint32_t timer_frequency; /* of the local APIC's timer, in Hz; 0 = there is none */
void apic_init(void);
void timer_start(handler *);
void interrupt_route(unsigned irq, handler *);
void interrupt_done(void); /* at the end of a handler, before a switch of tasks */

/* task.c: threads of the kernel, preempted by the timer */
extern volatile uint32_t ticks;
void tasks_init(void);
void task_start(void (*body)(void));
void task_yield(void); /* with interrupts off: another one, or wait for an interrupt */

/* keyboard.c */
void keyboard_init(void);
char key_wait(void);

/* disk.c: the first IDE channel's second disk, or its only one */
struct file {
	char name[20];
	uint32_t sector, bytes;
	uint32_t reserved;
};
bool disk_init(void);
bool disk_read(uint32_t sector, void *buffer); /* a sector */
const struct file *file_at(unsigned number);   /* NULL = there are no more */
const struct file *file_find(const char *name);

/* shell.c */
void shell(void);

static inline bool interrupts_save(void)
{
	uint32_t flags;

	__asm__ volatile("pushfl; popl %0; cli" : "=r"(flags) : : "memory");
	return flags >> 9 & 1;
}

static inline void interrupts_restore(bool on)
{
	if (on)
		interrupts_on();
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t value;
	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

#endif
