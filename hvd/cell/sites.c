/* Sites (sites.h): which INT 80 instructions are hot, the private copies of their pages, and the slots that the jumps in them lead to.
 *
 * A jump has five bytes, INT 80 two: it covers the instructions behind it, too, which the slot executes in their stead (its tail). Whatever jumps
 * to one of those finds a byte of the jump's displacement there, and slots are placed so that this byte is an instruction that traps
 * (HLT, CLI, IN...): the monitor sees that a site covers it, and goes on in the tail.
 */
#define _GNU_SOURCE
#include "sites.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "debug.h"
#include "signals.h"
#include "translate.h"

#define PAGE 4096u
#define AREA_PAGES (HV_SITES_AREA_BYTES / PAGE)
#define SLOT_PAGES 64u  /* of the file, first of all; page n of the area shows page n % SLOT_PAGES */
#define SLOT_BYTES (SLOT_PAGES * PAGE)
#define UNIT 16u        /* slots begin at its multiples */
#define COPIES 240u
#define PATCHES 1024u
#define SHOWN 256u      /* pages of the area */
#define ROWS 128u       /* frames with INT 80 */
#define MOST_SITES 64u  /* of one frame */
#define HITS 4u         /* before a site is worth a copy */
#define MOST_SPOILED 2u  /* times that HITS doubles */
#define JUMP 5u
#define MOST_TAIL 4u    /* instructions */
#define TAIL_AT 30u     /* of a slot */
#define MOST_SLOT 96u
#define NONE UINT32_MAX

/* A frame of programs' code, and where in it there is INT 80. */
static struct row {
    uint64_t frame;
    uint8_t count, spoiled; /* how often the frame was written to while there were copies of it */
    bool used, hot;
    struct { uint16_t offset, hits; } site[MOST_SITES];
} rows[ROWS];

/* A jump in a copy, and its slot. */
static struct patch {
    uint32_t start, site, slot; /* linear addresses */
    uint32_t next;              /* of the same copy */
    uint8_t bytes;              /* of the slot */
    uint8_t places;
    struct { uint8_t guest, host; } place[MOST_TAIL + 1]; /* of the tail: from site + 2, and from the slot's start */
} patches[PATCHES];

static struct copy {
    uint32_t page; /* linear; NONE = gone */
    uint64_t frame;
    uint32_t first_patch, next;
} copies[COPIES];

static uint8_t *file;   /* slots, then copies */
static bool enabled;
static bool suspended;  /* programs are single-stepped, or have segments that slots would not do for */
static uint32_t copy_count, patch_count, shown_count;
static uint32_t by_page[256]; /* copies, by linear page */
static uint16_t patch_of[SLOT_BYTES / UNIT]; /* + 1 */
static uint16_t shown[SHOWN];
static uint8_t is_shown[AREA_PAGES];

static bool traps(unsigned byte) { return (byte >= 0xe4 && byte <= 0xe7) || (byte >= 0xec && byte <= 0xef) || byte == 0xf4 || byte == 0xfa || byte == 0xfb; }

static void forget_copies(void)
{
    copy_count = patch_count = shown_count = 0;
    memset(by_page, 0xff, sizeof by_page);
    memset(patch_of, 0, sizeof patch_of);
    memset(is_shown, 0, sizeof is_shown);
}

bool hv_sites_init(void)
{
    int fd = memfd_create("hvd-sites", MFD_CLOEXEC);
    size_t size = (size_t)(SLOT_PAGES + COPIES) * PAGE;
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0 || (fd != HV_CELL_FD_SITES && (dup2(fd, HV_CELL_FD_SITES) < 0 || close(fd) != 0)))
        return false;
    file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, HV_CELL_FD_SITES, 0);
    enabled = file != MAP_FAILED;
    forget_copies();
    return enabled;
}

/* ---- which there are */

static struct copy *find(uint32_t page, uint64_t frame)
{
    for (uint32_t i = by_page[page % 256]; i != NONE; i = copies[i].next)
        if (copies[i].page == page && copies[i].frame == frame)
            return &copies[i];
    return NULL;
}

/* The patch that covers that address, of the copy which is mapped there. */
static const struct patch *covering(uint32_t eip, uint64_t *frame)
{
    if (!copy_count)
        return NULL;
    const struct copy *copy = hv_shadow_shows_copy(eip / PAGE, frame) ? find(eip / PAGE, *frame) : NULL;
    for (uint32_t i = copy ? copy->first_patch : NONE; i != NONE; i = patches[i].next)
        if (eip - patches[i].start < JUMP)
            return &patches[i];
    return NULL;
}

static struct row *row_of(uint64_t frame)
{
    for (unsigned i = 0; i < ROWS; i++)
        if (rows[i].used && rows[i].frame == frame)
            return &rows[i];
    return NULL;
}

static void drop_copies(void)
{
    for (uint32_t i = 0; i < copy_count; i++)
        if (copies[i].page != NONE)
            hv_shadow_drop_copy(copies[i].page, copies[i].frame);
    for (uint32_t i = 0; i < shown_count; i++)
        munmap((void *)(uintptr_t)(HV_SITES_AREA + shown[i] * PAGE), PAGE);
    forget_copies();
}

void hv_sites_unmapped(void)
{
    if (enabled)
        forget_copies();
}

static void forget_rows(void)
{
    drop_copies();
    for (unsigned i = 0; i < ROWS; i++)
        if (rows[i].used)
            hv_shadow_release_frame(rows[i].frame * PAGE, HV_FRAME_SITES);
    memset(rows, 0, sizeof rows);
}

void hv_sites_give_up(void)
{
    if (!enabled)
        return;
    forget_rows();
    enabled = false;
}

void hv_sites_written(uint64_t frame)
{
    struct row *row = row_of(frame);
    if (!row)
        return;
    for (uint32_t i = 0; row->hot && i < copy_count; i++) {
        if (copies[i].page == NONE || copies[i].frame != frame)
            continue;
        hv_shadow_drop_copy(copies[i].page, frame);
        copies[i].page = NONE;
    }
    row->spoiled += row->hot && row->spoiled < MOST_SPOILED;
    row->hot = false;
    row->count = 0;
}

void hv_sites_verify(void)
{
    for (uint32_t i = 0; i < shown_count; i++) {
        struct hv_walk walk;
        hv_walk(&walk, HV_SITES_AREA + shown[i] * PAGE, false, true, false, false);
        if (!walk.error) {
            hv_sites_give_up();
            return;
        }
    }
}

/* ---- slots */

/* May it be executed elsewhere: no use of EIP, nothing that traps by its nature? Jumps are seen to by relocate(). */
static bool is_movable(const struct hv_insn *insn)
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
    if (!is_movable(insn))
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
    struct hv_insn tail[MOST_TAIL];
};

static uint32_t units_of(uint32_t bytes) { return (bytes + UNIT - 1) / UNIT; }

static bool fits(const struct shape *shape, uint32_t slot)
{
    uint32_t displacement = slot - (shape->start + JUMP);
    if (slot % PAGE + shape->bytes > PAGE)
        return false;
    for (unsigned i = 0; i < 4; i++)
        if (shape->must_trap[i] && !traps(displacement >> 8 * i & 0xff))
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
    return shape->must_trap[2] && !traps(displacement >> 16 & 0xff) && !traps((displacement + PAGE) >> 16 & 0xff);
}

static bool show(uint32_t area_page)
{
    struct hv_walk walk;
    uint32_t linear = HV_SITES_AREA + area_page * PAGE;
    hv_walk(&walk, linear, false, true, false, false);
    if (!walk.error || shown_count == SHOWN)
        return false;
    if (mmap((void *)(uintptr_t)linear, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED | MAP_POPULATE, HV_CELL_FD_SITES, (off_t)(area_page % SLOT_PAGES) * PAGE) == MAP_FAILED)
        hv_fail("mmap of a slot's page at %#x failed", linear);
    is_shown[area_page] = 1;
    shown[shown_count++] = (uint16_t)area_page;
    return true;
}

/* A free place of the right kind; 0 = none. Pages that are shown already come first. */
static uint32_t place_slot(const struct shape *shape)
{
    for (uint32_t i = 0; i < shown_count; i++)
        for (uint32_t at = 0; !is_hopeless(shape, HV_SITES_AREA + shown[i] * PAGE) && at < PAGE; at += UNIT)
            if (fits(shape, HV_SITES_AREA + shown[i] * PAGE + at))
                return HV_SITES_AREA + shown[i] * PAGE + at;
    for (uint32_t third = 0; third < 256; third++) {
        if (shape->must_trap[2] && !traps(third))
            continue;
        for (uint32_t second = 0; second < 256; second++) {
            uint32_t low = (shape->start + JUMP + (third << 16 | second << 8)) & 0xffff00; /* the first byte may carry */
            for (uint32_t at = 0; (!shape->must_trap[1] || traps(second)) && at < 512; at += UNIT) {
                uint32_t slot = HV_SITES_AREA + ((low + at) & 0xffffff);
                if (fits(shape, slot))
                    return is_shown[(slot - HV_SITES_AREA) / PAGE] || show((slot - HV_SITES_AREA) / PAGE) ? slot : 0;
            }
        }
    }
    return 0;
}

/* Linux's vDSO: three pushes, NOPs where processors with SYSENTER have that, INT 80, three pops, a return: the NOPs make room. */
static bool is_vdso(const uint8_t *page, uint32_t offset)
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
    if (is_vdso(page, offset)) {
        shape->start -= 3;
        shape->must_trap[2] = true;
        return true;
    }
    for (uint32_t at = 2; at < JUMP; at += shape->tail[shape->tail_count - 1].length) {
        uint8_t room[MOST_SLOT];
        struct hv_insn *insn = &shape->tail[shape->tail_count];
        if (shape->tail_count == MOST_TAIL || hv_decode(insn, page + offset + at, PAGE - offset - at, true) != HV_DECODED)
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

/* The jump into the copy, and its slot; unless it cannot be done here. */
static void patch_site(struct copy *copy, const uint8_t *page, uint32_t offset)
{
    static struct shape shape;
    uint8_t *to = file + (size_t)(SLOT_PAGES + (uint32_t)(copy - copies)) * PAGE;
    uint32_t linear = copy->page * PAGE;
    if (patch_count == PATCHES || page[offset] != 0xcd || page[offset + 1] != 0x80 || !take_shape(&shape, page, linear, offset))
        return;
    uint32_t first = shape.start - linear;
    if (memcmp(to + first, page + first, JUMP) != 0) /* another one is there */
        return;
    uint32_t slot = place_slot(&shape);
    if (!slot)
        return;
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
    struct patch *patch = &patches[patch_count];
    *patch = (struct patch){.start = shape.start, .site = shape.site, .slot = slot, .next = copy->first_patch};
    copy->first_patch = patch_count;
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
        patch_of[(slot % SLOT_BYTES) / UNIT + i] = (uint16_t)(patch_count + 1);
    patch_count++;
    if (shape.start != shape.site)
        to[first - 1] = 0x90; /* of a NOP of four bytes the first */
    to[first] = 0xe9;
    word(to + first + 1, slot - (shape.start + JUMP));
}

/* ---- copies */

uint32_t hv_sites_copy(uint32_t page, uint64_t frame)
{
    struct row *row = row_of(frame);
    const uint8_t *original = hv_memory_at(frame * PAGE, false, NULL);
    if (!enabled || suspended || !row || !row->hot || !original)
        return 0;
    struct copy *copy = find(page, frame);
    if (!copy) {
        if (copy_count == COPIES || patch_count + MOST_SITES > PATCHES || shown_count + MOST_SITES > SHOWN)
            drop_copies();
        copy = &copies[copy_count];
        uint8_t *to = file + (size_t)(SLOT_PAGES + copy_count) * PAGE;
        memcpy(to, original, PAGE);
        *copy = (struct copy){page, frame, NONE, by_page[page % 256]};
        for (unsigned i = 0; i < row->count; i++)
            if (row->site[i].hits >= HITS << row->spoiled)
                patch_site(copy, original, row->site[i].offset);
        by_page[page % 256] = copy_count++;
    }
    return (SLOT_PAGES + (uint32_t)(copy - copies)) * PAGE;
}

static bool is_flat(const struct hv_segment *code) { return code->base == 0 && code->limit == ~0u && code->attributes & HV_SEGMENT_32; }

void hv_sites_hit(void)
{
    struct hv_walk walk;
    uint32_t eip = HV_CPU->eip, offset = eip % PAGE;
    if (!enabled || suspended || offset > PAGE - HV_LONGEST_INSTRUCTION || !is_flat(&HV_CPU->segment[HV_CS]))
        return;
    hv_walk(&walk, eip, false, true, true, false);
    if (walk.error || walk.physical >> 32)
        return;
    uint64_t frame = walk.physical / PAGE;
    struct row *row = row_of(frame);
    for (unsigned i = 0; !row && i < ROWS; i++)
        if (!rows[i].used)
            row = &rows[i];
    for (unsigned i = 0; !row && i < ROWS; i++) /* programs come and go */
        if (!rows[i].hot)
            row = &rows[i];
    if (!row) {
        forget_rows();
        row = &rows[0];
    }
    if (!row->used || row->frame != frame)
        *row = (struct row){.used = true, .frame = frame};
    unsigned i = 0;
    while (i < row->count && row->site[i].offset != offset)
        i++;
    if (i == MOST_SITES) { /* in the place of one that is not worth it */
        for (i = 0; i < MOST_SITES && row->site[i].hits >= HITS << row->spoiled;)
            i++;
        if (i == MOST_SITES)
            return;
        row->site[i].offset = (uint16_t)offset;
        row->site[i].hits = 0;
    } else if (i == row->count) {
        row->site[i].offset = (uint16_t)offset;
        row->site[i].hits = 0;
        row->count++;
    }
    struct copy *copy = find(eip / PAGE, frame);
    uint32_t wanted = HITS << row->spoiled;
    if (row->site[i].hits < wanted && ++row->site[i].hits == wanted) {
        row->hot = true;
        hv_shadow_protect_frame(frame * PAGE, HV_FRAME_SITES);
        const uint8_t *original = hv_memory_at(frame * PAGE, false, NULL);
        if (copy && original)
            patch_site(copy, original, offset);
        hv_shadow_renew(eip, true);
    } else if (row->site[i].hits >= wanted && !copy) { /* they were dropped meanwhile */
        hv_shadow_renew(eip, true);
    }
}

/* ---- in and out of programs */

bool hv_sites_in_slot(uint64_t host_eip) { return host_eip - HV_SITES_AREA < HV_SITES_AREA_BYTES; }

uint32_t hv_sites_guest_eip(uint32_t host_eip)
{
    if (!hv_sites_in_slot(host_eip) || !copy_count)
        return host_eip;
    unsigned index = patch_of[(host_eip % SLOT_BYTES) / UNIT];
    const struct patch *patch = &patches[index ? index - 1 : 0];
    uint32_t offset = host_eip - patch->slot;
    if (!index || offset >= patch->bytes)
        return host_eip;
    uint32_t eip = patch->site;
    for (unsigned i = 0; i < patch->places; i++)
        if (offset >= patch->place[i].host)
            eip = patch->site + patch->place[i].guest;
    return eip;
}

bool hv_sites_cover(uint32_t eip)
{
    uint64_t frame;
    return covering(eip, &frame);
}

uint32_t hv_sites_enter(void)
{
    uint32_t eip = HV_CPU->eip;
    suspended = hv_trap.stepping || hv_debugging || HV_CPU->eflags & HV_TF || !is_flat(&HV_CPU->segment[HV_CS]);
    if (suspended && copy_count)
        drop_copies();
    uint64_t frame;
    const struct patch *patch = covering(eip, &frame);
    if (!patch)
        return eip;
    for (unsigned i = 0; i < patch->places; i++)
        if (patch->site + patch->place[i].guest == eip)
            return patch->slot + patch->place[i].host;
    if (eip <= patch->site)
        return patch->slot;
    hv_sites_written(frame); /* in the middle of an instruction that the jump covers: not with copies */
    return eip;
}
