/* The vcpu's registers, in and out, at points where the state is canonical. */
#include <string.h>

#include "shim.h"

#ifdef __x86_64__

/* A segment register with its hidden part, and the summary of segmentation that translated code relies on (hflags). */
void hv_load_segment(struct hv_emulator *e, unsigned index, uint32_t selector, uint64_t base, uint32_t limit, uint32_t flags)
{
    struct segment_cache *segs = &HV_AT(struct segment_cache, e->env, ENV_SEGS);
    uint32_t *hflags = &HV_AT(uint32_t, e->env, ENV_HFLAGS);
    segs[index] = (struct segment_cache){ .selector = selector, .base = base, .limit = limit, .flags = flags };
    if (index == SEG_CS) {
        if (*hflags & HF_LMA && flags & DESC_L) {
            *hflags |= HF_CS32 | HF_SS32 | HF_CS64;
            *hflags &= ~HF_ADDSEG;
        } else {
            *hflags = (*hflags & ~(HF_CS32 | HF_CS64)) | (flags & DESC_B ? HF_CS32 : 0);
        }
    }
    if (index == SEG_SS)
        *hflags = (*hflags & ~HF_CPL) | (flags >> 13 & 3);
    uint32_t summary = segs[SEG_SS].flags & DESC_B ? HF_SS32 : 0;
    if (!(*hflags & HF_CS64)) {
        bool real_or_16_bit = !(hv_env64(e, ENV_CR) & 1) || hv_env64(e, ENV_EFLAGS) & EFLAGS_VM || !(*hflags & HF_CS32);
        if (real_or_16_bit || (segs[SEG_DS].base | segs[SEG_ES].base | segs[SEG_SS].base))
            summary |= HF_ADDSEG;
    }
    *hflags = (*hflags & ~(HF_SS32 | HF_ADDSEG)) | summary;
}

/* hvd/board/vcpu.py EntryState; also what hv_emulator_get_state fills. Order of segments: es cs ss ds fs gs ldtr tr. */
struct hv_state {
    uint64_t regs[16], rip, rflags, cr0, cr2, cr3, cr4, cr8, efer;
    struct segment_cache segs[8];
    uint64_t gdt_base, idt_base;
    uint32_t gdt_limit, idt_limit;
};

/* The task register's TSS is busy (SDM vol. 3A, 8.2.2); QEMU keeps that in memory only, and gives up over a descriptor that says so. */
static struct segment_cache without_busy(struct segment_cache tr)
{
    tr.flags &= ~(uint32_t)DESC_TSS_BUSY;
    return tr;
}

static struct segment_cache with_busy(struct segment_cache tr)
{
    if (tr.flags & DESC_P && !(tr.flags & DESC_S))
        tr.flags |= DESC_TSS_BUSY;
    return tr;
}

void hv_emulator_set_state(struct hv_emulator *e, const struct hv_state *state)
{
    CPUX86State *env = e->env;
    ((void (*)(CPUState *))HV_AT(void **, e->cpu, CPU_CLASS)[CLASS_RESET])(e->cpu);
    /* Fast-string operations are disabled, says IA32_MISC_ENABLE (SDM vol. 4): a translator makes a turn of its loop for each element.
     * Linux then copies and clears memory by loops of its own, which do eight words a turn. */
    HV_AT(uint64_t, env, ENV_MISC_ENABLE) &= ~(uint64_t)1;
    e->injected = false;
    HV_AT(uint32_t, e->cpu, CPU_INTERRUPT_REQUEST) = 0;
    hv_debug_reset(e);
    HV_AT(uint8_t, env, ENV_V_TPR) = state->cr8 & 15;
    hv_apic_pull_priority(e);
    hv_apic_hide_priority(e, false);
    memcpy(&HV_AT(uint8_t, env, ENV_REGS), state->regs, sizeof state->regs);
    HV_AT(uint64_t, env, ENV_EIP) = state->rip;
    HV_AT(uint64_t, env, ENV_CR + 8 * 2) = state->cr2;
    HV_AT(uint64_t, env, ENV_EFER) = state->efer & ~(1ull << 10); /* LMA follows from LME and CR0.PG */
    e->unicorn.cpu_x86_update_cr0_x86_64(env, (uint32_t)state->cr0 & 0x7FFFFFFF);
    e->unicorn.cpu_x86_update_cr4_x86_64(env, (uint32_t)state->cr4);
    e->unicorn.cpu_x86_update_cr3_x86_64(env, state->cr3);
    e->unicorn.cpu_x86_update_cr0_x86_64(env, (uint32_t)state->cr0);
    HV_AT(struct segment_cache, env, ENV_GDT) = (struct segment_cache){ .base = state->gdt_base, .limit = state->gdt_limit };
    HV_AT(struct segment_cache, env, ENV_IDT) = (struct segment_cache){ .base = state->idt_base, .limit = state->idt_limit };
    HV_AT(struct segment_cache, env, ENV_LDT) = state->segs[6];
    HV_AT(struct segment_cache, env, ENV_TR) = without_busy(state->segs[7]);
    e->unicorn.helper_write_eflags_x86_64(env, state->rflags | 2, 0xFFFFFFFF);
    static const unsigned order[] = { SEG_CS, SEG_ES, SEG_DS, SEG_FS, SEG_GS, SEG_SS };
    for (unsigned i = 0; i < sizeof order / sizeof *order; i++) {
        const struct segment_cache *s = &state->segs[order[i]];
        hv_load_segment(e, order[i], s->selector, s->base, s->limit, s->flags);
    }
    e->unicorn.tb_flush_x86_64(e->cpu);
    e->unicorn.tlb_flush_x86_64(e->cpu);
}

void hv_emulator_get_state(struct hv_emulator *e, struct hv_state *state)
{
    CPUX86State *env = e->env;
    memset(state, 0, sizeof *state);
    memcpy(state->regs, &HV_AT(uint8_t, env, ENV_REGS), sizeof state->regs);
    state->rip = hv_env64(e, ENV_EIP);
    state->rflags = e->unicorn.helper_read_eflags_x86_64(env);
    state->cr0 = hv_env64(e, ENV_CR);
    state->cr2 = hv_env64(e, ENV_CR + 8 * 2);
    state->cr3 = hv_env64(e, ENV_CR + 8 * 3);
    state->cr4 = hv_env64(e, ENV_CR + 8 * 4);
    state->cr8 = HV_AT(uint8_t, env, ENV_V_TPR);
    state->efer = hv_env64(e, ENV_EFER);
    memcpy(state->segs, &HV_AT(uint8_t, env, ENV_SEGS), 6 * sizeof *state->segs);
    state->segs[6] = HV_AT(struct segment_cache, env, ENV_LDT);
    state->segs[7] = with_busy(HV_AT(struct segment_cache, env, ENV_TR));
    state->gdt_base = HV_AT(struct segment_cache, env, ENV_GDT).base;
    state->gdt_limit = HV_AT(struct segment_cache, env, ENV_GDT).limit;
    state->idt_base = HV_AT(struct segment_cache, env, ENV_IDT).base;
    state->idt_limit = HV_AT(struct segment_cache, env, ENV_IDT).limit;
}

/* index: 0-15 general registers, 16 rip, 17 rflags. */
bool hv_emulator_set_register(struct hv_emulator *e, unsigned index, uint64_t value)
{
    if (index < 16)
        HV_AT(uint64_t, e->env, ENV_REGS + 8 * index) = value;
    else if (index == 16) {
        HV_AT(uint64_t, e->env, ENV_EIP) = value;
        HV_AT(uint32_t, e->cpu, CPU_HALTED) = 0; /* whoever moves RIP wants what stands there to run */
        hv_debug_reset(e);
    } else if (index == 17)
        e->unicorn.helper_write_eflags_x86_64(e->env, value | 2, 0xFFFFFFFF);
    else
        return false;
    return true;
}
#endif
