/* What kernels do that makes monitors slow: "device": reads a device's register again and again. */
#include "guest.h"

const char guest_name[] = "busy";

#define LOCAL_APIC_ID ((volatile uint32_t *)0xfee00020)

int main(void)
{
	uint32_t reads = option("device", 0), id = 0;

	traps_init();
	for (uint32_t i = 0; i < reads; i++)
		id |= *LOCAL_APIC_ID >> 24;
	expect("id", id, 0);
	return done();
}
