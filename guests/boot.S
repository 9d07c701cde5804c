/* A boot sector and what it loads: what a BIOS offers, and the modes that systems pass through on their way up. Ends with code 7 by the
 * debug port, otherwise with the number of the step that failed. Prints through INT 10h only. */
	.set	ORIGIN, 0x7c00
	.set	STAGE2_SECTORS, 3
	.set	SCRATCH_SECTOR, 20
	.set	BUFFER, 0x1000
	.set	GATE, 0x60		/* an interrupt vector that PCs leave to programs */
	.set	BIOS_TICKS, 0x46c

	.text
	.code16
	.globl	_start
_start:
	ljmp	$0, $1f
1:	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$ORIGIN, %sp
	sti
	cld
	movb	%dl, drive
	movw	$hello, %si
	call	print

	/* The old way: cylinder 0, head 0, sector 2 on. */
	movw	$3, %di			/* a real drive may want to be asked again */
2:	movw	$0x0200 + STAGE2_SECTORS, %ax
	movw	$stage2, %bx
	movw	$0x0002, %cx
	movb	$0, %dh
	movb	drive, %dl
	int	$0x13
	jnc	3f
	xorb	%ah, %ah
	int	$0x13
	decw	%di
	jnz	2b
	movl	$1, %eax
	jmp	leave
3:	jmp	stage2

print:	lodsb
	testb	%al, %al
	jz	4f
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	jmp	print
4:	ret

leave:	movw	$0xf4, %dx
	outl	%eax, %dx
5:	hlt
	jmp	5b

drive:	.byte	0
hello:	.asciz	"boot sector\r\n"

	.org	510
	.word	0xaa55

/* ---- loaded from the second sector on */
stage2:	movl	$2, %eax
	cmpl	$0xb007b007, marker
	jne	leave
	movw	$loaded, %si
	call	print

	/* An interrupt of our own: the flags come back, and the handler ran with interrupts off. */
	movw	$handler, GATE * 4
	movw	$0, GATE * 4 + 2
	sti
	stc
	movw	$0x1234, %ax
	int	$GATE
	movl	$3, %edx
	jnc	fail
	cmpw	$0x4321, %ax
	jne	fail
	testw	$0x200, handler_flags
	jnz	fail
	pushfw
	popw	%ax
	testw	$0x200, %ax
	jz	fail

	/* The timer's interrupt, served by the BIOS. */
	movl	BIOS_TICKS, %eax
6:	hlt
	cmpl	BIOS_TICKS, %eax
	je	6b

	/* The new way to read and write: by logical block. */
	movw	$BUFFER, %di
	movw	$256, %cx
	movw	$0x5aa5, %ax
	rep stosw
	movl	$4, %edx
	movb	$0x43, %ah
	call	disk
	jc	fail
	movw	$BUFFER, %di
	movw	$256, %cx
	xorw	%ax, %ax
	rep stosw
	movl	$5, %edx
	movb	$0x42, %ah
	call	disk
	jc	fail
	movw	$BUFFER, %di
	movw	$256, %cx
	movw	$0x5aa5, %ax
	repe scasw
	jne	fail
	movw	$written, %si
	call	print

	/* A sector that the disk has not. */
	movl	$6, %edx
	movl	$0x7fffffff, block
	movb	$0x42, %ah
	call	disk
	jnc	fail

	/* A20: what lies a megabyte above is other memory. */
	movw	$0x2401, %ax
	int	$0x15
	inb	$0x92, %al
	orb	$2, %al
	andb	$0xfe, %al
	outb	%al, $0x92
	movl	$7, %edx
	movw	$0xffff, %ax
	movw	%ax, %es
	movl	$0x11111111, BUFFER
	movl	$0x22222222, %es:BUFFER + 16
	cmpl	$0x11111111, BUFFER
	jne	fail8
	cmpl	$0x22222222, %es:BUFFER + 16
	jne	fail8

	/* Protected mode with 16-bit code, and back: afterwards segments reach 4 GiB ("unreal mode"). */
	cli
	lgdt	gdt_register
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmp	$0x18, $7f
7:	movw	$0x08, %bx
	movw	%bx, %ds
	movw	%bx, %es
	movl	$9, %edx
	call	here
here:	popw	%cx
	cmpw	$here, %cx
	jne	fail
	smsw	%cx
	testb	$1, %cl
	jz	fail
	andb	$0xfe, %al
	movl	%eax, %cr0
	ljmp	$0, $8f
8:	xorw	%ax, %ax
	movw	%ax, %ss
	movl	$10, %edx
	movl	$0x200000, %edi
	movl	$0x600df00d, (%edi)
	cmpl	$0x600df00d, (%edi)
	jne	fail
	movw	%ax, %ds		/* a real-mode load: the base changes, the limit stays */
	cmpl	$0x600df00d, (%edi)
	jne	fail
	movw	%ax, %es
	sti
	movw	$unreal, %si
	call	print
	movl	BIOS_TICKS, %eax	/* firmware may show the last characters only then */
	addl	$3, %eax
11:	hlt
	cmpl	%eax, BIOS_TICKS
	jb	11b

	/* Protected mode with 32-bit code, for good. */
	cli
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x10, $protected

fail8:	movl	$8, %edx
fail:	movl	%edx, %eax
	jmp	leave

/* AH: function of INT 13h, on one sector at BUFFER. Keeps EDX. */
disk:	pushl	%edx
	movw	$packet, %si
	movb	drive, %dl
	int	$0x13
	popl	%edx
	ret

handler: pushfw
	popw	handler_flags
	movw	$0x4321, %ax
	iretw

	.code32
protected:
	movw	$0x08, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$ORIGIN, %esp
	movl	$11, %eax
	movl	$0x12345678, %ecx
	pushl	%ecx
	popl	%edx
	cmpl	%edx, %ecx
	jne	9f
	cmpl	$0x600df00d, 0x200000
	jne	9f
	/* The firmware's ROM cannot be changed, whatever is written where. */
	movl	$12, %eax
	movl	0xfffffff0, %ecx
	movl	$0, 0xfffffff0
	movw	$0xffff, 0xfffffff1
	incb	0xfffffff3
	cmpl	%ecx, 0xfffffff0
	jne	9f
	movl	$7, %eax
9:	movw	$0xf4, %dx
	outl	%eax, %dx
10:	hlt
	jmp	10b

handler_flags: .word 0xffff
	.balign	8
gdt:	.quad	0
	.quad	0x00cf93000000ffff	/* 08 data, 4 GiB */
	.quad	0x00cf9b000000ffff	/* 10 code, 32 bits */
	.quad	0x00009b000000ffff	/* 18 code, 16 bits, 64 KiB */
gdt_register: .word . - gdt - 1
	.long	gdt
packet:	.byte	16, 0
	.word	1			/* sectors */
	.word	BUFFER, 0
block:	.quad	SCRATCH_SECTOR
loaded:	.asciz	"second sector\r\n"
written: .asciz	"wrote and read back\r\n"
unreal:	.asciz	"real mode with 4 GiB\r\n"

	.org	512 * (1 + STAGE2_SECTORS) - 4
marker:	.long	0xb007b007
