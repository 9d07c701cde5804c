/* A guest's call stack by its frame pointers: what called the instruction that crosses.
 *
 * Code that is built with frame pointers keeps, at (R|E)BP, its caller's frame pointer and above it the address it returns to (System V ABI,
 * "The Stack Frame"). Nothing is trusted: a frame lies above the one before it, not far, and in RAM; the walk changes nothing. Page tables
 * are those of Intel SDM vol. 3A, chapter "Paging", without five levels.
 */
#include "crossing.h"

#include <string.h>

#define PRESENT 1u
#define LARGE 0x80u
#define CR0_PG 0x80000000u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_LA57 0x1000u
#define EFER_LMA 0x400u
#define ADDRESS 0x000ffffffffff000ull
#define FARTHEST 0x10000u /* from one frame to the next: no kernel's stack is larger */

static bool entry(const struct hv_stack_begin *begin, uint64_t physical, unsigned size, uint64_t *value)
{
    const void *at = begin->memory(begin->owner, physical, size);
    *value = 0;
    if (at)
        memcpy(value, at, size);
    return *value & PRESENT;
}

/* One level of tables after the other: `level` 12, 21, 30, 39 is the lowest bit of the address that the table translates. */
static bool translate(const struct hv_stack_begin *begin, uint64_t linear, uint64_t *physical)
{
    if (!(begin->cr0 & CR0_PG)) {
        *physical = linear;
        return true;
    }
    uint64_t value;
    if (!(begin->cr4 & CR4_PAE)) {
        if (!entry(begin, (begin->cr3 & 0xfffff000u) + (linear >> 22 & 0x3ff) * 4, 4, &value))
            return false;
        if (value & LARGE && begin->cr4 & CR4_PSE) {
            *physical = (value >> 13 & 0xff) << 32 | (value & 0xffc00000u) | (linear & 0x3fffffu);
            return true;
        }
        if (!entry(begin, (value & 0xfffff000u) + (linear >> 12 & 0x3ff) * 4, 4, &value))
            return false;
        *physical = (value & 0xfffff000u) | (linear & 0xfff);
        return true;
    }
    bool is_long = begin->efer & EFER_LMA;
    if (is_long && begin->cr4 & CR4_LA57)
        return false;
    uint64_t table = is_long ? begin->cr3 & ADDRESS : begin->cr3 & 0xffffffe0u;
    for (unsigned level = is_long ? 39 : 30; level >= 12; level -= 9) {
        unsigned index = (unsigned)(linear >> level) & (!is_long && level == 30 ? 3 : 0x1ff);
        if (!entry(begin, table + index * 8, 8, &value))
            return false;
        table = value & ADDRESS;
        if (value & LARGE && (level == 21 || (is_long && level == 30))) {
            uint64_t inside = (1ull << level) - 1;
            *physical = (table & ~inside) | (linear & inside);
            return true;
        }
    }
    *physical = table | (linear & 0xfff);
    return true;
}

/* A word that does not cross a page. */
static bool word(const struct hv_stack_begin *begin, uint64_t linear, uint64_t *value)
{
    uint64_t physical;
    if (!translate(begin, begin->word == 4 ? (uint32_t)linear : linear, &physical))
        return false;
    const void *at = begin->memory(begin->owner, physical, begin->word);
    *value = 0;
    if (at)
        memcpy(value, at, begin->word);
    return at != NULL;
}

unsigned hv_stack_walk(const struct hv_stack_begin *begin, uint64_t *addresses, unsigned most)
{
    uint64_t frame = begin->frame, next, address;
    unsigned count = 0;
    while (count < most && frame && frame % begin->word == 0 && word(begin, frame + begin->word, &address) && word(begin, frame, &next)) {
        if (!address)
            break;
        addresses[count++] = address;
        if (next <= frame || next - frame > FARTHEST)
            break;
        frame = next;
    }
    return count;
}
