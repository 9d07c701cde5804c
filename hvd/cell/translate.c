/* A block of guest kernel code to a block of 64-bit code in the cache (docs/rewriting.md). Each instruction of the guest begins at a place
 * (hv_block_place), by which a fault or an interrupt finds back to it. */
#include "rules.h"

#define PAGE 4096u
#define MOST_INSTRUCTIONS 64
#define MOST_HOST_BYTES 24000
#define MOST_GUEST_BYTES 3000

/* The guest's code of the page in which a block begins, and of the next where an instruction reaches into it. */
struct source {
    const uint8_t *page; /* NULL: no memory */
    uint32_t linear;
};

/* Bytes at eip, at most 15, into insn's decoder; 0 = there is no code to be fetched. */
static unsigned fetch(const struct source *source, uint32_t eip, const uint8_t **bytes, uint8_t buffer[HV_LONGEST_INSTRUCTION])
{
    uint32_t offset = eip - source->linear;
    if (source->page && offset <= PAGE - HV_LONGEST_INSTRUCTION) {
        *bytes = source->page + offset;
        return HV_LONGEST_INSTRUCTION;
    }
    *bytes = buffer;
    return hv_fetch_at(eip, buffer);
}

/* The frame of a page of code, if it lies where blocks can come from. */
static bool add_page(struct hv_block *block, uint32_t eip)
{
    struct hv_walk walk;
    hv_walk(&walk, eip, false, block->user, true, false);
    if (walk.error || walk.physical >> 32 || !hv_memory_at(walk.physical, false, NULL))
        return false;
    block->page[block->page_count] = eip / PAGE;
    block->frame[block->page_count++] = walk.physical / PAGE;
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

uint32_t hv_translate(uint32_t eip)
{
    static struct hv_translation t;
    uint32_t index;
    uint64_t start_ns = hv_host_ns();
    uint8_t first[HV_LONGEST_INSTRUCTION];
    HV_CPU->eip = eip;
    hv_fetch(first); /* raises what the first byte has */
    t.block = hv_block_begin(eip, &index);
    t.e.at = t.block->host;
    t.next = eip;
    t.ends = false;
    t.exits = 0;
    memset(t.fpu_checked, 0, sizeof t.fpu_checked);
    bool in_memory = add_page(t.block, eip), after_sti = false;
    const struct source source = {in_memory ? hv_memory_at(t.block->frame[0] * PAGE, false, NULL) : NULL, eip & ~(PAGE - 1)};
    while (!t.ends) {
        uint8_t buffer[HV_LONGEST_INSTRUCTION];
        const uint8_t *bytes = buffer;
        uint32_t at = t.next;
        bool full = t.block->instructions &&
                    (at / PAGE != eip / PAGE || t.block->instructions >= MOST_INSTRUCTIONS || t.exits >= HV_MOST_EXITS || at - eip > MOST_GUEST_BYTES ||
                     t.e.at - t.block->host > MOST_HOST_BYTES);
        unsigned available = full ? 0 : fetch(&source, at, &bytes, buffer);
        if (!available && t.block->instructions) {
            go_on_at(&t, at, after_sti);
            break;
        }
        bool decoded = hv_decode(&t.insn, bytes, available, true) == HV_DECODED;
        t.eip = at;
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
        if (decoded && !t.block->user)
            hv_census_count(&t.e, at, &t.insn, hv_replacement(&t.insn));
        uint8_t *before = t.e.at;
        unsigned exits = t.exits;
        bool branches_behind_sti = t.shadow && decoded && hv_is_branch(&t.insn);
        if (!decoded || !in_memory || branches_behind_sti || hv_device_site(at) || !hv_translate_instruction(&t)) {
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
    t.block->guest_bytes = (uint16_t)(t.next - eip);
    for (unsigned i = 0; i < t.exits; i++) {
        uint8_t *stub = t.e.at;
        uint32_t target = t.exit[i].eip, exit = hv_block_exit(t.exit[i].displacement, stub);
        hv_constant(&t.e, HV_R10, exit);
        hv_call_out(&t, target, HV_CALLOUT_CHAIN);
        uint32_t known = target == eip ? HV_BLOCK_NONE : hv_block_find(target);
        if (known != HV_BLOCK_NONE)
            hv_block_chain(exit, known);
    }
    if (!in_memory)
        t.block->page_count = 0;
    hv_block_end(index, &t.e);
    uint64_t entry_ns = cell.entry_ns;
    cell.entry_ns = start_ns;
    hv_cross_here(HV_POINT_TRANSLATION_BLOCK, eip, t.block->instructions, t.block->guest_bytes, t.block->host_bytes);
    cell.entry_ns = entry_ns;
    return index;
}
