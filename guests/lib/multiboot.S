/* Entry of Multiboot 1 kernels: eax = 0x2badb002, ebx = information (Multiboot Specification 0.6.96, 3.2). */
#define FLAGS 0x3 /* modules on page boundaries, memory information */

	.section .multiboot, "a"
	.balign	4
	.long	0x1badb002, FLAGS, -(0x1badb002 + FLAGS)

	.section .boot, "ax"
	.globl	_start
_start:
	cli
	cld
	movl	$stack_top, %esp
	pushl	%ebx
	pushl	%eax
	pushl	$0 /* it does not return */
	jmp	guest_start

	.bss
	.balign	16
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
