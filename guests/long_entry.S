/* From PVH's 32-bit entry to 64-bit mode: the first GiB one to one and once more at 0xffffffff80000000, both in 2 MiB pages. */
	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.section .boot, "ax"
	.code32
	.globl	_start
_start:
	cli
	cld
	movl	%ebx, %edi
	xorl	%ecx, %ecx
1:	movl	%ecx, %eax
	shll	$21, %eax
	orl	$0x83, %eax /* present, writable, 2 MiB */
	movl	%eax, page_directory(, %ecx, 8)
	incl	%ecx
	cmpl	$512, %ecx
	jne	1b
	movl	$page_directory + 3, pointers
	movl	$page_directory + 3, pointers + 510 * 8
	movl	$pointers + 3, pml4
	movl	$pointers + 3, pml4 + 511 * 8
	movl	%cr4, %eax
	orl	$0x20, %eax /* PAE */
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx /* EFER */
	rdmsr
	orl	$0x100, %eax /* LME */
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$0x08, $in_long_mode

	.code64
in_long_mode:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$stack_top, %esp
	movl	%edi, %esi
	movl	(%rsi), %edi
	call	guest_start

	.section .rodata
	.balign	8
gdt:	.quad	0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt

	.bss
	.balign	4096
pml4:	.skip	4096
pointers:
	.skip	4096
page_directory:
	.skip	4096
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
