/* String I/O with faults in the middle. */
#include "modes.h"

void string_io(void)
{
	static uint8_t buffer[8192 + 64] __attribute__((aligned(4096)));
	uint32_t count, end;

	__asm__ volatile("cld; rep insb" : "=c"(count), "=D"(end) : "0"(100), "1"(buffer + 4000), "d"(0x3fd) : "memory");
	expect("ECX after REP INSB", count, 0);
	expect("EDI after REP INSB", end, (uint32_t)buffer + 4100);
	for (unsigned n = 4000; n < 4100; n++)
		expect("a byte of REP INSB", buffer[n] & 0x60, 0x60);
	expect("the byte behind them", buffer[4100], 0);
	__asm__ volatile("std; rep insw; cld" : "=c"(count), "=D"(end) : "0"(4), "1"(buffer + 1000), "d"(0xed) : "memory");
	expect("EDI after REP INSW backwards", end, (uint32_t)buffer + 992);
	__asm__ volatile("rep outsb" : "=c"(count), "=S"(end) : "0"(200), "1"(buffer + 4000), "d"(0x80) : "memory");
	expect("ESI after REP OUTSB", end, (uint32_t)buffer + 4200);
	__asm__ volatile("outsl" : "=S"(end) : "0"(buffer), "d"(0x80) : "memory");
	expect("ESI after OUTSL", end, (uint32_t)buffer + 4);
	/* Over the border into a page that is not there: what was done is done. */
	seen.count = 0;
	__asm__ volatile("movl $9f, resume_at; rep insb; 9:" : "=c"(count), "=D"(end) : "0"(100), "1"(HOLE - 30), "d"(0x3fd) : "memory");
	faults("REP INSB into a hole", 14, 2);
	expect("cr2", seen.address, HOLE);
	expect("ECX at the fault", count, 70);
	expect("EDI at the fault", end, HOLE);
	seen.count = 0;
	__asm__ volatile("movl $9f, resume_at; rep outsb; 9:" : "=c"(count), "=S"(end) : "0"(100), "1"(HOLE - 10), "d"(0x80) : "memory");
	faults("REP OUTSB from a hole", 14, 0);
	expect("ECX at the fault", count, 90);
	seen.count = 0;
	__asm__ volatile("movl $9f, resume_at; rep movsb; 9:" : "=c"(count), "=D"(end) : "0"(100), "1"(HOLE - 20), "S"(buffer) : "memory");
	faults("REP MOVSB into a hole", 14, 2);
	expect("ECX at the fault", count, 80);
	__asm__ volatile("movl $0x10005, %%ecx; movl $0, %%eax; movl %1, %%edi; addr16 rep stosb" : "=c"(count) : "r"(0x7000) : "eax", "edi", "memory");
	expect("REP with 67 counts CX", count, 0x10000);
}
