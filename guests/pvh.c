/* PVH: prints on COM1, exits with 0. start.c has checked the magic and found the command line through hvm_start_info. */
#include "guest.h"

const char guest_name[] = "pvh";

int main(void)
{
	print("Entered by PVH. Command line: \"%s\"\n", command_line);
	return done();
}
