/* An endless loop with interrupts off: only the hypervisor can end it. */
#include "guest.h"

const char guest_name[] = "spin";

int main(void)
{
	done();
	for (;;)
		__asm__ volatile("cli");
}
