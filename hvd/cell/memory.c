/* Calls about page tables, descriptor tables and segments. What the architecture would answer with an exception is an error here: EINVAL. */
#include <errno.h>

#include "paravirt.h"
#include "signals.h"
#include "translate.h"

#define PAGE 4096u
#define PAGES (1u << 20)
#define PRESENT 1u
#define WRITABLE 2u
#define GATES 256u
#define GATE_TRAP 0x8f00u /* present, 32 bits */
#define GATE_INTERRUPT 0x8e00u

static uint32_t wanted; /* by what is attempted */
static uint32_t wanted_segment;

static bool attempt(void (*work)(void), uint32_t value)
{
    wanted = value;
    return hv_attempt(work);
}

/* ---- control registers */

static void write_cr0(void) { hv_write_cr0(wanted); }
static void write_cr4(void) { hv_write_cr4(wanted); }

HV_CALL(set_cr0) { return attempt(write_cr0, argument[0]) ? 0 : -EINVAL; }
HV_CALL(set_cr4) { return attempt(write_cr4, argument[0]) ? 0 : -EINVAL; }

HV_CALL(set_cr3)
{
    HV_CPU->cr3 = argument[0];
    hv_shadow_load_cr3();
    return 0;
}

/* ---- page tables */

HV_CALL(flush)
{
    if (argument[0] > 1)
        return -EINVAL;
    hv_shadow_flush(argument[0]);
    return 0;
}

HV_CALL(invlpg)
{
    if (argument[1] > PAGES - argument[0] / PAGE)
        return -EINVAL;
    hv_shadow_flush_pages(argument[0], argument[1]);
    return 0;
}

/* Neighbours that are invalidated are forgotten together. */
struct range {
    uint32_t linear, pages;
};

static void forget(struct range *range)
{
    if (range->pages)
        hv_shadow_flush_pages(range->linear, range->pages);
    range->pages = 0;
}

static int64_t set_entry(const struct hv_pv_pte *pte, struct range *range)
{
    bool wide = HV_CPU->cr4 & HV_CR4_PAE;
    uint64_t left;
    if (pte->entry % (wide ? 8 : 4) || (!wide && pte->value >> 32) || pte->linear & 0xffc)
        return -EINVAL;
    uint8_t *at = hv_memory_at(pte->entry, true, &left);
    if (!at)
        return -EFAULT;
    hv_code_written(pte->entry, wide ? 8 : 4);
    __builtin_memcpy(at, &pte->value, wide ? 8 : 4);
    if (!(pte->linear & HV_PV_PTE_INVALIDATE))
        return 0;
    uint32_t linear = pte->linear & ~(PAGE - 1);
    if (range->pages && linear == range->linear + range->pages * PAGE) {
        range->pages++;
    } else {
        forget(range);
        *range = (struct range){linear, 1};
    }
    return 0;
}

/* As if the page had been touched now: the fault comes before the access. */
static void touch(const struct hv_pv_pte *pte)
{
    struct hv_walk walk;
    uint32_t linear = pte->linear & ~(PAGE - 1);
    if (pte->linear & HV_PV_PTE_TOUCH && pte->value & PRESENT)
        hv_shadow_fault(linear, pte->value & WRITABLE, false, false, &walk);
}

HV_CALL(set_pte)
{
    const struct hv_pv_pte pte = {.entry = argument[0], .value = (uint64_t)argument[3] << 32 | argument[1], .linear = argument[2]};
    struct range range = {0};
    int64_t result = set_entry(&pte, &range);
    forget(&range);
    if (!result)
        touch(&pte);
    return result;
}

HV_CALL(set_ptes)
{
    static struct hv_pv_pte ptes[HV_PV_BATCH];
    uint32_t count = argument[1], done;
    struct range range = {0};
    int64_t result = 0;
    if (count > HV_PV_BATCH)
        return -EINVAL;
    if (!hv_copy_in(ptes, argument[0], count * sizeof *ptes))
        return -EFAULT;
    for (done = 0; done < count; done++)
        if ((result = set_entry(&ptes[done], &range)))
            break;
    forget(&range);
    for (uint32_t i = 0; i < done; i++)
        touch(&ptes[i]);
    return done ? (int64_t)done : result;
}

/* ---- descriptor tables */

static int64_t set_table(struct hv_table *table, const uint32_t *argument)
{
    if (argument[1] > 0xffff)
        return -EINVAL;
    table->base = argument[0];
    table->limit = (uint16_t)argument[1];
    return 0;
}

HV_CALL(set_gdt)
{
    hv_paravirt_forget_twins();
    return set_table(&HV_CPU->gdt, argument);
}

HV_CALL(set_idt) { return set_table(&HV_CPU->idt, argument); }

static void load_ldtr(void) { hv_load_ldtr((uint16_t)wanted); }
static void load_tr(void) { hv_load_tr((uint16_t)wanted); }
static void load_segment(void) { hv_load_segment(wanted_segment, (uint16_t)wanted); }

HV_CALL(set_ldt) { return argument[0] <= 0xffff && attempt(load_ldtr, argument[0]) ? 0 : -EINVAL; }
HV_CALL(set_tr) { return argument[0] <= 0xffff && attempt(load_tr, argument[0]) ? 0 : -EINVAL; }

HV_CALL(load_segment)
{
    uint32_t segment = argument[0];
    if (argument[1] > 0xffff || (segment != HV_ES && segment != HV_DS && segment != HV_FS && segment != HV_GS))
        return -EINVAL;
    wanted_segment = segment;
    return attempt(load_segment, argument[1]) ? 0 : -EINVAL;
}

HV_CALL(set_descriptor)
{
    uint32_t index = argument[0];
    if (index > 8191 || index * 8 + 7 > HV_CPU->gdt.limit)
        return -EINVAL;
    if (!hv_copy_out(HV_CPU->gdt.base + index * 8, argument + 1, 8))
        return -EFAULT;
    if (index < HV_PV_TWIN_COUNT)
        hv_paravirt_forget_twins();
    return 0;
}

HV_CALL(set_traps)
{
    uint32_t at = argument[0], count = argument[1];
    if (count > GATES)
        return -EINVAL;
    for (uint32_t done = 0; done < count; done++, at += sizeof(struct hv_pv_trap)) {
        struct hv_pv_trap trap;
        int64_t error = 0;
        if (!hv_copy_in(&trap, at, sizeof trap))
            error = -EFAULT;
        else if (trap.flags & ~7u || trap.vector * 8u + 7 > HV_CPU->idt.limit)
            error = -EINVAL;
        uint32_t kind = (trap.flags & HV_PV_TRAP_INTERRUPT ? GATE_INTERRUPT : GATE_TRAP) | (trap.flags & 3u) << 13;
        const uint32_t gate[2] = {(uint32_t)trap.selector << 16 | (trap.address & 0xffff), (trap.address & 0xffff0000u) | kind};
        if (!error && !hv_copy_out(HV_CPU->idt.base + trap.vector * 8u, gate, sizeof gate))
            error = -EFAULT;
        if (error)
            return done ? (int64_t)done : error;
    }
    return count;
}

HV_CALL(set_stack)
{
    const struct hv_segment *tss = &HV_CPU->segment[HV_TR];
    const uint32_t words[2] = {argument[1], argument[0]}; /* ESP0, SS0 */
    if (!(tss->attributes & HV_SEGMENT_PRESENT) || !(HV_SEGMENT_TYPE(tss) & 8) || tss->limit < 11 || argument[0] > 0xffff)
        return -EINVAL;
    return hv_copy_out(tss->base + 4, words, sizeof words) ? 0 : -EFAULT;
}

HV_CALL(fill_page)
{
    uint8_t entries[HV_PV_ENTRIES * HV_PV_ENTRY_BYTES];
    if (argument[0] % PAGE)
        return -EINVAL;
    hv_gate_fill(entries);
    return hv_copy_out(argument[0], entries, sizeof entries) ? 0 : -EFAULT;
}

HV_CALL(set_user_limit)
{
    if (argument[0] % PAGE)
        return -EINVAL;
    HV_CPU->user_limit = argument[0];
    return 0;
}
