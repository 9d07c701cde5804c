#include "crossing.h"

#include <string.h>

#include "board.h"

const uint64_t hv_bucket_ns[HV_BUCKETS - 1] = {250, 500, 1000, 2500, 5000, 10000, 25000, 100000, 1000000, 10000000, 100000000};

static const uint8_t point_kind[HV_POINTS] = HV_POINT_KINDS;

/* Where boards count that were given no page, in tests mostly. Nobody reads it. */
static struct hv_counters unread;

/* Where hv_cross looks whether it has more to do than count: one load and one branch. */
static void set_watched(struct hv_crossings *crossings)
{
    crossings->own_watched = crossings->tap != NULL;
    crossings->watched = crossings->trace && !crossings->tap ? &crossings->trace->enabled : &crossings->own_watched;
}

void hv_crossings_join(struct hv_crossings *crossings, void *counters, size_t counters_size, void *trace, size_t trace_size, unsigned backend)
{
    memset(crossings, 0, sizeof *crossings);
    crossings->backend = (uint8_t)backend;
    crossings->counters = counters && counters_size >= sizeof(struct hv_counters) ? counters : &unread;
    set_watched(crossings);
    if (!trace || trace_size < sizeof(struct hv_trace_header) + sizeof(struct hv_record))
        return;
    uint64_t room = (trace_size - sizeof(struct hv_trace_header)) / sizeof(struct hv_record);
    crossings->trace = trace;
    crossings->capacity = 1;
    while ((uint64_t)crossings->capacity * 2 <= room && crossings->capacity < 1u << 31)
        crossings->capacity *= 2;
    set_watched(crossings);
    hv_crossings_turn(crossings);
}

void hv_crossings_turn(struct hv_crossings *crossings)
{
    if (crossings->trace)
        crossings->head = __atomic_load_n(&crossings->trace->head, __ATOMIC_ACQUIRE);
}

void hv_crossings_init(struct hv_crossings *crossings, void *counters, size_t counters_size, void *trace, size_t trace_size, unsigned backend)
{
    hv_crossings_join(crossings, counters, counters_size, trace, trace_size, backend);
    memset(crossings->counters, 0, sizeof *crossings->counters);
    crossings->counters->version = HV_LAYOUT_VERSION;
    crossings->counters->start_ns = hv_host_ns();
    /* The magic comes last: a reader that finds it finds the rest. */
    __atomic_store_n(&crossings->counters->magic, HV_COUNTERS_MAGIC, __ATOMIC_RELEASE);

    if (!crossings->trace)
        return;
    crossings->head = 0;
    /* `enabled` stays as it is: the daemon may have switched the trace on before the guest's first instruction. */
    crossings->trace->version = HV_LAYOUT_VERSION;
    crossings->trace->capacity = crossings->capacity;
    __atomic_store_n(&crossings->trace->head, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&crossings->trace->magic, HV_TRACE_MAGIC, __ATOMIC_RELEASE);
}

void hv_crossings_tap(struct hv_crossings *crossings, struct hv_tap *tap)
{
    crossings->tap = tap;
    set_watched(crossings);
}

static struct hv_record fill(const struct hv_crossings *crossings, uint64_t number, unsigned point, uint64_t start_ns, uint64_t duration_ns,
                             uint64_t rip, unsigned flags, const uint64_t arguments[4])
{
    return (struct hv_record){
        .time_ns = start_ns ? start_ns : hv_host_ns(),
        .duration_ns = duration_ns < UINT32_MAX ? (uint32_t)duration_ns : UINT32_MAX,
        .point = (uint16_t)point,
        .kind = point_kind[point],
        .backend = crossings->backend,
        .flags = (uint16_t)(start_ns ? flags : flags | HV_RECORD_UNTIMED),
        .sequence = (uint32_t)number,
        .rip = rip,
        .arguments = {arguments[0], arguments[1], arguments[2], arguments[3]},
    };
}

static struct hv_record *slot(const struct hv_crossings *crossings)
{
    return (struct hv_record *)(crossings->trace + 1) + (crossings->head & (crossings->capacity - 1));
}

static void record_stack(struct hv_crossings *crossings, const struct hv_record *first)
{
    enum { EACH = sizeof(((struct hv_piece *)0)->payload) / sizeof(uint64_t) };
    uint64_t addresses[HV_STACK_MOST];
    unsigned count = crossings->stack(crossings->owner, addresses, HV_STACK_MOST);
    for (unsigned at = 0; at < count && at < HV_STACK_MOST; at += EACH) {
        unsigned here = count - at < EACH ? count - at : EACH;
        struct hv_piece piece = {
            .time_ns = first->time_ns,
            .bytes = here * (unsigned)sizeof *addresses,
            .point = first->point,
            .kind = first->kind,
            .backend = first->backend,
            .flags = HV_RECORD_MORE | HV_RECORD_STACK,
            .sequence = (uint32_t)crossings->head,
        };
        memcpy(piece.payload, addresses + at, here * sizeof *addresses);
        memcpy(slot(crossings), &piece, sizeof piece);
        crossings->head++;
    }
}

static void record(struct hv_crossings *crossings, unsigned point, uint64_t start_ns, uint64_t duration_ns, uint64_t rip, unsigned flags,
                   const uint64_t arguments[4])
{
    const struct hv_record first = fill(crossings, crossings->head, point, start_ns, duration_ns, rip, flags, arguments);
    *slot(crossings) = first;
    crossings->head++;
    if (__builtin_expect(__atomic_load_n(&crossings->trace->stacks, __ATOMIC_RELAXED) >> point_kind[point] & 1, 0) && crossings->stack)
        record_stack(crossings, &first);
    /* Together: no reader finds a record without what continues it. */
    crossings->counters->records = crossings->head;
    __atomic_store_n(&crossings->trace->head, crossings->head, __ATOMIC_RELEASE);
}

static bool wanted(const struct hv_crossings *crossings, unsigned point)
{
    return crossings->trace && __atomic_load_n(&crossings->trace->enabled, __ATOMIC_RELAXED) >> point_kind[point] & 1;
}

/* Somebody looks: at crossings of this kind, too? */
static __attribute__((noinline, cold)) void look(struct hv_crossings *crossings, unsigned point, uint64_t start_ns, uint64_t duration, uint64_t rip,
                                                 unsigned flags, const uint64_t arguments[4])
{
    if (wanted(crossings, point))
        record(crossings, point, start_ns, duration, rip, flags, arguments);
    struct hv_tap *tap = crossings->tap;
    if (tap) {
        tap->records[tap->head % HV_TAP_RECORDS] = fill(crossings, tap->head, point, start_ns, duration, rip, flags, arguments);
        tap->head++;
    }
}

/* Not in-line, so that tests/board/test_trace_cost.py can look at it. */
__attribute__((noinline)) void hv_cross(struct hv_crossings *crossings, unsigned point, uint64_t start_ns, uint64_t rip, unsigned flags, uint64_t a0,
                                        uint64_t a1, uint64_t a2, uint64_t a3)
{
    point &= HV_POINTS - 1;
    uint64_t duration = 0;

    if (start_ns) {
        uint64_t now = hv_host_ns();
        duration = now > start_ns ? now - start_ns : 0;
        hv_crossing_counted(crossings, point, duration);
    } else {
        crossings->counters->points[point].count++;
    }
    if (hv_crossings_watched(crossings))
        look(crossings, point, start_ns, duration, rip, flags, (const uint64_t[4]){a0, a1, a2, a3});
}

void hv_note(struct hv_crossings *crossings, unsigned point, uint64_t start_ns, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3)
{
    point &= HV_POINTS - 1;
    if (!wanted(crossings, point))
        return;
    uint64_t now = hv_host_ns();
    record(crossings, point, start_ns, start_ns && now > start_ns ? now - start_ns : 0, 0, 0, (const uint64_t[4]){a0, a1, a2, a3});
}
