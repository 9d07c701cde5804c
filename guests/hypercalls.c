/* Every base hypercall and its errors (docs/hypercall.md). Exit code 0 only if all is right; 77 where there is no hvd. */
#include "guest.h"
#include "hv/hypercall.h"

const char guest_name[] = "hypercalls";

static void expect_result(const char *what, int64_t found, int64_t wanted)
{
	expect(what, (uint32_t)found, (uint32_t)wanted);
	expect(what, (uint32_t)((uint64_t)found >> 32), (uint32_t)((uint64_t)wanted >> 32));
}

static uint32_t length_of(const char *text)
{
	uint32_t n = 0;

	while (text[n])
		n++;
	return n;
}

/* The registers around one OUT to CALL. */
static void check_registers(void)
{
	uint32_t a = HV_CALL_ANNOTATE, b = 0x11111111, c = 0x22222222, d = HV_PORT_CALL, si = 0x33333333, di = 0x44444444;
	static uint8_t flags;

	/* SAHF and LAHF, since PUSHF is one of the instructions that some backends cannot see (docs/trap.md). */
	__asm__ volatile("pushl %%eax; movb $0xd5, %%ah; sahf; popl %%eax; outl %%eax, %%dx; pushl %%eax; lahf; movb %%ah, %6; popl %%eax"
			 : "+a"(a), "+b"(b), "+c"(c), "+d"(d), "+S"(si), "+D"(di), "=m"(flags));
	expect("eax after a call", a, HV_CALL_ANNOTATE);
	expect("ebx after a call", b, 0x11111111);
	expect("ecx after a call", c, 0x22222222);
	expect("edx after a call", d, HV_PORT_CALL);
	expect("esi after a call", si, 0x33333333);
	expect("edi after a call", di, 0x44444444);
	expect("flags after a call: SF ZF AF PF CF", flags, 0xd7);
}

static void check_result_port(void)
{
	hv_call_only(63, 0, 0, 0);
	expect("first read of RESULT", hv_port_read(HV_PORT_RESULT), (uint32_t)-HV_ENOSYS);
	expect("second read of RESULT", hv_port_read(HV_PORT_RESULT), 0xffffffff);
	expect("third read of RESULT", hv_port_read(HV_PORT_RESULT), (uint32_t)-HV_ENOSYS);
	hv_call_only(HV_CALL_VERSION, 0, 0, 0);
	expect("RESULT begins anew with a call", hv_port_read(HV_PORT_RESULT), 1);
}

int main(void)
{
	static const char text[] = "hypercalls says hello";
	static char longest[HV_LOG_MAX + 1];
	int64_t first, second;

	if (!hv_present()) {
		print("%s: there is no hvd here: port 0x%x reads 0x%x\n", guest_name, HV_PORT_CALL,
		      hv_port_read(HV_PORT_CALL));
		return 77;
	}
	expect_result("version", hv_version(), 1);
	expect_result("log", hv_log(text, length_of(text)), 0);
	expect_result("log of nothing", hv_log(text, 0), 0);
	for (unsigned n = 0; n < sizeof longest; n++)
		longest[n] = 'x';
	expect_result("log of 1024 bytes", hv_log(longest, HV_LOG_MAX), 0);
	expect_result("log of 1025 bytes", hv_log(longest, HV_LOG_MAX + 1), -HV_EINVAL);
	expect_result("log of a string outside of RAM", hv_log((const char *)0xf0000000, 16), -HV_EFAULT);
	expect_result("annotate", hv_call(HV_CALL_ANNOTATE, 0xdeadbeef, 42, 0), 0);
	first = hv_clock();
	expect_result("yield", hv_call(HV_CALL_YIELD, 0, 0, 0), 0);
	second = hv_clock();
	expect("the clock is past its start", first > 0, true);
	expect("the clock goes on", second > first, true);
	expect("console-size is no error", hv_console_size() >= 0, true);
	expect_result("call 7", hv_call(7, 0, 0, 0), -HV_ENOSYS);
	expect_result("call 0xffffffff", hv_call(0xffffffff, 0, 0, 0), -HV_ENOSYS);
	check_registers();
	check_result_port();
	expect("byte read of CALL", inb(HV_PORT_CALL), 0xff);
	return done();
}
