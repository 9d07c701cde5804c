/* From translated code into the monitor and back, without a signal. */
#include <string.h>
#include <sys/mman.h>

#include "debug.h"
#include "lookaside.h"
#include "paravirt.h"
#include "signals.h"
#include "translate.h"

#define STACK_BYTES (256u << 10)
#define NOWHERE 0x100000000ull /* 4 GiB in which nothing is mapped */
#define VIRTUAL_FLAGS (HV_IOPL | HV_NT | HV_AC | HV_ID)
#define TYPE_CODE 8u
#define TYPE_DOWN 4u
#define TYPE_WRITABLE 2u
#define TYPE_ACCESSED 1u

void hv_translated_state(void) { HV_CPU->eflags = (cell.host_flags & HV_TRANSLATED_FLAGS) | cell.virtual_if | cell.virtual_flags | 2; }

static bool is_flat_data(const struct hv_segment *segment)
{
    unsigned type = HV_SEGMENT_TYPE(segment);
    return segment->attributes & HV_SEGMENT_PRESENT && segment->limit == ~0u && !(type & TYPE_CODE) && !(type & TYPE_DOWN) && type & TYPE_WRITABLE;
}

bool hv_translatable(void)
{
    const struct hv_segment *segment = HV_CPU->segment;
    return (HV_CPU->cpl == 0 || (hv_withheld() && !(HV_CPU->eflags & HV_AC))) && !(HV_CPU->eflags & (HV_TF | HV_VM)) && segment[HV_CS].base == 0 && segment[HV_CS].limit == ~0u &&
           segment[HV_CS].attributes & HV_SEGMENT_32 && is_flat_data(&segment[HV_SS]) && segment[HV_SS].base == 0 && segment[HV_SS].attributes & HV_SEGMENT_32 &&
           is_flat_data(&segment[HV_DS]) && segment[HV_DS].base == 0 && is_flat_data(&segment[HV_ES]) && segment[HV_ES].base == 0;
}

void hv_translated_prepare(void)
{
    struct hv_cpu *cpu = HV_CPU;
    cell.host_flags = (cpu->eflags & HV_TRANSLATED_FLAGS) | HV_IF | 2;
    cell.virtual_if = cpu->eflags & HV_IF;
    cell.virtual_flags = cpu->eflags & VIRTUAL_FLAGS;
    cell.pending = hv_interrupts_pending();
    cpu->interrupt_shadow = 0;
    cell.window = cpu->cpl == 3 ? 0 : HV_WINDOW;
    for (unsigned kind = 0; kind < HV_FPU_KINDS; kind++)
        cell.fpu_traps[kind] = hv_fpu_traps(kind);
    for (unsigned i = HV_FS; i <= HV_GS; i++) {
        cell.segment_base[i] = cpu->segment[i].base;
        cell.segment_window[i] = is_flat_data(&cpu->segment[i]) ? cell.window : NOWHERE;
    }
}

/* The entry for EIP; made if need be. */
static uint32_t entry_here(void)
{
    uint32_t entry = hv_entry_find(HV_CPU->eip);
    return entry != HV_ENTRY_NONE ? entry : hv_translate(HV_CPU->eip);
}

uint8_t *hv_translated_target(void)
{
    hv_census_settle();
    if (HV_CPU->cpl == 3)
        hv_shadow_enter_programs();
    return hv_entry_host(entry_here());
}

/* ---- what is asked for */

/* The usual: a data segment of the guest's GDT that is there and marked as accessed, for DS and ES a flat one; or null for FS and GS. */
uint32_t hv_translated_load_segment(uint32_t index, uint32_t selector)
{
    struct hv_cpu *cpu = HV_CPU;
    struct hv_segment segment = {.selector = (uint16_t)selector};
    bool data = index == HV_DS || index == HV_ES;
    if (hv_debugging)
        return 0;
    if (selector & ~3u) {
        uint32_t words[2];
        const uint8_t *at = hv_lookaside_find(HV_READ, false, cpu->gdt.base + (selector & ~7u), sizeof words);
        if (!at || selector & 4 || (selector | 7) > cpu->gdt.limit)
            return 0;
        memcpy(words, at, sizeof words);
        hv_unpack(&segment, (uint16_t)selector, words);
        unsigned kind = HV_SEGMENT_S | HV_SEGMENT_PRESENT, type = HV_SEGMENT_TYPE(&segment);
        if ((segment.attributes & kind) != kind || type & TYPE_CODE || !(type & TYPE_ACCESSED) || (selector & 3) > HV_SEGMENT_DPL(&segment))
            return 0;
        if (data && !(is_flat_data(&segment) && segment.base == 0))
            return 0;
    } else if (data) {
        return 0;
    }
    cpu->segment[index] = segment;
    cell.segment_base[index] = segment.base;
    cell.segment_window[index] = is_flat_data(&segment) ? HV_WINDOW : NOWHERE;
    return 1;
}

static void emulate(void)
{
    if (HV_CPU->cpl < 3)
        hv_emulate();
    else if (!hv_withheld_interpret_one())
        hv_trap.step_once = true;
}

static void interrupt_return(void)
{
    HV_CPU->interrupt_shadow = 0;
    hv_interrupt_return(4);
    uint32_t linear;
    if (!HV_CPU->cpl && hv_kernel_fault(HV_CPU->eip, &linear))
        hv_shadow_prefill(linear, false);
}

static uint32_t reached; /* entry, by the last of these two */

static void chain(void)
{
    uint64_t flushes = cell.area->counters.cache_flushes;
    reached = entry_here();
    if (flushes == cell.area->counters.cache_flushes) /* or else the exit is gone */
        hv_block_chain(cell.callout_argument, reached);
}

static void look_up(void)
{
    reached = entry_here();
    hv_entry_look_up(reached);
    cell.board.crossings.counters->looked_up_jumps++;
}

static void nothing(void) {}

static void shadow(void) { HV_CPU->interrupt_shadow = 1; }

static void system_call(void) { hv_software_interrupt(0x80, 2); } /* whose two bytes are done */

static void (*const work[HV_CALLOUTS])(void) = {
    [HV_CALLOUT_EMULATE] = emulate, [HV_CALLOUT_IRET] = interrupt_return, [HV_CALLOUT_CHAIN] = chain, [HV_CALLOUT_LOOKUP] = look_up, [HV_CALLOUT_INTERRUPT] = nothing, [HV_CALLOUT_SHADOW] = shadow,
    [HV_CALLOUT_ASYNC] = nothing, [HV_CALLOUT_SYSTEM_CALL] = system_call,
};

/* From block to block nothing changes that hv_settle_and_go() would look at, unless a signal has come; one that comes from now on sets
 * cell.async, which is looked at on the way back. */
static bool only_jumps(enum hv_callout kind) { return (kind == HV_CALLOUT_CHAIN || kind == HV_CALLOUT_LOOKUP) && !cell.async && !hv_debugging; }

/* Nobody looks on, and no signal has come: when the work is done, too, there is nothing to be settled, as after most accesses to devices. */
static uint64_t go_lightly(void (*work)(void))
{
    hv_translated_state();
    if (hv_guarded(work) && cell.began_tsc && hv_timer_is_right() && hv_go_on_translated()) {
        cell.began_tsc = 0;
        return (uint64_t)(uintptr_t)hv_trap.target;
    }
    hv_straight_end();
    cell.async = 0;
    return hv_settle_and_go(nothing);
}

uint64_t hv_callout(void)
{
    enum hv_callout kind = cell.callout_kind;
    if (kind == HV_CALLOUT_CHAIN)
        HV_CPU->eip = hv_exit_eip(cell.callout_argument);
    cell.board.crossings.counters->callouts++;
    if (only_jumps(kind)) {
        hv_translated_state();
        if (hv_guarded(work[kind])) {
            cell.host_flags = (cell.host_flags & HV_TRANSLATED_FLAGS) | HV_IF | 2;
            return (uint64_t)(uintptr_t)hv_entry_host(reached);
        }
        kind = HV_CALLOUT_ASYNC; /* there is no code: what was raised is seen to */
    }
    if (kind == HV_CALLOUT_EMULATE && HV_CPU->cpl < 3 && !cell.async && hv_straight_begin())
        return go_lightly(emulate);
    cell.async = 0;
    cell.entry_ns = hv_host_ns();
    hv_account_run();
    if (kind == HV_CALLOUT_SYSTEM_CALL)
        hv_take_program();
    else if (kind != HV_CALLOUT_ASYNC) /* whose state is in cell.cpu already */
        hv_translated_state();
    return hv_settle_and_go(work[kind]);
}

bool hv_translator_init(void)
{
    uint8_t *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        return false;
    cell.monitor_sp = (uint64_t)(uintptr_t)(stack + STACK_BYTES - 64);
    cell.callout = (uint64_t)(uintptr_t)hv_callout;
    cell.load_segment = (uint64_t)(uintptr_t)hv_translated_load_segment;
    cell.access_port = (uint64_t)(uintptr_t)hv_translated_access_port;
    return hv_blocks_init();
}
