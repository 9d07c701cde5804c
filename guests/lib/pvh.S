/* Entry of PVH kernels: 32-bit protected mode, ebx = hvm_start_info (Xen docs/misc/pvh.pandoc). */
	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.section .boot, "ax"
	.globl	_start
_start:
	cli
	cld
	movl	$stack_top, %esp
	pushl	%ebx
	pushl	(%ebx)
	pushl	$0 /* it does not return */
	jmp	guest_start

	.bss
	.balign	16
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
