/* uint32_t compute(uint32_t turns): what programs do, on registers, stack and memory: recursion, and a table of 4 KiB that
 * is filled, summed and copied four times. The same bytes run in a guest's kernel, in its user mode, and in a process of the host
 * (nano_native.c), so that their times can be compared. */
	.globl	compute
	.balign	64
compute:
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	pushl	%ebp
	movl	20(%esp), %ecx
	xorl	%ebp, %ebp
1:	pushl	%ecx
	movl	$14, %eax
	call	fibonacci
	addl	%eax, %ebp
	movl	$compute_table, %edi
	xorl	%edx, %edx
2:	leal	(%ebp, %edx, 4), %eax
	movl	%eax, (%edi, %edx, 4)
	incl	%edx
	cmpl	$1024, %edx
	jne	2b
	xorl	%eax, %eax
	movl	$1024, %edx
3:	addl	-4(%edi, %edx, 4), %eax
	decl	%edx
	jnz	3b
	movl	$4, %ebx
4:	movl	$compute_table, %esi
	movl	$compute_copy, %edi
	movl	$1024, %ecx
	rep movsl
	decl	%ebx
	jnz	4b
	popl	%ecx
	roll	$7, %eax
	addl	%eax, %ebp
	decl	%ecx
	jnz	1b
	movl	%ebp, %eax
	popl	%ebp
	popl	%edi
	popl	%esi
	popl	%ebx
	ret

	.balign	16
fibonacci: /* eax -> eax; edx is lost */
	cmpl	$2, %eax
	jb	4f
	pushl	%eax
	decl	%eax
	call	fibonacci
	movl	(%esp), %edx
	movl	%eax, (%esp)
	movl	%edx, %eax
	subl	$2, %eax
	call	fibonacci
	popl	%edx
	addl	%edx, %eax
4:	ret
