/* The mini library of the test kernels (guests/lib). A kernel defines guest_name and main(); what main returns is the exit code. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef HV_PARAVIRT /* kernels that make hypercalls, where they can: build/guests/NAME.pv.elf */
#include "hv/pv.h"
#endif

extern const char guest_name[];
int main(void);

/* start.c */
extern const char *command_line;		      /* never NULL */
uint32_t option(const char *name, uint32_t otherwise); /* "name=123" or "name=0x7b" on the command line */
_Noreturn void guest_exit(uint32_t code);	      /* by hypercall, or by the debug exit port where there is no hvd */

/* print.c: COM1, polled. print knows %s %c %u %d %x (32 bits), %lx (unsigned long) and %%; a newline is sent as CR LF. */
void serial_init(void);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* check.c */
bool expect(const char *what, uint32_t found, uint32_t wanted); /* says what differs */
int done(void);	 /* "name: ok" and 0, or "name: N checks failed" and 1 */

#ifdef HV_PARAVIRT
#define outb hv_pv_outb
#define inb hv_pv_inb
#define interrupts_on hv_pv_sti
#define interrupts_off hv_pv_cli

static inline void wait_for_interrupt(void)
{
	hv_pv_idle();
	hv_pv_cli();
}
#else
static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline void interrupts_on(void)
{
	__asm__ volatile("sti" : : : "memory");
}

static inline void interrupts_off(void)
{
	__asm__ volatile("cli" : : : "memory");
}

/* Let exactly the next interrupt in: STI holds interrupts back until HLT has begun. */
static inline void wait_for_interrupt(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}
#endif

#ifdef __i386__
/* traps.c: own GDT, TSS and IDT; all hardware interrupts masked. 32 bit only. */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE 0x1b
#define USER_DATA 0x23
#define TASK_STATE 0x28
#define ABSENT_DATA 0x38 /* a data segment that is not present; 0x30 is a code segment of any Linux host (docs/trap.md) */

#define VECTOR_IRQ0 0x20
#define VECTOR_SYSCALL 0x80 /* the gate that CPL 3 may use */

struct frame {
	uint32_t edi, esi, ebp, esp_ignored, ebx, edx, ecx, eax;
	uint32_t vector, error;
	uint32_t eip, cs, eflags;
	uint32_t user_esp, user_ss; /* pushed only on a change of privilege */
};
typedef void handler(struct frame *);

struct task_state {
	uint32_t link, esp0, ss0, unused[22];
	uint16_t trap, io_map;
};

void traps_init(void);
/* attributes: type, S, DPL, P in bits 0-7; AVL, D, G in bits 12-15. Descriptors from selector 0x40 to 0x1f8 are free. */
uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t attributes);
void set_descriptor(uint16_t selector, uint64_t descriptor);
struct task_state *task_state(void);
void set_handler(uint8_t vector, handler *);
void set_gate(uint8_t vector, const void *target, uint32_t privilege); /* of an interrupt gate; NULL = the library's stub, which calls the handler */
extern volatile bool reload_segments; /* entry.S: CPL 0 changes DS or ES; every handler leaves them KERNEL_DATA */

/* pic.c: 8259 pair and 8254 */
void irq_enable(unsigned irq, handler *); /* acknowledged by the library after the handler */
bool irq_requested(unsigned irq);	  /* in the master's IRR */
void pit_periodic(unsigned hz);

/* entry.S: run at CPL 3 until somebody calls leave_user() */
void enter_user(void (*code)(void), void *stack_top);
_Noreturn void leave_user(void);

static inline uint32_t read_cr2(void)
{
#ifdef HV_PARAVIRT
	return hv_pv_read_cr2();
#else
	uint32_t value;
	__asm__ volatile("mov %%cr2, %0" : "=r"(value) : : "memory");
	return value;
#endif
}
#endif

#endif
