/* The page of the virtual processor: the guest's kernel reads and writes it at HV_PV_VCPU, the monitor at an address of its own. */
#define _GNU_SOURCE
#include "paravirt.h"

#include <sys/mman.h>

#include "runs.h"
#include "signals.h"

#define PAGE 4096u
#define NS 1000000000u
#define ANCHOR_NS (NS / 4)    /* so long the guest computes the time from the same base */
#define SHIFT 28u

static uint8_t *page; /* the monitor's own mapping of it */

static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(page + offset); }
static void put(unsigned offset, uint32_t value) { *(volatile uint32_t *)(page + offset) = value; }
static void put16(unsigned offset, uint16_t value) { *(volatile uint16_t *)(page + offset) = value; }
static void put64(unsigned offset, uint64_t value) { *(volatile uint64_t *)(page + offset) = value; }

bool hv_paravirt_init(void)
{
    void *low = mmap((void *)(uintptr_t)HV_PV_VCPU, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (low != (void *)(uintptr_t)HV_PV_VCPU)
        return false;
    void *high = mremap(low, 0, PAGE, MREMAP_MAYMOVE); /* a second mapping of what is shared */
    if (high == MAP_FAILED)
        return false;
    page = high;
    put(HV_PV_MAGIC, HV_PV_SIGNATURE);
    put(HV_PV_VERSIONS, HV_PV_VERSION);
    hv_paravirt_keep();
    return hv_gate_init();
}

/* ---- time: nanoseconds = base + ((TSC - TSC base) * multiplier >> shift) */

static struct hv_clock anchored;
static uint64_t anchor_ns, anchor_tsc, multiplier;

static uint64_t computed_ns(uint64_t tsc) { return anchor_ns + (uint64_t)((unsigned __int128)(tsc - anchor_tsc) * multiplier >> SHIFT); }

static void give_time(void)
{
    const struct hv_clock *clock = &cell.board.clock;
    uint32_t khz = (uint32_t)(cell.area->tsc_told_hz / 1000);
    uint64_t tsc = cell.area->tsc_counted ? hv_tsc() : hv_host_tsc(); /* as the guest's RDTSC shows it */
    bool other = clock->base_ns != anchored.base_ns || clock->running != anchored.running;
    if (!khz || (!other && multiplier && computed_ns(tsc) - anchor_ns < ANCHOR_NS))
        return;
    uint64_t now_ns = hv_clock_now(clock), least_ns = multiplier && !other ? computed_ns(tsc) : 0;
    anchored = *clock;
    anchor_ns = now_ns > least_ns ? now_ns : least_ns; /* what the guest computed so far was not more */
    anchor_tsc = tsc;
    multiplier = ((1000000ull << SHIFT) + khz / 2) / khz;
    put(HV_PV_SEQUENCE, get(HV_PV_SEQUENCE) + 2); /* who is reading it was interrupted by us: he is never there when it is odd */
    put(HV_PV_MULTIPLIER, (uint32_t)multiplier);
    put(HV_PV_SHIFT, SHIFT);
    put(HV_PV_TSC_KHZ, khz);
    put64(HV_PV_TSC_BASE, anchor_tsc);
    put64(HV_PV_TIME_BASE, anchor_ns);
}

/* ---- the guest's state, there and in cell.cpu */

static void put_table(unsigned offset, const struct hv_table *table)
{
    put16(offset, table->limit);
    put16(offset + 2, (uint16_t)table->base);
    put16(offset + 4, (uint16_t)(table->base >> 16));
}

void hv_paravirt_take(void)
{
    if (HV_CPU->cpl < 3)
        HV_CPU->eflags = (HV_CPU->eflags & ~HV_IF) | (get(HV_PV_IF) & HV_IF);
}

void hv_paravirt_give(void)
{
    static const unsigned control[] = {HV_PV_CR0, HV_PV_CR2, HV_PV_CR3, HV_PV_CR4};
    const struct hv_cpu *cpu = HV_CPU;
    if (cpu->cpl == 3)
        return; /* programs do not see it */
    put(HV_PV_IF, cpu->eflags & HV_IF);
    put(HV_PV_PENDING, !(cpu->eflags & HV_IF) && hv_interrupts_pending());
    const uint32_t values[] = {cpu->cr0, cpu->cr2, cpu->cr3, cpu->cr4};
    for (unsigned i = 0; i < 4; i++)
        put(control[i], values[i]);
    put(HV_PV_DR6, cpu->dr[6]);
    put(HV_PV_DR7, cpu->dr[7]);
    put(HV_PV_FLAGS, cpu->eflags & HV_IOPL);
    put(HV_PV_CPL, cpu->cpl);
    for (unsigned i = 0; i < HV_SEGMENTS; i++)
        put16(HV_PV_ES + 4 * i, cpu->segment[i].selector);
    put_table(HV_PV_GDTR, &cpu->gdt);
    put_table(HV_PV_IDTR, &cpu->idt);
    give_time();
}

/* ---- twins that the guest loads by itself */

uint16_t hv_paravirt_selector(unsigned segment, uint16_t selector)
{
    uint16_t stored = *(volatile uint16_t *)(page + HV_PV_ES + 4 * segment);
    return HV_CPU->cpl < 3 && (stored & ~3u) == (selector & ~3u) ? stored : selector;
}

/* What the kernel has loaded since it was last told the twins. */
static struct {
    bool fresh;
    uint32_t words[2];
} loaded[HV_SEGMENTS];

void hv_paravirt_loaded(unsigned segment, const uint32_t words[2])
{
    loaded[segment].fresh = true;
    loaded[segment].words[0] = words[0];
    loaded[segment].words[1] = words[1];
}

void hv_paravirt_offer_twin(unsigned segment, uint16_t host)
{
    if (!loaded[segment].fresh)
        return;
    const struct hv_segment *its = &HV_CPU->segment[segment];
    unsigned index = its->selector >> 3;
    bool flat = its->base == 0 && its->limit == ~0u;
    loaded[segment].fresh = false;
    if (!flat || segment == HV_CS || segment == HV_SS || its->selector & 4 || !index || index >= HV_PV_TWIN_COUNT ||
        hv_twin_place(host) != index)
        return;
    put(HV_PV_DESCRIPTORS + 8 * index, loaded[segment].words[0]);
    put(HV_PV_DESCRIPTORS + 8 * index + 4, loaded[segment].words[1]);
    put16(HV_PV_TWINS + 2 * index, host);
}

void hv_paravirt_forget_twin(unsigned index)
{
    if (index < HV_PV_TWIN_COUNT)
        put16(HV_PV_TWINS + 2 * index, 0);
}

void hv_paravirt_forget_twins(void)
{
    for (unsigned i = 0; i < HV_PV_TWIN_COUNT; i++)
        hv_paravirt_forget_twin(i);
}

/* ---- the page in the low view */

void hv_paravirt_keep(void)
{
    if (mprotect((void *)(uintptr_t)HV_PV_VCPU, PAGE, PROT_READ | PROT_WRITE) != 0)
        hv_fail("the virtual processor's page cannot be made accessible");
    hv_runs_add(HV_PV_VCPU / PAGE, HV_PV_VCPU / PAGE + 1, PROT_READ | PROT_WRITE);
}

uint8_t *hv_paravirt_at(uint32_t linear, bool user)
{
    if (linear < HV_PV_VCPU || user)
        return NULL;
    hv_paravirt_give(); /* of several instructions in a row that the monitor executes, the next sees what the one before did */
    return page + linear % PAGE;
}

/* ---- by trap */

bool hv_paravirt_trap(const struct hv_insn *insn)
{
    if (HV_CPU->cpl || insn->map != HV_MAP_ONE || insn->opcode != 0xcd || insn->immediate != HV_PV_TRAP_CALL)
        return false;
    HV_CPU->eip += insn->length;
    hv_hypercall();
    return true;
}

bool hv_paravirt_beyond(const struct hv_insn *insn)
{
    if (hv_interpret(insn)) /* or raises what its segments and page tables say */
        return true;
    /* AVX and the like: only what they access is known here. */
    if (!insn->has_modrm || insn->mod == 3)
        return false;
    struct hv_walk walk;
    uint32_t linear = hv_operand_linear(insn, 1, false);
    hv_walk(&walk, linear, false, true, false, false);
    if (walk.error)
        hv_raise_page_fault(linear, walk.error);
    hv_fail("a program accesses by an instruction that the monitor does not know memory at %#x, beyond its limit %#x", linear, HV_CPU->user_limit);
}
