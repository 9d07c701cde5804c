/* The paravirtual ABI, version 1; the standard is docs/paravirtualisation.md. Constants for C and assembly: of guests, of tools that make
 * kernels paravirtual, and of the cell itself. Extends the base hypercall (hypercall.h): one numbering, one set of errors. */
#ifndef HV_PARAVIRT_H
#define HV_PARAVIRT_H

#define HV_PV_VERSION 1

/* ---- discovery: an ELF note of the kernel; owner "HVD", this type, struct hv_pv_note */
#define HV_PV_NOTE 1
#define HV_PV_NOTE_NEUTRAL 1 /* flags: the sites are native instructions still; whoever loads the kernel turns them */

/* ---- the hypercall page: entries, by offset. Empty, each is `mov $-38, %eax; ret`. */
#define HV_PV_ENTRY_BYTES 64
#define HV_PV_ENTRY_CALL 0x000    /* call: number in EAX, arguments in EBX, ECX, ESI, EDI; result in EAX (high half in EDX) */
/* call, from a thunk that a site has called (so two return addresses are on the stack: in the thunk, behind the site's call). Behind the call in
 * the thunk stand u8 length and as many bytes: the instruction that was at the site. It is executed as if it stood there still, 5 bytes long
 * if it was shorter: faults show the site's address and the stack without the two. */
#define HV_PV_ENTRY_SITE 0x040
#define HV_PV_ENTRY_IRET 0x080    /* jmp: IRET */
#define HV_PV_ENTRY_IDLE 0x0c0    /* call: STI and HLT as one; returns behind the interrupt */
#define HV_PV_ENTRY_DELIVER 0x100 /* call: what is pending, now, if interrupts are on */
#define HV_PV_ENTRY_INT80 0x140   /* call: INT 80; for programs, too, to whom the kernel maps the page */
/* call, from a site: IRET, from the frame above the return address. Faults show the address of the call, and the stack without its return address. */
#define HV_PV_ENTRY_IRET_SITE 0x180
#define HV_PV_ENTRIES 7

/* The same calls by a trap: where there is no stack, or no hypercall page at the address that the kernel was linked to. */
#define HV_PV_TRAP_CALL 0x82 /* int $0x82: as ENTRY_CALL. */
#define HV_PV_TRAP_SITE 0x83 /* int $0x83, two bytes at a site: as ENTRY_SITE, without stack */

/* ---- the page of the virtual processor: at this linear address, with and without paging, at CPL 0 */
#define HV_PV_VCPU 0xfffff000
#define HV_PV_IF 0x000       /* u32: 0 or 0x200, as IF in EFLAGS. The guest writes it (CLI: byte 1 = 0; STI: byte 1 = 2) */
#define HV_PV_PENDING 0x004  /* u32: not 0: an interrupt waits. Behind STI and POPF: if not 0, ENTRY_DELIVER. All below is the monitor's: read only */
#define HV_PV_MAGIC 0x008    /* u32: HV_PV_SIGNATURE */
#define HV_PV_VERSIONS 0x00c /* u32: HV_PV_VERSION */
#define HV_PV_CR0 0x010      /* u32 each, as the guest believes them */
#define HV_PV_CR2 0x014
#define HV_PV_CR3 0x018
#define HV_PV_CR4 0x01c
#define HV_PV_DR6 0x020
#define HV_PV_DR7 0x024
#define HV_PV_FLAGS 0x028    /* u32: IOPL of EFLAGS; PUSHF adds it, and IF, to what the processor pushed less 0x200 */
#define HV_PV_CPL 0x02c      /* u32 */
#define HV_PV_ES 0x030       /* u16 each, in the order of their encoding, 4 bytes apart. A thunk that loads a twin stores the guest's selector here */
#define HV_PV_CS 0x034
#define HV_PV_SS 0x038
#define HV_PV_DS 0x03c
#define HV_PV_FS 0x040
#define HV_PV_GS 0x044
#define HV_PV_LDTR 0x048
#define HV_PV_TR 0x04c
#define HV_PV_GDTR 0x050     /* u16 limit, u32 base: as SGDT stores it */
#define HV_PV_IDTR 0x058
#define HV_PV_SEQUENCE 0x060 /* u32: odd or changed: read the time again */
#define HV_PV_MULTIPLIER 0x064 /* u32: nanoseconds = base + ((TSC - TSC base) * multiplier >> shift), 96-bit product */
#define HV_PV_SHIFT 0x068    /* u32 */
#define HV_PV_TSC_KHZ 0x06c  /* u32 */
#define HV_PV_TSC_BASE 0x070 /* u64 */
#define HV_PV_TIME_BASE 0x078 /* u64: nanoseconds of the guest's virtual clock, as call CLOCK */
#define HV_PV_TWINS 0x300    /* u16[256]: by index into the GDT: selector to load into DS, ES, FS or GS at CPL 0; 0 = by call or trap */
#define HV_PV_TWIN_COUNT 256
#define HV_PV_DESCRIPTORS 0x800 /* u32[2][256]: of each twin that is not 0, the descriptor that it was made of */
#define HV_PV_SIGNATURE 0x31647668 /* "hvd1" */

/* ---- calls. 0 to 6: hypercall.h */
#define HV_PV_CALL_FIRST 64
#define HV_PV_CALL_VERSION 64      /* () -> HV_PV_VERSION */
#define HV_PV_CALL_MULTICALL 65    /* (address of struct hv_pv_call[], count) -> how many were made */
#define HV_PV_CALL_SET_CR0 66      /* (value) */
#define HV_PV_CALL_SET_CR3 67      /* (value): address-space switch */
#define HV_PV_CALL_SET_CR4 68      /* (value) */
#define HV_PV_CALL_FLUSH 69        /* (globals: 0 or 1) */
#define HV_PV_CALL_INVLPG 70       /* (linear address, pages) */
#define HV_PV_CALL_SET_PTE 71      /* (physical address of the entry, low half, linear address | HV_PV_PTE_*, high half) */
#define HV_PV_CALL_SET_PTES 72     /* (address of struct hv_pv_pte[], count) -> how many were set */
#define HV_PV_CALL_SET_GDT 73      /* (base, limit) */
#define HV_PV_CALL_SET_IDT 74      /* (base, limit) */
#define HV_PV_CALL_SET_LDT 75      /* (selector) */
#define HV_PV_CALL_SET_TR 76       /* (selector) */
#define HV_PV_CALL_SET_DESCRIPTOR 77 /* (index, low half, high half): an entry of the GDT; segment registers are not loaded again */
#define HV_PV_CALL_SET_TRAPS 78    /* (address of struct hv_pv_trap[], count) -> how many were set: gates of the IDT */
#define HV_PV_CALL_SET_STACK 79    /* (SS, ESP) of CPL 0, in the TSS */
#define HV_PV_CALL_LOAD_SEGMENT 80 /* (register as encoded: 0 ES, 3 DS, 4 FS, 5 GS; selector) */
#define HV_PV_CALL_IRET 81         /* (): from the frame at ESP; in C and assembly: ENTRY_IRET */
#define HV_PV_CALL_IDLE 82         /* (): ENTRY_IDLE */
#define HV_PV_CALL_DELIVER 83      /* (): ENTRY_DELIVER */
#define HV_PV_CALL_SET_TIMER 84    /* (nanoseconds): the board's interval timer, IRQ 0, once */
#define HV_PV_CALL_CONSOLE 85      /* (address, length) -> bytes written */
#define HV_PV_CALL_PORT_IN 86      /* (port, size) -> value */
#define HV_PV_CALL_PORT_OUT 87     /* (port, size, value) */
#define HV_PV_CALL_READ_MSR 88     /* (number) -> 64 bits */
#define HV_PV_CALL_WRITE_MSR 89    /* (number, low half, high half) */
#define HV_PV_CALL_POWER 90        /* (HV_PV_POWER_*) */
#define HV_PV_CALL_DEBUG 91        /* (value): stops for a debugger when there is one -> 1, else 0 */
#define HV_PV_CALL_FILL_PAGE 92    /* (linear address of a page): entries of the hypercall page, there */
#define HV_PV_CALL_SET_USER_LIMIT 93 /* (linear address of a page, 0 = none): programs have no pages from there on */
#define HV_PV_CALL_END 94          /* the first number that version 1 has not */

#define HV_PV_PTE_INVALIDATE 1 /* what was known of the linear address is forgotten */
#define HV_PV_PTE_TOUCH 2      /* it will be used at once: map it, too */
#define HV_PV_BATCH 512        /* most elements of one SET_PTES, SET_TRAPS, MULTICALL */
#define HV_PV_CONSOLE_MAX 4096
#define HV_PV_POWER_OFF 0
#define HV_PV_POWER_RESET 1

/* ---- sites: what a tool has put in the place of an instruction. The table is sorted by address. */
#define HV_PV_SITE_CLI 1      /* movb $0, %ss:HV_PV_VCPU + 1 */
#define HV_PV_SITE_STI 2
#define HV_PV_SITE_PUSHF 3
#define HV_PV_SITE_POPF 4
#define HV_PV_SITE_IRET 5
#define HV_PV_SITE_IDLE 6     /* STI and HLT */
#define HV_PV_SITE_READ 7     /* reads what the vcpu page has: control registers, selectors, SGDT, ... */
#define HV_PV_SITE_SEGMENT 8  /* loads a segment register */
#define HV_PV_SITE_OTHER 9    /* all that ENTRY_SITE does */
#define HV_PV_SITE_TRAP 10    /* HV_PV_TRAP_SITE */

#ifndef __ASSEMBLER__
#include <stdint.h>

struct hv_pv_note {
	uint32_t version;
	uint32_t page, page_bytes; /* of the kernel's own memory: the hypercall page, and what may be used behind it for thunks */
	uint32_t sites, sites_bytes; /* struct hv_pv_site[]; 0 = none */
	uint32_t flags;
};

struct hv_pv_site {
	uint32_t address; /* as linked */
	uint8_t kind, length, original_length, flags; /* length: with the padding behind it */
};

struct hv_pv_call {
	uint32_t number, arguments[4];
	int32_t result;
};

struct hv_pv_pte {
	uint64_t entry; /* its physical address */
	uint64_t value;
	uint32_t linear; /* | HV_PV_PTE_* */
	uint32_t reserved;
};

struct hv_pv_trap {
	uint8_t vector;
	uint8_t flags; /* HV_PV_TRAP_*: DPL in bits 0 and 1 */
	uint16_t selector;
	uint32_t address;
};
#define HV_PV_TRAP_INTERRUPT 4 /* IF is cleared on the way in */
#endif

#endif
