/* The decoder over random bytes in buffers of exactly their size, under sanitizers: it reads no further, and what it says is consistent. */
#include "decode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;
static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s: in", #condition); \
            for (unsigned k = 0; k < available; k++) \
                fprintf(stderr, " %02x", bytes[k]); \
            fprintf(stderr, "\n"); \
            return 1; \
        } \
    } while (0)

int main(int argc, char **argv)
{
    static const uint8_t starts[] = {0x0f, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0xc4, 0xc5, 0x62, 0x8f, 0x2e, 0x64, 0xf6, 0xf7, 0xc8, 0xea};
    if (argc != 3)
        return 2;
    random_state = strtoull(argv[1], NULL, 0);
    for (unsigned long turn = strtoul(argv[2], NULL, 0); turn; turn--) {
        unsigned available = next_random() % 20;
        bool code32 = next_random() & 7;
        uint8_t *bytes = malloc(available ? available : 1);
        for (unsigned i = 0; i < available; i++)
            bytes[i] = next_random() & 3 || i > 3 ? (uint8_t)next_random() : starts[next_random() % sizeof starts];
        struct hv_insn insn;
        memset(&insn, 0xa5, sizeof insn);
        enum hv_decoded result = hv_decode(&insn, bytes, available, code32);
        EXPECT(result <= HV_DECODE_LONG && insn.length <= available && insn.length <= HV_LONGEST_INSTRUCTION);
        EXPECT(result != HV_DECODE_MORE || available < HV_LONGEST_INSTRUCTION);
        EXPECT(result != HV_DECODE_LONG || available >= HV_LONGEST_INSTRUCTION);
        if (result == HV_DECODED) {
            EXPECT(insn.length > insn.opcode_offset && !memcmp(insn.bytes, bytes, insn.length));
            EXPECT(insn.displacement_offset + insn.displacement_size <= insn.length);
            EXPECT(insn.immediate_offset + insn.immediate_size + insn.second_size <= insn.length);
            EXPECT(insn.mod < 4 && insn.reg < 8 && insn.rm < 8 && insn.scale < 4 && insn.index < 8 && insn.base < 8 && insn.segment < 6);
            EXPECT(!insn.has_sib || (insn.address_size == 4 && insn.rm == 4 && insn.mod != 3));
        }
        free(bytes);
    }
    return 0;
}
