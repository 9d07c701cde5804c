/* Resets the machine through the keyboard controller (command 0xfe pulses the reset line). */
#include "guest.h"

const char guest_name[] = "reset";

int main(void)
{
	done();
	while (inb(0x64) & 2) /* its input buffer is full */
		;
	outb(0x64, 0xfe);
	for (;;)
		__asm__ volatile("cli; hlt");
}
