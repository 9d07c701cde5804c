/* The calls of the paravirtual ABI by number (docs/paravirtualisation.md). Each checks what it is given and answers with an error (errno),
 * or does what the guest's kernel could do by itself under trap. */
#include <errno.h>

#include "debug.h"
#include "lookaside.h"
#include "paravirt.h"
#include "signals.h"
#include "translate.h"

#define PAGE 4096u
#define PIT_HZ 1193182u
#define NS 1000000000u
#define PIT_DATA 0x40
#define PIT_CONTROL 0x43
#define PIT_ONCE 0x30      /* counter 0, both bytes, mode 0 */
#define PM1_CONTROL 0x604  /* hvd/board/tables/wiring.py */
#define PM1_OFF 0x3400     /* SLP_EN, and SLP_TYP of S5 */
#define RESET_CONTROL 0xcf9
#define RESET_NOW 6
#define BASE_CALL 0x6870   /* docs/hypercall.md */
#define BASE_RESULT 0x6874
#define BASE_CALLS 64u

/* ---- guest memory, without faults */

static uint8_t *memory_of(uint32_t linear, bool write)
{
    struct hv_walk walk;
    uint8_t *at = hv_paravirt_at(linear, false);
    if (at)
        return at;
    if (!write && (at = hv_lookaside_find(HV_READ, false, linear, 1)))
        return at;
    hv_walk(&walk, linear, write, false, false, true);
    if (walk.error)
        return NULL;
    if (write)
        hv_code_written(walk.physical, 1);
    at = hv_memory_at(walk.physical, write, NULL);
    if (at && !write)
        hv_lookaside_add(HV_READ, false, linear, at);
    return at;
}

static bool copy(uint32_t linear, uint8_t *bytes, uint32_t length, bool write)
{
    for (uint32_t at = linear | (PAGE - 1); write && at - linear < length - 1; at += PAGE) /* all of it, or nothing */
        if (!memory_of(at + 1, true))
            return false;
    for (uint32_t done = 0; done < length;) {
        uint32_t piece = PAGE - (linear & (PAGE - 1));
        if (piece > length - done)
            piece = length - done;
        uint8_t *at = memory_of(linear, write);
        if (!at)
            return false;
        __builtin_memcpy(write ? at : bytes + done, write ? bytes + done : at, piece);
        done += piece;
        linear += piece;
    }
    return true;
}

bool hv_copy_in(void *to, uint32_t linear, uint32_t length) { return copy(linear, to, length, false); }
bool hv_copy_out(uint32_t linear, const void *from, uint32_t length) { return copy(linear, (uint8_t *)(uintptr_t)from, length, true); }

/* ---- calls */

static int64_t version(const uint32_t *argument)
{
    (void)argument;
    return HV_PV_VERSION;
}

static int64_t interrupt_return(const uint32_t *argument)
{
    (void)argument;
    hv_interrupt_return(4);
    return 0;
}

static int64_t idle(const uint32_t *argument)
{
    (void)argument;
    HV_CPU->eflags |= HV_IF;
    HV_CPU->halted = 1;
    return 0;
}

static int64_t deliver(const uint32_t *argument)
{
    (void)argument;
    return 0; /* comes by itself on the way back */
}

static int64_t set_timer(const uint32_t *argument)
{
    uint64_t ticks = ((uint64_t)argument[0] * PIT_HZ + NS - 1) / NS;
    if (!ticks || ticks > 0x10000)
        return -EINVAL;
    const uint16_t ports[] = {PIT_CONTROL, PIT_DATA, PIT_DATA};
    const uint32_t values[] = {PIT_ONCE, (uint32_t)ticks & 0xff, (uint32_t)ticks >> 8 & 0xff};
    for (unsigned i = 0; i < 3; i++)
        hv_board_port_out(&cell.board, ports[i], 1, values[i]);
    return 0;
}

static int64_t console(const uint32_t *argument)
{
    uint8_t text[HV_PV_CONSOLE_MAX];
    uint32_t length = argument[1];
    if (length > sizeof text)
        return -EINVAL;
    if (!hv_copy_in(text, argument[0], length))
        return -EFAULT;
    for (uint32_t i = 0; i < length; i++)
        hv_serial_write(text[i]);
    return length;
}

static bool is_access(uint32_t port, uint32_t size) { return port < 65536 && (size == 1 || size == 2 || size == 4); }

static int64_t port_in(const uint32_t *argument)
{
    return is_access(argument[0], argument[1]) ? (int64_t)hv_port_in((uint16_t)argument[0], argument[1]) : -EINVAL;
}

static int64_t port_out(const uint32_t *argument)
{
    if (!is_access(argument[0], argument[1]))
        return -EINVAL;
    hv_port_out((uint16_t)argument[0], argument[1], argument[1] == 4 ? argument[2] : argument[2] & ((1u << 8 * argument[1]) - 1));
    return 0;
}

static int64_t read_msr(const uint32_t *argument) { return (int64_t)hv_read_msr(argument[0]); }

static const uint32_t *attempted; /* by write_the_msr */
static void write_the_msr(void) { hv_write_msr(attempted[0], (uint64_t)attempted[2] << 32 | attempted[1]); }

static int64_t write_msr(const uint32_t *argument)
{
    attempted = argument;
    return hv_attempt(write_the_msr) ? 0 : -EINVAL;
}

static int64_t power(const uint32_t *argument)
{
    switch (argument[0]) {
    case HV_PV_POWER_OFF:
        hv_port_out(PM1_CONTROL, 2, PM1_OFF);
        return 0;
    case HV_PV_POWER_RESET:
        hv_port_out(RESET_CONTROL, 1, RESET_NOW);
        return 0;
    default:
        return -EINVAL;
    }
}

static int64_t debug(const uint32_t *argument)
{
    (void)argument;
    if (!hv_debugging)
        return 0;
    hv_debug_call();
    return 1;
}

/* Of the base standard: as by its ports, whose device looks at the registers. */
static int64_t base(uint32_t number)
{
    hv_port_out(BASE_CALL, 4, number);
    uint64_t low = hv_port_in(BASE_RESULT, 4);
    return (int64_t)(low | (uint64_t)hv_port_in(BASE_RESULT, 4) << 32);
}

static int64_t multicall(const uint32_t *argument);

#define ROW(number, function) [number - HV_PV_CALL_FIRST] = function
static int64_t (*const calls[HV_PV_CALL_END - HV_PV_CALL_FIRST])(const uint32_t *) = {
    ROW(HV_PV_CALL_VERSION, version), ROW(HV_PV_CALL_MULTICALL, multicall), ROW(HV_PV_CALL_SET_CR0, hv_call_set_cr0),
    ROW(HV_PV_CALL_SET_CR3, hv_call_set_cr3), ROW(HV_PV_CALL_SET_CR4, hv_call_set_cr4), ROW(HV_PV_CALL_FLUSH, hv_call_flush),
    ROW(HV_PV_CALL_INVLPG, hv_call_invlpg), ROW(HV_PV_CALL_SET_PTE, hv_call_set_pte), ROW(HV_PV_CALL_SET_PTES, hv_call_set_ptes),
    ROW(HV_PV_CALL_SET_GDT, hv_call_set_gdt), ROW(HV_PV_CALL_SET_IDT, hv_call_set_idt), ROW(HV_PV_CALL_SET_LDT, hv_call_set_ldt),
    ROW(HV_PV_CALL_SET_TR, hv_call_set_tr), ROW(HV_PV_CALL_SET_DESCRIPTOR, hv_call_set_descriptor), ROW(HV_PV_CALL_SET_TRAPS, hv_call_set_traps),
    ROW(HV_PV_CALL_SET_STACK, hv_call_set_stack), ROW(HV_PV_CALL_LOAD_SEGMENT, hv_call_load_segment), ROW(HV_PV_CALL_IRET, interrupt_return),
    ROW(HV_PV_CALL_IDLE, idle), ROW(HV_PV_CALL_DELIVER, deliver), ROW(HV_PV_CALL_SET_TIMER, set_timer), ROW(HV_PV_CALL_CONSOLE, console),
    ROW(HV_PV_CALL_PORT_IN, port_in), ROW(HV_PV_CALL_PORT_OUT, port_out), ROW(HV_PV_CALL_READ_MSR, read_msr),
    ROW(HV_PV_CALL_WRITE_MSR, write_msr), ROW(HV_PV_CALL_POWER, power), ROW(HV_PV_CALL_DEBUG, debug), ROW(HV_PV_CALL_FILL_PAGE, hv_call_fill_page),
    ROW(HV_PV_CALL_SET_USER_LIMIT, hv_call_set_user_limit),
};

/* Those that go elsewhere or sleep have no place in a row of calls. */
static bool in_multicall(uint32_t number)
{
    return number >= HV_PV_CALL_FIRST && number < HV_PV_CALL_END && number != HV_PV_CALL_MULTICALL && number != HV_PV_CALL_IRET && number != HV_PV_CALL_IDLE;
}

static void record(uint32_t number, const uint32_t *argument, int64_t result)
{
    hv_cross_here(HV_POINT_HYPERCALL_PARAVIRT_BASE + (number - HV_PV_CALL_FIRST), argument[0], argument[1], argument[2], (uint64_t)result);
}

static int64_t each_call(const uint32_t *argument)
{
    uint32_t at = argument[0], count = argument[1];
    if (count > HV_PV_BATCH)
        return -EINVAL;
    for (uint32_t done = 0; done < count; done++, at += sizeof(struct hv_pv_call)) {
        struct hv_pv_call one;
        if (!hv_copy_in(&one, at, sizeof one))
            return done ? (int64_t)done : -EFAULT;
        one.result = in_multicall(one.number) ? (int32_t)calls[one.number - HV_PV_CALL_FIRST](one.arguments) : -EINVAL;
        if (in_multicall(one.number))
            record(one.number, one.arguments, one.result);
        hv_cross_next();
        if (!hv_copy_out(at, &one, sizeof one))
            return done ? (int64_t)done : -EFAULT;
    }
    return count;
}

static int64_t multicall(const uint32_t *argument)
{
    int64_t made = each_call(argument);
    cell.part_ns = 0; /* its own time is that of all */
    return made;
}

void hv_hypercall(void)
{
    uint32_t *r = HV_CPU->r, number = r[HV_EAX];
    const uint32_t arguments[4] = {r[HV_EBX], r[HV_ECX], r[HV_ESI], r[HV_EDI]};
    int64_t result;
    if (number < BASE_CALLS) {
        result = base(number);
    } else if (number < HV_PV_CALL_END) {
        result = calls[number - HV_PV_CALL_FIRST](arguments);
        record(number, arguments, result);
        if (number == HV_PV_CALL_IRET)
            return; /* all registers are the frame's business */
    } else {
        result = -ENOSYS;
        hv_cross_here(HV_POINT_HYPERCALL_UNKNOWN, number, 0, 0, (uint64_t)result);
    }
    r[HV_EAX] = (uint32_t)result;
    r[HV_EDX] = (uint32_t)((uint64_t)result >> 32);
}
