/* "n=N" writes to port 0x80 (the PC's POST code), where nothing is: as many crossings, and next to nothing else; "gap=N" counts to N between
 * two of them. */
#include "guest.h"

const char guest_name[] = "ports";

int main(void)
{
	uint32_t count = option("n", 100000), gap = option("gap", 0);

	for (uint32_t n = 0; n < count; n++) {
		outb(0x80, (uint8_t)n);
		for (uint32_t waited = 0; waited < gap; waited++)
			__asm__ volatile("");
	}
	return done();
}
