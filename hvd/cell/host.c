/* The runner's side of a cell: the area, turns, kicks, and the end of a cell that breaks the rules. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host.h"

#define MS 1000000u
#define NS 1000000000u
#define MOST_CROSSINGS (1u << 20) /* of one turn, to be believed */
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

struct hv_cell_host {
    struct hv_board *board;
    const uint8_t *memory; /* of the guest, as the runner has mapped it */
    uint64_t memory_size;
    struct hv_cell_area *area;
    int area_fd, go, left, wake, pidfd;
    struct hv_cell_known known;
    struct hv_cell_exit exit;
    uint32_t string_done; /* of it */
    struct hv_cpu cpu;
    struct hv_cell_debug debug;
    bool started, dead, debug_changed;
    uint32_t cpu_changed; /* as in the area */
    uint32_t range_count;
    uint64_t ranges[HV_AREA_RANGES][2];
    /* Of a kick that is not answered yet. */
    int kicked; /* any thread */
    uint64_t silent_ns;
    unsigned exits, waits;
};

/* ---- making it */

static void release(struct hv_cell_host *host)
{
    const int descriptors[] = {host->area_fd, host->go, host->left, host->wake, host->pidfd};
    if (host->area)
        munmap(host->area, sizeof *host->area);
    for (size_t i = 0; i < sizeof descriptors / sizeof *descriptors; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    free(host);
}

static bool make_area(struct hv_cell_host *host)
{
    host->area_fd = (int)syscall(SYS_memfd_create, "hvd-cell-area", 1u /* CLOEXEC */ | 2u /* ALLOW_SEALING */);
    if (host->area_fd < 0 || ftruncate(host->area_fd, sizeof *host->area) != 0 ||
        fcntl(host->area_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return false;
    void *at = mmap(NULL, sizeof *host->area, PROT_READ | PROT_WRITE, MAP_SHARED, host->area_fd, 0);
    if (at == MAP_FAILED)
        return false;
    host->area = at;
    return true;
}

/* ---- call stacks of the crossings that the runner records (hvd/board/native/stack.c): registers as checked at the exit, memory as it is */

static const void *ram_at(void *owner, uint64_t physical, size_t length)
{
    const struct hv_cell_host *host = owner;
    for (uint32_t i = 0; i < host->known.region_count; i++) {
        const struct hv_cell_region *region = &host->known.regions[i];
        uint64_t at = region->file_offset + (physical - region->start);
        if (physical - region->start < region->length && region->kind != HV_REGION_MMIO)
            return region->length - (physical - region->start) >= length && at <= host->memory_size - length ? host->memory + at : NULL;
    }
    return NULL;
}

static unsigned call_stack(void *owner, uint64_t *addresses, unsigned most)
{
    struct hv_cell_host *host = owner;
    const struct hv_cpu *cpu = &host->cpu;
    if (!(cpu->segment[HV_CS].attributes & HV_SEGMENT_32))
        return 0; /* 16-bit code */
    const struct hv_stack_begin begin = {
        .cr0 = cpu->cr0, .cr3 = cpu->cr3, .cr4 = cpu->cr4, .frame = cpu->segment[HV_SS].base + cpu->r[HV_EBP], .word = 4,
        .memory = ram_at, .owner = host,
    };
    return hv_stack_walk(&begin, addresses, most);
}

struct hv_cell_host *hv_cell_create(struct hv_board *board, enum hv_cell_mode mode, unsigned backend, const void *memory, uint64_t memory_size)
{
    struct hv_cell_host *host = aligned_alloc(64, (sizeof *host + 63) / 64 * 64);
    if (!host)
        return NULL;
    memset(host, 0, sizeof *host);
    host->board = board;
    host->area_fd = host->pidfd = -1;
    host->go = eventfd(0, EFD_CLOEXEC);
    host->left = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    host->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (host->go < 0 || host->left < 0 || host->wake < 0 || !make_area(host)) {
        int error = errno;
        release(host);
        errno = error;
        return NULL;
    }
    host->known.start_ns = hv_host_ns();
    host->memory = memory;
    host->memory_size = memory_size;
    struct hv_cell_area *area = host->area;
    area->magic = HV_AREA_MAGIC;
    area->version = HV_AREA_VERSION;
    area->mode = mode;
    area->backend = backend;
    area->runner = (uint32_t)getpid();
    area->memory_size = memory_size;
    memcpy(area->claimed, board->claimed, sizeof area->claimed);
    hv_console_init(&area->console);
    return host;
}

bool hv_cell_add_region(struct hv_cell_host *host, uint64_t start, uint64_t length, uint64_t file_offset, uint32_t kind, bool hot)
{
    if (host->known.region_count >= HV_AREA_REGIONS)
        return false;
    struct hv_cell_region region = {.start = start, .length = length, .file_offset = file_offset, .kind = kind, .hot = hot};
    host->area->regions[host->known.region_count] = host->known.regions[host->known.region_count] = region;
    host->area->region_count = ++host->known.region_count;
    return true;
}

void hv_cell_forget_taken(struct hv_cell_host *host) { host->area->taken_count = 0; }

void hv_cell_add_taken(struct hv_cell_host *host, uint64_t offset, uint64_t length)
{
    if (host->area->taken_count < HV_AREA_TAKEN)
        host->area->taken[host->area->taken_count++] = (struct hv_cell_taken){offset, length};
}

bool hv_cell_set_cpuid(struct hv_cell_host *host, const struct hv_cell_cpuid *rows, uint32_t count)
{
    if (count > HV_AREA_CPUID)
        return false;
    memcpy(host->area->cpuid, rows, count * sizeof *rows);
    host->area->cpuid_count = count;
    return true;
}

int hv_cell_descriptor(const struct hv_cell_host *host, enum hv_cell_fd which)
{
    return which == HV_CELL_FD_AREA ? host->area_fd : which == HV_CELL_FD_GO ? host->go : which == HV_CELL_FD_LEFT ? host->left : -1;
}

/* ---- the guest's time stamp counter */

static uint64_t ticks(const struct hv_cell_host *host, uint64_t ns) { return (uint64_t)((unsigned __int128)ns * host->area->tsc_told_hz / NS); }

void hv_cell_tell_tsc(struct hv_cell_host *host, uint64_t hz) { host->area->tsc_told_hz = hz; }

void hv_cell_count_tsc(struct hv_cell_host *host, uint64_t at_zero)
{
    host->area->tsc_at_zero = at_zero;
    host->area->tsc_counted = 1;
}

bool hv_cell_tsc_stands(const struct hv_cell_host *host) { return host->area->tsc_counted; }

uint64_t hv_cell_tsc_at_zero(const struct hv_cell_host *host)
{
    const struct hv_clock *clock = &host->board->clock;
    if (host->area->tsc_counted)
        return host->area->tsc_at_zero + host->cpu.tsc_offset;
    uint64_t tsc = clock->running ? hv_host_tsc() : clock->stopped_tsc;
    return tsc - ticks(host, hv_clock_now(clock)) + host->cpu.tsc_offset;
}

/* It is the host's until the guest's clock stands for the first time, where the host's goes on. */
static void keep_time(struct hv_cell_host *host)
{
    const struct hv_clock *clock = &host->board->clock;
    if (!host->area->tsc_counted && clock->stopped_ns && host->area->tsc_told_hz)
        hv_cell_count_tsc(host, clock->stopped_tsc - ticks(host, clock->stopped_ns));
}

struct hv_cell_counters *hv_cell_counters(struct hv_cell_host *host) { return &host->area->counters; }
struct hv_cell_code *hv_cell_code(struct hv_cell_host *host) { return &host->area->code; }
uint32_t hv_cell_sandbox(const struct hv_cell_host *host) { return host->area->sandbox; }
struct hv_console *hv_cell_console(struct hv_cell_host *host) { return &host->area->console; }
struct hv_cell_exit *hv_cell_exit(struct hv_cell_host *host) { return &host->exit; }
struct hv_cpu *hv_cell_cpu(struct hv_cell_host *host) { return &host->cpu; }
struct hv_cell_debug *hv_cell_debug(struct hv_cell_host *host) { return &host->debug; }
void hv_cell_change_cpu(struct hv_cell_host *host)
{
    if (!host->cpu_changed)
        host->cpu_changed = HV_CELL_REGISTERS;
}

void hv_cell_set_cpu(struct hv_cell_host *host) { host->cpu_changed = HV_CELL_WHOLE_STATE; }

void hv_cell_change_debug(struct hv_cell_host *host)
{
    host->debug_changed = true;
    host->known.debugged = host->debug.step || host->debug.breakpoint_count || host->debug.watchpoint_count;
}

void hv_cell_make_ahead(struct hv_cell_host *host, enum hv_ahead_of of) { host->area->ahead = of; }

void hv_cell_started(struct hv_cell_host *host, int pidfd)
{
    host->pidfd = pidfd;
    host->started = true;
}

void hv_cell_memory_changed(struct hv_cell_host *host, const uint64_t *ranges, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (host->range_count < HV_AREA_RANGES) {
            host->ranges[host->range_count][0] = ranges[2 * i];
            host->ranges[host->range_count][1] = ranges[2 * i + 1];
        }
        if (host->range_count <= HV_AREA_RANGES)
            host->range_count++; /* one more than there is room for stands for everything */
    }
}

/* ---- the end of the process */

/* Reaps it; the status as of waitpid(2) is unknown (-1) when somebody else did. */
static int reap(struct hv_cell_host *host)
{
    siginfo_t info = {0};
    host->dead = true;
    while (waitid((idtype_t)P_PIDFD, (id_t)host->pidfd, &info, WEXITED) != 0)
        if (errno != EINTR)
            return -1;
    return info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status;
}

void hv_cell_end(struct hv_cell_host *host)
{
    if (host->dead || !host->started)
        return;
    syscall(SYS_pidfd_send_signal, host->pidfd, SIGKILL, NULL, 0);
    reap(host);
}

static int fail(struct hv_cell_host *host, const char *what, const char *why)
{
    host->exit.reason = HV_CELL_ERROR;
    host->exit.address = host->exit.value = host->exit.size = 0;
    if (snprintf(host->exit.detail, sizeof host->exit.detail, "%s%s", what, why) < 0) /* cut off: that is all right */
        host->exit.detail[0] = 0;
    return HV_CELL_ERROR;
}

static int break_off(struct hv_cell_host *host, const char *what, const char *why)
{
    hv_cell_end(host);
    return fail(host, what, why);
}

static int died(struct hv_cell_host *host)
{
    int status = reap(host), number = status & 0x7f;
    char text[sizeof host->exit.detail];
    if (status == -1)
        return fail(host, "the cell has ended, and its status is lost", "");
    if (number == SIGSYS)
        return fail(host, "the guest made a system call of the host, out of 64-bit code: its cell was ended", "");
    if (number == SIGKILL)
        return fail(host, "the cell was killed from outside (by the host when it had no memory left, or by somebody)", "");
    if (number) {
        snprintf(text, sizeof text, "%d (%s): what the guest did has damaged it, or it has a bug", number, strsignal(number));
        return fail(host, "the cell died of signal ", text);
    }
    hv_cell_text(text, host->area->exit.detail, sizeof text);
    return fail(host, text[0] ? "the cell ended: " : "the cell ended without a word", text);
}

/* ---- turns */

static void give_entropy(struct hv_entropy *entropy)
{
    uint32_t left = __atomic_load_n(&entropy->left, __ATOMIC_RELAXED); /* once, from the cell, which may change it meanwhile */
    if (left >= HV_ENTROPY_BYTES)
        return;
    ssize_t got = getrandom(entropy->byte + left, HV_ENTROPY_BYTES - left, 0);
    if (got > 0) /* or else Python answers, and says what is wrong */
        entropy->left = left + (uint32_t)got;
}

static void hand_over(struct hv_cell_host *host)
{
    struct hv_cell_area *area = host->area;
    host->board->crossings.stack = call_stack; /* a board that is given its files later forgets it */
    host->board->crossings.owner = host;
    area->cpu_changed = host->cpu_changed;
    if (host->cpu_changed)
        area->cpu = host->cpu;
    area->debug_changed = host->debug_changed;
    if (host->debug_changed)
        area->debug = host->debug;
    area->range_count = host->range_count;
    memcpy(area->ranges, host->ranges, sizeof *host->ranges * (host->range_count < HV_AREA_RANGES ? host->range_count : HV_AREA_RANGES));
    area->answer = host->exit.value;
    area->string_done = host->string_done;
    area->tapped = host->board->crossings.tap != NULL;
    area->tap.head = 0;
    area->clock = host->board->clock;
    keep_time(host);
    hv_cell_give_devices(area, host->board);
    give_entropy(&area->entropy);
    host->cpu_changed = 0;
    host->debug_changed = false;
    host->range_count = 0;
    if (__atomic_load_n(&host->kicked, __ATOMIC_SEQ_CST))
        __atomic_store_n(&area->kick, 1, __ATOMIC_SEQ_CST); /* a cell may have forgotten it */
}

/* A descriptor whose counter a forged cell has filled would block. */
static bool give_turn(struct hv_cell_host *host)
{
    struct pollfd room = {.fd = host->go, .events = POLLOUT};
    uint64_t one = 1;
    return poll(&room, 1, 0) == 1 && write(host->go, &one, sizeof one) == sizeof one;
}

enum outcome { LEFT, DIED, SILENT };

static enum outcome await(struct hv_cell_host *host)
{
    uint64_t start_ns = hv_host_ns(), count;
    for (;;) {
        int timeout = -1;
        bool kicked = __atomic_load_n(&host->kicked, __ATOMIC_SEQ_CST);
        if (kicked) {
            uint64_t used_ns = host->silent_ns + (hv_host_ns() - start_ns);
            if (used_ns >= HV_CELL_SILENCE_NS)
                return SILENT;
            timeout = (int)((HV_CELL_SILENCE_NS - used_ns) / MS) + 1;
        }
        struct pollfd events[] = {{.fd = host->left, .events = POLLIN}, {.fd = host->pidfd, .events = POLLIN}, {.fd = host->wake, .events = POLLIN}};
        if (poll(events, 3, timeout) < 0 && errno != EINTR)
            return DIED; /* cannot be: these are our own descriptors */
        if (events[1].revents)
            return DIED;
        if (events[2].revents && read(host->wake, &count, sizeof count) == sizeof count && !kicked)
            start_ns = hv_host_ns(); /* kicked now, and not before: until here its silence was its right */
        if (events[0].revents && read(host->left, &count, sizeof count) == sizeof count)
            break;
    }
    host->silent_ns += hv_host_ns() - start_ns;
    return LEFT;
}

/* The kick was answered, or nobody kicked: begin anew. Otherwise: is the cell making a fool of us? */
static bool answers(struct hv_cell_host *host)
{
    bool answered = host->exit.reason == HV_CELL_INTERRUPTED || host->exit.reason == HV_CELL_ERROR || host->exit.reason == HV_CELL_SHUTDOWN;
    if (answered)
        __atomic_store_n(&host->kicked, 0, __ATOMIC_SEQ_CST);
    if (answered || !__atomic_load_n(&host->kicked, __ATOMIC_SEQ_CST)) {
        host->silent_ns = 0;
        host->exits = host->waits = 0;
        return true;
    }
    if (host->exit.reason == HV_CELL_CONSOLE_FULL)
        return ++host->waits <= HV_CELL_LAST_WAITS;
    return ++host->exits <= HV_CELL_LAST_EXITS;
}

/* The crossings that the cell has seen, behind those that the runner has. */
static void take_tap(struct hv_tap *tap, const struct hv_tap *cell)
{
    uint64_t count = __atomic_load_n(&cell->head, __ATOMIC_RELAXED);
    if (count > MOST_CROSSINGS)
        count = MOST_CROSSINGS;
    uint64_t lost = count > HV_TAP_RECORDS ? count - HV_TAP_RECORDS : 0;
    tap->head += lost;
    for (uint64_t n = lost; n < count; n++) {
        struct hv_record record = cell->records[n % HV_TAP_RECORDS];
        record.point %= HV_POINTS;
        tap->records[tap->head++ % HV_TAP_RECORDS] = record;
    }
}

/* Windows of the runner's own board, which the cell has not; and a console that has been drained meanwhile. Of a string of elements as many as
 * a window takes; the next one is another exit. */
static bool served(struct hv_cell_host *host)
{
    struct hv_cell_exit *exit = &host->exit;
    uint16_t port = (uint16_t)exit->address;
    bool in = exit->reason == HV_CELL_PORT_IN;
    host->string_done = 1;
    if (exit->reason == HV_CELL_CONSOLE_FULL)
        return !hv_console_full(host->board->console);
    if (!in && exit->reason != HV_CELL_PORT_OUT)
        return false;
    uint64_t start_ns = exit->start_ns;
    uint32_t done = 0;
    do {
        uint32_t value = done ? host->area->string[done] : (uint32_t)exit->value;
        if (!(in ? hv_window_in(host->board, port, exit->size, &value) : hv_window_out(host->board, port, exit->size, value)))
            break;
        if (in && !done)
            exit->value = value;
        else if (in)
            host->area->string[done] = value;
        unsigned point = in ? HV_POINT_PORT_IN : HV_POINT_PORT_OUT;
        hv_cross(&host->board->crossings, point, start_ns, exit->rip, exit->flags, port, exit->size, value & (uint32_t)((1ull << 8 * exit->size) - 1), 0);
        if (exit->count > 1)
            start_ns = hv_host_ns();
    } while (++done < exit->count);
    if (done)
        host->string_done = done;
    return done;
}

int hv_cell_run(struct hv_cell_host *host)
{
    if (!host->started || host->dead)
        return fail(host, "the cell is not there any more", "");
    do {
        hand_over(host);
        if (!give_turn(host))
            return break_off(host, "the cell does not play by the rules: ", "it fills descriptors that are not its own");
        switch (await(host)) {
        case DIED:
            return died(host);
        case SILENT:
            return break_off(host, "the cell does not answer", "");
        case LEFT:
            break;
        }
        hv_crossings_turn(&host->board->crossings);
        if (host->board->crossings.tap)
            take_tap(host->board->crossings.tap, &host->area->tap);
        const char *wrong = hv_cell_take(&host->known, host->area, &host->exit, &host->cpu, host->board);
        if (wrong)
            return break_off(host, "the guest has taken its cell over, which left a forged exit record: ", wrong);
        if (!answers(host))
            return break_off(host, "the cell does not answer", ", but goes on with what it was doing");
    } while (served(host));
    return (int)host->exit.reason;
}

bool hv_cell_ask_census(struct hv_cell_host *host, enum hv_census command)
{
    if (!host->started || host->dead)
        return false;
    host->area->census.command = command;
    uint64_t start_ns = hv_host_ns(), used_ns = 0, count;
    struct pollfd events[] = {{.fd = host->left, .events = POLLIN}, {.fd = host->pidfd, .events = POLLIN}};
    bool answered = false;
    if (give_turn(host)) {
        do {
            int ready = poll(events, 2, (int)((HV_CELL_SILENCE_NS - used_ns) / MS) + 1);
            answered = ready > 0 && events[0].revents && read(host->left, &count, sizeof count) == sizeof count;
            used_ns = hv_host_ns() - start_ns;
        } while (!answered && !(events[1].revents) && used_ns < HV_CELL_SILENCE_NS);
    }
    host->area->census.command = HV_CENSUS_NONE;
    if (!answered && !events[1].revents) /* run() finds it ended */
        syscall(SYS_pidfd_send_signal, host->pidfd, SIGKILL, NULL, 0);
    return answered;
}

const struct hv_cell_census *hv_cell_census(struct hv_cell_host *host) { return &host->area->census; }

void hv_cell_kick(struct hv_cell_host *host)
{
    uint64_t one = 1;
    __atomic_store_n(&host->kicked, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&host->area->kick, 1, __ATOMIC_SEQ_CST);
    if (host->started)
        syscall(SYS_pidfd_send_signal, host->pidfd, HV_CELL_KICK_SIGNAL, NULL, 0); /* fails when it has ended: run() finds that */
    if (write(host->wake, &one, sizeof one) < 0) {
        /* full: run() is being woken anyway */
    }
}

void hv_cell_free(struct hv_cell_host *host)
{
    if (!host)
        return;
    hv_cell_end(host);
    if (host->board->crossings.owner == host)
        host->board->crossings.stack = NULL;
    release(host);
}

/* ---- this host's processor */

#ifdef __x86_64__
#include <cpuid.h>

bool hv_host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    out[0] = out[1] = out[2] = out[3] = 0;
    __get_cpuid_count(leaf, subleaf, &out[0], &out[1], &out[2], &out[3]); /* zeroes for a leaf that it has not */
    return true;
}
#else
bool hv_host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    (void)leaf, (void)subleaf;
    out[0] = out[1] = out[2] = out[3] = 0;
    return false;
}
#endif
