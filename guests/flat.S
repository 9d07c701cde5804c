/* A flat binary for 0x100000, on its own: prints on COM1, exits with 3 through the debug exit port. */
	.text
	.globl	_start
_start:
	movl	$text, %esi
next:	movw	$0x3fd, %dx
wait:	inb	%dx, %al
	testb	$0x20, %al
	jz	wait
	lodsb
	testb	%al, %al
	jz	exit
	movw	$0x3f8, %dx
	outb	%al, %dx
	jmp	next
exit:	movb	$3, %al
	outb	%al, $0xf4
halt:	cli
	hlt
	jmp	halt
text:	.asciz	"flat: ok\r\n"
	.section .note.GNU-stack, "", @progbits
