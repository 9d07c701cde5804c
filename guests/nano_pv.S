/* The operations of nano.c as a kernel does them that knows of hvd (docs/paravirtualisation.md). void op(uint32_t turns). */
#include "hv/pv.h"

	.text
	.macro OP name
	.globl	\name
\name:	pushl	%ebx
	pushl	%esi
	pushl	%edi
	pushl	%ebp
	movl	20(%esp), %ebp
	.endm
	.macro TURN
	decl	%ebp
	jnz	1b
	popl	%ebp
	popl	%edi
	popl	%esi
	popl	%ebx
	ret
	.endm

OP pv_in
1:	movl	$0x80, %ebx
	movl	$1, %ecx
	HV_PV_HYPERCALL	HV_PV_CALL_PORT_IN
	TURN

OP pv_cr_write
	movl	%cr0, %ebx
1:	HV_PV_HYPERCALL	HV_PV_CALL_SET_CR0
	TURN

OP pv_cli_sti /* with nothing pending, and off again at the end */
1:	movb	$2, HV_PV_VCPU + HV_PV_IF + 1
	cmpl	$0, HV_PV_VCPU + HV_PV_PENDING
	jne	2f
3:	movb	$0, HV_PV_VCPU + HV_PV_IF + 1
	TURN
2:	call	hv_pv_page + HV_PV_ENTRY_DELIVER
	jmp	3b

OP pv_cli
1:	movb	$0, HV_PV_VCPU + HV_PV_IF + 1
	TURN

OP pv_kernel_int
1:	int	$0x84
	TURN

OP pv_divide_error
1:	movl	$1, %eax
	xorl	%edx, %edx
	xorl	%ecx, %ecx
	divl	%ecx /* two bytes; 0: #DE */
	TURN

	.globl	pv_on_divide_error, pv_on_kernel_int, pv_on_page_fault
pv_on_divide_error:
	addl	$2, (%esp)
pv_on_kernel_int:
	jmp	hv_pv_page + HV_PV_ENTRY_IRET

/* The entry is set and mapped in one call. fault_table is where it is physically. */
pv_on_page_fault:
	pushal
	movl	HV_PV_VCPU + HV_PV_CR2, %esi
	movl	%esi, %ebx
	shrl	$12, %ebx
	andl	$0x3ff, %ebx
	leal	fault_table(,%ebx,4), %ebx
	movl	frame_entry, %ecx
	andl	$0xfffff000, %esi
	orl	$HV_PV_PTE_TOUCH, %esi
	xorl	%edi, %edi
	HV_PV_HYPERCALL	HV_PV_CALL_SET_PTE
	popal
	addl	$4, %esp /* the error code */
	jmp	hv_pv_page + HV_PV_ENTRY_IRET

OP pv_page_fault
	movl	$0x40000000, %eax
1:	movl	(%eax), %edx
	addl	$4096, %eax
	TURN

	.globl	pv_shadow_fill
	.set	pv_shadow_fill, pv_page_fault

/* Another frame behind one page, and touch it. */
OP pv_pte_change
	movl	frame_entry, %ecx
	movl	$fault_table, %ebx
	movl	$0x40000000 + HV_PV_PTE_INVALIDATE + HV_PV_PTE_TOUCH, %esi
	xorl	%edi, %edi
1:	xorl	$0x1000, %ecx
	HV_PV_HYPERCALL	HV_PV_CALL_SET_PTE
	incl	0x40000000
	TURN

/* 64 entries of pages that nothing has touched; pte_batch is struct hv_pv_pte[64]. */
OP pv_pte_batch
1:	movl	$pte_batch, %ebx
	movl	$64, %ecx
	HV_PV_HYPERCALL	HV_PV_CALL_SET_PTES
	TURN

OP pv_hypercall
1:	HV_PV_HYPERCALL	HV_PV_CALL_VERSION
	TURN

/* To another address space with a stack of its own, and a page of its own touched: two switches a turn. */
OP pv_context_switch
	movl	$other_stack_top, %edi
	pushl	$3f
	xchgl	%esp, %edi
	pushl	$4f
	xchgl	%esp, %edi
1:	movl	spaces + 4, %ebx /* 0 -> 1 */
	HV_PV_HYPERCALL	HV_PV_CALL_SET_CR3
	xchgl	%esp, %edi
	ret
4:	incl	0x40400000
	pushl	$4b
	movl	spaces, %ebx /* 1 -> 0 */
	HV_PV_HYPERCALL	HV_PV_CALL_SET_CR3
	xchgl	%esp, %edi
	ret
3:	incl	0x40400000
	pushl	$3b
	decl	%ebp
	jnz	1b
	addl	$4, %esp
	movl	spaces, %ebx
	HV_PV_HYPERCALL	HV_PV_CALL_SET_CR3
	popl	%ebp
	popl	%edi
	popl	%esi
	popl	%ebx
	ret

/* ---- at CPL 3: the hypercall page is mapped for programs, too */
	.section .user, "ax"
	.globl	user_pv_syscall
user_pv_syscall:
	movl	user_turns, %ecx
1:	call	hv_pv_programs + HV_PV_ENTRY_INT80
	decl	%ecx
	jnz	1b
	int	$0x81

/* Filled by FILL_PAGE. */
	.balign	4096
	.globl	hv_pv_programs
hv_pv_programs:
	.skip	4096
	.section .note.GNU-stack, "", @progbits
