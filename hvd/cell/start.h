/* The cell's start: what main.c needs of sandbox.c, filter.c, probe.c and leave.c. */
#ifndef HV_START_H
#define HV_START_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>


/* ---- sandbox.c */
/* What of it there is: area->sandbox. A step that needs privileges which the runner has not is left out; seccomp never is. */
enum hv_sandbox {
    HV_SANDBOX_NAMESPACES = 1, /* network, mounts, System V and POSIX IPC, host name: of its own, empty */
    HV_SANDBOX_ROOT = 2,       /* the root directory is empty */
    HV_SANDBOX_CAPABILITIES = 4, /* none but CAP_SYS_RAWIO, which page 0 needs */
    HV_SANDBOX_RAWIO = 8,      /* that one */
    HV_SANDBOX_SECCOMP = 16,
};
/* Namespaces, root, limits, capabilities. */
uint32_t hv_sandbox_enter(void);
/* Descriptors that are not needed any more, and the filter; from then on only the calls of its table. False: *error says why. */
bool hv_sandbox_close(bool window, int *error);

/* ---- filter.c */
struct sock_filter;
#define HV_FILTER_MOST 512
/* The seccomp filter for system calls from text_start..text_end (the monitor's); returns its length in instructions. */
unsigned hv_filter(struct sock_filter *, uint64_t text_start, uint64_t text_end, bool window, uint32_t pid);

/* ---- probe.c */
int hv_probe(void); /* --probe: a line for each thing that is needed; the exit status is 0 when all is there */

/* ---- leave.c */
bool hv_timer_create(void);  /* errno */
void hv_wait_for_turn(void); /* `go`, and what the runner has changed, but not the processor's state */

#endif
