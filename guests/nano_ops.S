/* The operations of nano.c, each a loop of so many turns. void op(uint32_t turns). */
	.include "guests/nano_loops.S"

OP op_in
1:	inb	$0x80, %al
	TURN

OP op_cr_write
	movl	%cr0, %eax
1:	movl	%eax, %cr0
	TURN

OP op_cli_sti /* with nothing pending, and off again at the end */
1:	sti
	cli
	TURN

OP op_cli
1:	cli
	TURN

	.globl	on_divide_error
on_divide_error:
	addl	$2, (%esp)
	iretl

OP op_kernel_int
1:	int	$0x84
	TURN

	.globl	on_kernel_int, on_syscall
on_kernel_int:
on_syscall:
	iretl

/* Touches pages that are mapped: of them, too, nothing is known yet. */
	.globl	op_shadow_fill
	.set	op_shadow_fill, op_page_fault

/* The handler maps frame_entry at the address. It does not look at what fault_window's table had there. */
	.globl	on_page_fault
on_page_fault:
	pushl	%eax
	pushl	%edx
	movl	%cr2, %eax
	shrl	$12, %eax
	andl	$0x3ff, %eax
	movl	frame_entry, %edx
	movl	%edx, fault_table(,%eax,4)
	popl	%edx
	popl	%eax
	addl	$4, %esp /* the error code */
	iretl

/* Another frame behind one page: write the entry, INVLPG, touch it. */
OP op_pte_change
	movl	frame_entry, %eax
	movl	$0x40000000, %edx
1:	xorl	$0x1000, %eax
	movl	%eax, fault_table
	invlpg	(%edx)
	incl	(%edx)
	TURN

/* 64 entries of pages that nothing has touched. */
OP op_pte_batch
	pushl	%ebx
1:	xorl	%ebx, %ebx
	movl	$0x40000000, %edx
2:	movl	frame_entry, %eax
	movl	%eax, fault_table(,%ebx,4)
	invlpg	(%edx)
	addl	$4096, %edx
	incl	%ebx
	cmpl	$64, %ebx
	jne	2b
	decl	%ecx
	jnz	1b
	popl	%ebx
	ret

/* The base hypercall's version (docs/hypercall.md). */
OP op_hypercall
1:	xorl	%eax, %eax
	movl	$0x6870, %edx
	outl	%eax, %dx
	TURN

/* To another address space with a stack of its own, and a page of its own touched: two switches a turn. */
OP op_context_switch
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	movl	spaces, %ebx
	movl	spaces + 4, %edi
	movl	$other_stack_top, %esi
	pushl	$3f
	xchgl	%esp, %esi
	pushl	$4f
	xchgl	%esp, %esi
1:	movl	%edi, %cr3 /* 0 -> 1 */
	xchgl	%esp, %esi
	ret
4:	incl	0x40400000
	pushl	$4b
	movl	%ebx, %cr3 /* 1 -> 0 */
	xchgl	%esp, %esi
	ret
3:	incl	0x40400000
	pushl	$3b
	decl	%ecx
	jnz	1b
	addl	$4, %esp
	movl	%ebx, %cr3
	popl	%edi
	popl	%esi
	popl	%ebx
	ret

	.globl	op_kernel_compute
op_kernel_compute:
	jmp	compute

/* ---- code that runs at CPL 3: pages of their own. Ends by interrupt 0x81; turns are in user_turns. */
	.section .user, "ax"
	.balign	4096
	.globl	user_start, user_turns, user_syscall, user_compute
user_start:
user_syscall:
	movl	user_turns, %ecx
1:	int	$0x80
	decl	%ecx
	jnz	1b
	int	$0x81

user_compute:
	pushl	user_turns
	call	compute
	int	$0x81

	.include "guests/nano_compute.S"

	.balign	4
user_turns:
	.long	0
	.balign	4096
compute_table: /* code and what it writes are not in one page, as in programs */
	.skip	4096
compute_copy:
	.skip	4096
	.globl	user_stack_bottom, user_stack_top
user_stack_bottom:
	.skip	4096
user_stack_top:

	.bss
	.balign	4096
	.globl	other_stack_top
	.skip	4096
other_stack_top:
	.section .note.GNU-stack, "", @progbits
