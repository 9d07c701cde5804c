/* A block of guest kernel code to a block of 64-bit code in the cache (docs/rewriting.md). Each instruction of the guest begins at a place
 * (hv_block_place), by which a fault or an interrupt finds back to it. */
#include "common.h"
#include "lookaside.h"
#include "ticks.h"

#define PAGE 4096u
#define MOST_INSTRUCTIONS 64
#define MOST_HOST_BYTES 24000
#define MOST_GUEST_BYTES 3000
#define MOST_AHEAD 8     /* blocks behind the one that is asked for */
#define MOST_RETURNS 2u  /* of calls one behind the other; so few of those are never returned to that more blocks of an own Linux would be of no use */
#define MOST_WAITING (2 * MOST_AHEAD + 2)

/* A page of the guest's code, as the processor's TLB would know it: until something drops entries there (lookaside.h). */
struct source {
    uint32_t page, generation; /* linear page number */
    uint32_t frame;            /* guest-physical one */
    bool global, user;         /* user: with the rights of programs */
    const uint8_t *at;         /* NULL: blocks cannot come from there */
};
#define SOURCES 64u
static struct source sources[SOURCES];

static struct source *row_of(uint32_t eip) { return &sources[eip / PAGE % SOURCES]; }

static bool is_at_hand(const struct source *source, uint32_t eip)
{
    return source->at && source->page == eip / PAGE && source->generation == hv_lookaside_generation && source->user == (HV_CPU->cpl == 3);
}

/* A page that there is code from already is looked at whenever its mapping may have changed. */
static bool know(struct source *source, uint32_t eip)
{
    uint32_t frame;
    bool global;
    if (is_at_hand(source, eip))
        return true;
    if (HV_CPU->cpl == 3 || !hv_code_page(eip / PAGE, &frame, &global))
        return false;
    *source = (struct source){eip / PAGE, hv_lookaside_generation, frame, global, false, hv_memory_at((uint64_t)frame * PAGE, false, NULL)};
    return source->at;
}

static const struct source *source_of(uint32_t eip)
{
    struct source *source = row_of(eip);
    if (know(source, eip))
        return source;
    uint8_t first[HV_LONGEST_INSTRUCTION];
    struct hv_walk walk;
    HV_CPU->eip = eip;
    hv_fetch(first); /* raises what the first byte has */
    bool user = HV_CPU->cpl == 3;
    hv_walk(&walk, eip, false, user, true, false);
    *source = (struct source){eip / PAGE, hv_lookaside_generation, (uint32_t)(walk.physical / PAGE), walk.global, user, NULL};
    if (!walk.error && !(walk.physical >> 32))
        source->at = hv_memory_at(walk.physical & ~(uint64_t)(PAGE - 1), false, NULL);
    return source;
}

/* Its code is likely to be translated next: memory that the processor has not seen lately. */
static void expect(uint32_t eip)
{
    const struct source *source = row_of(eip);
    if (is_at_hand(source, eip))
        __builtin_prefetch(source->at + eip % PAGE);
}

/* Bytes at eip, at most 15, into insn's decoder; 0 = there is no code to be fetched. */
static unsigned fetch(const struct source *source, uint32_t eip, const uint8_t **bytes, uint8_t buffer[HV_LONGEST_INSTRUCTION])
{
    uint32_t offset = eip - source->page * PAGE;
    if (source->at && offset <= PAGE - HV_LONGEST_INSTRUCTION) {
        *bytes = source->at + offset;
        return HV_LONGEST_INSTRUCTION;
    }
    *bytes = buffer;
    return hv_fetch_at(eip, buffer);
}

/* The frame of the second page of a block, if it lies where blocks can come from. */
static bool add_page(struct hv_block *block, uint32_t eip)
{
    struct hv_walk walk;
    hv_walk(&walk, eip, false, block->user, true, false);
    if (walk.error || walk.physical >> 32 || !hv_memory_at(walk.physical, false, NULL))
        return false;
    block->page[1] = eip / PAGE;
    block->frame[1] = (uint32_t)(walk.physical / PAGE);
    block->page_count = 2;
    return true;
}

/* The block ends, and the guest goes on behind it. If that stands behind STI, the monitor looks at what waits behind one more instruction. */
static void go_on_at(struct hv_translation *t, uint32_t eip, bool behind_sti)
{
    if (behind_sti)
        hv_call_out(t, eip, HV_CALLOUT_SHADOW);
    else
        hv_jump_out(t, eip);
}

static struct hv_translation t;

static uint32_t translate(uint32_t eip)
{
    uint32_t index;
    bool by_ticks = hv_ticks_do();
    uint64_t start = by_ticks ? hv_host_tsc() : hv_host_ns();
    const struct source *source = source_of(eip);
    t.block = hv_block_begin(eip, &index);
    t.e.at = t.block->host;
    t.next = eip;
    t.ends = false;
    t.returns_to = HV_BLOCK_NONE;
    t.exits = 0;
    memset(t.fpu_checked, 0, sizeof t.fpu_checked);
    bool in_memory = source->at, after_sti = false, common = in_memory && !hv_device_sites_in(eip / PAGE) && !(hv_census_counts && !t.block->user);
    t.block->page[0] = source->page;
    t.block->frame[0] = source->frame;
    t.block->page_count = 1;
    for (;;) {
        if (common && !after_sti && t.next / PAGE == eip / PAGE) {
            t.bytes = source->at + t.next % PAGE;
            hv_translate_common(&t, MOST_INSTRUCTIONS - t.block->instructions);
        }
        if (t.ends)
            break;
        uint8_t buffer[HV_LONGEST_INSTRUCTION];
        const uint8_t *bytes = buffer;
        uint32_t at = t.next;
        bool full = t.block->instructions &&
                    (at / PAGE != eip / PAGE || t.block->instructions >= MOST_INSTRUCTIONS || t.exits >= HV_MOST_EXITS || at - eip > MOST_GUEST_BYTES ||
                     t.e.at - t.block->host > MOST_HOST_BYTES);
        unsigned available = full ? 0 : fetch(source, at, &bytes, buffer);
        if (!available && t.block->instructions) {
            go_on_at(&t, at, after_sti);
            break;
        }
        bool decoded = hv_decode(&t.insn, bytes, available, true) == HV_DECODED;
        t.eip = at;
        t.bytes = bytes;
        t.next = at + (decoded ? t.insn.length : 1);
        if (decoded && (t.next - 1) / PAGE != eip / PAGE) {
            if (t.block->instructions) { /* it begins a block of its own */
                go_on_at(&t, at, after_sti);
                break;
            }
            in_memory = in_memory && add_page(t.block, t.next - 1);
        }
        t.shadow = after_sti;
        after_sti = false;
        hv_block_place(t.block, &t.e, (at - eip) | (t.shadow ? HV_PLACE_SHADOW : 0));
        t.block->instructions++;
        if (decoded && hv_census_counts && !t.block->user)
            hv_census_count(&t.e, at, &t.insn, hv_replacement(&t.insn));
        uint8_t *before = t.e.at;
        unsigned exits = t.exits;
        bool branches_behind_sti = t.shadow && decoded && hv_is_branch(&t.insn);
        if (!decoded || !in_memory || branches_behind_sti || hv_device_site(at, &t.insn) || !hv_translate_instruction(&t)) {
            t.e.at = before;
            t.exits = exits;
            t.ends = t.block->calls_out = true;
            if (decoded && !t.block->user)
                hv_census_count(&t.e, at, &t.insn, HV_REPLACED_CALLOUT);
            hv_call_out(&t, at, HV_CALLOUT_EMULATE);
            t.next = at + (decoded ? t.insn.length : 1);
            break;
        }
        if (t.shadow && !t.ends) {
            hv_block_place(t.block, &t.e, (t.next - eip) | HV_PLACE_SHADOW);
            hv_check_interrupts(&t, t.next);
        }
        after_sti = hv_sets_interrupts(&t.insn);
    }
    hv_block_place(t.block, &t.e, ((t.next - eip) & HV_PLACE_GUEST) | HV_PLACE_SHADOW);
    t.one_way_out = t.exits == 1 && t.exit[0].displacement + 4 == t.e.at;
    t.block->guest_bytes = (uint16_t)(t.next - eip);
    for (unsigned i = 0; i < t.exits; i++) {
        t.exit[i].number = hv_block_exit(t.exit[i].displacement, t.e.at, t.exit[i].eip);
        hv_constant(&t.e, HV_R10, t.exit[i].number);
        hv_jump(&t.e, hv_stubs.chain);
        hv_entry_expect(t.exit[i].eip);
        expect(t.exit[i].eip);
    }
    if (!in_memory)
        t.block->page_count = 0;
    uint32_t entry = hv_block_end(index, &t.e, source->global);
    for (unsigned i = 0; i < t.exits; i++) {
        uint32_t known = hv_entry_find(t.exit[i].eip);
        if (known == HV_ENTRY_NONE)
            continue;
        hv_block_chain(t.exit[i].number, known);
        t.one_way_out = false;
    }
    if (by_ticks) {
        hv_crossing_counted(&cell.board.crossings, HV_POINT_TRANSLATION_BLOCK, hv_ticks_ns(start));
        return entry;
    }
    uint64_t entry_ns = cell.entry_ns;
    cell.entry_ns = start;
    hv_cross_here(HV_POINT_TRANSLATION_BLOCK, eip, t.block->instructions, t.block->guest_bytes, t.block->host_bytes);
    cell.entry_ns = entry_ns;
    return entry;
}

/* Where a block leads to: by its only exit, or by the return of what it calls (exit: HV_BLOCK_NONE). returns: how many lie on the way there. */
static struct successor {
    uint32_t eip, exit, returns;
} waiting[MOST_WAITING];
static unsigned waiting_count;

static void add_successors(uint32_t returns)
{
    if (t.returns_to != HV_BLOCK_NONE && returns < MOST_RETURNS)
        waiting[waiting_count++] = (struct successor){t.returns_to, HV_BLOCK_NONE, returns + 1};
    if (t.one_way_out)
        waiting[waiting_count++] = (struct successor){t.exit[0].eip, t.exit[0].number, returns};
}

/* What a block is followed by for certain, and what a call returns to, is translated as well, which spares callouts: where it needs no look at the guest's
 * page tables, which would show there. Returns find it at once. */
uint32_t hv_translate(uint32_t eip)
{
    uint32_t first = translate(eip);
    waiting_count = 0;
    add_successors(0);
    for (unsigned i = 0; i < MOST_AHEAD && waiting_count; i++) {
        struct successor next = waiting[--waiting_count];
        uint32_t entry = hv_entry_find(next.eip);
        if (entry == HV_ENTRY_NONE) {
            if (!hv_block_fits() || !know(row_of(next.eip), next.eip))
                continue;
            entry = translate(next.eip);
            add_successors(next.returns);
        }
        if (next.exit != HV_BLOCK_NONE)
            hv_block_chain(next.exit, entry);
        else
            hv_entry_look_up(entry);
    }
    return first;
}
