/* Far jumps to slots beyond the end of programs' segments (jumps.h), for paravirt: kernel and programs share the low view, and what programs
 * can reach by a near jump could be theirs.
 *
 *   EA offset selector     7 bytes: to a slot, by a flat code segment of the monitor's own in the host's LDT
 *
 * All bytes of the operand at which an instruction of the guest can begin trap, if need be: the upper half of the offset does everywhere in
 * the area, its second byte in some lines, and there are two selectors, of which one needs a larger LDT. The tail is executed beyond the
 * end, too, if that can be done with another code segment, and left by far jumps; else (RET, INT 80) by the monitor.
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
#define SHOWN (BYTES + HV_DEVICE_PAGES * PAGE)
#define SLOT 32u
#define SLOTS (BYTES / SLOT)
#define LINE 256u
#define TRAPPING_LINES (HV_TRAPPING_BYTES * (BYTES / 0x10000u))
#define JUMP 7u
#define PUSH_EBP 0x55u
#define FAR_JUMP 0xeau
#define BLOCK 0x10000u
#define TAIL 128u         /* bytes for each; they begin each block */
#define TAILS (HV_PATCHES / (BYTES / BLOCK))
#define FIRST_SLOT (TAILS * TAIL) /* of a block */
#define ROOM 64u        /* for a slot of the kernel's, behind the others: it begins where it must */
#define ROOMS (HV_DEVICE_PAGES * PAGE / ROOM)
#define LOCAL 4u /* of a selector: in the LDT */

/* The upper halves of all addresses there are bytes that trap. */
static const uint32_t areas[] = {0xfae40000, 0xf4e40000, 0xefe40000, 0xede40000, 0xe7e40000, 0xe5e40000};
/* Entries of the host's LDT, whose selectors are the bytes E4 1F and E4 E4. No guest has as many descriptors in its own. */
static const unsigned entries[] = {0x1fe4 >> 3, 0xe4e4 >> 3};
static bool is_made[2];

static uint32_t area; /* 0 = not shown */
static uint16_t patch_of[SLOTS], room_of[ROOMS]; /* + 1 */
static unsigned used; /* of those in lines that trap */

static void forget(void)
{
    area = used = 0;
    memset(patch_of, 0, sizeof patch_of);
    memset(room_of, 0, sizeof room_of);
}

static void hide(void)
{
    if (area)
        munmap((void *)(uintptr_t)area, SHOWN);
}

static bool is_unused(uint32_t linear) { return linear >= HV_CPU->user_limit && !hv_directory_present(linear); }

static bool is_free(void) { return !area || is_unused(area); }

static bool overlaps(uint32_t first, uint32_t end) { return area && first < (area + SHOWN) / PAGE && end > area / PAGE; }

static bool show(void)
{
    for (unsigned i = 0; !area && i < sizeof areas / sizeof *areas; i++) {
        if (!is_unused(areas[i]))
            continue;
        area = areas[i];
        if (mmap((void *)(uintptr_t)area, SHOWN, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, HV_CELL_FD_SITES, 0) == MAP_FAILED)
            hv_fail("mmap of the slots at %#x failed", area);
    }
    return area;
}

static bool in_trapping_line(uint32_t n) { return hv_is_trapping(n * SLOT / LINE & 0xff); }

static bool full(unsigned sites) { return used + sites > TRAPPING_LINES * (LINE / SLOT); }

static bool is_slot(uint64_t rip, uint16_t cs)
{
    if (HV_CPU->cpl < 3) /* by its own code segment (device_jumps.c) */
        return area && rip - area < SHOWN;
    return cs >> 3 == entries[0] || cs >> 3 == entries[1];
}

static unsigned index_at(uint32_t eip)
{
    uint32_t offset = eip - area;
    if (offset >= SHOWN)
        return 0;
    if (offset >= BYTES)
        return room_of[(offset - BYTES) / ROOM];
    return offset % BLOCK < FIRST_SLOT ? offset / BLOCK * TAILS + offset % BLOCK / TAIL + 1 : patch_of[offset / SLOT];
}

uint32_t hv_device_slot(uint32_t index, uint32_t next, bool first_traps, bool second_traps)
{
    for (uint32_t n = 0; show() && n < ROOMS; n++) {
        uint32_t room = area + BYTES + n * ROOM;
        for (uint32_t slot = room; !room_of[n] && slot <= room + ROOM - HV_DEVICE_SLOT; slot++) {
            uint32_t displacement = slot - next;
            if ((first_traps && !hv_is_trapping(displacement & 0xff)) || (second_traps && !hv_is_trapping(displacement >> 8 & 0xff)))
                continue;
            room_of[n] = (uint16_t)(index + 1);
            return slot;
        }
    }
    return 0;
}

uint32_t hv_device_slots(void) { return area; }

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
    while (n < SLOTS && (n * SLOT % BLOCK < FIRST_SLOT || patch_of[n] || in_trapping_line(n) != shape.must_trap[0]))
        n++;
    if (n == SLOTS)
        return false;
    *patch = (struct hv_patch){.start = linear + shape.start, .site = linear + offset, .slot = area + n * SLOT, .bytes = SLOT, .covers = JUMP, .places = (uint8_t)shape.tail_count};
    for (unsigned i = 0; i < shape.tail_count; i++)
        patch->place[i].guest = shape.tail[i];
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

/* ---- tails */

static void far_jump(struct hv_emitter *e, uint32_t eip, uint16_t cs)
{
    hv_byte(e, FAR_JUMP);
    hv_word32(e, eip);
    hv_byte(e, cs & 0xff);
    hv_byte(e, cs >> 8);
}

/* Jcc: its near form, whose displacement leads to a far jump behind the tail. */
struct exits {
    unsigned count;
    struct { uint8_t *displacement; uint32_t target; } exit[HV_MOST_TAIL];
};

/* One instruction of the tail, which the guest has at `linear`; false: it cannot be done there. The code between two places is one step for the
 * guest: CALL has done its push when it is at the far jump, and then it is at its target. */
static bool put(struct hv_emitter *e, const struct hv_insn *insn, uint32_t linear, uint16_t cs, struct exits *exits)
{
    uint32_t next = linear + insn->length, op = insn->opcode;
    uint32_t target = next + (insn->immediate_size == 1 ? (uint32_t)(int8_t)insn->immediate : insn->immediate);
    bool conditional = insn->map == HV_MAP_0F ? (op & 0xf0) == 0x80 : op >= 0x70 && op <= 0x7f;
    bool traps = insn->map == HV_MAP_ONE && op == 0xcd && insn->immediate != 0x80 && insn->immediate > HV_OF_TRAP; /* INT n: there as well */
    bool near_jump = conditional || (insn->map == HV_MAP_ONE && (op == 0xe8 || op == 0xe9 || op == 0xeb));
    if (near_jump && (insn->operand_size != 4 || insn->lock || insn->repeat || insn->address_prefix))
        return false;
    if (conditional) {
        hv_byte(e, 0x0f);
        hv_byte(e, 0x80 | (op & 15));
        exits->exit[exits->count].displacement = e->at;
        exits->exit[exits->count++].target = target;
        hv_word32(e, 0);
    } else if (near_jump) {
        if (op == 0xe8) {
            hv_byte(e, 0x68); /* push */
            hv_word32(e, next);
        }
        far_jump(e, target, cs);
    } else if (traps || (hv_is_movable(insn) && op != 0xc3 && insn->segment != HV_CS)) { /* RET would stay in this code segment, which has no limit */
        hv_code(e, (const char *)insn->bytes, insn->length);
    } else {
        return false;
    }
    return true;
}

static bool tail(struct hv_patch *patch, uint32_t index, uint8_t *file, uint16_t cs)
{
    if (patch->tail_cs)
        return patch->tail && patch->tail_cs == cs;
    patch->tail_cs = cs;
    if (!patch->places)
        return false;
    uint32_t offset = index / TAILS * BLOCK + index % TAILS * TAIL, guest = 0;
    struct exits exits = {0};
    struct hv_emitter e = {file + offset};
    for (unsigned i = 0; i < patch->places; i++) {
        struct hv_insn insn;
        uint8_t bytes[HV_LONGEST_INSTRUCTION];
        uint32_t linear = patch->site + patch->place[i].guest;
        unsigned available = hv_fetch_at(linear, bytes);
        patch->place[i].host = (uint8_t)(e.at - (file + offset));
        if (!available || hv_decode(&insn, bytes, available, true) != HV_DECODED || !put(&e, &insn, linear, cs, &exits))
            return false;
        guest = patch->place[i].guest + insn.length;
    }
    far_jump(&e, patch->site + guest, cs);
    for (unsigned i = 0; i < exits.count; i++) {
        struct hv_emitter displacement = {exits.exit[i].displacement};
        hv_relative(&displacement, e.at);
        far_jump(&e, exits.exit[i].target, cs);
    }
    patch->tail = area + offset;
    return true;
}

static uint16_t tail_selector(void) { return selector_for(false); }

const struct hv_jumps hv_far_jumps = {
    .make = make, .full = full, .hide = hide, .forget = forget, .is_slot = is_slot, .index = index_at, .overlaps = overlaps, .is_free = is_free,
    .tail = tail, .tail_selector = tail_selector,
};
