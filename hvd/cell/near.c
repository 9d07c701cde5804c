/* Near jumps to slots (jumps.h): 16 MiB at 0xfc000000, of which a few pages are used. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "jumps.h"
#include "sites.h"

#define PAGE 4096u
#define AREA 0xfc000000u /* where kernels have no pages of programs */
#define AREA_BYTES 0x1000000u
#define AREA_PAGES (AREA_BYTES / PAGE)
#define SLOT_BYTES (HV_SLOT_PAGES * PAGE) /* page n of the area shows page n % HV_SLOT_PAGES of the file */
#define UNIT 16u        /* slots begin at its multiples */
#define SHOWN 256u      /* pages of the area */
#define JUMP 5u
#define TAIL_AT 30u     /* of a slot */
#define MOST_SLOT 96u

static uint32_t shown_count;
static uint16_t patch_of[SLOT_BYTES / UNIT]; /* + 1 */
static uint16_t shown[SHOWN];
static uint8_t is_shown[AREA_PAGES];

static void forget(void)
{
    shown_count = 0;
    memset(patch_of, 0, sizeof patch_of);
    memset(is_shown, 0, sizeof is_shown);
}

static void hide(void)
{
    for (uint32_t i = 0; i < shown_count; i++)
        munmap((void *)(uintptr_t)(AREA + shown[i] * PAGE), PAGE);
}

static bool full(unsigned sites) { return shown_count + sites > SHOWN; }

static bool is_slot(uint64_t rip, uint16_t cs)
{
    (void)cs;
    return rip - AREA < AREA_BYTES;
}

static unsigned index_at(uint32_t eip) { return patch_of[eip % SLOT_BYTES / UNIT]; }

static bool overlaps(uint32_t first, uint32_t end) { return first < (AREA + AREA_BYTES) / PAGE && end > AREA / PAGE; }

static bool is_free(void)
{
    for (uint32_t i = 0; i < shown_count; i++) {
        struct hv_walk walk;
        hv_walk(&walk, AREA + shown[i] * PAGE, false, true, false, false);
        if (!walk.error)
            return false;
    }
    return true;
}

/* May it be executed elsewhere: no use of EIP, nothing that traps by its nature? Jumps are seen to by relocate(). */
bool hv_is_movable(const struct hv_insn *insn)
{
    unsigned op = insn->opcode;
    if (insn->lock || insn->repeat || insn->address_prefix)
        return false;
    if (insn->map == HV_MAP_0F)
        return (op >= 0x40 && op <= 0x4f) || op == 0xaf || (op >= 0xb6 && op <= 0xb7) || op == 0xbe || op == 0xbf || op == 0x1f || (op >= 0x90 && op <= 0x9f);
    if (insn->map != HV_MAP_ONE)
        return false;
    return (op < 0x40 && (op & 7) < 6) || (op >= 0x40 && op <= 0x5f) || (op >= 0x68 && op <= 0x6b) || (op >= 0x80 && op <= 0x8b) || op == 0x8d ||
           (op >= 0x90 && op <= 0x99) || op == 0xa8 || op == 0xa9 || (op >= 0xb0 && op <= 0xc1) || op == 0xc3 || (op >= 0xc6 && op <= 0xc7 && !insn->reg) ||
           (op >= 0xd0 && op <= 0xd3) || op == 0xf6 || op == 0xf7 || (op >= 0xfe && insn->reg < 2) || (op == 0xff && insn->reg == 6);
}

static void word(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }

/* One instruction of the tail, at `linear` in the guest, to `at`, which will be executed at `host`. Returns its length there; 0 = it cannot be moved. */
static unsigned relocate(uint8_t *at, uint32_t host, const struct hv_insn *insn, uint32_t linear)
{
    bool is_short = insn->map == HV_MAP_ONE && insn->opcode >= 0x70 && insn->opcode <= 0x7f, is_near = insn->map == HV_MAP_0F && (insn->opcode & 0xf0) == 0x80;
    if ((is_short || is_near) && insn->operand_size == 4) {
        uint32_t target = linear + insn->length + (is_short ? (uint32_t)(int8_t)insn->immediate : insn->immediate);
        at[0] = 0x0f;
        at[1] = 0x80 | (insn->opcode & 15);
        word(at + 2, target - (host + 6));
        return 6;
    }
    if (!hv_is_movable(insn))
        return 0;
    memcpy(at, insn->bytes, insn->length);
    return insn->length;
}

/* What a slot may be placed by: the bytes of the displacement that must trap, by number. */
struct shape {
    uint32_t start, site; /* linear addresses */
    bool must_trap[4];
    unsigned bytes; /* of its slot */
    unsigned tail_count;
    struct hv_insn tail[HV_MOST_TAIL];
};

static uint32_t units_of(uint32_t bytes) { return (bytes + UNIT - 1) / UNIT; }

static bool fits(const struct shape *shape, uint32_t slot)
{
    uint32_t displacement = slot - (shape->start + JUMP);
    if (slot % PAGE + shape->bytes > PAGE)
        return false;
    for (unsigned i = 0; i < 4; i++)
        if (shape->must_trap[i] && !hv_is_trapping(displacement >> 8 * i & 0xff))
            return false;
    uint32_t first = (slot % SLOT_BYTES) / UNIT;
    for (uint32_t i = 0; i < units_of(shape->bytes); i++)
        if (patch_of[first + i])
            return false;
    return true;
}

/* Can none of a page's slots have a displacement whose third byte traps? */
static bool is_hopeless(const struct shape *shape, uint32_t page)
{
    uint32_t displacement = page - (shape->start + JUMP);
    return shape->must_trap[2] && !hv_is_trapping(displacement >> 16 & 0xff) && !hv_is_trapping((displacement + PAGE) >> 16 & 0xff);
}

static bool show(uint32_t area_page)
{
    struct hv_walk walk;
    uint32_t linear = AREA + area_page * PAGE;
    hv_walk(&walk, linear, false, true, false, false);
    if (!walk.error || shown_count == SHOWN)
        return false;
    if (mmap((void *)(uintptr_t)linear, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED | MAP_POPULATE, HV_CELL_FD_SITES, (off_t)(area_page % HV_SLOT_PAGES) * PAGE) == MAP_FAILED)
        hv_fail("mmap of a slot's page at %#x failed", linear);
    is_shown[area_page] = 1;
    shown[shown_count++] = (uint16_t)area_page;
    return true;
}

/* A free place of the right kind; 0 = none. Pages that are shown already come first. */
static uint32_t place_slot(const struct shape *shape)
{
    for (uint32_t i = 0; i < shown_count; i++)
        for (uint32_t at = 0; !is_hopeless(shape, AREA + shown[i] * PAGE) && at < PAGE; at += UNIT)
            if (fits(shape, AREA + shown[i] * PAGE + at))
                return AREA + shown[i] * PAGE + at;
    for (uint32_t third = 0; third < 256; third++) {
        if (shape->must_trap[2] && !hv_is_trapping(third))
            continue;
        for (uint32_t second = 0; second < 256; second++) {
            uint32_t low = (shape->start + JUMP + (third << 16 | second << 8)) & 0xffff00; /* the first byte may carry */
            for (uint32_t at = 0; (!shape->must_trap[1] || hv_is_trapping(second)) && at < 512; at += UNIT) {
                uint32_t slot = AREA + ((low + at) & 0xffffff);
                if (fits(shape, slot))
                    return is_shown[(slot - AREA) / PAGE] || show((slot - AREA) / PAGE) ? slot : 0;
            }
        }
    }
    return 0;
}

/* Linux's vDSO: three pushes, NOPs where processors with SYSENTER have that, INT 80, three pops, a return: the NOPs make room. */
bool hv_is_vdso(const uint8_t *page, uint32_t offset)
{
    static const uint8_t before[] = {0x51, 0x52, 0x55}, behind[] = {0x5d, 0x5a, 0x59, 0xc3};
    static const uint8_t nops[][4] = {{0x90, 0x90, 0x90, 0x90}, {0x8d, 0x74, 0x26, 0x00}, {0x0f, 0x1f, 0x40, 0x00}};
    if (offset < 7 || offset + 6 > PAGE || memcmp(page + offset - 7, before, 3) != 0 || memcmp(page + offset + 2, behind, 4) != 0)
        return false;
    for (unsigned i = 0; i < 3; i++)
        if (memcmp(page + offset - 4, nops[i], 4) == 0)
            return true;
    return false;
}

static bool take_shape(struct shape *shape, const uint8_t *page, uint32_t linear, uint32_t offset)
{
    *shape = (struct shape){.start = linear + offset, .site = linear + offset, .bytes = TAIL_AT + JUMP};
    if (hv_is_vdso(page, offset)) {
        shape->start -= 3;
        shape->must_trap[2] = true;
        return true;
    }
    for (uint32_t at = 2; at < JUMP; at += shape->tail[shape->tail_count - 1].length) {
        uint8_t room[MOST_SLOT];
        struct hv_insn *insn = &shape->tail[shape->tail_count];
        if (shape->tail_count == HV_MOST_TAIL || hv_decode(insn, page + offset + at, PAGE - offset - at, true) != HV_DECODED)
            return false;
        unsigned bytes = relocate(room, 0, insn, 0);
        if (!bytes)
            return false;
        shape->bytes += bytes;
        shape->must_trap[at - 1] = true;
        shape->tail_count++;
    }
    return true;
}

static bool make(struct hv_patch *patch, uint32_t index, uint8_t *file, uint8_t *copy, const uint8_t *page, uint32_t linear, uint32_t offset)
{
    static struct shape shape;
    if (!take_shape(&shape, page, linear, offset))
        return false;
    uint32_t first = shape.start - linear;
    if (memcmp(copy + first, page + first, JUMP) != 0) /* another one is there */
        return false;
    uint32_t slot = place_slot(&shape);
    if (!slot)
        return false;
    uint8_t *at = file + slot % SLOT_BYTES;
    uint64_t state = (uint64_t)(uintptr_t)&cell;
    memcpy(at, "\xea\0\0\0\0\x33\0"              /* jmp 0x33:next */
               "\x41\xb8\0\0\0\0"                 /* next: mov r8d, the EIP behind INT 80 */
               "\x49\xbf\0\0\0\0\0\0\0\0"         /* mov r15, &cell */
               "\x41\xff\xa7\0\0\0\0", TAIL_AT);  /* jmp [r15 + system_call] */
    word(at + 1, slot + 7);
    word(at + 9, shape.site + 2);
    memcpy(at + 15, &state, 8);
    word(at + 26, (uint32_t)offsetof(struct hv_cell, system_call));
    *patch = (struct hv_patch){.start = shape.start, .site = shape.site, .slot = slot, .covers = JUMP};
    uint32_t host = TAIL_AT, guest = 2;
    for (unsigned i = 0; i < shape.tail_count; i++) {
        patch->place[patch->places].guest = (uint8_t)guest;
        patch->place[patch->places++].host = (uint8_t)host;
        host += relocate(at + host, slot + host, &shape.tail[i], shape.site + guest);
        guest += shape.tail[i].length;
    }
    patch->place[patch->places].guest = (uint8_t)guest;
    patch->place[patch->places++].host = (uint8_t)host;
    at[host] = 0xe9;
    word(at + host + 1, shape.site + guest - (slot + host + JUMP));
    patch->bytes = (uint8_t)(host + JUMP);
    for (uint32_t i = 0; i < units_of(shape.bytes); i++)
        patch_of[(slot % SLOT_BYTES) / UNIT + i] = (uint16_t)(index + 1);
    if (shape.start != shape.site)
        copy[first - 1] = 0x90; /* of a NOP of four bytes the first */
    copy[first] = 0xe9;
    word(copy + first + 1, slot - (shape.start + JUMP));
    return true;
}

const struct hv_jumps hv_near_jumps = {
    .make = make, .full = full, .hide = hide, .forget = forget, .is_slot = is_slot, .index = index_at, .overlaps = overlaps, .is_free = is_free,
};
