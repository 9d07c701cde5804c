/* What a guest's own compiler makes and the guest's Linux then runs (tests/e2e/test_linux_programs.py): faults that are caught, floating
 * point with signals in the middle of it, many children at pipes. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAULTS 1000
#define SIGNALS 50
#define CHILDREN 40

static sigjmp_buf again;
static volatile sig_atomic_t ticks;
static volatile double noise = 1.5;

static double sum(int terms)
{
	double total = 0;

	for (int n = 1; n <= terms; n++)
		total += sqrt(n) * sin(n);
	return total;
}

static void on_fault(int number)
{
	siglongjmp(again, number);
}

static void on_tick(int number)
{
	(void)number;
	noise = noise * 1.0000001 + sum(3); /* it must not be seen outside */
	ticks++;
}

static void faults(void)
{
	volatile int segv = 0, fpe = 0, zero = 0;

	signal(SIGSEGV, on_fault);
	signal(SIGFPE, on_fault);
	for (volatile int n = 0; n < FAULTS; n++) {
		int number = sigsetjmp(again, 1);

		if (number == SIGSEGV)
			segv++;
		else if (number == SIGFPE)
			fpe++;
		else if (n & 1)
			zero = 7 / zero;
		else
			*(volatile int *)(long)(n * 64) = 1; /* the first page is nobody's */
	}
	printf("faults %d %d\n", segv, fpe);
}

static void signals(void)
{
	struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
	double right = sum(1000);
	int wrong = 0;

	signal(SIGALRM, on_tick);
	setitimer(ITIMER_REAL, &often, NULL);
	while (ticks < SIGNALS)
		wrong += sum(1000) != right;
	setitimer(ITIMER_REAL, &never, NULL);
	printf("signals %d wrong, sum %.6f\n", wrong, right);
}

static void children(void)
{
	double right = sum(500), got;
	int good = 0, ends[2];

	for (int n = 0; n < CHILDREN; n++) {
		if (pipe(ends))
			exit(2);
		fflush(stdout);
		if (!fork()) {
			got = sum(500);
			_exit(write(ends[1], &got, sizeof got) != sizeof got);
		}
		if (read(ends[0], &got, sizeof got) == sizeof got && got == right)
			good++;
		wait(NULL);
		close(ends[0]);
		close(ends[1]);
	}
	printf("children %d\n", good);
}

int main(void)
{
	faults();
	signals();
	children();
	return 0;
}
