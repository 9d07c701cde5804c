/* Floods the console for ever, numbered lines so that a viewer can tell what it missed. "count=N" ends it after N lines. */
#include "guest.h"

const char guest_name[] = "flood";

int main(void)
{
	uint32_t count = option("count", 0);

	for (uint32_t line = 0; !count || line < count; line++)
		print("%u the quick brown fox jumps over the lazy dog, again and again and again\n", line);
	return done();
}
