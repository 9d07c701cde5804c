/* The base hypercall for guests; the standard is docs/hypercall.md. For C and assembly, 32 and 64 bit; needs no library. */
#ifndef HV_HYPERCALL_H
#define HV_HYPERCALL_H

#define HV_PORT_CALL 0x6870
#define HV_PORT_RESULT 0x6874
#define HV_PORT_DEBUG_EXIT 0xf4
#define HV_SIGNATURE 0x31647668 /* "hvd1" */

#define HV_CALL_VERSION 0
#define HV_CALL_LOG 1
#define HV_CALL_ANNOTATE 2
#define HV_CALL_CLOCK 3
#define HV_CALL_YIELD 4
#define HV_CALL_EXIT 5
#define HV_CALL_CONSOLE_SIZE 6

#define HV_EPERM 1
#define HV_EFAULT 14
#define HV_EINVAL 22
#define HV_ENOSYS 38
#define HV_LOG_MAX 1024

#ifdef __ASSEMBLER__

/* Arguments are in ebx, ecx, esi (rbx, rcx, rsi). Clobbers eax and edx. */
.macro HV_CALL number
	movl	$\number, %eax
	movl	$HV_PORT_CALL, %edx
	outl	%eax, %dx
.endm

#else

#include <stdint.h>

static inline uint32_t hv_port_read(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* Is there an hvd below us? Ask once before the first call. */
static inline int hv_present(void)
{
	return hv_port_read(HV_PORT_CALL) == HV_SIGNATURE;
}

/* Makes a call without fetching its result. */
static inline void hv_call_only(uint32_t number, uintptr_t a0, uintptr_t a1, uintptr_t a2)
{
	__asm__ volatile("outl %%eax, %%dx"
			 :
			 : "a"(number), "d"(HV_PORT_CALL), "b"(a0), "c"(a1), "S"(a2)
			 : "memory");
}

/* Returns what the call answers; negative = one of HV_E*, negated. */
static inline int64_t hv_call(uint32_t number, uintptr_t a0, uintptr_t a1, uintptr_t a2)
{
	uint32_t low, high;

	hv_call_only(number, a0, a1, a2);
	low = hv_port_read(HV_PORT_RESULT);
	high = hv_port_read(HV_PORT_RESULT);
	return (int64_t)((uint64_t)high << 32 | low);
}

static inline int64_t hv_version(void)
{
	return hv_call(HV_CALL_VERSION, 0, 0, 0);
}

static inline int64_t hv_log(const char *text, uintptr_t length)
{
	return hv_call(HV_CALL_LOG, (uintptr_t)text, length, 0);
}

/* No result is fetched: an annotation costs one crossing. */
static inline void hv_annotate(uintptr_t value0, uintptr_t value1)
{
	hv_call_only(HV_CALL_ANNOTATE, value0, value1, 0);
}

/* Nanoseconds of the guest's virtual clock. */
static inline int64_t hv_clock(void)
{
	return hv_call(HV_CALL_CLOCK, 0, 0, 0);
}

static inline void hv_yield(void)
{
	hv_call_only(HV_CALL_YIELD, 0, 0, 0);
}

static inline void hv_exit(uint32_t code)
{
	hv_call_only(HV_CALL_EXIT, code, 0, 0);
}

/* rows << 16 | columns; 0 = not known. */
static inline int64_t hv_console_size(void)
{
	return hv_call(HV_CALL_CONSOLE_SIZE, 0, 0, 0);
}

#endif
#endif
