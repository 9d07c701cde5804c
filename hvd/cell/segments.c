/* Descriptors and segment registers (Intel SDM vol. 3A, chapter "Protection"; vol. 2A, "MOV"). */
#include "paravirt.h"

#define SELECTOR_LDT 4u
#define TYPE_CODE 8u
#define TYPE_CONFORMING 4u  /* of code */
#define TYPE_DOWN 4u        /* of data: expands down */
#define TYPE_READABLE 2u    /* of code */
#define TYPE_WRITABLE 2u    /* of data */
#define TYPE_ACCESSED 1u
#define SYSTEM_LDT 2u
#define SYSTEM_TSS_16 1u
#define SYSTEM_TSS_32 9u
#define SYSTEM_BUSY 2u

static uint32_t type_of(const uint32_t words[2]) { return words[1] >> 8 & 15; }
static uint32_t dpl_of(const uint32_t words[2]) { return words[1] >> 13 & 3; }
static bool is_code_or_data(const uint32_t words[2]) { return words[1] & HV_SEGMENT_S; }
static bool is_present(const uint32_t words[2]) { return words[1] & HV_SEGMENT_PRESENT; }

/* Linear address of a selector's descriptor; false: null, or beyond its table. */
static bool descriptor_at(uint16_t selector, uint32_t *linear)
{
    uint32_t base = HV_CPU->gdt.base, limit = HV_CPU->gdt.limit;
    if (!(selector & ~3u))
        return false;
    if (selector & SELECTOR_LDT) {
        const struct hv_segment *ldt = &HV_CPU->segment[HV_LDTR];
        if (!(ldt->attributes & HV_SEGMENT_PRESENT))
            return false;
        base = ldt->base;
        limit = ldt->limit;
    }
    if ((selector | 7u) > limit)
        return false;
    *linear = base + (selector & ~7u);
    return true;
}

bool hv_descriptor(uint16_t selector, uint32_t words[2])
{
    uint32_t linear;
    if (!descriptor_at(selector, &linear))
        return false;
    words[0] = (uint32_t)hv_read_system(linear, 4);
    words[1] = (uint32_t)hv_read_system(linear + 4, 4);
    return true;
}

void hv_unpack(struct hv_segment *segment, uint16_t selector, const uint32_t words[2])
{
    uint32_t limit = (words[0] & 0xffff) | (words[1] & 0xf0000);
    *segment = (struct hv_segment){
        .selector = selector,
        .base = words[0] >> 16 | (words[1] & 0xff) << 16 | (words[1] & 0xff000000u),
        .limit = words[1] & HV_SEGMENT_PAGES ? limit << 12 | 0xfff : limit,
        .attributes = words[1] & 0x00f0ff00u,
    };
}

void hv_mark_accessed(uint16_t selector, const uint32_t words[2])
{
    uint32_t linear;
    if (!(type_of(words) & TYPE_ACCESSED) && descriptor_at(selector, &linear))
        hv_write_system(linear + 5, 1, (words[1] >> 8 & 0xff) | TYPE_ACCESSED);
}

static void commit(unsigned index, uint16_t selector, uint32_t words[2])
{
    hv_mark_accessed(selector, words);
    words[1] |= TYPE_ACCESSED << 8;
    hv_unpack(&HV_CPU->segment[index], selector, words);
    if (hv_paravirtual() && HV_CPU->cpl == 0)
        hv_paravirt_loaded(index, words);
}

void hv_check_stack_segment(uint16_t selector, unsigned level, bool switching, uint32_t external, uint32_t words[2])
{
    unsigned vector = switching ? HV_TS : HV_GP;
    if (!(selector & ~3u))
        hv_raise_error(vector, external);
    uint32_t error = (selector & 0xfffc) | external;
    if (!hv_descriptor(selector, words))
        hv_raise_error(vector, error);
    bool writable_data = is_code_or_data(words) && !(type_of(words) & TYPE_CODE) && type_of(words) & TYPE_WRITABLE;
    if ((selector & 3) != level || dpl_of(words) != level || !writable_data)
        hv_raise_error(vector, error);
    if (!is_present(words))
        hv_raise_error(HV_STACK, error);
}

void hv_load_segment(unsigned index, uint16_t selector)
{
    uint32_t words[2], error = selector & 0xfffc;
    if (index == HV_SS) {
        hv_check_stack_segment(selector, HV_CPU->cpl, false, 0, words);
        commit(HV_SS, selector, words);
        return;
    }
    if (!(selector & ~3u)) {
        HV_CPU->segment[index] = (struct hv_segment){.selector = selector};
        return;
    }
    if (!hv_descriptor(selector, words) || !is_code_or_data(words))
        hv_raise_error(HV_GP, error);
    bool code = type_of(words) & TYPE_CODE;
    if (code && !(type_of(words) & TYPE_READABLE))
        hv_raise_error(HV_GP, error);
    bool conforming = code && type_of(words) & TYPE_CONFORMING;
    if (!conforming && ((selector & 3) > dpl_of(words) || HV_CPU->cpl > dpl_of(words)))
        hv_raise_error(HV_GP, error);
    if (!is_present(words))
        hv_raise_error(HV_NP, error);
    commit(index, selector, words);
}

void hv_load_ldtr(uint16_t selector)
{
    uint32_t words[2], error = selector & 0xfffc;
    if (!(selector & ~3u)) {
        HV_CPU->segment[HV_LDTR] = (struct hv_segment){.selector = selector};
        return;
    }
    if (selector & SELECTOR_LDT || !hv_descriptor(selector, words) || is_code_or_data(words) || type_of(words) != SYSTEM_LDT)
        hv_raise_error(HV_GP, error);
    if (!is_present(words))
        hv_raise_error(HV_NP, error);
    hv_unpack(&HV_CPU->segment[HV_LDTR], selector, words);
}

void hv_load_tr(uint16_t selector)
{
    uint32_t words[2], error = selector & 0xfffc, linear;
    if (!(selector & ~3u) || selector & SELECTOR_LDT || !hv_descriptor(selector, words) || is_code_or_data(words) ||
        (type_of(words) != SYSTEM_TSS_16 && type_of(words) != SYSTEM_TSS_32))
        hv_raise_error(HV_GP, error);
    if (!is_present(words))
        hv_raise_error(HV_NP, error);
    descriptor_at(selector, &linear);
    hv_write_system(linear + 5, 1, (words[1] >> 8 & 0xff) | SYSTEM_BUSY);
    words[1] |= SYSTEM_BUSY << 8;
    hv_unpack(&HV_CPU->segment[HV_TR], selector, words);
}

void hv_new_stack(unsigned level, uint32_t external, uint16_t *selector, uint32_t *esp)
{
    const struct hv_segment *tss = &HV_CPU->segment[HV_TR];
    bool wide = HV_SEGMENT_TYPE(tss) & 8;
    uint32_t at = wide ? 4 + 8 * level : 2 + 4 * level, size = wide ? 6 : 4;
    if (!(tss->attributes & HV_SEGMENT_PRESENT) || at + size - 1 > tss->limit)
        hv_raise_error(HV_TS, (tss->selector & 0xfffc) | external);
    *esp = (uint32_t)hv_read_system(tss->base + at, wide ? 4 : 2);
    *selector = (uint16_t)hv_read_system(tss->base + at + (wide ? 4 : 2), 2);
}

uint32_t hv_linear(unsigned index, uint32_t offset, unsigned size, bool write)
{
    const struct hv_segment *segment = &HV_CPU->segment[index];
    uint32_t type = HV_SEGMENT_TYPE(segment), last = offset + size - 1;
    bool code = type & TYPE_CODE;
    bool allowed = segment->attributes & HV_SEGMENT_PRESENT && (write ? !code && type & TYPE_WRITABLE : !code || type & TYPE_READABLE);
    if (!code && type & TYPE_DOWN)
        allowed = allowed && offset > segment->limit && last >= offset && (segment->attributes & HV_SEGMENT_32 || last <= 0xffff);
    else
        allowed = allowed && last <= segment->limit && last >= offset;
    if (!allowed)
        hv_raise_error(index == HV_SS ? HV_STACK : HV_GP, 0);
    return segment->base + offset;
}
