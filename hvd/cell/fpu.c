/* FXSAVE and FXRSTOR, by which a kernel keeps its programs' x87 and SSE registers apart (Intel SDM vol. 2A).
 *
 * CPUID hides AVX from the kernel, but its programs run natively and see that the host has it. So what FXSAVE does not know (the upper
 * halves of YMM registers and beyond) is put aside with it, by the guest-physical address of its area, and comes back with the FXRSTOR
 * of that area.
 */
#include <string.h>

#include "fpu.h"

#define X87_AND_SSE 3u
#define ROWS 512u         /* areas whose other state is kept; one more drops the least lucky */
#define STATE_BYTES 4096u /* of an XSAVE area with AVX-512 */

struct row {
    uint64_t physical; /* of the FXSAVE area; 0 = free */
    uint8_t state[STATE_BYTES] __attribute__((aligned(64)));
};
static struct row rows[ROWS];

/* The components besides x87 and SSE that are enabled in XCR0; 0 = the host has none, or an area of them does not fit. */
static uint64_t other_state(void)
{
    static uint64_t found = ~0ull;
    if (found != ~0ull)
        return found;
    uint32_t eax = 1, ebx, ecx = 0, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    found = 0;
    if (ecx >> 27 & 1) { /* OSXSAVE */
        uint32_t low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        eax = 13, ecx = 0;
        __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
        if (ebx <= STATE_BYTES)
            found = ((uint64_t)high << 32 | low) & ~(uint64_t)X87_AND_SSE;
    }
    return found;
}

static struct row *row_of(uint64_t physical) { return &rows[(physical >> 4 ^ physical >> 13) % ROWS]; }

static uint64_t area_of(const struct hv_insn *insn, bool write)
{
    uint32_t linear = hv_operand_linear(insn, 512, write);
    if (linear & 15)
        hv_raise_error(HV_GP, 0);
    if (write)
        hv_check_write(linear, 512);
    struct hv_walk walk;
    hv_walk(&walk, linear, write, HV_CPU->cpl == 3, false, true);
    if (walk.error)
        hv_raise_page_fault(linear, walk.error);
    return walk.physical;
}

static void save(const struct hv_insn *insn)
{
    uint64_t physical = area_of(insn, true), other = other_state();
    uint32_t linear = hv_operand_linear(insn, 512, true);
    bool live = hv_fpu_publish();
    hv_fpu_store(linear, HV_CPU->fxsave, HV_FX_BYTES);
    if (!live || !other)
        return;
    struct row *row = row_of(physical);
    row->physical = physical;
    memset(row->state + 512, 0, 64); /* XSAVE reads the header */
    __asm__ volatile("xsave %0" : "+m"(row->state) : "a"((uint32_t)other), "d"((uint32_t)(other >> 32)));
}

bool hv_mxcsr_reserved(uint32_t mxcsr)
{
    uint32_t mask;
    memcpy(&mask, HV_CPU->fxsave + HV_FX_MXCSR_MASK, 4);
    return mxcsr & ~(mask ? mask : HV_MXCSR_MASK_DEFAULT);
}

static void restore(const struct hv_insn *insn)
{
    static uint8_t nothing[STATE_BYTES] __attribute__((aligned(64))); /* its header says that all is as after a reset */
    uint64_t physical = area_of(insn, false), other = other_state();
    uint32_t linear = hv_operand_linear(insn, 512, false), mxcsr;
    uint8_t image[HV_FX_BYTES];
    hv_fpu_load(linear, image, HV_FX_BYTES);
    bool live = hv_fpu_publish();
    memcpy(&mxcsr, image + HV_FX_MXCSR, 4);
    if (hv_mxcsr_reserved(mxcsr))
        hv_raise_error(HV_GP, 0);
    memcpy(HV_CPU->fxsave, image, HV_FX_BYTES);
    hv_fpu_adopt();
    if (!live || !other)
        return;
    struct row *row = row_of(physical);
    uint8_t *state = row->physical == physical ? row->state : nothing;
    memcpy(state + HV_FX_MXCSR, &mxcsr, 4); /* which XRSTOR loads for AVX, too, whatever the header says (SDM vol. 1, 13.8.1) */
    __asm__ volatile("xrstor %0" : : "m"(*(const uint8_t(*)[STATE_BYTES])state), "a"((uint32_t)other), "d"((uint32_t)(other >> 32)));
}

bool hv_fpu_instruction(const struct hv_insn *insn)
{
    if (insn->mod == 3 || insn->reg > 1 || insn->operand_prefix || insn->repeat)
        return false;
    if (HV_CPU->cr0 & (HV_CR0_EM | HV_CR0_TS))
        hv_raise(HV_NM);
    if (insn->reg == 0)
        save(insn);
    else
        restore(insn);
    return hv_done(insn);
}

/* ---- operands of x87.c and sse.c */

/* The most that one access can have of so many bytes. */
static unsigned piece(unsigned left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

void hv_fpu_load(uint32_t linear, uint8_t *to, unsigned size)
{
    for (unsigned at = 0, length; at < size; at += length) {
        length = piece(size - at);
        uint64_t value = hv_read(linear + at, length);
        memcpy(to + at, &value, length);
    }
}

uint32_t hv_fpu_store_at(const struct hv_insn *insn, unsigned size, unsigned alignment)
{
    uint32_t linear = hv_operand_linear(insn, size, true);
    if (linear & (alignment - 1)) /* which comes before page faults (SDM vol. 3A, table 6-2) */
        hv_raise_error(HV_GP, 0);
    hv_check_write(linear, size);
    return linear;
}

void hv_fpu_store(uint32_t linear, const uint8_t *from, unsigned size)
{
    for (unsigned at = 0, length; at < size; at += length) {
        length = piece(size - at);
        uint64_t value = 0;
        memcpy(&value, from + at, length);
        hv_write(linear + at, length, value);
    }
}
