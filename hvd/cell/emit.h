/* Machine code into the cache: the few forms of x86-64 instructions that the translator writes (Intel SDM vol. 2). */
#ifndef HV_EMIT_H
#define HV_EMIT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cell.h"

enum { HV_R8 = 8, HV_R9, HV_R10, HV_R11, HV_R12, HV_R13, HV_R14, HV_R15 };

struct hv_emitter {
    uint8_t *at;
};

static inline void hv_byte(struct hv_emitter *e, unsigned value) { *e->at++ = (uint8_t)value; }

static inline void hv_word32(struct hv_emitter *e, uint32_t value)
{
    memcpy(e->at, &value, 4);
    e->at += 4;
}

static inline void hv_word64(struct hv_emitter *e, uint64_t value)
{
    memcpy(e->at, &value, 8);
    e->at += 8;
}

static inline void hv_code(struct hv_emitter *e, const char *bytes, size_t length)
{
    memcpy(e->at, bytes, length);
    e->at += length;
}
#define HV_CODE(e, text) hv_code(e, text, sizeof(text) - 1)

/* The displacement of a jump or call that ends here. */
static inline void hv_relative(struct hv_emitter *e, const void *target) { hv_word32(e, (uint32_t)((intptr_t)target - (intptr_t)(e->at + 4))); }

static inline void hv_jump(struct hv_emitter *e, const void *target)
{
    hv_byte(e, 0xe9);
    hv_relative(e, target);
}

#define HV_FIELD(field) ((uint32_t)offsetof(struct hv_cell, field))

/* ModRM for [r15 + offset]. */
static inline void hv_cell_operand(struct hv_emitter *e, unsigned reg, uint32_t offset)
{
    hv_byte(e, 0x87 | (reg & 7) << 3);
    hv_word32(e, offset);
}

static inline void hv_load32(struct hv_emitter *e, unsigned reg, uint32_t offset)
{
    hv_byte(e, 0x41 | (reg > 7) << 2);
    hv_byte(e, 0x8b);
    hv_cell_operand(e, reg, offset);
}

static inline void hv_store32(struct hv_emitter *e, unsigned reg, uint32_t offset)
{
    hv_byte(e, 0x41 | (reg > 7) << 2);
    hv_byte(e, 0x89);
    hv_cell_operand(e, reg, offset);
}

static inline void hv_load64(struct hv_emitter *e, unsigned reg, uint32_t offset)
{
    hv_byte(e, 0x49 | (reg > 7) << 2);
    hv_byte(e, 0x8b);
    hv_cell_operand(e, reg, offset);
}

static inline void hv_store64(struct hv_emitter *e, unsigned reg, uint32_t offset)
{
    hv_byte(e, 0x49 | (reg > 7) << 2);
    hv_byte(e, 0x89);
    hv_cell_operand(e, reg, offset);
}

/* mov dword [r15 + offset], value */
static inline void hv_store_constant(struct hv_emitter *e, uint32_t offset, uint32_t value)
{
    HV_CODE(e, "\x41\xc7");
    hv_cell_operand(e, 0, offset);
    hv_word32(e, value);
}

/* movzx reg, word [r15 + offset] */
static inline void hv_load16(struct hv_emitter *e, unsigned reg, uint32_t offset)
{
    hv_byte(e, 0x41 | (reg > 7) << 2);
    HV_CODE(e, "\x0f\xb7");
    hv_cell_operand(e, reg, offset);
}

/* mov reg, value for r8-r15 */
static inline void hv_constant(struct hv_emitter *e, unsigned reg, uint32_t value)
{
    hv_byte(e, 0x41);
    hv_byte(e, 0xb8 | (reg & 7));
    hv_word32(e, value);
}

/* lea esp, [rsp + bytes]: no flags */
static inline void hv_move_esp(struct hv_emitter *e, int32_t bytes)
{
    if (bytes >= -128 && bytes < 128) {
        HV_CODE(e, "\x8d\x64\x24");
        hv_byte(e, (uint8_t)bytes);
    } else {
        HV_CODE(e, "\x8d\xa4\x24");
        hv_word32(e, (uint32_t)bytes);
    }
}

#endif
