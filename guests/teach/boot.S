/* The boot sector of the teaching kernel's disk: reads the kernel, which lies behind it, by the BIOS (INT 13h, extended read) to 64 KiB,
   copies it to 1 MiB in protected mode and enters it as a Multiboot loader would, but with eax = 0. mkdisk.py writes the length in. */
	.code16
	.text
	.globl	_start
_start:
	ljmp	$0, $1f
1:	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %ss
	movw	$0x7c00, %sp
	sti
	movw	$reading, %si
	call	say
	movw	sectors, %bp
next:	movw	$packet, %si
	movb	$0x42, %ah /* dl is still the drive */
	int	$0x13
	jc	failed
	addw	$0x800, packet + 6 /* 32 KiB further */
	addl	$64, packet + 8
	subw	$64, %bp
	ja	next

	cli
	inb	$0x92, %al /* A20 */
	orb	$2, %al
	outb	%al, $0x92
	lgdtl	gdt_pointer
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$0x08, $protected

failed:	movw	$problem, %si
	call	say
	hlt
	jmp	.

say:	lodsb
	testb	%al, %al
	jz	1f
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	jmp	say
1:	ret

	.code32
protected:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	movl	%eax, %ss
	movzwl	sectors, %ecx
	shll	$7, %ecx /* 128 times 4 bytes a sector */
	movl	$0x10000, %esi
	movl	$0x100000, %edi
	cld
	rep movsl
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	movl	$0x10000c, %ecx /* behind the Multiboot header */
	jmp	*%ecx

reading: .asciz	"teach: reading the kernel\r\n"
problem: .asciz	"teach: the disk cannot be read\r\n"
	.balign	4
packet:	.byte	16, 0
	.word	64 /* sectors at once */
	.word	0, 0x1000 /* to 1000:0 */
	.quad	1
gdt:	.quad	0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
	.org	508
sectors: .word	0
	.word	0xaa55
