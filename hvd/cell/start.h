/* The cell's start: what main.c needs of sandbox.c, landlock.c, ahead.c, filter.c, probe.c and leave.c. */
#ifndef HV_START_H
#define HV_START_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "area.h"

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
/* The same of a cell that was made ahead, out of a runner that was not in its jail yet: into that jail, as that user, and Landlock. Its own System V and
 * POSIX IPC and host name come first, before it waits. False: errno; then it must not go on. */
bool hv_sandbox_begin(void);
bool hv_sandbox_follow(uint32_t user, int network, int mounts, uint32_t *done);
/* Descriptors that are not needed any more, and the filter, behind the runner's if it is given; from then on only the calls of its table. False: *error says why. */
bool hv_sandbox_close(bool window, struct hv_cell_word *, int *error);

/* ---- landlock.c */
/* No file, no TCP, no abstract socket and no signal of others, where the kernel has Landlock. False: errno. */
bool hv_landlock(void);

/* ---- ahead.c */
struct hv_ahead {
    struct hv_cell_word word;
    int network, mounts; /* descriptors */
};
/* Until the runner says whose this cell is; counters and trace are at their numbers then. False: it will be nobody's. */
bool hv_ahead_wait(struct hv_ahead *);

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
