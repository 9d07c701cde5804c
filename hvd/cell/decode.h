/* The instruction decoder: IA-32 machine code to its parts (Intel SDM vol. 2, chapter 2 and appendix A). No dependencies.
 *
 * It knows the length and the operands' form of every instruction that IA-32 code can contain in protected mode, and says so when it
 * meets one that it does not know: nothing is guessed.
 */
#ifndef HV_DECODE_H
#define HV_DECODE_H

#include <stdbool.h>
#include <stdint.h>

#define HV_LONGEST_INSTRUCTION 15

enum { HV_EAX, HV_ECX, HV_EDX, HV_EBX, HV_ESP, HV_EBP, HV_ESI, HV_EDI };
enum { HV_ES, HV_CS, HV_SS, HV_DS, HV_FS, HV_GS, HV_LDTR, HV_TR, HV_SEGMENTS };
enum hv_map { HV_MAP_ONE, HV_MAP_0F, HV_MAP_0F38, HV_MAP_0F3A, HV_MAP_VEX /* map in vex_map */, HV_MAP_3DNOW };
enum hv_repeat { HV_REPEAT_NONE, HV_REPEAT_NE = 0xf2, HV_REPEAT_E = 0xf3 };

struct hv_insn {
    uint8_t length;        /* bytes, prefixes included; 1..15 */
    uint8_t opcode_offset; /* of the first byte behind the prefixes */
    uint8_t map;           /* enum hv_map */
    uint8_t opcode;        /* the last opcode byte */
    uint8_t vex_map;       /* of VEX and EVEX: 1 = 0F, 2 = 0F38, 3 = 0F3A */
    uint8_t repeat;        /* enum hv_repeat: the last of F2, F3 */
    bool lock;
    bool operand_prefix, address_prefix; /* 66, 67 */
    int8_t segment;        /* HV_ES.. of an override, -1 none */
    uint8_t operand_size;  /* 2 or 4 bytes: of CS.D and the prefix; instructions with byte or fixed operands ignore it */
    uint8_t address_size;  /* 2 or 4 bytes */
    bool has_modrm, has_sib;
    uint8_t modrm, mod, reg, rm;
    uint8_t scale, index, base; /* of the SIB byte; index 4 = none, base 5 with mod 0 = displacement only */
    uint8_t displacement_size, displacement_offset; /* bytes; offset in the instruction. Of moffs (A0-A3), too */
    int32_t displacement;       /* sign-extended */
    uint8_t immediate_size, immediate_offset;
    uint32_t immediate;         /* zero-extended */
    uint8_t second_size;        /* ENTER's level, the selector of a far pointer */
    uint16_t second;
    uint8_t bytes[HV_LONGEST_INSTRUCTION]; /* its `length`; what follows means nothing */
};

enum hv_decoded {
    HV_DECODED,        /* insn is filled in */
    HV_DECODE_MORE,    /* the bytes end inside of the instruction */
    HV_DECODE_UNKNOWN, /* no instruction that this decoder knows; insn->length = bytes looked at */
    HV_DECODE_LONG,    /* longer than 15 bytes: #GP */
};
/* code32: CS.D. available: how many bytes there are at `bytes`; at most 15 are looked at. */
enum hv_decoded hv_decode(struct hv_insn *, const uint8_t *bytes, unsigned available, bool code32);

#endif
