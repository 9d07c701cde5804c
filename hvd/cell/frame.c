/* The guest's state in and out of a signal's frame; and its x87 and SSE registers, which lie there or, in a callout, in the processor. */
#include "signals.h"

#include <string.h>

#include "fpu.h"
#include "paravirt.h"
#include "sites.h"

#define NATIVE_FLAGS (HV_STATUS_FLAGS | HV_DF | HV_TF | HV_NT | HV_AC | HV_ID) /* that the guest has in the host's EFLAGS, too */
#define LIVE_FLAGS (HV_STATUS_FLAGS | HV_DF | HV_NT | HV_ID)                   /* always as the guest has them */
#define XSTATE_HEADER 512 /* offset of XSTATE_BV in an XSAVE area (SDM vol. 1, 13.4.2) */
#define X87_AND_SSE 3u
#define FRAME_HAS_XSAVE 0x46505853u /* FP_XSTATE_MAGIC1, in the last 48 bytes of the FXSAVE image */
#define FRAME_MAGIC_AT 464

const int hv_general[8] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI};

/* MXCSR_MASK, which a signal's frame lacks. */
static uint32_t mxcsr_mask(void)
{
    static uint8_t image[512] __attribute__((aligned(16)));
    static uint32_t mask;
    if (!mask) {
        __asm__ volatile("fxsave %0" : "=m"(image));
        memcpy(&mask, image + HV_FX_MXCSR_MASK, sizeof mask);
    }
    return mask;
}

bool hv_fpu_publish(void)
{
    if (hv_trap.frame && hv_trap.frame->uc_mcontext.fpregs) {
        uint32_t mask = mxcsr_mask();
        memcpy(HV_CPU->fxsave, hv_trap.frame->uc_mcontext.fpregs, sizeof HV_CPU->fxsave);
        memcpy(HV_CPU->fxsave + HV_FX_MXCSR_MASK, &mask, sizeof mask);
    } else if (!hv_trap.frame) /* a callout: they are where the guest left them */
        __asm__ volatile("fxsave %0" : "=m"(HV_CPU->fxsave));
    memset(HV_CPU->fxsave + HV_FX_BYTES, 0, sizeof HV_CPU->fxsave - HV_FX_BYTES); /* 64-bit code's, and the kernel's own words */
    return !hv_trap.frame;
}

/* beyond: what of the state lies beyond x87 and SSE stays as it is; otherwise it is as after a reset. */
static void put_fpu(bool beyond)
{
    if (!hv_trap.frame) {
        __asm__ volatile("fxrstor %0" : : "m"(HV_CPU->fxsave));
        return;
    }
    if (!hv_trap.frame->uc_mcontext.fpregs)
        return;
    uint8_t *image = (uint8_t *)hv_trap.frame->uc_mcontext.fpregs;
    uint32_t magic;
    memcpy(&magic, image + FRAME_MAGIC_AT, sizeof magic);
    memcpy(image, HV_CPU->fxsave, FRAME_MAGIC_AT); /* behind it the frame's own words */
    if (magic == FRAME_HAS_XSAVE) {
        uint64_t present;
        memcpy(&present, image + XSTATE_HEADER, sizeof present);
        present = beyond ? present | X87_AND_SSE : X87_AND_SSE;
        memcpy(image + XSTATE_HEADER, &present, sizeof present);
    }
}

void hv_fpu_adopt(void) { put_fpu(false); }
void hv_fpu_return(void) { put_fpu(true); }

/* A segment register holds another selector than the guest was entered with: it loaded it without a trap. */
static unsigned reloaded;
static uint16_t reloaded_selector;
static void reload(void) { hv_load_segment(reloaded, reloaded_selector); }

static void take_segment(unsigned index)
{
    uint16_t guest;
    bool twin = hv_twin_guest_selector(hv_trap.live[index], &guest);
    if (twin && hv_paravirtual())
        guest = hv_paravirt_selector(index, guest);
    reloaded = index;
    reloaded_selector = twin ? guest : hv_trap.live[index];
    struct hv_segment before = HV_CPU->segment[index];
    if (twin && !(guest & ~3u)) {
        HV_CPU->segment[index] = (struct hv_segment){.selector = guest};
    } else if (index == HV_CS || (twin && (before.selector & ~3u) == (guest & ~3u))) {
        HV_CPU->segment[index].selector = (uint16_t)((reloaded_selector & ~3u) | HV_CPU->cpl);
    } else if (!hv_guarded(reload)) {
        hv_forget_raised(); /* where it should have faulted is long past: unusable */
        HV_CPU->segment[index] = (struct hv_segment){.selector = reloaded_selector};
    }
}

void hv_take_program(void)
{
    memcpy(hv_trap.live, cell.live_selector, sizeof hv_trap.live);
    hv_trap.live[HV_CS] = hv_trap.expected[HV_CS]; /* a far jump to another one, which is flat as well, is not seen */
    hv_take_native(cell.host_flags);
}

void hv_take_state(void)
{
    struct hv_cpu *cpu = HV_CPU;
    greg_t *g = hv_frame_registers();
    for (int i = 0; i < 8; i++)
        cpu->r[i] = (uint32_t)g[hv_general[i]];
    uint16_t cs = (uint16_t)g[REG_CSGSFS];
    cpu->eip = hv_sites_guest_eip((uint32_t)g[REG_RIP], cs);
    hv_trap.live[HV_CS] = hv_sites_in_slot((uint64_t)g[REG_RIP], cs) ? hv_trap.expected[HV_CS] : cs;
    hv_trap.live[HV_SS] = (uint16_t)(g[REG_CSGSFS] >> 48);
    hv_take_native((uint32_t)g[REG_EFL]);
}

void hv_take_native(uint32_t flags)
{
    struct hv_cpu *cpu = HV_CPU;
    uint32_t native = hv_trap.stepping ? NATIVE_FLAGS & ~HV_TF : NATIVE_FLAGS;
    if (cpu->cpl < 3)
        native &= ~HV_AC;
    cpu->eflags = (cpu->eflags & ~(native | HV_RF)) | (flags & native) | 2;
    if (hv_paravirtual())
        hv_paravirt_take();
    for (unsigned i = 0; i <= HV_GS; i++)
        if (hv_trap.live[i] != hv_trap.expected[i])
            take_segment(i);
    if (cpu->interrupt_shadow && cpu->eip != hv_trap.shadow_eip)
        cpu->interrupt_shadow = 0;
}

bool hv_loaded_host_selector(void)
{
    for (unsigned i = 0; i <= HV_GS; i++)
        if (i != HV_CS && hv_trap.live[i] != hv_trap.expected[i] && hv_trap.live[i] & ~3u && !(hv_trap.live[i] & 4) && HV_CPU->segment[i].attributes)
            return true;
    return false;
}

void hv_load_selectors(void)
{
    __asm__ volatile("mov %0, %%ds" : : "r"(hv_trap.expected[HV_DS]));
    __asm__ volatile("mov %0, %%es" : : "r"(hv_trap.expected[HV_ES]));
    __asm__ volatile("mov %0, %%gs" : : "r"(hv_trap.expected[HV_GS]));
    __asm__ volatile("mov %0, %%fs" : : "r"(hv_trap.expected[HV_FS])); /* last: it takes the monitor's own away */
}

/* The host takes NT and ID not from the frame but as they are when the handler returns. */
void hv_keep_flags(void)
{
    uint64_t wanted = (uint64_t)hv_frame_registers()[REG_EFL], flags = __builtin_ia32_readeflags_u64();
    if ((flags ^ wanted) & (HV_NT | HV_ID))
        __builtin_ia32_writeeflags_u64((flags & ~(uint64_t)(HV_NT | HV_ID)) | (wanted & (HV_NT | HV_ID)));
}

/* Can segments keep a kernel from its programs' addresses? Not others than flat ones. */
static bool can_begin(void)
{
    for (unsigned i = 0; i <= HV_GS; i++) {
        const struct hv_segment *segment = &HV_CPU->segment[i];
        bool flat_data = !segment->base && segment->limit == ~0u && segment->attributes & HV_SEGMENT_32 && HV_SEGMENT_TYPE(segment) < 4; /* nor one that expands down */
        bool has_place = segment->selector / 8 < HV_TWINS_ABOVE && !(segment->selector & 4);
        if (i != HV_CS && segment->attributes & HV_SEGMENT_PRESENT && !(flat_data && has_place))
            return false;
    }
    return true;
}

/* The address that a kernel's segments must begin at; 0 = they are as they are. */
static uint32_t kernel_start(void)
{
    static uint32_t before;
    if (hv_shadow_stale_end() && !can_begin())
        hv_shadow_enter_programs();
    uint32_t start = hv_shadow_stale_end();
    if (start && !before)
        hv_paravirt_forget_twins(); /* what it may load by itself is the whole segment */
    before = start;
    return start;
}

static uint16_t twin_of(unsigned index, uint32_t start)
{
    const struct hv_segment *segment = &HV_CPU->segment[index];
    if (start && index != HV_CS)
        return hv_twin_above(segment, start);
    return HV_CPU->cpl == 3 && HV_CPU->user_limit ? hv_twin_below(segment, HV_CPU->user_limit) : hv_twin(segment);
}

void hv_make_twins(void)
{
    uint32_t linear;
    if (HV_CPU->cpl == 3)
        hv_shadow_enter_programs();
    if (HV_CPU->cpl == 3 && hv_user_fault(&linear))
        hv_shadow_prefill(linear, true);
    uint32_t start = kernel_start();
    for (unsigned i = 0; i <= HV_GS; i++)
        hv_trap.expected[i] = twin_of(i, start);
    hv_shadow_mode(HV_CPU->cpl);
    if (!hv_paravirtual())
        return;
    for (unsigned i = 0; i <= HV_GS && HV_CPU->cpl == 0; i++)
        hv_paravirt_offer_twin(i, hv_trap.expected[i]);
    hv_paravirt_give();
}

uint32_t hv_native_flags(void)
{
    const struct hv_cpu *cpu = HV_CPU;
    uint32_t flags = (cpu->eflags & (LIVE_FLAGS | HV_TF)) | HV_IF | 2;
    if (cpu->cpl == 3) /* whether it means anything: alignment() in signals.c */
        flags |= cpu->eflags & HV_AC;
    return hv_trap.stepping ? flags | HV_TF : flags;
}

void hv_give_state(void)
{
    struct hv_cpu *cpu = HV_CPU;
    greg_t *g = hv_frame_registers();
    for (int i = 0; i < 8; i++)
        g[hv_general[i]] = cpu->r[i];
    uint16_t cs = hv_trap.expected[HV_CS];
    g[REG_RIP] = cpu->cpl == 3 ? hv_sites_enter(&cs) : cpu->eip;
    g[REG_EFL] = hv_native_flags();
    g[REG_CSGSFS] = (greg_t)((uint64_t)cs | (uint64_t)hv_trap.expected[HV_SS] << 48);
}
