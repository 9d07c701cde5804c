/* "n=N" writes to port 0x80 (the PC's POST code), where nothing is: as many crossings, and next to nothing else. */
#include "guest.h"

const char guest_name[] = "ports";

int main(void)
{
	uint32_t count = option("n", 100000);

	for (uint32_t n = 0; n < count; n++)
		outb(0x80, (uint8_t)n);
	return done();
}
