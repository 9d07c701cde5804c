/* Intel 8254 (data sheet, order number 231164) as the PC wires it: channel 0 drives IRQ 0, channel 2's gate is bit 0 of port 61.
 *
 * Nothing ticks: counts and outputs are computed from the virtual time that passed since a channel was loaded or triggered. A count
 * is taken to be loaded at once, not with the next input clock.
 */
#include "board.h"

#include <string.h>

enum { LOAD_NONE, LOAD_COUNTING, LOAD_ARMED /* mode 1 and 5: waits for a rising gate */ };
enum { LATCH_NONE, LATCH_LOW = 1, LATCH_HIGH = 2, LATCH_BOTH = 3 };

static uint64_t ticks_of(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * HV_PIT_HZ / 1000000000u);
}

/* The first nanosecond at which that many ticks have passed. */
static uint64_t ns_of(uint64_t ticks)
{
    unsigned __int128 ns = ((unsigned __int128)ticks * 1000000000u + HV_PIT_HZ - 1) / HV_PIT_HZ;
    return ns < HV_NEVER ? (uint64_t)ns : HV_NEVER;
}

static uint64_t at(uint64_t start_ns, uint64_t ticks)
{
    uint64_t ns = ns_of(ticks);
    return ns < HV_NEVER - start_ns ? start_ns + ns : HV_NEVER;
}

static bool periodic(const struct hv_pit_channel *channel)
{
    return channel->mode == 2 || channel->mode == 3;
}

static bool triggered_by_gate(const struct hv_pit_channel *channel)
{
    return channel->mode == 1 || channel->mode == 5;
}

static uint32_t modulus(const struct hv_pit_channel *channel)
{
    return channel->bcd ? 10000 : 65536;
}

/* A periodic channel goes over to a count that was written while it ran, when the present period ends. */
static void settle(struct hv_pit_channel *channel, uint64_t now_ns)
{
    if (channel->loaded != LOAD_COUNTING || !periodic(channel) || channel->reload == channel->next_reload || !channel->gate)
        return;
    uint64_t switch_ns = channel->stopped_ns; /* see load(): the end of the period in which the count was written */
    if (now_ns >= switch_ns) {
        channel->start_ns = switch_ns;
        channel->reload = channel->next_reload;
    }
}

static uint64_t elapsed(const struct hv_pit_channel *channel, uint64_t now_ns)
{
    uint64_t until = !channel->gate && !triggered_by_gate(channel) ? channel->stopped_ns : now_ns;
    return until > channel->start_ns ? ticks_of(until - channel->start_ns) : 0;
}

/* The counting element, binary. */
static uint32_t count_at(const struct hv_pit_channel *channel, uint64_t now_ns)
{
    if (channel->loaded != LOAD_COUNTING)
        return channel->next_reload % modulus(channel);
    uint64_t ticks = elapsed(channel, now_ns);
    uint32_t reload = channel->reload, phase = (uint32_t)(ticks % reload), high = (reload + 1) / 2;

    switch (channel->mode) {
    case 2:
        return (reload - phase) % modulus(channel);
    case 3: /* counts by two, once for each half of the square wave; an odd count is loaded less one */
        return ((reload & ~1u) - 2 * (phase < high ? phase : phase - high)) % modulus(channel);
    default: /* goes on below 0 */
        return (uint32_t)((reload + modulus(channel) - ticks % modulus(channel)) % modulus(channel));
    }
}

static bool output_at(const struct hv_pit_channel *channel, uint64_t now_ns)
{
    if (channel->loaded != LOAD_COUNTING)
        return channel->output_hint;
    uint64_t ticks = elapsed(channel, now_ns);
    switch (channel->mode) {
    case 0:
    case 1:
        return ticks >= channel->reload;
    case 2:
        return !channel->gate || ticks % channel->reload != channel->reload - 1;
    case 3:
        return !channel->gate || ticks % channel->reload < (channel->reload + 1) / 2;
    default: /* the strobe is low for one clock */
        return ticks != channel->reload;
    }
}

static uint64_t edge_ticks(const struct hv_pit_channel *channel)
{
    return channel->mode == 4 ? channel->reload + 1 : channel->reload;
}

/* The first rising edge of channel 0's output that is later than after_ns. */
static uint64_t edge_after(const struct hv_pit_channel *channel, uint64_t after_ns)
{
    if (channel->loaded != LOAD_COUNTING)
        return HV_NEVER;
    if (!periodic(channel)) {
        uint64_t edge = at(channel->start_ns, edge_ticks(channel));
        return edge > after_ns ? edge : HV_NEVER;
    }
    bool switching = channel->reload != channel->next_reload;
    uint64_t passed = after_ns >= channel->start_ns ? ticks_of(after_ns - channel->start_ns) / channel->reload : 0;
    uint64_t edge = at(channel->start_ns, (passed + 1) * channel->reload);
    if (switching && edge > channel->stopped_ns) { /* from then on the new count rules */
        passed = after_ns >= channel->stopped_ns ? ticks_of(after_ns - channel->stopped_ns) / channel->next_reload : 0;
        edge = at(channel->stopped_ns, (passed + 1) * channel->next_reload);
    }
    return edge;
}

static void owe_nothing(struct hv_pit *pit)
{
    pit->owed = 0;
    pit->pause_end_ns = 0;
}

static void load(struct hv_pit *pit, unsigned index, uint32_t value, uint64_t now_ns)
{
    struct hv_pit_channel *channel = &pit->channel[index];
    if (channel->bcd)
        value = (value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15);
    value %= modulus(channel); /* digits above 9 are the guest's fault */

    settle(channel, now_ns);
    channel->next_reload = value ? value : modulus(channel);
    if (triggered_by_gate(channel)) { /* a shot under way is not changed */
        if (channel->loaded == LOAD_NONE)
            channel->loaded = LOAD_ARMED;
        return;
    }
    if (periodic(channel) && channel->loaded == LOAD_COUNTING && channel->gate) {
        uint64_t periods = elapsed(channel, now_ns) / channel->reload + 1;
        channel->stopped_ns = at(channel->start_ns, periods * channel->reload);
    } else {
        channel->reload = channel->next_reload;
        channel->start_ns = now_ns;
        channel->stopped_ns = now_ns; /* should the gate be low */
        channel->loaded = LOAD_COUNTING;
    }
    if (index == 0) {
        pit->next_edge_ns = edge_after(channel, now_ns);
        owe_nothing(pit);
    }
}

static void set_gate(struct hv_pit_channel *channel, bool gate, uint64_t now_ns)
{
    if (channel->gate == gate)
        return;
    settle(channel, now_ns);
    if (!gate) {
        channel->stopped_ns = now_ns;
        channel->reload = periodic(channel) ? channel->next_reload : channel->reload;
    } else if (triggered_by_gate(channel)) {
        if (channel->loaded != LOAD_NONE) {
            channel->loaded = LOAD_COUNTING;
            channel->reload = channel->next_reload;
            channel->start_ns = now_ns;
        }
    } else if (periodic(channel)) {
        channel->start_ns = now_ns; /* a rising gate starts the period again */
    } else {
        channel->start_ns += now_ns - channel->stopped_ns;
    }
    channel->gate = gate;
}

void hv_pit_reset(struct hv_pit *pit, uint64_t now_ns)
{
    memset(pit, 0, sizeof *pit);
    for (unsigned i = 0; i < 3; i++) { /* as firmware leaves it: 18.2 Hz on channel 0; channel 2's gate is low */
        struct hv_pit_channel *channel = &pit->channel[i];
        *channel = (struct hv_pit_channel){.mode = 3, .access = 3, .gate = i != 2, .output_hint = 1};
        pit->next_edge_ns = HV_NEVER;
        load(pit, i, 0, now_ns);
    }
    pit->next_edge_ns = edge_after(&pit->channel[0], now_ns);
}

static uint16_t visible_count(const struct hv_pit_channel *channel, uint64_t now_ns)
{
    uint32_t count = count_at(channel, now_ns);
    if (channel->bcd)
        count = count / 1000 << 12 | count / 100 % 10 << 8 | count / 10 % 10 << 4 | count % 10;
    return (uint16_t)count;
}

static void latch_count(struct hv_pit_channel *channel, uint64_t now_ns)
{
    if (channel->count_latched)
        return; /* the first one holds until it is read */
    channel->latch = visible_count(channel, now_ns);
    channel->count_latched = channel->access;
}

static void latch_status(struct hv_pit_channel *channel, uint64_t now_ns)
{
    if (channel->status_latched)
        return;
    bool null_count = channel->loaded == LOAD_NONE || channel->reload != channel->next_reload;
    channel->status = (uint8_t)(output_at(channel, now_ns) << 7 | null_count << 6 | channel->access << 4 | channel->mode << 1 | channel->bcd);
    channel->status_latched = 1;
}

static void control(struct hv_pit *pit, uint8_t value, uint64_t now_ns)
{
    unsigned index = value >> 6;

    if (index == 3) { /* Read-Back Command */
        for (unsigned i = 0; i < 3; i++) {
            struct hv_pit_channel *channel = &pit->channel[i];
            if (!(value >> (i + 1) & 1))
                continue;
            settle(channel, now_ns);
            if (!(value & 0x20))
                latch_count(channel, now_ns);
            if (!(value & 0x10))
                latch_status(channel, now_ns);
        }
        return;
    }
    struct hv_pit_channel *channel = &pit->channel[index];
    settle(channel, now_ns);
    if (!(value & 0x30)) {
        latch_count(channel, now_ns);
        return;
    }
    uint8_t mode = value >> 1 & 7;
    channel->mode = mode > 5 ? mode - 4 : mode; /* 6 and 7 are 2 and 3 */
    channel->access = value >> 4 & 3;
    channel->bcd = value & 1;
    channel->write_low_done = channel->read_high_next = channel->count_latched = channel->status_latched = 0;
    channel->loaded = LOAD_NONE;
    channel->output_hint = channel->mode != 0;
    if (index == 0) {
        pit->next_edge_ns = HV_NEVER;
        owe_nothing(pit);
    }
}

static uint8_t read_count(struct hv_pit_channel *channel, uint64_t now_ns)
{
    if (channel->status_latched) {
        channel->status_latched = 0;
        return channel->status;
    }
    if (channel->count_latched) {
        bool high = channel->count_latched == LATCH_HIGH;
        channel->count_latched = channel->count_latched == LATCH_BOTH ? LATCH_HIGH : LATCH_NONE;
        return (uint8_t)(high ? channel->latch >> 8 : channel->latch);
    }
    uint16_t count = visible_count(channel, now_ns);
    bool high = channel->access == 2 || (channel->access == 3 && channel->read_high_next);
    channel->read_high_next = channel->access == 3 && !high;
    return (uint8_t)(high ? count >> 8 : count);
}

static void write_count(struct hv_pit *pit, unsigned index, uint8_t value, uint64_t now_ns)
{
    struct hv_pit_channel *channel = &pit->channel[index];

    if (channel->access == 1)
        load(pit, index, value, now_ns);
    else if (channel->access == 2)
        load(pit, index, (uint32_t)value << 8, now_ns);
    else if (channel->write_low_done) {
        channel->write_low_done = 0;
        load(pit, index, (uint32_t)value << 8 | channel->write_latch, now_ns);
    } else {
        channel->write_latch = value;
        channel->write_low_done = 1;
        if (channel->mode == 0) { /* the first byte disables counting and takes the output low */
            channel->loaded = LOAD_NONE;
            channel->output_hint = 0;
            if (index == 0) {
                pit->next_edge_ns = HV_NEVER;
                owe_nothing(pit);
            }
        }
    }
}

uint8_t hv_pit_read(struct hv_pit *pit, uint16_t port, uint64_t now_ns)
{
    for (unsigned i = 0; i < 3; i++)
        settle(&pit->channel[i], now_ns);
    if (port == 0x61) {
        /* Bit 4 toggles with each memory refresh, every 15.085 us (18 ticks). */
        return (uint8_t)(pit->port61 | (ticks_of(now_ns) / 18 & 1) << 4 | (unsigned)output_at(&pit->channel[2], now_ns) << 5);
    }
    return port == 0x43 ? 0xff : read_count(&pit->channel[port & 3], now_ns);
}

void hv_pit_write(struct hv_pit *pit, uint16_t port, uint8_t value, uint64_t now_ns)
{
    switch (port) {
    case 0x61:
        pit->port61 = value & 3;
        set_gate(&pit->channel[2], value & 1, now_ns);
        break;
    case 0x43:
        control(pit, value, now_ns);
        break;
    default:
        write_count(pit, port & 3, value, now_ns);
        break;
    }
}

/* Edges have come due: how many, and when is the next one? */
static void come_due(struct hv_pit *pit, uint64_t now_ns)
{
    struct hv_pit_channel *channel = &pit->channel[0];
    uint64_t due_ns = pit->next_edge_ns;
    settle(channel, now_ns);
    if (!periodic(channel)) {
        pit->next_edge_ns = HV_NEVER;
        pit->owed = 1;
        return;
    }
    pit->next_edge_ns = edge_after(channel, now_ns);
    pit->owed += (ticks_of(pit->next_edge_ns - due_ns) + channel->reload / 2) / channel->reload; /* both are rounded to nanoseconds */
    uint64_t most = HV_PIT_OWED_SECONDS * HV_PIT_HZ / channel->reload;
    if (pit->owed > most) {
        pit->missed += pit->owed - most;
        pit->owed = most;
    }
}

static uint64_t pause_ns(const struct hv_pit_channel *channel)
{
    uint64_t part = ns_of(channel->reload) / 8;
    return part > HV_PIT_LEAST_PAUSE_NS ? part : HV_PIT_LEAST_PAUSE_NS;
}

static uint64_t wait_end_ns(const struct hv_pit *pit) { return pit->pause_end_ns > pit->rest_end_ns ? pit->pause_end_ns : pit->rest_end_ns; }

bool hv_pit_advance(struct hv_pit *pit, uint64_t now_ns, bool taken)
{
    if (now_ns >= pit->next_edge_ns)
        come_due(pit, now_ns);
    if (!taken)
        return false;
    if (pit->given) {
        pit->given = false;
        if (periodic(&pit->channel[0]))
            pit->pause_end_ns = now_ns + pause_ns(&pit->channel[0]);
    }
    if (!pit->owed || now_ns < wait_end_ns(pit))
        return false;
    pit->owed--;
    pit->given = true;
    return true;
}

uint64_t hv_pit_deadline(const struct hv_pit *pit, bool taken)
{
    if (!taken)
        return HV_NEVER; /* the guest's next word to the 8259 says more; until then periods need not be counted one by one */
    uint64_t edge_ns = pit->owed ? 0 : pit->next_edge_ns;
    return edge_ns > wait_end_ns(pit) ? edge_ns : wait_end_ns(pit);
}

void hv_pit_forgive(struct hv_pit *pit, uint64_t now_ns)
{
    uint64_t missed = pit->missed;
    if (now_ns >= pit->next_edge_ns)
        come_due(pit, now_ns);
    pit->missed = missed;
    pit->owed = 0;
}

void hv_pit_masked(struct hv_pit *pit, uint64_t now_ns, bool masked)
{
    if (masked)
        pit->masked_ns = now_ns ? now_ns : 1;
    else if (!pit->masked_ns || now_ns - pit->masked_ns > HV_PIT_MASKED_NS)
        hv_pit_forgive(pit, now_ns);
}

bool hv_pit_output(const struct hv_pit *pit, unsigned channel, uint64_t now_ns)
{
    struct hv_pit_channel present = pit->channel[channel];
    settle(&present, now_ns);
    return output_at(&present, now_ns);
}
