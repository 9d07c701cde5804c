/* To the runner and back: exits, ports and MMIO that the runner's devices answer, HLT, and time. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cell.h"
#include "debug.h"
#include "lookaside.h"
#include "pace.h"
#include "paravirt.h"
#include "signals.h"
#include "start.h"
#include "translate.h"

#define NS 1000000000u
#define COM1 0x3f8
#define DEVICES offsetof(struct hv_board, pic) /* to `claimed`: plain values */
#define DEVICES_BYTES (offsetof(struct hv_board, claimed) - DEVICES)
_Static_assert(DEVICES_BYTES <= HV_AREA_DEVICES, "the run area has room for the devices");

static timer_t timer;
static uint64_t armed_ns; /* when it will expire or has expired; 0 = never was armed */

static uint32_t linear_eip(void) { return HV_CPU->segment[HV_CS].base + HV_CPU->eip; }

static uint32_t record_flags(void) { return HV_CPU->cpl == 3 ? HV_RECORD_USER : 0; }

static uint64_t since_ns(void) { return cell.part_ns > cell.entry_ns ? cell.part_ns : cell.entry_ns; }

void hv_cross_next(void)
{
    hv_straight_end();
    cell.part_ns = hv_host_ns();
}

void hv_cross_here(unsigned point, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3)
{
    if (cell.began_tsc)
        hv_straight_count(point);
    else
        hv_cross(&cell.board.crossings, point, since_ns(), linear_eip(), record_flags(), a0, a1, a2, a3);
}

/* ---- turns */

static void give_turn(void)
{
    uint64_t one = 1;
    while (write(HV_CELL_FD_LEFT, &one, sizeof one) != sizeof one)
        if (errno != EINTR)
            _exit(1);
}

/* Once the guest's time stamp counter is counted RDTSC traps in this whole process: in the guest's programs, and in the vDSO. */
static void trap_tsc(void)
{
    if (!cell.area->tsc_counted || hv_clock_by_call)
        return;
    hv_clock_by_call = true;
    hv_code_of_no_use();
    if (prctl(PR_SET_TSC, PR_TSC_SIGSEGV) != 0)
        hv_fail("the host does not let RDTSC be trapped: error %d", errno);
}

void hv_wait_for_turn(void)
{
    struct hv_cell_area *area = cell.area;
    for (;;) {
        uint64_t count;
        while (read(HV_CELL_FD_GO, &count, sizeof count) != sizeof count)
            if (errno != EINTR)
                _exit(1);
        if (area->quit)
            _exit(0);
        if (!hv_census_serve())
            break;
        give_turn();
    }
    cell.board.clock = area->clock;
    trap_tsc();
    memcpy((uint8_t *)&cell.board + DEVICES, area->devices, DEVICES_BYTES);
    hv_crossings_tap(&cell.board.crossings, area->tapped ? &area->tap : NULL);
    if (area->debug_changed)
        hv_debug_changed();
    hv_crossings_turn(&cell.board.crossings);
    uint32_t ranges = area->range_count;
    if (ranges > HV_AREA_RANGES)
        hv_shadow_physical_changed(0, UINT64_MAX);
    else
        for (uint32_t i = 0; i < ranges; i++)
            hv_shadow_physical_changed(area->ranges[i][0], area->ranges[i][1]);
    hv_board_advance(&cell.board);
}

void hv_leave(enum hv_cell_reason reason)
{
    struct hv_cell_area *area = cell.area;
    hv_straight_end();
    if (reason == HV_CELL_INTERRUPTED)
        __atomic_store_n(&area->kick, 0, __ATOMIC_SEQ_CST);
    area->exit.reason = reason;
    area->exit.rip = linear_eip();
    area->exit.start_ns = since_ns();
    area->exit.flags = record_flags();
    hv_fpu_publish();
    area->cpu = cell.cpu;
    memcpy(area->devices, (const uint8_t *)&cell.board + DEVICES, DEVICES_BYTES);
    give_turn();
    hv_wait_for_turn();
    cell.back_ns = hv_host_ns();
    hv_lookaside_empty();
    if (area->cpu_changed) {
        bool whole = area->cpu_changed == HV_CELL_WHOLE_STATE;
        cell.cpu = area->cpu;
        hv_debug_update();
        if (whole)
            hv_shadow_flush(true); /* a reset leaves nothing in the TLB, whatever CR3 is (SDM vol. 3A, 10.1.1) */
        if (hv_paravirtual())
            hv_paravirt_forget_twins(); /* after a reset the guest may have other tables */
        hv_abandon();
    }
}

void hv_fail(const char *format, ...)
{
    char text[sizeof cell.area->exit.detail];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(cell.area->exit.detail, text, sizeof text);
    for (;;)
        hv_leave(HV_CELL_ERROR);
}

static struct hv_insn here;
static void fetch_here(void) { hv_fetch_instruction(&here); }

void hv_cannot(const char *what)
{
    if (cell.fault_eip_valid)
        HV_CPU->eip = cell.fault_eip;
    bool known = hv_attempt(fetch_here); /* not if it is the fetching that faulted */
    hv_cannot_execute(what, here.bytes, known ? here.length : 0);
}

bool hv_kicked(void) { return __atomic_load_n(&cell.area->kick, __ATOMIC_SEQ_CST) != 0; }

/* ---- ports and memory-mapped registers */

/* An access to one of the runner's devices, or several of a string instruction; returns its answer. */
static uint64_t ask_string(enum hv_cell_reason reason, uint64_t address, unsigned size, uint64_t value, unsigned count)
{
    struct hv_cell_exit *exit = &cell.area->exit;
    exit->address = address;
    exit->size = size;
    exit->value = value;
    exit->count = count;
    hv_leave(reason);
    return cell.area->answer;
}

static uint64_t ask(enum hv_cell_reason reason, uint64_t address, unsigned size, uint64_t value)
{
    return ask_string(reason, address, size, value, 1);
}

static uint64_t all_ones(unsigned size) { return size < 8 ? (1ull << 8 * size) - 1 : ~0ull; }

static unsigned done_of(unsigned count)
{
    uint32_t done = cell.area->string_done;
    return done && done <= count ? done : 1;
}

unsigned hv_port_in_string(uint16_t port, unsigned size, uint32_t *values, unsigned count)
{
    values[0] = 0;
    if (hv_watching)
        hv_breaks_port(port, size);
    if (hv_board_port_in(&cell.board, port, size, values) != HV_PORT_LEAVE) {
        hv_cross_here(HV_POINT_PORT_IN, port, size, values[0], 0);
        return 1;
    }
    values[0] = (uint32_t)(ask_string(HV_CELL_PORT_IN, port, size, 0, count) & all_ones(size));
    unsigned done = done_of(count);
    memcpy(values + 1, cell.area->string + 1, (done - 1) * sizeof *values);
    return done;
}

unsigned hv_port_out_string(uint16_t port, unsigned size, const uint32_t *values, unsigned count)
{
    enum hv_port_result result;
    if (hv_watching)
        hv_breaks_port(port, size);
    while ((result = hv_board_port_out(&cell.board, port, size, values[0])) == HV_PORT_WAIT)
        ask(HV_CELL_CONSOLE_FULL, port, size, values[0]);
    if (result != HV_PORT_LEAVE) {
        hv_cross_here(HV_POINT_PORT_OUT, port, size, values[0], 0);
        return 1;
    }
    memcpy(cell.area->string, values, count * sizeof *values);
    ask_string(HV_CELL_PORT_OUT, port, size, values[0], count);
    return done_of(count);
}

uint32_t hv_port_in(uint16_t port, unsigned size)
{
    uint32_t value;
    hv_port_in_string(port, size, &value, 1);
    return value;
}

void hv_port_out(uint16_t port, unsigned size, uint32_t value) { hv_port_out_string(port, size, &value, 1); }

void hv_serial_write(uint8_t byte)
{
    while (hv_board_port_out(&cell.board, COM1, 1, byte) == HV_PORT_WAIT)
        ask(HV_CELL_CONSOLE_FULL, COM1, 1, byte);
}

/* May a device of the runner answer, if the board in C does not? */
static bool in_runner(uint64_t physical)
{
    const struct hv_cell_region *region = hv_region_at(physical);
    return region && region->kind == HV_REGION_MMIO && !region->hot;
}

uint64_t hv_mmio_read(uint64_t physical, unsigned size)
{
    uint64_t value = all_ones(size);
    if (!hv_board_mmio_read(&cell.board, physical, size, &value) && in_runner(physical))
        return ask(HV_CELL_MMIO_READ, physical, size, 0) & all_ones(size);
    hv_cross_here(HV_POINT_MMIO_READ, physical, size, value, 0);
    return value;
}

void hv_mmio_write(uint64_t physical, unsigned size, uint64_t value)
{
    uint64_t notified[4];
    enum hv_mmio_result result = hv_board_mmio_write(&cell.board, physical, size, value);
    bool served = result == HV_MMIO_LEAVE && hv_entropy_serve(physical);
    if (result == HV_MMIO_LEAVE && !served && in_runner(physical)) {
        ask(HV_CELL_MMIO_WRITE, physical, size, value);
    } else if (result == HV_MMIO_NOTIFIED || served) {
        hv_pci_notification(&cell.board, physical, served, notified);
        hv_cross_here(HV_POINT_VIRTIO_NOTIFY, notified[0], notified[1], notified[2], notified[3]);
    } else {
        hv_cross_here(HV_POINT_MMIO_WRITE, physical, size, value, 0);
    }
}

/* ---- time */

uint64_t hv_tsc(void)
{
    const struct hv_cell_area *area = cell.area;
    if (!area->tsc_counted)
        return hv_host_tsc() + HV_CPU->tsc_offset;
    uint64_t ticks = (uint64_t)((unsigned __int128)hv_clock_now(&cell.board.clock) * area->tsc_told_hz / NS);
    return area->tsc_at_zero + ticks + HV_CPU->tsc_offset;
}

bool hv_timer_create(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    return timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
}

bool hv_timer_due(void) { return armed_ns <= cell.entry_ns; }

bool hv_timer_is_right(void) { return hv_board_deadline(&cell.board) == armed_ns; }

void hv_arm_timer(void)
{
    uint64_t deadline_ns = hv_board_deadline(&cell.board);
    if (deadline_ns == armed_ns && deadline_ns > cell.entry_ns) /* it has not expired yet, or a moment ago: then its signal is pending */
        return;
    struct itimerspec when = {0};
    if (deadline_ns != HV_NEVER) {
        when.it_value.tv_sec = (time_t)(deadline_ns / NS);
        when.it_value.tv_nsec = (long)(deadline_ns % NS);
        if (!deadline_ns)
            when.it_value.tv_nsec = 1; /* zero would disarm */
    }
    armed_ns = deadline_ns;
    if (timer_settime(timer, TIMER_ABSTIME, &when, NULL) != 0)
        hv_fail("the timer cannot be set: error %d", errno);
}

/* Until a timer or a kick. Their signals are blocked, so that one which comes before the call ends it at once. */
static void sleep_until(uint64_t deadline_ns)
{
    struct timespec left = {0};
    uint64_t now_ns = hv_host_ns();
    if (deadline_ns > now_ns && deadline_ns != HV_NEVER) {
        left.tv_sec = (time_t)((deadline_ns - now_ns) / NS);
        left.tv_nsec = (long)((deadline_ns - now_ns) % NS);
    }
    uint64_t signals = 1ull << (SIGALRM - 1) | 1ull << (HV_CELL_KICK_SIGNAL - 1);
    syscall(SYS_rt_sigtimedwait, &signals, NULL, deadline_ns == HV_NEVER ? NULL : &left, sizeof signals);
}

void hv_halt(void)
{
    struct hv_cpu *cpu = HV_CPU;
    struct hv_counters *counters = cell.board.crossings.counters;
    hv_straight_end();
    uint64_t start_ns = hv_host_ns();
    cpu->halted = 1;
    hv_pace_halted();
    while (hv_board_advance(&cell.board), !hv_interrupts_wanted()) {
        if (cpu->eflags & HV_IF && !hv_kicked()) {
            hv_console_rest(cell.board.console, cell.board.out_event);
            sleep_until(hv_board_deadline(&cell.board));
            continue;
        }
        counters->halted_ns += hv_host_ns() - start_ns;
        cell.entry_ns = start_ns;
        hv_leave(hv_kicked() ? HV_CELL_INTERRUPTED : HV_CELL_HALT);
        start_ns = hv_host_ns();
    }
    cpu->halted = 0;
    counters->halted_ns += hv_host_ns() - start_ns;
    cell.entry_ns = start_ns;
    hv_cross_here(HV_POINT_HALT, 1, 0, 0, 0);
    cell.entry_ns = hv_host_ns(); /* so that the timer, if its signal was waited for, is not taken for armed */
}
