/* Multiboot: prints on COM1, exits with 0 (hypercall, or the debug exit port where there is no hvd). */
#include "guest.h"

const char guest_name[] = "hello";

int main(void)
{
	print("Hello from ring 0. Command line: \"%s\"\n", command_line);
	return done();
}
