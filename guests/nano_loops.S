/* Operations of nano.c that need no privilege, each a loop of so many turns: the same bytes in a guest's kernel and in a process of the
 * host (nano_native.c). void op(uint32_t turns). */
	.text
	.macro OP name
	.globl	\name
\name:	movl	4(%esp), %ecx
	.endm
	.macro TURN
	decl	%ecx
	jnz	1b
	ret
	.endm

OP op_call_ret
1:	call	2f
	TURN
2:	ret

OP op_divide_error
	xorl	%edx, %edx
1:	movl	$1, %eax
	divl	%edx /* two bytes; 0: #DE */
	TURN

/* Touches as many pages as there are turns, from 0x40000000 on. */
OP op_page_fault
	movl	$0x40000000, %eax
1:	movl	(%eax), %edx
	addl	$4096, %eax
	TURN

OP op_table /* 4 KiB, filled and summed: two loops of a few instructions, aligned as compilers do */
	pushl	%edi
	pushl	%ebx
	movl	%ecx, %ebx
	movl	$copy_to, %edi
1:	xorl	%edx, %edx
	.balign	32
2:	leal	(%ebx, %edx, 4), %eax
	movl	%eax, (%edi, %edx, 4)
	incl	%edx
	cmpl	$1024, %edx
	jne	2b
	xorl	%eax, %eax
	.balign	32
3:	addl	-4(%edi, %edx, 4), %eax
	decl	%edx
	jnz	3b
	decl	%ebx
	jnz	1b
	popl	%ebx
	popl	%edi
	ret

OP op_copy /* 4 KiB */
	pushl	%esi
	pushl	%edi
	movl	%ecx, %edx
	cld
1:	movl	$copy_from, %esi
	movl	$copy_to, %edi
	movl	$1024, %ecx
	rep movsl
	decl	%edx
	jnz	1b
	popl	%edi
	popl	%esi
	ret
