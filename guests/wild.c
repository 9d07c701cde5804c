/* Runs wild: reads and writes where nothing is, then jumps there ("address=0x.."). With no IDT that is the end of it. */
#include "guest.h"

const char guest_name[] = "wild";

int main(void)
{
	uint32_t address = option("address", 0xc8000000);
	volatile uint32_t *nowhere = (volatile uint32_t *)address;

	*nowhere = 0x12345678;
	print("0x%x reads 0x%x\n", address, *nowhere);
	done();
	((void (*)(void))address)();
	return expect("came back from nowhere", 1, 0);
}
