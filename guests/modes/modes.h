#ifndef GUESTS_MODES_H
#define GUESTS_MODES_H

#include "guest.h"

/* Selectors of this kernel's own segments. From 0x80 on no Linux host has any. */
#define SMALL 0x80	 /* data, 16 bytes */
#define READ_ONLY 0x88
#define EXPAND_DOWN 0x90 /* valid from 0x1000 on */
#define LIMITED 0x98	 /* data, flat, 8 MiB */
#define CODE16 0xa0
#define STACK16 0xa8
#define LDT 0xb0
#define CONFORMING 0xb8
#define CALL_GATE 0xc3 /* RPL 3 */
#define EXECUTE_ONLY 0xc8
#define BASED_CODE 0xd0
#define USER_BASED 0xdb
#define LDT_DATA 0x04
#define LDT_CODE 0x0c

#define P 1u
#define W 2u
#define U 4u
#define LARGE 0x80u
#define HOLE 0x00300000u /* linear: a page that is not there */

/* The last exception, and how often there was one since the last TRY. */
extern struct seen {
	uint32_t count, vector, error, at, address, cs, eflags, esp;
} seen;
/* Where it goes on behind a fault. */
extern volatile uint32_t resume_at, resume_esp;
/* What segment SMALL shows the first 16 bytes of, and others more of. */
extern volatile uint32_t words[1024];
extern const char code16[], based_code[];

/* Run what may fault; it goes on behind it either way. */
#define TRY(code, ...)                                                                                                 \
	do {                                                                                                           \
		seen.count = seen.vector = seen.error = 0;                                                             \
		__asm__ volatile("movl $9f, resume_at; movl %%esp, resume_esp\n" code "\n9: movl %%ss:resume_esp, %%esp" : : __VA_ARGS__ : "eax", "ecx", "edx", "esi", "edi", "memory", "cc"); \
	} while (0)

/* The same with DS or ES changed. */
#define TRY_DATA(code) TRY("movl $0x80, %%eax; " code "\n9: movl $0x10, %%eax; movl %%eax, %%ds; movl %%eax, %%es", "b"(0))

void on_fault(struct frame *frame);
/* The last TRY ended in this exception; vector 0xff: in none. */
void faults(const char *what, uint32_t vector, uint32_t error);
/* QEMU's translator checks no access against its segment. "limits=1": whoever runs this does. */
void limit_faults(const char *what, uint32_t vector, uint32_t error);
void no_fault(const char *what);
void in_user(void (*code)(void));
void paging_on(void);

/* The rows. */
void segments(void);
void sixteen(void);
void local(void);
void privileges(void);
void software_interrupts(void);
void string_io(void);
void floating_point(void);
void address_spaces(void);
void physical_extension(void);
void much_memory(void);

#endif
