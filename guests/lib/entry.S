#ifdef HV_PARAVIRT
#include "hv/pv.h"
#else
	.macro HV_PV_IRETL
	iretl
	.endm
	.macro HV_PV_LOAD_DATA selector, scratch
	movl	$\selector, \scratch
	movl	\scratch, %ds
	movl	\scratch, %es
	.endm
#endif

/* One stub per vector: vectors without an error code push 0, so that all frames look alike (struct frame in guest.h). */
	.text
	.macro	STUB vector
stub_\vector:
	.if	!(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17 || \vector == 21)
	pushl	$0
	.endif
	pushl	$\vector
	jmp	common
	.endm

	.altmacro
	.macro	STUB_EXPANDED vector
	STUB	\vector
	.endm
	.set	n, 0
	.rept	256
	STUB_EXPANDED %n
	.set	n, n + 1
	.endr
	.noaltmacro

/* Segment registers are loaded with constants and never stored: what stores one does not trap at CPL 3 and would show, under the backend
 * `trap`, the host's selector. Code at CPL 3 has USER_DATA in DS and ES; that at CPL 0 has KERNEL_DATA there, unless it says otherwise by
 * reload_segments: then handlers leave KERNEL_DATA behind. FS and GS are nobody's here. */
common:
	cld
	pushal
	testb	$3, 44(%esp) /* the CS pushed */
	jnz	1f
	cmpb	$0, %ss:reload_segments
	je	2f
1:	HV_PV_LOAD_DATA 0x10, %eax /* KERNEL_DATA */
2:	pushl	%esp
	call	trap
	addl	$4, %esp
	testb	$3, 44(%esp)
	jz	3f
	HV_PV_LOAD_DATA 0x23, %eax /* USER_DATA */
3:	popal
	addl	$8, %esp
	HV_PV_IRETL

	.section .rodata
	.balign	4
	.globl	stubs
	.macro	ADDRESS vector
	.long	stub_\vector
	.endm
	.macro	ADDRESS_EXPANDED vector
	ADDRESS	\vector
	.endm
stubs:
	.altmacro
	.set	n, 0
	.rept	256
	ADDRESS_EXPANDED %n
	.set	n, n + 1
	.endr
	.noaltmacro

/* void load_tables(const struct pointer *gdt, const struct pointer *idt) */
	.text
	.globl	load_tables
load_tables:
	movl	4(%esp), %eax
	lgdt	(%eax)
	movl	8(%esp), %eax
	lidt	(%eax)
	ljmp	$0x08, $1f
1:	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	movl	%eax, %ss
	movl	$0x28, %eax
	ltr	%ax
	ret

/* void enter_user(void (*code)(void), void *stack_top): returns when leave_user() is called. */
	.globl	enter_user, leave_user
enter_user:
	movl	4(%esp), %ecx
	movl	8(%esp), %edx
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	pushl	%ebp
	movl	%esp, kernel_stack
	HV_PV_LOAD_DATA 0x23, %eax /* USER_DATA */
#ifdef HV_PARAVIRT
	movl	$0x23, %eax
#endif
	pushl	%eax
	pushl	%edx
	pushl	$0x2 /* eflags: interrupts off, IOPL 0 */
	pushl	$0x1b /* USER_CODE */
	pushl	%ecx
	HV_PV_IRETL
leave_user:
	HV_PV_LOAD_DATA 0x10, %eax
	movl	kernel_stack, %esp
	popl	%ebp
	popl	%edi
	popl	%esi
	popl	%ebx
	ret

	.bss
	.balign	4
kernel_stack:
	.skip	4
	.globl	reload_segments
reload_segments:
	.skip	1
	.section .note.GNU-stack, "", @progbits
