#define _GNU_SOURCE
#include "board.h"

#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

bool hv_clock_by_call;

uint64_t hv_host_ns(void)
{
    struct timespec now;
    /* Neither can fail: the clock exists and the pointer is good. */
    if (hv_clock_by_call)
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    else
        clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#ifdef __x86_64__
uint64_t hv_host_tsc(void) { return __builtin_ia32_rdtsc(); }
#else
uint64_t hv_host_tsc(void) { return 0; }
#endif

void hv_clock_start(struct hv_clock *clock)
{
    if (clock->running)
        return;
    clock->base_ns = hv_host_ns() - clock->stopped_ns;
    clock->running = true;
}

void hv_clock_stop(struct hv_clock *clock)
{
    if (!clock->running)
        return;
    clock->stopped_ns = hv_host_ns() - clock->base_ns;
    clock->stopped_tsc = hv_host_tsc();
    clock->running = false;
}

uint64_t hv_clock_now(const struct hv_clock *clock)
{
    return clock->running ? hv_host_ns() - clock->base_ns : clock->stopped_ns;
}

uint64_t hv_clock_to_host(const struct hv_clock *clock, uint64_t ns)
{
    if (!clock->running || ns == HV_NEVER)
        return HV_NEVER;
    /* base_ns is below 0 (wrapped) when the guest has run for longer than this host is up. */
    int64_t host;
    if (ns > INT64_MAX || __builtin_add_overflow((int64_t)clock->base_ns, (int64_t)ns, &host))
        return HV_NEVER;
    return host > 0 ? (uint64_t)host : 0;
}
