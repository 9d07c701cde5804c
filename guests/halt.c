/* HLT with interrupts off: nothing will ever wake it. */
#include "guest.h"

const char guest_name[] = "halt";

int main(void)
{
	done();
	for (;;)
		__asm__ volatile("cli; hlt");
}
