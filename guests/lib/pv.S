/* What a kernel that knows of hvd consists of beside its own code (docs/paravirtualisation.md): the note, the hypercall page, and whether there
 * is somebody. */
#include "hv/pv.h"

	.section .note.hvd, "a"
	.balign	4
	.long	4, 24, HV_PV_NOTE
	.asciz	"HVD"
	.long	HV_PV_VERSION, hv_pv_page, 4096, 0, 0, 0

/* Whoever fills it writes over it; else every call says ENOSYS. */
	.text
	.balign	4096
	.globl	hv_pv_page
hv_pv_page:
	.rept	4096 / HV_PV_ENTRY_BYTES
1:	movl	$-38, %eax
	ret
	.org	1b + HV_PV_ENTRY_BYTES, 0xcc
	.endr

/* uint64_t hv_pv_clock(void) */
	.globl	hv_pv_clock
hv_pv_clock:
	pushl	%ebx
	pushl	%esi
	pushl	%edi
1:	movl	HV_PV_VCPU + HV_PV_SEQUENCE, %esi
	rdtsc
	subl	HV_PV_VCPU + HV_PV_TSC_BASE, %eax
	sbbl	HV_PV_VCPU + HV_PV_TSC_BASE + 4, %edx
	movl	HV_PV_VCPU + HV_PV_MULTIPLIER, %ebx
	movl	%edx, %edi
	mull	%ebx			/* low product: edx:eax */
	movl	%eax, %ecx
	xchgl	%edi, %edx		/* edi: its high half */
	movl	%edx, %eax
	mull	%ebx			/* high product, 32 bits further up */
	addl	%edi, %eax
	adcl	$0, %edx
	movl	%ecx, %edi		/* edx:eax:edi >> shift (less than 32) */
	movl	HV_PV_VCPU + HV_PV_SHIFT, %ecx
	shrdl	%cl, %eax, %edi
	shrdl	%cl, %edx, %eax
	movl	%eax, %edx
	movl	%edi, %eax
	addl	HV_PV_VCPU + HV_PV_TIME_BASE, %eax
	adcl	HV_PV_VCPU + HV_PV_TIME_BASE + 4, %edx
	cmpl	HV_PV_VCPU + HV_PV_SEQUENCE, %esi
	jne	1b
	popl	%edi
	popl	%esi
	popl	%ebx
	ret

	.data
	.globl	hv_pv_present
hv_pv_present:
	.byte	0
	.section .note.GNU-stack, "", @progbits
