/* The runner's side of a cell, in libhv.so: host.c runs it, check.c judges what it says. For hvd/cell/process.py, by ctypes. */
#ifndef HV_HOST_H
#define HV_HOST_H

#include "area.h"

/* ---- check.c */
/* What is known of a cell without asking it. */
struct hv_cell_known {
    uint32_t region_count;
    struct hv_cell_region regions[HV_AREA_REGIONS];
    uint64_t start_ns;  /* CLOCK_MONOTONIC at which it was made */
    bool debugged;      /* set_debug asked for something */
};
/* Take what the cell left in the area: one copy of each thing, checked, into memory of the runner's own, the devices' state into its board.
 * NULL, or what cannot be: then exit, cpu and board are as they were. */
const char *hv_cell_take(const struct hv_cell_known *, const struct hv_cell_area *, struct hv_cell_exit *, struct hv_cpu *, struct hv_board *);
/* A text of the area: printable, and with an end. */
void hv_cell_text(char *to, const char *from, size_t size);
/* The devices' part of a board, into the area. */
void hv_cell_give_devices(struct hv_cell_area *, const struct hv_board *);

/* ---- host.c */
#define HV_CELL_SILENCE_NS 5000000000u /* in which a cell that is kicked may run without an answer */
#define HV_CELL_LAST_EXITS 64u         /* that it may make of what it was doing before it answers */
#define HV_CELL_LAST_WAITS 600u        /* for the console, of a tenth of a second each (hvd/board/machine.py) */

struct hv_cell_host;
/* NULL: errno. The area is made and described; what it lacks are regions, CPUID and claimed ports. memory: the runner's own mapping of the
 * memory file. */
struct hv_cell_host *hv_cell_create(struct hv_board *, enum hv_cell_mode, unsigned backend, const void *memory, uint64_t memory_size);
bool hv_cell_add_region(struct hv_cell_host *, uint64_t start, uint64_t length, uint64_t file_offset, uint32_t kind, bool hot); /* false: too many */
void hv_cell_forget_taken(struct hv_cell_host *);
void hv_cell_add_taken(struct hv_cell_host *, uint64_t offset, uint64_t length);
bool hv_cell_set_cpuid(struct hv_cell_host *, const struct hv_cell_cpuid *, uint32_t count);                                   /* false: too many */
void hv_cell_tell_tsc(struct hv_cell_host *, uint64_t hz); /* what CPUID tells of the time stamp counter; 0 = nothing */
/* From the next run on it is computed from the board's clock, at which RDTSC traps; at_zero: what it was when that clock was 0. It comes to
 * that by itself when the guest goes on after its clock has stood. */
void hv_cell_count_tsc(struct hv_cell_host *, uint64_t at_zero);
bool hv_cell_tsc_stands(const struct hv_cell_host *);      /* is it computed, so that it stands when the clock does */
uint64_t hv_cell_tsc_at_zero(const struct hv_cell_host *); /* by now, or when the clock was stopped; at an exit */
int hv_cell_descriptor(const struct hv_cell_host *, enum hv_cell_fd); /* of AREA, GO, LEFT: what the cell inherits; -1: not one of these */
struct hv_cell_counters *hv_cell_counters(struct hv_cell_host *); /* the cell's own: any thread, not to be trusted */
struct hv_cell_code *hv_cell_code(struct hv_cell_host *);         /* likewise */
uint32_t hv_cell_sandbox(const struct hv_cell_host *);            /* likewise; enum hv_sandbox */
struct hv_console *hv_cell_console(struct hv_cell_host *);
void hv_cell_make_ahead(struct hv_cell_host *, enum hv_ahead_of); /* before it is started: it will wait for struct hv_cell_word */
void hv_cell_started(struct hv_cell_host *, int pidfd); /* the process is there; the descriptor is the host's from now on */
/* Runs the guest; returns an enum hv_cell_reason. One thread at a time; blocks. */
int hv_cell_run(struct hv_cell_host *);
struct hv_cell_exit *hv_cell_exit(struct hv_cell_host *);   /* the last one; its value answers *_IN and *_READ at the next run */
struct hv_cpu *hv_cell_cpu(struct hv_cell_host *);          /* as at the last exit */
void hv_cell_change_cpu(struct hv_cell_host *);             /* it was changed: the cell takes it over, an access that waits is dropped */
struct hv_cell_debug *hv_cell_debug(struct hv_cell_host *); /* to be filled in, then */
void hv_cell_set_cpu(struct hv_cell_host *);                /* it is another one, as after a reset: what was mapped for the old one goes, too */
void hv_cell_change_debug(struct hv_cell_host *);
void hv_cell_memory_changed(struct hv_cell_host *, const uint64_t *ranges, uint32_t count); /* addresses and lengths in turn */
/* A turn for the census alone, between two runs; false: the cell is gone, or does not answer, as the next run says. */
bool hv_cell_ask_census(struct hv_cell_host *, enum hv_census);
const struct hv_cell_census *hv_cell_census(struct hv_cell_host *); /* not to be trusted */
void hv_cell_kick(struct hv_cell_host *);                   /* any thread */
void hv_cell_end(struct hv_cell_host *);                    /* ends the process and waits for that; no error when it has ended */
void hv_cell_free(struct hv_cell_host *);                   /* and everything else. NULL is all right */

/* CPUID of this host; false: not an x86-64. */
bool hv_host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

#endif
