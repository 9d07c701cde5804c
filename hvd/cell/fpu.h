/* x87, MMX and SSE instructions that the monitor executes: fpu.c, x87.c, sse.c. */
#ifndef HV_FPU_H
#define HV_FPU_H

#include "cell.h"

/* Offsets in an FXSAVE area (Intel SDM vol. 2A, "FXSAVE"). */
enum hv_fxsave {
    HV_FX_CONTROL = 0, HV_FX_STATUS = 2, HV_FX_TAGS = 4, HV_FX_LAST = 6 /* the last instruction's opcode, address, operand */, HV_FX_MXCSR = 24,
    HV_FX_MXCSR_MASK = 28, /* 0 = HV_MXCSR_MASK_DEFAULT */
    HV_FX_ST = 32, HV_FX_XMM = 160, HV_FX_BYTES = 288, /* of each register 16 bytes; outside of 64-bit mode to XMM7 */
};
enum {
    HV_X87_EXCEPTIONS = 0x3f, HV_X87_SUMMARY = 0x8080, /* ES and B */
    HV_BEFORE_RESULT = 7, /* exceptions, of SSE as well, that come before there is one: invalid operation, denormal operand, division by zero */
    HV_MXCSR_MASK_DEFAULT = 0xffbf,
};

static inline uint16_t hv_fx_word(const uint8_t *image, unsigned at) { return (uint16_t)(image[at] | image[at + 1] << 8); }

static inline void hv_fx_set_word(uint8_t *image, unsigned at, unsigned value)
{
    image[at] = (uint8_t)value;
    image[at + 1] = (uint8_t)(value >> 8);
}

/* An x87 exception waits, which the next instruction that looks raises (SDM vol. 1, 8.7): it is raised. */
void hv_x87_look(void);

bool hv_mxcsr_reserved(uint32_t mxcsr); /* it has bits that are none, by the mask in cell.cpu.fxsave */

/* A memory operand of any size to and from guest memory; raise what an access does. For a store the address is had first, and checked: then
 * nothing faults any more. */
void hv_fpu_load(uint32_t linear, uint8_t *to, unsigned size);
uint32_t hv_fpu_store_at(const struct hv_insn *, unsigned size, unsigned alignment); /* raises #GP(0) where it is not so aligned */
void hv_fpu_store(uint32_t linear, const uint8_t *from, unsigned size);

#endif
