/* The census: which instructions of the guest's kernel were replaced by what (docs/rewriting.md).
 *
 * The sites of translated code are found when somebody asks, by decoding what the blocks were made from. Their executions are counted by
 * code of their own, which is only compiled in while somebody wants that: the cache is emptied before and afterwards. Engine breakpoint
 * notes each instruction that it executes, which costs it next to nothing.
 */
#include <string.h>

#include "rules.h"

#define PAGE 4096u
#define SLOTS (4 * HV_AREA_SITES)

bool hv_census_counts;
static bool of_no_use;
static uint32_t slots[SLOTS];     /* index of a site + 1, by its address */
static uint64_t seen_pages[(1u << 20) / 64];

static void clear(void)
{
    struct hv_cell_census *census = &cell.area->census;
    if (!census->count)
        return;
    memset(census->site, 0, sizeof *census->site * (census->count < HV_AREA_SITES ? census->count : HV_AREA_SITES));
    census->count = census->full = 0;
    memset(slots, 0, sizeof slots);
}

/* NULL: there is no room for another one. */
static struct hv_cell_site *site_of(uint32_t address, const struct hv_insn *insn, enum hv_replacement replacement)
{
    struct hv_cell_census *census = &cell.area->census;
    uint32_t slot = (address * 2654435761u) % SLOTS;
    while (slots[slot] && census->site[slots[slot] - 1].address != address)
        slot = (slot + 1) % SLOTS;
    if (!slots[slot]) {
        if (census->count >= HV_AREA_SITES) {
            census->full = 1;
            return NULL;
        }
        census->site[census->count].address = address;
        slots[slot] = ++census->count;
    }
    struct hv_cell_site *site = &census->site[slots[slot] - 1];
    site->replacement = (uint8_t)replacement;
    site->length = (uint8_t)insn->length;
    memcpy(site->code, insn->bytes, insn->length);
    return site;
}

void hv_census_count(struct hv_emitter *e, uint32_t eip, const struct hv_insn *insn, enum hv_replacement replacement)
{
    struct hv_cell_site *site;
    if (!hv_census_counts || replacement == HV_REPLACED_NOT || !(site = site_of(eip, insn, replacement)))
        return;
    HV_CODE(e, "\x49\xb8"); /* mov r8, site */
    hv_word64(e, (uint64_t)(uintptr_t)&site->executions);
    HV_CODE(e, "\x4d\x8b\x08\x4d\x8d\x49\x01\x4d\x89\x08"); /* mov r9, [r8]; lea r9, [r9 + 1]; mov [r8], r9: no flags */
}

void hv_census_executed(uint32_t linear, const struct hv_insn *insn)
{
    struct hv_cell_site *site = site_of(linear, insn, HV_REPLACED_BREAKPOINT);
    if (site)
        site->executions++;
}

/* Of the code that a block was made from: a write there would have ended the block. */
static unsigned bytes_at(const struct hv_block *block, uint32_t eip, uint8_t bytes[HV_LONGEST_INSTRUCTION])
{
    unsigned count = 0;
    for (; count < HV_LONGEST_INSTRUCTION; count++) {
        uint32_t page = (eip + count) / PAGE;
        unsigned k = page == block->page[0] ? 0 : 1;
        const uint8_t *memory = k < block->page_count && page == block->page[k] ? hv_memory_at((uint64_t)block->frame[k] * PAGE, false, NULL) : NULL;
        if (!memory)
            break;
        bytes[count] = memory[(eip + count) % PAGE];
    }
    return count;
}

static void collect_block(const struct hv_block *block)
{
    struct hv_cell_census *census = &cell.area->census;
    uint32_t eip = block->eip;
    census->blocks++;
    census->instructions += block->instructions;
    for (unsigned i = 0; i < block->instructions; i++) {
        uint8_t bytes[HV_LONGEST_INSTRUCTION];
        struct hv_insn insn;
        if (hv_decode(&insn, bytes, bytes_at(block, eip, bytes), true) != HV_DECODED)
            return; /* it raises what it has; nothing was replaced */
        bool last = i == block->instructions - 1u;
        enum hv_replacement replacement = last && block->calls_out ? HV_REPLACED_CALLOUT : hv_replacement(&insn);
        if (replacement != HV_REPLACED_NOT)
            site_of(eip, &insn, replacement);
        eip += insn.length;
    }
    for (unsigned k = 0; k < block->page_count; k++) {
        uint64_t *word = &seen_pages[block->page[k] / 64], bit = 1ull << (block->page[k] % 64);
        census->pages += !(*word & bit);
        *word |= bit;
    }
}

static void collect(void)
{
    struct hv_cell_census *census = &cell.area->census;
    census->blocks = census->pages = 0;
    census->instructions = 0;
    if (cell.mode != HV_MODE_REWRITING)
        return;
    if (!hv_census_counts)
        clear();
    memset(seen_pages, 0, sizeof seen_pages);
    for (uint32_t i = 0; i < hv_block_count(); i++)
        if (hv_block(i)->valid && !hv_block(i)->user)
            collect_block(hv_block(i));
}

bool hv_census_serve(void)
{
    switch (cell.area->census.command) {
    case HV_CENSUS_NONE:
        return false;
    case HV_CENSUS_COUNT:
        clear();
        of_no_use = true;
        hv_census_counts = cell.mode == HV_MODE_REWRITING;
        return true;
    case HV_CENSUS_COLLECT:
        collect();
        return true;
    default:
        of_no_use = true;
        hv_census_counts = false;
        return true;
    }
}

void hv_code_of_no_use(void) { of_no_use = true; }

void hv_census_settle(void)
{
    if (!of_no_use)
        return;
    of_no_use = false;
    hv_blocks_flush();
}
