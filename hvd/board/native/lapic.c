/* The local APIC of the one processor, xAPIC mode (Intel SDM vol. 3A, "Advanced Programmable Interrupt Controller").
 *
 * Its timer's input clock is 1 GHz, which CPUID leaf 0x15 tells: a tick is a nanosecond of the guest's virtual clock, as is one of the time
 * stamp counter. Nothing ticks: counts are computed from the time that passed. Left out: x2APIC, CMCI, performance and thermal
 * interrupts (nothing raises them), SMI, and INIT and start-up messages, as there is no other processor. The registers stay at
 * their power-on address, whatever IA32_APIC_BASE is told.
 */
#include "board.h"

#include <string.h>

enum {
    ID = 0x02, VERSION = 0x03, TPR = 0x08, APR = 0x09, PPR = 0x0a, EOI = 0x0b, RRD = 0x0c, LDR = 0x0d, DFR = 0x0e, SVR = 0x0f, ISR = 0x10,
    TMR = 0x18, IRR = 0x20, ESR = 0x28, ICR_LOW = 0x30, ICR_HIGH = 0x31, LVT = 0x32, INITIAL_COUNT = 0x38, CURRENT_COUNT = 0x39, DIVIDE = 0x3e,
}; /* index of a register: address bits 4-11 */

#define VERSION_VALUE 0x00050014u /* integrated, six local vectors */
#define SVR_ENABLE 0x100u
#define SVR_KEPT 0x3ffu /* vector, enable, focus checking */
#define LVT_MASKED 0x10000u
#define LVT_DEFAULT LVT_MASKED
/* What firmware leaves for kernels that know of no APIC ("virtual wire mode", MultiProcessor Specification 1.4, 3.6.2.2). */
#define LVT_EXTINT 0x700u
#define LVT_NMI 0x400u
enum { FIXED = 0, LOWEST = 1, NMI = 4, EXTINT = 7 }; /* delivery modes */
enum { ONE_SHOT = 0, PERIODIC = 1, DEADLINE = 2 };   /* timer modes, LVT bits 17-18 */
#define ERROR_SEND_VECTOR 0x20u
#define ERROR_RECEIVE_VECTOR 0x40u
#define ERROR_REGISTER 0x80u

/* Bits of the local vector table that can be written: timer, thermal, performance, LINT0, LINT1, error. */
static const uint32_t lvt_kept[HV_LVT_COUNT] = {0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff};

static bool bit(const uint32_t set[8], unsigned vector)
{
    return set[vector >> 5] >> (vector & 31) & 1;
}

static void put(uint32_t set[8], unsigned vector, bool value)
{
    uint32_t mask = 1u << (vector & 31);
    set[vector >> 5] = value ? set[vector >> 5] | mask : set[vector >> 5] & ~mask;
}

static int highest(const uint32_t set[8])
{
    for (int i = 7; i >= 0; i--)
        if (set[i])
            return i * 32 + 31 - __builtin_clz(set[i]);
    return -1;
}

void hv_lapic_reset(struct hv_lapic *lapic)
{
    *lapic = (struct hv_lapic){
        .base = HV_LAPIC_ADDRESS | HV_LAPIC_BASE_BSP | HV_LAPIC_BASE_ENABLE,
        .dfr = ~0u,
        .svr = 0xff,
        .next_tick_ns = HV_NEVER,
    };
    for (unsigned i = 0; i < HV_LVT_COUNT; i++)
        lapic->lvt[i] = LVT_DEFAULT;
    lapic->lvt[HV_LVT_LINT0] = LVT_EXTINT;
    lapic->lvt[HV_LVT_LINT1] = LVT_NMI;
}

bool hv_lapic_enabled(const struct hv_lapic *lapic)
{
    return lapic->base & HV_LAPIC_BASE_ENABLE && lapic->svr & SVR_ENABLE;
}

bool hv_lapic_takes_extint(const struct hv_lapic *lapic)
{
    return !hv_lapic_enabled(lapic) || (lapic->lvt[HV_LVT_LINT0] & (LVT_MASKED | 0x700)) == EXTINT << 8;
}

static uint8_t processor_priority(const struct hv_lapic *lapic)
{
    int serviced = highest(lapic->isr);
    uint8_t class = serviced < 0 ? 0 : (uint8_t)serviced & 0xf0;
    return (lapic->tpr & 0xf0) >= class ? lapic->tpr : class;
}

int hv_lapic_peek(const struct hv_lapic *lapic)
{
    if (!hv_lapic_enabled(lapic))
        return -1;
    int vector = highest(lapic->irr);
    return vector >= 0 && (vector & 0xf0) > (processor_priority(lapic) & 0xf0) ? vector : -1;
}

uint8_t hv_lapic_acknowledge(struct hv_lapic *lapic)
{
    int vector = hv_lapic_peek(lapic);
    if (vector < 0)
        return (uint8_t)lapic->svr; /* the spurious vector; nothing is in service */
    put(lapic->irr, (unsigned)vector, false);
    put(lapic->isr, (unsigned)vector, true);
    return (uint8_t)vector;
}

static void report(struct hv_lapic *lapic, uint32_t error)
{
    bool news = error & ~lapic->errors;
    lapic->errors |= error;
    uint32_t entry = lapic->lvt[HV_LVT_ERROR];
    if (news && !(entry & LVT_MASKED) && (entry & 0xff) >= 16)
        hv_lapic_deliver(lapic, FIXED, (uint8_t)entry, false);
}

bool hv_lapic_deliver(struct hv_lapic *lapic, unsigned mode, uint8_t vector, bool level)
{
    if (mode == NMI) {
        lapic->nmi = lapic->base & HV_LAPIC_BASE_ENABLE;
        return lapic->nmi;
    }
    if (!hv_lapic_enabled(lapic) || (mode != FIXED && mode != LOWEST))
        return false;
    if (vector < 16) {
        report(lapic, ERROR_RECEIVE_VECTOR);
        return false;
    }
    put(lapic->irr, vector, true);
    put(lapic->tmr, vector, level);
    return true;
}

bool hv_lapic_is(const struct hv_lapic *lapic, uint8_t destination, bool logical)
{
    if (!logical)
        return destination == 0xff || destination == lapic->id;
    uint8_t own = (uint8_t)(lapic->ldr >> 24);
    if (lapic->dfr >> 28 == 0xf) /* flat model */
        return destination & own;
    /* Cluster model: 15 is all clusters. */
    return (destination >> 4 == 15 || destination >> 4 == own >> 4) && destination & own & 15;
}

bool hv_lapic_holds(const struct hv_lapic *lapic, uint8_t vector)
{
    return bit(lapic->irr, vector) || bit(lapic->isr, vector);
}

static void send(struct hv_lapic *lapic)
{
    unsigned mode = lapic->icr >> 8 & 7, shorthand = lapic->icr >> 18 & 3;
    uint8_t vector = (uint8_t)lapic->icr;
    bool to_self = shorthand == 1 || shorthand == 2 ||
                   (shorthand == 0 && hv_lapic_is(lapic, (uint8_t)(lapic->icr_high >> 24), lapic->icr >> 11 & 1));
    if ((mode == FIXED || mode == LOWEST) && vector < 16)
        report(lapic, ERROR_SEND_VECTOR);
    if (to_self)
        hv_lapic_deliver(lapic, mode, vector, false);
}

/* ---- the timer */

static unsigned timer_mode(const struct hv_lapic *lapic)
{
    return lapic->lvt[HV_LVT_TIMER] >> 17 & 3;
}

static uint64_t divisor(const struct hv_lapic *lapic)
{
    unsigned code = (lapic->divide & 3) | (lapic->divide >> 1 & 4);
    return 1ull << ((code + 1) & 7);
}

static uint64_t period_ns(const struct hv_lapic *lapic)
{
    return lapic->initial_count * divisor(lapic);
}

static void stop_timer(struct hv_lapic *lapic)
{
    lapic->next_tick_ns = HV_NEVER;
    lapic->owed = 0;
    lapic->pause_end_ns = 0;
}

static void start_count(struct hv_lapic *lapic, uint64_t now_ns)
{
    stop_timer(lapic);
    if (lapic->initial_count && timer_mode(lapic) != DEADLINE)
        lapic->next_tick_ns = now_ns + period_ns(lapic);
}

static uint32_t current_count(const struct hv_lapic *lapic, uint64_t now_ns)
{
    if (timer_mode(lapic) == DEADLINE || lapic->next_tick_ns == HV_NEVER)
        return 0;
    if (lapic->next_tick_ns > now_ns)
        return (uint32_t)((lapic->next_tick_ns - now_ns + divisor(lapic) - 1) / divisor(lapic));
    if (timer_mode(lapic) != PERIODIC)
        return 0;
    return lapic->initial_count - (uint32_t)((now_ns - lapic->next_tick_ns) / divisor(lapic) % lapic->initial_count);
}

static void change_divide(struct hv_lapic *lapic, uint32_t value, uint64_t now_ns)
{
    uint32_t left = current_count(lapic, now_ns);
    lapic->divide = value & 0xb;
    if (lapic->next_tick_ns != HV_NEVER && timer_mode(lapic) != DEADLINE)
        lapic->next_tick_ns = now_ns + left * divisor(lapic);
}

static uint64_t pause_ns(const struct hv_lapic *lapic)
{
    uint64_t part = period_ns(lapic) / 8;
    return part > HV_PIT_LEAST_PAUSE_NS ? part : HV_PIT_LEAST_PAUSE_NS;
}

static void come_due(struct hv_lapic *lapic, uint64_t now_ns)
{
    uint64_t ticks = 1;
    if (timer_mode(lapic) == PERIODIC) {
        uint64_t period = period_ns(lapic);
        ticks += (now_ns - lapic->next_tick_ns) / period;
        lapic->next_tick_ns += ticks * period;
        uint64_t most = HV_PIT_OWED_SECONDS * 1000000000ull / period;
        lapic->owed += ticks;
        if (lapic->owed > most)
            lapic->owed = most ? most : 1;
    } else {
        lapic->next_tick_ns = HV_NEVER;
        lapic->owed = 1;
    }
}

void hv_lapic_advance(struct hv_lapic *lapic, uint64_t now_ns)
{
    uint32_t entry = lapic->lvt[HV_LVT_TIMER];
    uint8_t vector = (uint8_t)entry;
    bool periodic = timer_mode(lapic) == PERIODIC;
    if (now_ns >= lapic->next_tick_ns)
        come_due(lapic, now_ns);
    if (entry & LVT_MASKED || !hv_lapic_enabled(lapic)) { /* what comes due meanwhile is lost */
        lapic->owed = 0;
        return;
    }
    if (periodic && hv_lapic_holds(lapic, vector))
        return;
    if (lapic->given) {
        lapic->given = false;
        if (periodic)
            lapic->pause_end_ns = now_ns + pause_ns(lapic);
    }
    if (!lapic->owed || (periodic && now_ns < lapic->pause_end_ns) || now_ns < lapic->rest_end_ns)
        return;
    lapic->owed--;
    lapic->given = true;
    hv_lapic_deliver(lapic, FIXED, vector, false);
}

uint64_t hv_lapic_deadline(const struct hv_lapic *lapic)
{
    uint32_t entry = lapic->lvt[HV_LVT_TIMER];
    if (entry & LVT_MASKED || !hv_lapic_enabled(lapic))
        return HV_NEVER;
    bool periodic = timer_mode(lapic) == PERIODIC;
    if (periodic && hv_lapic_holds(lapic, (uint8_t)entry))
        return HV_NEVER; /* the end of that interrupt says more */
    uint64_t tick_ns = lapic->owed ? 0 : lapic->next_tick_ns;
    if (periodic && lapic->pause_end_ns > tick_ns)
        tick_ns = lapic->pause_end_ns;
    return tick_ns > lapic->rest_end_ns ? tick_ns : lapic->rest_end_ns;
}

void hv_lapic_write_deadline(struct hv_lapic *lapic, uint64_t tsc_ns)
{
    if (timer_mode(lapic) != DEADLINE)
        return; /* SDM: ignored in the other modes */
    stop_timer(lapic);
    if (tsc_ns)
        lapic->next_tick_ns = tsc_ns;
}

uint64_t hv_lapic_read_deadline(const struct hv_lapic *lapic)
{
    return timer_mode(lapic) == DEADLINE && lapic->next_tick_ns != HV_NEVER ? lapic->next_tick_ns : 0;
}

/* ---- registers */

uint32_t hv_lapic_read(struct hv_lapic *lapic, uint32_t offset, uint64_t now_ns)
{
    unsigned index = offset >> 4 & 0xff;
    hv_lapic_advance(lapic, now_ns);
    switch (index) {
    case ID:
        return (uint32_t)lapic->id << 24;
    case VERSION:
        return VERSION_VALUE;
    case TPR:
        return lapic->tpr;
    case APR:
    case RRD:
    case EOI: /* write-only */
        return 0;
    case PPR:
        return processor_priority(lapic);
    case LDR:
        return lapic->ldr;
    case DFR:
        return lapic->dfr;
    case SVR:
        return lapic->svr;
    case ISR ... ISR + 7:
        return lapic->isr[index - ISR];
    case TMR ... TMR + 7:
        return lapic->tmr[index - TMR];
    case IRR ... IRR + 7:
        return lapic->irr[index - IRR];
    case ESR:
        return lapic->esr;
    case ICR_LOW:
        return lapic->icr;
    case ICR_HIGH:
        return lapic->icr_high;
    case LVT ... LVT + HV_LVT_COUNT - 1:
        return lapic->lvt[index - LVT];
    case INITIAL_COUNT:
        return lapic->initial_count;
    case CURRENT_COUNT:
        return current_count(lapic, now_ns);
    case DIVIDE:
        return lapic->divide;
    }
    report(lapic, ERROR_REGISTER);
    return 0;
}

static void write_svr(struct hv_lapic *lapic, uint32_t value)
{
    lapic->svr = value & SVR_KEPT;
    if (value & SVR_ENABLE)
        return;
    for (unsigned i = 0; i < HV_LVT_COUNT; i++) /* SDM: software-disabled, their mask bits are set */
        lapic->lvt[i] |= LVT_MASKED;
    lapic->owed = 0;
}

static void write_lvt(struct hv_lapic *lapic, unsigned entry, uint32_t value, uint64_t now_ns)
{
    unsigned before = timer_mode(lapic);
    value &= lvt_kept[entry];
    if (!(lapic->svr & SVR_ENABLE))
        value |= LVT_MASKED;
    lapic->lvt[entry] = value;
    if (entry != HV_LVT_TIMER || timer_mode(lapic) == before)
        return;
    if (before == DEADLINE || timer_mode(lapic) == DEADLINE) { /* SDM: disarms the timer */
        stop_timer(lapic);
        lapic->initial_count = 0;
    } else if (timer_mode(lapic) == PERIODIC && lapic->initial_count && lapic->next_tick_ns == HV_NEVER) {
        start_count(lapic, now_ns); /* a one-shot that is over begins again */
    } else if (before == PERIODIC) {
        lapic->owed = 0; /* ticks of a period that there is no more */
    }
}

/* The vector in service of the highest priority is done. Returns it if IOAPICs are to be told, -1 if not. */
static int end_of_interrupt(struct hv_lapic *lapic)
{
    int vector = highest(lapic->isr);
    if (vector < 0)
        return -1;
    put(lapic->isr, (unsigned)vector, false);
    return bit(lapic->tmr, (unsigned)vector) ? vector : -1;
}

int hv_lapic_write(struct hv_lapic *lapic, uint32_t offset, uint32_t value, uint64_t now_ns)
{
    unsigned index = offset >> 4 & 0xff;
    int ended = -1;
    hv_lapic_advance(lapic, now_ns);
    switch (index) {
    case ID:
        lapic->id = (uint8_t)(value >> 24);
        break;
    case TPR:
        lapic->tpr = (uint8_t)value;
        break;
    case EOI:
        ended = end_of_interrupt(lapic);
        break;
    case LDR:
        lapic->ldr = value & 0xff000000;
        break;
    case DFR:
        lapic->dfr = value | 0x0fffffff;
        break;
    case SVR:
        write_svr(lapic, value);
        break;
    case ESR: /* a write shows what was found since the last one */
        lapic->esr = lapic->errors;
        lapic->errors = 0;
        break;
    case ICR_LOW:
        lapic->icr = value & 0xccfff; /* delivered at once: the status bit reads 0 */
        send(lapic);
        break;
    case ICR_HIGH:
        lapic->icr_high = value & 0xff000000;
        break;
    case LVT ... LVT + HV_LVT_COUNT - 1:
        write_lvt(lapic, index - LVT, value, now_ns);
        break;
    case INITIAL_COUNT:
        if (timer_mode(lapic) != DEADLINE) {
            lapic->initial_count = value;
            start_count(lapic, now_ns);
        }
        break;
    case DIVIDE:
        change_divide(lapic, value, now_ns);
        break;
    case VERSION:
    case APR:
    case PPR:
    case RRD:
    case ISR ... ISR + 7:
    case TMR ... TMR + 7:
    case IRR ... IRR + 7:
    case CURRENT_COUNT: /* read-only */
        break;
    default:
        report(lapic, ERROR_REGISTER);
    }
    hv_lapic_advance(lapic, now_ns); /* an interrupt that ended lets the next tick in */
    return ended;
}

void hv_lapic_write_base(struct hv_lapic *lapic, uint64_t value)
{
    bool was = lapic->base & HV_LAPIC_BASE_ENABLE;
    if (was && !(value & HV_LAPIC_BASE_ENABLE)) /* SDM: equivalent to a reset, and its state is lost */
        hv_lapic_reset(lapic);
    lapic->base = HV_LAPIC_ADDRESS | HV_LAPIC_BASE_BSP | (value & HV_LAPIC_BASE_ENABLE);
}
