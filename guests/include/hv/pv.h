/* For guests that were written for the paravirtual ABI (paravirt.h; docs/paravirtualisation.md), in C and assembly, 32 bit; with guests/lib/pv.S.
 * hv_pv_detect() first; where there is no hvd below, or another backend, everything here is the native instruction. */
#ifndef HV_PV_H
#define HV_PV_H

#include "hv/paravirt.h"

#ifdef __ASSEMBLER__

/* A call: arguments are in EBX, ECX, ESI, EDI; changes EAX and EDX. Only where hv_pv_present. */
.macro HV_PV_HYPERCALL number
	movl	$\number, %eax
	call	hv_pv_page
.endm

/* IRET. Flags may change: they are loaded. */
.macro HV_PV_IRETL
	cmpb	$0, %ss:hv_pv_present
	jne	hv_pv_page + HV_PV_ENTRY_IRET
	iretl
.endm

/* The flat segment of that selector, a constant, into DS and ES. */
.macro HV_PV_LOAD_DATA selector, scratch
	movl	$\selector, \scratch
	cmpb	$0, %ss:hv_pv_present
	je	8f
	movl	\scratch, %ss:HV_PV_VCPU + HV_PV_DS
	movl	\scratch, %ss:HV_PV_VCPU + HV_PV_ES
	movzwl	%ss:HV_PV_VCPU + HV_PV_TWINS + 2 * (\selector / 8), \scratch
	testl	\scratch, \scratch
	jnz	8f
	movl	$\selector, \scratch /* not known yet: traps */
8:	movl	\scratch, %ds
	movl	\scratch, %es
.endm

#else

#include <stdbool.h>
#include <stdint.h>

extern volatile bool hv_pv_present;
extern char hv_pv_page[]; /* the hypercall page */

/* One that a virtual processor is in: HV_PV_IF, HV_PV_CR2, ... */
static inline volatile uint32_t *hv_pv_word(uint32_t offset)
{
	return (volatile uint32_t *)(HV_PV_VCPU + offset);
}

/* Returns the result; negative = one of HV_E*, negated. */
static inline int64_t hv_pv_call(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
	uint32_t low = number, high;

	__asm__ volatile("call hv_pv_page" : "+a"(low), "=d"(high) : "b"(a), "c"(b), "S"(c), "D"(d) : "memory");
	return (int64_t)((uint64_t)high << 32 | low);
}

/* The same, as several calls without an answer take it: by a trap. */
static inline int32_t hv_pv_call_by_trap(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
	uint32_t low = number, high;

	__asm__ volatile("int %[trap]" : "+a"(low), "=d"(high) : "b"(a), "c"(b), "S"(c), "D"(d), [trap] "i"(HV_PV_TRAP_CALL) : "memory");
	return (int32_t)low;
}

/* Is the ABI there? Once, before anything else of this header. */
static inline bool hv_pv_detect(void)
{
	uint32_t low = HV_PV_CALL_VERSION;

	__asm__ volatile("call hv_pv_page" : "+a"(low) : : "edx", "memory");
	hv_pv_present = low == HV_PV_VERSION;
	return hv_pv_present;
}

static inline void hv_pv_cli(void)
{
	if (hv_pv_present)
		*(volatile uint8_t *)(HV_PV_VCPU + HV_PV_IF + 1) = 0;
	else
		__asm__ volatile("cli");
	__asm__ volatile("" : : : "memory");
}

static inline void hv_pv_deliver(void)
{
	__asm__ volatile("call hv_pv_page + %c0" : : "i"(HV_PV_ENTRY_DELIVER) : "memory");
}

static inline void hv_pv_sti(void)
{
	__asm__ volatile("" : : : "memory");
	if (!hv_pv_present) {
		__asm__ volatile("sti");
		return;
	}
	*(volatile uint8_t *)(HV_PV_VCPU + HV_PV_IF + 1) = 2;
	if (*hv_pv_word(HV_PV_PENDING))
		hv_pv_deliver();
}

/* The interrupt flag, in its place; without the ABI with the other flags. For hv_pv_restore_flags. */
static inline uint32_t hv_pv_save_flags(void)
{
	uint32_t flags;

	__asm__ volatile("" : : : "memory");
	if (hv_pv_present)
		return *hv_pv_word(HV_PV_IF);
	__asm__ volatile("pushfl; popl %0" : "=r"(flags) : : "memory");
	return flags;
}

static inline void hv_pv_restore_flags(uint32_t flags)
{
	if (!hv_pv_present) {
		__asm__ volatile("pushl %0; popfl" : : "r"(flags) : "memory", "cc");
		return;
	}
	if (flags & 0x200)
		hv_pv_sti();
	else
		hv_pv_cli();
}

/* Let exactly the next interrupt in. Interrupts are on when it returns. */
static inline void hv_pv_idle(void)
{
	if (hv_pv_present)
		__asm__ volatile("call hv_pv_page + %c0" : : "i"(HV_PV_ENTRY_IDLE) : "memory");
	else
		__asm__ volatile("sti; hlt" : : : "memory");
}

static inline uint32_t hv_pv_read_cr2(void)
{
	uint32_t value;

	if (hv_pv_present)
		return *hv_pv_word(HV_PV_CR2);
	__asm__ volatile("mov %%cr2, %0" : "=r"(value) : : "memory");
	return value;
}

/* Another address space. */
static inline void hv_pv_write_cr3(uint32_t value)
{
	if (hv_pv_present)
		hv_pv_call(HV_PV_CALL_SET_CR3, value, 0, 0, 0);
	else
		__asm__ volatile("movl %0, %%cr3" : : "r"(value) : "memory");
}

static inline void hv_pv_outb(uint16_t port, uint8_t value)
{
	if (hv_pv_present)
		hv_pv_call(HV_PV_CALL_PORT_OUT, port, 1, value, 0);
	else
		__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t hv_pv_inb(uint16_t port)
{
	uint8_t value;

	if (hv_pv_present)
		return (uint8_t)hv_pv_call(HV_PV_CALL_PORT_IN, port, 1, 0, 0);
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* Nanoseconds of the guest's virtual clock, without a call. */
uint64_t hv_pv_clock(void);

#endif
#endif
