/* Crossings between guest and hypervisor: counted always, recorded on demand.
 *
 * The layouts below are read by the daemon with pread and are described once more in client/hvapi/record.py and hvd/trace/counters.py;
 * tests/unit/test_layouts.py compares every offset. Identifiers come from points.h, generated from hvd/trace/points.py.
 */
#ifndef HV_CROSSING_H
#define HV_CROSSING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "points.h"

#define HV_COUNTERS_MAGIC 0x54435648u /* "HVCT" */
#define HV_TRACE_MAGIC 0x52545648u    /* "HVTR" */
#define HV_LAYOUT_VERSION 1u
#define HV_POINTS 256
#define HV_BUCKETS 12
#define HV_DISKS 16
#define HV_NICS 8

/* One crossing, 64 bytes, little-endian. */
struct hv_record {
    uint64_t time_ns;     /* CLOCK_MONOTONIC at entry into the hypervisor */
    uint32_t duration_ns; /* entry to exit; UINT32_MAX = longer; 0 with HV_RECORD_UNTIMED */
    uint16_t point;       /* trace point: what the guest did */
    uint8_t kind;         /* enum hv_kind */
    uint8_t backend;      /* enum hv_backend_id */
    uint16_t vcpu;
    uint16_t flags;       /* HV_RECORD_* */
    uint32_t sequence;    /* low bits of the record's number, for finding loss */
    uint64_t rip;         /* guest-virtual */
    uint64_t arguments[4];
};
_Static_assert(sizeof(struct hv_record) == 64, "the record is 64 bytes");
#define HV_RECORD_USER 1u    /* from guest user mode (CPL 3) */
#define HV_RECORD_UNTIMED 2u /* the handling was not timed */
#define HV_RECORD_LONG 4u    /* the vcpu was in 64-bit mode */
#define HV_RECORD_MORE 8u    /* continues the record before it (containers only): client/hvapi/record.py */
#define HV_RECORD_TEXT 16u
#define HV_RECORD_STACK 32u /* with HV_RECORD_MORE: return addresses of the guest, the innermost first */

/* What continues a record, in a slot of its own: as struct hv_record up to `sequence`. */
struct hv_piece {
    uint64_t time_ns;
    uint32_t bytes; /* of the payload that count */
    uint16_t point;
    uint8_t kind, backend;
    uint16_t position, flags;
    uint32_t sequence;
    uint64_t payload[5];
};
_Static_assert(sizeof(struct hv_piece) == sizeof(struct hv_record), "a piece takes the place of a record");

struct hv_counter {
    uint64_t count, total_ns, max_ns;
};
/* Of disks and network cards, which are not in C: their owners in Python count here (hvd/board/hot.py). Slot n is the n-th of the machine's
 * configuration; present = 1 when there is one. Receive and transmit as the guest sees them. */
struct hv_disk_counter {
    uint64_t present, read_bytes, written_bytes, reads, writes, flushes, discards, errors, busy_ns, reserved[3];
};
struct hv_nic_counter {
    uint64_t present, received_bytes, received_packets, transmitted_bytes, transmitted_packets, received_dropped, transmitted_dropped, reserved[5];
};
struct hv_counters {
    uint32_t magic, version;
    uint64_t start_ns;             /* CLOCK_MONOTONIC when the machine was made */
    uint64_t first_instruction_ns; /* 0 = not yet */
    uint64_t run_ns;               /* spent executing the guest */
    uint64_t halted_ns;            /* spent waiting in HLT */
    uint64_t console_out_bytes, console_in_bytes;
    uint64_t resets;
    uint64_t records;              /* trace records written */
    uint64_t instructions;         /* 0 = not counted by this backend */
    /* Of the native cell (hvd/cell): pages of the guest that are mapped now; and of a translator: bytes of translated code, its callouts into
     * the monitor, jumps that were chained, indirect ones that no table knew, and blocks of places that were translated before. */
    uint64_t shadow_pages, cache_bytes, callouts, chained_jumps, looked_up_jumps, retranslated_blocks;
    uint64_t reserved[16];
    struct hv_counter points[HV_POINTS];
    uint64_t histogram[HV_POINTS][HV_BUCKETS]; /* handling time; upper bounds hv_bucket_ns, the last is infinity */
    struct hv_disk_counter disks[HV_DISKS];
    struct hv_nic_counter nics[HV_NICS];
};
extern const uint64_t hv_bucket_ns[HV_BUCKETS - 1];

/* A ring of records: the vcpu thread writes, any number of readers follow with a position of their own. Record n lies in slot
 * n % capacity. A reader that falls behind by capacity or more has lost records and knows how many. */
struct hv_trace_header {
    uint32_t magic, version;
    uint32_t capacity;     /* records, a power of two */
    uint32_t enabled;      /* written by the daemon: bit n = record kind n; 0 = off */
    uint64_t head;         /* records ever written; stored with release order after the record */
    uint32_t stacks;       /* written by the daemon: kinds of which the guest's call stack is recorded, too */
    uint32_t unused;
    uint64_t reserved[4];
};
_Static_assert(sizeof(struct hv_trace_header) == 64, "the ring's header is one record long");

/* The last crossings, for a debugger that shows what an instruction did: private to the runner, and NULL without a debugger. */
#define HV_TAP_RECORDS 64
struct hv_tap {
    uint64_t head; /* records written; record n lies in slot n % HV_TAP_RECORDS */
    struct hv_record records[HV_TAP_RECORDS];
};

/* ---- stack.c */
#define HV_STACK_MOST 20u /* return addresses of one crossing */
struct hv_stack_begin {
    uint64_t cr0, cr3, cr4, efer;
    uint64_t frame; /* linear address that the frame pointer points to */
    uint32_t word;  /* of the code: 4 or 8 bytes */
    /* Guest-physical memory, `length` bytes of it in one piece; NULL = not RAM. */
    const void *(*memory)(void *owner, uint64_t physical, size_t length);
    void *owner;
};
/* Returns how many addresses it found. */
unsigned hv_stack_walk(const struct hv_stack_begin *, uint64_t *addresses, unsigned most);

struct hv_crossings {
    struct hv_counters *counters; /* never NULL after init: falls back to a private page */
    struct hv_trace_header *trace;  /* NULL = no ring */
    /* What hv_cross asks: 0 = nobody looks. The ring's word of kinds; a word of our own without a ring, and with a tap. */
    const uint32_t *watched;
    uint32_t own_watched;
    uint32_t capacity;            /* our own copies: what is shared is not trusted */
    uint64_t head;
    uint8_t backend;
    struct hv_tap *tap;
    /* The guest's call stack now, by whoever knows its registers; NULL = nobody does. */
    unsigned (*stack)(void *owner, uint64_t *addresses, unsigned most);
    void *owner;
};
void hv_crossings_tap(struct hv_crossings *, struct hv_tap *);
void hv_crossings_init(struct hv_crossings *, void *counters, size_t counters_size, void *trace, size_t trace_size, unsigned backend);
/* For a second process that shares the files and takes turns with the first (hvd/cell): nothing in them is changed. */
void hv_crossings_join(struct hv_crossings *, void *counters, size_t counters_size, void *trace, size_t trace_size, unsigned backend);
/* It is this process's turn: go on behind the records of the other. Whatever stands in the file, no record goes beyond it. */
void hv_crossings_turn(struct hv_crossings *);
/* Work that is no crossing: recorded if somebody listens, not counted. Times as below. */
void hv_note(struct hv_crossings *, unsigned point, uint64_t start_ns, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3);
/* Does anybody listen to crossings of any kind? */
static inline bool hv_crossings_watched(const struct hv_crossings *crossings)
{
    return __builtin_expect(__atomic_load_n(crossings->watched, __ATOMIC_RELAXED) != 0, 0);
}
static inline void hv_crossing_counted(struct hv_crossings *crossings, unsigned point, uint64_t duration_ns)
{
    struct hv_counter *counter = &crossings->counters->points[point];
    counter->total_ns += duration_ns;
    if (duration_ns > counter->max_ns)
        counter->max_ns = duration_ns;
    unsigned bucket = 0;
    while (bucket < HV_BUCKETS - 1 && duration_ns > hv_bucket_ns[bucket])
        bucket++;
    counter->count++;
    crossings->counters->histogram[point][bucket]++;
}
/* Count, and record if somebody listens. start_ns = hv_host_ns() at entry; 0 = untimed. */
void hv_cross(struct hv_crossings *, unsigned point, uint64_t start_ns, uint64_t rip, unsigned flags, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3);

#endif
