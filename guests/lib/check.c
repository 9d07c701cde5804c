/* What a test kernel found, and its last line. */
#include "guest.h"

static unsigned failures;

bool expect(const char *what, uint32_t found, uint32_t wanted)
{
	if (found == wanted)
		return true;
	failures++;
	print("%s: %s: found 0x%x, expected 0x%x\n", guest_name, what, found, wanted);
	return false;
}

int done(void)
{
	if (failures) {
		print("%s: %u checks failed\n", guest_name, failures);
		return 1;
	}
	print("%s: ok\n", guest_name);
	return 0;
}
