/* What an exit of /dev/kvm to its user costs, and the way back: a real-mode guest that writes to a port all the time. Prints "kvm-exit PICOSECONDS", the
 * quickest of some runs; exits with 3 and says why where there is no /dev/kvm. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define AT 0x1000u /* guest-physical; the segments' bases are 0 */
#define ROUNDS 20000
#define RUNS 8
#define ABSENT 3

static const uint8_t code[] = {0xe6, 0x80, 0xeb, 0xfc}; /* 1: out %al, $0x80; jmp 1b */

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(ABSENT);
}

static int call(int fd, unsigned long request, const char *what, void *argument)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		fail(what);
	return result;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		fail("/dev/kvm");
	int machine = call(kvm, KVM_CREATE_VM, "KVM_CREATE_VM", NULL);
	uint8_t *memory = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("memory");
	memcpy(memory + AT, code, sizeof code);
	struct kvm_userspace_memory_region region = {.memory_size = 0x2000, .userspace_addr = (uint64_t)(uintptr_t)memory};

	call(machine, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &region);
	int vcpu = call(machine, KVM_CREATE_VCPU, "KVM_CREATE_VCPU", NULL);
	int bytes = call(kvm, KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE", NULL);
	struct kvm_run *run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	if (run == MAP_FAILED)
		fail("the vcpu's page");
	struct kvm_sregs segments;

	call(vcpu, KVM_GET_SREGS, "KVM_GET_SREGS", &segments);
	segments.cs.base = segments.cs.selector = 0;
	call(vcpu, KVM_SET_SREGS, "KVM_SET_SREGS", &segments);
	struct kvm_regs registers = {.rip = AT, .rflags = 2};

	call(vcpu, KVM_SET_REGS, "KVM_SET_REGS", &registers);
	uint64_t best = UINT64_MAX;
	for (int turn = 0; turn < RUNS; turn++) {
		uint64_t start = now_ns();

		for (int n = 0; n < ROUNDS; n++) {
			if (ioctl(vcpu, KVM_RUN, NULL) < 0 && errno != EINTR)
				fail("KVM_RUN");
			if (run->exit_reason != KVM_EXIT_IO && run->exit_reason != KVM_EXIT_INTR) {
				fprintf(stderr, "KVM_RUN: exit %u\n", run->exit_reason);
				return ABSENT;
			}
		}
		uint64_t took = (now_ns() - start) * 1000 / ROUNDS;
		best = took < best ? took : best;
	}
	printf("kvm-exit %llu\n", (unsigned long long)best);
	return 0;
}
