/* The translator's fast way for the most frequent instructions (common.c) beside the rules for all of them: of each form that it knows it must write the same.
 * Each opcode of one and of two bytes with each ModRM and, where there is one, SIB byte. Prints how many forms it knew. */
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

#define PAGE 4096u
#define EIP 0x10000000u /* a page's start */

struct hv_cell cell;
struct hv_stubs hv_stubs;
static uint8_t room[2][PAGE], memory[2 * PAGE];
static struct hv_place placed[2][8];
static unsigned place_count;
static unsigned way; /* 0 = common.c, 1 = rules.c */

/* ---- in the place of blocks.c and emulate.c */

void hv_entry_announce(uint32_t eip) { (void)eip; }
enum hv_fpu hv_fpu_kind(const struct hv_insn *insn) { return (void)insn, HV_FPU_NONE; }
bool hv_may_lock(const struct hv_insn *insn) { return (void)insn, false; }
struct hv_place *hv_block_places(void) { return &placed[way][place_count]; }
void hv_block_placed(struct hv_block *block, unsigned count)
{
    place_count += count;
    block->place_count = (uint16_t)(block->place_count + count);
}
void hv_block_place(struct hv_block *block, const struct hv_emitter *e, uint32_t guest)
{
    placed[way][place_count] = (struct hv_place){(uint16_t)(e->at - block->host), (uint16_t)guest};
    hv_block_placed(block, 1);
}

static struct hv_translation translations[2];
static struct hv_block blocks[2];

static struct hv_translation *begin(unsigned which, const uint8_t *bytes)
{
    struct hv_translation *t = &translations[which];
    way = which;
    place_count = 0;
    memset(t, 0, sizeof *t);
    memset(room[which], 0, sizeof room[which]);
    blocks[which] = (struct hv_block){.host = room[which], .eip = EIP};
    t->block = &blocks[which];
    t->e.at = room[which];
    t->bytes = bytes;
    t->eip = t->next = EIP;
    return t;
}

static void differs(const uint8_t *bytes, const char *what)
{
    printf("%s:", what);
    for (unsigned i = 0; i < HV_LONGEST_INSTRUCTION; i++)
        printf(" %02x", bytes[i]);
    printf("\n");
    exit(1);
}

/* In displacements that are relative to where they stand, the two differ. */
static void normalize(struct hv_translation *t)
{
    for (unsigned i = 0; i < t->exits; i++)
        memset(t->exit[i].displacement, 0, 4);
    static const uint8_t lookup[] = {0xe3, 0x05, 0xe9};
    for (uint8_t *at = t->block->host; at + sizeof lookup + 4 <= t->e.at; at++)
        if (memcmp(at, lookup, sizeof lookup) == 0)
            memset(at + sizeof lookup, 0, 4);
}

/* Is it one of common.c's? */
static bool try(const uint8_t *bytes)
{
    struct hv_translation *fast = begin(0, bytes), *slow;
    hv_translate_common(fast, 1);
    unsigned fast_places = place_count;
    if (fast->block->instructions != fast_places || fast_places > 1)
        differs(bytes, "counted wrongly");
    if (!fast_places) {
        if (fast->e.at != room[0] || fast->next != EIP || fast->exits || fast->ends)
            differs(bytes, "not one, and not left alone");
        return false;
    }
    slow = begin(1, bytes);
    if (hv_decode(&slow->insn, bytes, HV_LONGEST_INSTRUCTION, true) != HV_DECODED)
        differs(bytes, "no instruction");
    slow->next = EIP + slow->insn.length;
    hv_block_place(slow->block, &slow->e, 0);
    if (!hv_translate_instruction(slow))
        differs(bytes, "the monitor's");
    normalize(fast);
    normalize(slow);
    bool same = fast->next == slow->next && fast->ends == slow->ends && fast->exits == slow->exits && fast_places == place_count &&
                memcmp(placed[0], placed[1], sizeof *placed[0]) == 0 && fast->e.at - room[0] == slow->e.at - room[1] &&
                memcmp(room[0], room[1], (size_t)(fast->e.at - room[0])) == 0;
    for (unsigned i = 0; i < fast->exits; i++)
        same = same && fast->exit[i].eip == slow->exit[i].eip && fast->exit[i].displacement - room[0] == slow->exit[i].displacement - room[1];
    if (!same)
        differs(bytes, "translated differently");
    return true;
}

/* Of the code's end in its page no byte behind it is looked at. */
static void at_the_end(unsigned offset, bool wanted)
{
    memset(memory, 0x90, PAGE);
    memset(memory + PAGE, 0xcc, PAGE);
    struct hv_translation *t = begin(0, memory + offset);
    t->next = EIP + offset;
    t->block->eip = EIP + offset;
    hv_translate_common(t, 1);
    if ((place_count == 1) != wanted)
        differs(memory + offset, wanted ? "not taken in the page" : "taken at its end");
}

int main(void)
{
    unsigned known = 0;
    uint32_t seed = 1;
    for (unsigned opcode = 0; opcode < 512; opcode++) {
        for (unsigned rest = 0; rest < 65536; rest++) {
            unsigned modrm = rest & 0xff, sib = rest >> 8, at = 0;
            if (sib && ((modrm & 7) != 4 || modrm >= 0xc0))
                continue;
            if (opcode >= 256)
                memory[at++] = 0x0f;
            memory[at++] = (uint8_t)opcode;
            memory[at++] = (uint8_t)modrm;
            memory[at++] = (uint8_t)sib;
            for (; at < 16; at++)
                memory[at] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
            known += try(memory);
        }
    }
    at_the_end(PAGE - 16, true);
    for (unsigned offset = PAGE - 15; offset < PAGE; offset++)
        at_the_end(offset, false);
    printf("%u\n", known);
    return 0;
}
