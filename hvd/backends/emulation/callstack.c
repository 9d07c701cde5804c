/* The guest's call stack, for records of crossings that want it (hvd/board/native/stack.c). */
#include "shim.h"

static const void *ram_at(void *owner, uint64_t physical, size_t length)
{
    const struct hv_emulator *e = owner;
    const uint64_t high_start = 1ull << 32, high_ram = e->ram_pages * 4096 - e->low_ram;
    if (physical < e->low_ram)
        return e->low_ram - physical >= length ? (const uint8_t *)e->low_ram_memory + physical : NULL;
    if (physical < high_start || physical - high_start >= high_ram || high_ram - (physical - high_start) < length)
        return NULL;
    return (const uint8_t *)e->high_ram_memory + (physical - high_start);
}

unsigned hv_emulator_call_stack(void *owner, uint64_t *addresses, unsigned most)
{
    struct hv_emulator *e = owner;
    uint32_t hflags = hv_env32(e, ENV_HFLAGS);
    uint64_t frame = hv_env64(e, ENV_REGS + 8 * GPR_BP);
    if (!(hflags & (HF_CS32 | HF_CS64)))
        return 0; /* 16-bit code */
    if (!(hflags & HF_CS64))
        frame = (uint32_t)(frame + HV_AT(struct segment_cache, e->env, ENV_SEGS + SEG_SS * sizeof(struct segment_cache)).base);
    const struct hv_stack_begin begin = {
        .cr0 = hv_env64(e, ENV_CR), .cr3 = hv_env64(e, ENV_CR + 8 * 3), .cr4 = hv_env64(e, ENV_CR + 8 * 4), .efer = hv_env64(e, ENV_EFER),
        .frame = frame, .word = hflags & HF_CS64 ? 8 : 4, .memory = ram_at, .owner = e,
    };
    return hv_stack_walk(&begin, addresses, most);
}
