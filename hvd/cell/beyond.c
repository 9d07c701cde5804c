/* Far jumps to slots beyond the end of programs' segments (jumps.h), for paravirt: kernel and programs share the low view, and what programs
 * can reach by a near jump could be theirs.
 *
 *   EA offset selector     7 bytes: to a slot, by a flat code segment of the monitor's own in the host's LDT
 *
 * All bytes of the operand at which an instruction of the guest can begin trap, if need be: the upper half of the offset does everywhere in
 * the area, its second byte in some lines, and there are two selectors, of which one needs a larger LDT. The monitor executes the tail.
 * (A segment with another base than 0 would allow for a shorter jump, but costs more than a microsecond: processors drop what they have
 * decoded.)
 *
 * The area lies where the guest has no page directory entry, which is looked at each time before programs run.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "emit.h"
#include "jumps.h"
#include "sites.h"

#define PAGE 4096u
#define BYTES (HV_SLOT_PAGES * PAGE)
#define SLOT 32u
#define SLOTS (BYTES / SLOT)
#define LINE 256u
#define TRAPPING_LINES (HV_TRAPPING_BYTES * (BYTES / 0x10000u))
#define JUMP 7u
#define PUSH_EBP 0x55u
#define LOCAL 4u /* of a selector: in the LDT */

/* The upper halves of all addresses there are bytes that trap. */
static const uint32_t areas[] = {0xfae40000, 0xf4e40000, 0xefe40000, 0xede40000, 0xe7e40000, 0xe5e40000};
/* Entries of the host's LDT, whose selectors are the bytes E4 1F and E4 E4. No guest has as many descriptors in its own. */
static const unsigned entries[] = {0x1fe4 >> 3, 0xe4e4 >> 3};
static bool is_made[2];

static uint32_t area; /* 0 = not shown */
static uint16_t patch_of[SLOTS]; /* + 1 */
static unsigned used; /* of those in lines that trap */

static void forget(void)
{
    area = used = 0;
    memset(patch_of, 0, sizeof patch_of);
}

static void hide(void)
{
    if (area)
        munmap((void *)(uintptr_t)area, BYTES);
}

static bool is_unused(uint32_t linear) { return linear >= HV_CPU->user_limit && !hv_directory_present(linear); }

static bool is_free(void) { return !area || is_unused(area); }

static bool overlaps(uint32_t first, uint32_t end) { return area && first < (area + BYTES) / PAGE && end > area / PAGE; }

static bool show(void)
{
    for (unsigned i = 0; !area && i < sizeof areas / sizeof *areas; i++) {
        if (!is_unused(areas[i]))
            continue;
        area = areas[i];
        if (mmap((void *)(uintptr_t)area, BYTES, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, HV_CELL_FD_SITES, 0) == MAP_FAILED)
            hv_fail("mmap of the slots at %#x failed", area);
    }
    return area;
}

static bool in_trapping_line(uint32_t n) { return hv_is_trapping(n * SLOT / LINE & 0xff); }

static bool full(unsigned sites) { return used + sites > TRAPPING_LINES * (LINE / SLOT); }

static bool is_slot(uint64_t rip, uint16_t cs)
{
    (void)rip;
    return cs >> 3 == entries[0] || cs >> 3 == entries[1];
}

static unsigned index_at(uint32_t eip) { return eip - area < BYTES ? patch_of[(eip - area) / SLOT] : 0; }

/* By which bytes of the jump's operand, but the first, a slot may be placed: those at which an instruction of the guest begins must trap. */
struct shape {
    uint32_t start; /* of the jump, from the page's start */
    bool is_vdso, must_trap[5];
    unsigned tail_count;
    uint8_t tail[HV_MOST_TAIL]; /* where its instructions begin, from INT 80 */
};

bool hv_is_tail(const struct hv_insn *insn)
{
    bool near_jump = insn->map == HV_MAP_ONE ? (insn->opcode >= 0x70 && insn->opcode <= 0x7f) || insn->opcode == 0xe8 || insn->opcode == 0xe9 || insn->opcode == 0xeb || insn->opcode == 0xcd
                                             : insn->map == HV_MAP_0F && (insn->opcode & 0xf0) == 0x80;
    return hv_is_movable(insn) || (near_jump && insn->operand_size == 4 && !insn->lock && !insn->repeat && !insn->address_prefix);
}

static bool take_shape(struct shape *shape, const uint8_t *page, uint32_t offset)
{
    *shape = (struct shape){.start = offset};
    if (hv_is_vdso(page, offset)) { /* PUSH EBP, four bytes of NOPs, INT 80 */
        shape->start -= JUMP - 2;
        shape->is_vdso = true;
        return true;
    }
    for (unsigned at = 2; at < JUMP;) {
        struct hv_insn insn;
        if (hv_decode(&insn, page + offset + at, PAGE - offset - at, true) != HV_DECODED || !hv_is_tail(&insn))
            return false;
        shape->must_trap[at - 2] = true;
        shape->tail[shape->tail_count++] = (uint8_t)at;
        at += insn.length;
    }
    return true;
}

static uint16_t selector_for(bool both_bytes)
{
    if (!is_made[both_bytes])
        hv_twin_code(entries[both_bytes]);
    is_made[both_bytes] = true;
    return (uint16_t)(entries[both_bytes] << 3 | LOCAL);
}

static bool make(struct hv_patch *patch, uint32_t index, uint8_t *file, uint8_t *copy, const uint8_t *page, uint32_t linear, uint32_t offset)
{
    struct shape shape;
    uint32_t n = 0;
    if (!take_shape(&shape, page, offset) || memcmp(copy + shape.start, page + shape.start, JUMP) != 0 || !show())
        return false;
    while (n < SLOTS && (patch_of[n] || in_trapping_line(n) != shape.must_trap[0]))
        n++;
    if (n == SLOTS)
        return false;
    *patch = (struct hv_patch){.start = linear + shape.start, .site = linear + offset, .slot = area + n * SLOT, .bytes = SLOT, .places = (uint8_t)shape.tail_count};
    for (unsigned i = 0; i < shape.tail_count; i++)
        patch->place[i].guest = shape.tail[i], patch->place[i].host = SLOT; /* it is not there */
    patch_of[n] = (uint16_t)(index + 1);
    used += shape.must_trap[0];
    struct hv_emitter e = {file + n * SLOT};
    if (shape.is_vdso)
        hv_byte(&e, PUSH_EBP);
    hv_byte(&e, 0xea); /* jmp 0x33:next */
    hv_word32(&e, patch->slot + (shape.is_vdso ? 8 : 7));
    HV_CODE(&e, "\x33\0"
                "\x41\xb8"); /* next: mov r8d, the EIP behind INT 80 */
    hv_word32(&e, patch->site + 2);
    HV_CODE(&e, "\x49\xbf"); /* mov r15, &cell */
    hv_word64(&e, (uint64_t)(uintptr_t)&cell);
    HV_CODE(&e, "\x41\xff"); /* jmp [r15 + system_call] */
    hv_cell_operand(&e, 4, HV_FIELD(system_call));
    uint16_t selector = selector_for(shape.must_trap[4]);
    e.at = copy + shape.start;
    hv_byte(&e, 0xea);
    hv_word32(&e, patch->slot);
    hv_byte(&e, selector & 0xff);
    hv_byte(&e, selector >> 8);
    return true;
}

const struct hv_jumps hv_far_jumps = {
    .bytes = JUMP, .make = make, .full = full, .hide = hide, .forget = forget, .is_slot = is_slot, .index = index_at, .overlaps = overlaps, .is_free = is_free,
};
