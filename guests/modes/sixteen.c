/* 16-bit code and stacks, prefixes that change the size of operands and addresses. */
#include "modes.h"

__asm__(".globl code16, based_code\n.text\n"
	"code16: .code16\n"
	"	movw	$0x1234, %ax\n"
	"	addl	$0x10000, %eax\n" /* 66 */
	"	movl	%eax, %edx\n"
	"	movw	%bx, %si\n"
	"	addr32 movw (%ebx), %cx\n" /* 67 */
	"	movw	$7, %di\n"
	"	pushw	$0x5678\n"
	"	popw	%di\n"
	"	movw	$3, %cx\n"
	"1:	incw	%ax\n"
	"	loop	1b\n"
	"	jmp	2f\n"
	"	hlt\n"
	"2:	call	3f\n"
	"	lretl\n" /* 66 cb */
	"3:	addw	$0x100, %ax\n"
	"	ret\n"
	".code32\n"
	"based_code:\n"
	"	call	1f\n"
	"1:	popl	%eax\n" /* an offset in the segment: 5 */
	"	lretl\n");

void sixteen(void)
{
	static struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) target = {0, CODE16};
	uint32_t a = 0xabcd0000, d, di = 0xffff0000, esp;

	__asm__ volatile("lcall *%3" : "+a"(a), "=d"(d), "+D"(di) : "m"(target), "b"(words) : "ecx", "esi", "memory", "cc");
	expect("eax of 16-bit code", a, 0xabce1337);
	expect("edx of 16-bit code", d, 0xabce1234);
	expect("edi of 16-bit code", di, 0xffff5678);
	target.selector = BASED_CODE;
	__asm__ volatile("lcall *%1" : "=a"(a) : "m"(target) : "memory");
	expect("return address in a code segment with a base", a, 5);

	/* A 16-bit stack: SP wraps, the upper half of ESP stays. */
	words[64] = 0;
	__asm__ volatile("movl %%esp, %0; movl $0xa8, %%eax; movl %%eax, %%ss; movl $0x12340100, %%esp; pushl $0x66666666; pushw $0x7777; movl %%esp, %1;"
			 "movw $0, %%sp; pushw $0x8888; movl %%esp, %%ecx; addl $2, %%esp; movw $0x10, %%ax; movl %%eax, %%ss; movl %0, %%esp"
			 : "=&b"(esp), "=&d"(d), "=&c"(a)
			 :
			 : "eax", "memory");
	expect("esp after pushes to a 16-bit stack", d, 0x123400fa);
	expect("esp after a push at SP 0", a, 0x1234fffe);
	expect("what was pushed", words[63], 0x66666666);
	expect("a word that was pushed", words[62] >> 16, 0x7777);

	/* Prefixes in 32-bit code. */
	__asm__ volatile("movl $0x11112222, %%eax; pushw %%ax; pushw %%ax; popl %%edx; movw $0x3333, %%ax; data16 pushl %%eax; popw %%cx; addr16 leal -1(%%bx), %%ebx"
			 : "=&a"(a), "=&d"(d), "=&c"(di), "=b"(esp)
			 : "b"(0x10000));
	expect("eax after a 16-bit MOV", a, 0x11113333);
	expect("two words pushed, popped as one", d, 0x22222222);
	expect("pushed with 66", di & 0xffff, 0x3333);
	expect("LEA with 67", esp, 0xffff);
	words[0] = 0xaaaaaaaa;
	__asm__ volatile("movl $0x10010, %%ecx; movl $0, %%eax; 1: incl %%eax; addr16 loop 1b" : "=a"(a), "=c"(d) : : "cc");
	expect("LOOP with 67 counts CX", a, 0x10);
	expect("and leaves the upper half", d, 0x10000);
}
