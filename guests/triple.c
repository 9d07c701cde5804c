/* A triple fault: an exception with an IDT that has no room for any. */
#include "guest.h"

const char guest_name[] = "triple";

int main(void)
{
	const struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) empty = {0, 0};

	done();
	__asm__ volatile("lidt %0; ud2" : : "m"(empty));
	return expect("still running after the triple fault", 1, 0);
}
