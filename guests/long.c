/* 64-bit mode: PVH enters in 32-bit mode, long_entry.S turns on 4-level paging and gets here. */
#include "guest.h"
#include "hv/hypercall.h"

const char guest_name[] = "long";

#define HIGH 0xffffffff80000000

int main(void)
{
	static volatile uint64_t word = 0x0123456789abcdef;
	static const char text[] = "long says hello from the upper half";
	volatile uint64_t *alias = (volatile uint64_t *)((uintptr_t)&word + HIGH);
	uint64_t r15 = 0xfedcba9876543210;
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xc0000080));
	expect("EFER.LME and EFER.LMA", low & 0x500, 0x500);
	expect("high half of a word through the upper half", (uint32_t)(*alias >> 32), 0x01234567);
	*alias = 42;
	expect("a word written through the upper half", (uint32_t)word, 42);
	__asm__ volatile("movq %0, %%r15; rolq $32, %%r15; movq %%r15, %0" : "+r"(r15) : : "r15");
	expect("a 64-bit register rotated", (uint32_t)r15, 0xfedcba98);
	print("in 64-bit mode, rsp 0x%lx\n", (unsigned long)__builtin_frame_address(0));
	if (hv_present()) {
		const char *high_text = (const char *)((uintptr_t)text + HIGH);

		expect("log at a 64-bit address", (uint32_t)hv_log(high_text, sizeof text - 1), 0);
		expect("log at an address that is not canonical",
		       (uint32_t)hv_log((const char *)0x0000800000000000, 1), (uint32_t)-HV_EFAULT);
		hv_annotate(0x1111222233334444, 0x5555666677778888);
	}
	return done();
}
