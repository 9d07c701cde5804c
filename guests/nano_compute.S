/* uint32_t compute(uint32_t turns): a hash of 1000 numbers a turn, in registers. The same bytes run in a guest's kernel, in its user
 * mode, and in a process of the host (bench/native_compute.c), so that their times can be compared. */
	.globl	compute
	.balign	64
compute:
	movl	4(%esp), %ecx
	pushl	%ebx
	movl	$2166136261, %eax
1:	movl	$1000, %edx
	.balign	16
2:	xorl	%edx, %eax
	imull	$16777619, %eax, %eax
	roll	$5, %eax
	movl	%eax, %ebx
	shrl	$7, %ebx
	addl	%ebx, %eax
	decl	%edx
	jnz	2b
	decl	%ecx
	jnz	1b
	popl	%ebx
	ret
