/* Streams of random bytes executed by the interpreters, under sanitizers: whatever a guest executes, in whatever mode, either is done,
 * faults, or is refused; nothing is touched but the guest's memory and registers. */
#include "rig.h"

#include <stdio.h>
#include <stdlib.h>

#define SIZE 0x20000u

static uint64_t random_state;
static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static uint32_t next_register(void)
{
    static const uint32_t edges[] = {0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, SIZE - 1, SIZE, 0xfffffffe};
    switch (next_random() % 4) {
    case 0: return next_random() << 1 ^ next_random();
    case 1: return edges[next_random() % (sizeof edges / sizeof *edges)];
    default: return next_random() % SIZE;
    }
}

int main(int argc, char **argv)
{
    uint64_t outcomes[3] = {0};
    if (argc != 3)
        return 2;
    random_state = strtoull(argv[1], NULL, 0);
    uint8_t *memory = malloc(SIZE);
    rig_reset(memory, SIZE);
    for (unsigned i = 0; i < SIZE; i++)
        memory[i] = (uint8_t)next_random();
    for (unsigned page = 3; page < SIZE / RIG_PAGE; page += 5)
        rig.rights[page] = page & 1 ? RIG_ABSENT : RIG_READ_ONLY;
    for (unsigned long turn = strtoul(argv[2], NULL, 0); turn; turn--) {
        if (next_random() % 4 == 0) { /* else it goes on from where it is */
            for (unsigned i = 0; i < 8; i++)
                HV_CPU->r[i] = next_register();
            HV_CPU->eip = next_random() % SIZE;
            HV_CPU->eflags = 2 | (next_random() & (HV_STATUS_FLAGS | HV_DF | HV_TF | HV_IOPL));
            HV_CPU->cpl = next_random() & 3;
            for (unsigned i = HV_ES; i <= HV_GS; i++) {
                struct hv_segment *segment = &HV_CPU->segment[i];
                segment->attributes ^= next_random() % 16 ? 0 : HV_SEGMENT_32;
                segment->limit = next_random() % 8 ? 0xffffffff : next_random() % SIZE;
                segment->base = next_random() % 4 ? 0 : next_random() % 64;
            }
            rig.kick_after = rig.kicked_calls + 1 + next_random() % 2000;
        } else {
            rig.kick_after = rig.kicked_calls + 2000;
        }
        if (next_random() % 2) { /* instructions that the interpreters have, more often */
            static const uint8_t starts[] = {0x0f, 0x66, 0x67, 0xf3, 0xf2, 0xf0, 0xc8, 0xf7, 0xff, 0x8f, 0xa4, 0xa7, 0x62, 0x36};
            uint32_t at = HV_CPU->segment[HV_CS].base + HV_CPU->eip;
            for (unsigned i = 0; i < 3; i++)
                if (at + i < SIZE)
                    memory[at + i] = next_random() % 2 ? starts[next_random() % sizeof starts] : (uint8_t)next_random();
        }
        outcomes[rig_step()]++;
    }
    printf("done %lu, raised %lu, failed %lu\n", outcomes[0], outcomes[1], outcomes[2]);
    free(memory);
    return 0;
}
