/* Sites (sites.h): which of these instructions are hot, and the private copies of their pages, in which they are jumps (jumps.h). */
#define _GNU_SOURCE
#include "sites.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "debug.h"
#include "jumps.h"
#include "paravirt.h"
#include "signals.h"
#include "translate.h"

#define PAGE 4096u
#define FIRST_COPY (HV_SLOT_PAGES + HV_DEVICE_PAGES) /* page of the file */
#define COPIES 240u
#define ROWS 128u       /* frames with INT 80 */
#define MOST_SITES 64u  /* of one frame */
#define HITS 4u         /* before a site is worth a copy */
#define MOST_SPOILED 2u  /* times that HITS doubles */
#define MOST_EVICTIONS 8u /* of the slots, by mappings of the guest */
#define NONE UINT32_MAX
#define TAIL_BYTES 128u /* at most */
#define MOST_OF_TAIL 5u  /* instructions of it, with the first, which a jump covers */

/* A frame of programs' code, and where in it there is INT 80; or of the kernel's, and where it accesses devices or has INT n or IRET. */
static struct row {
    uint64_t frame;
    uint8_t count, spoiled; /* how often the frame was written to while there were copies of it */
    bool used, hot, of_kernel;
    uint32_t page; /* of the kernel's: linear, which alone shows a copy; a kernel reads all frames elsewhere */
    struct { uint16_t offset, hits; } site[MOST_SITES];
} rows[ROWS];

static struct hv_patch patches[HV_PATCHES];

static struct copy {
    uint32_t page; /* linear; NONE = gone */
    uint64_t frame;
    uint32_t first_patch, next;
} copies[COPIES];

static uint8_t *file;   /* slots, then copies */
static const struct hv_jumps *jumps = &hv_near_jumps;
static bool enabled;
static bool suspended;  /* programs are single-stepped, or have segments that slots would not do for */
static uint32_t copy_count, patch_count, evictions;
static uint32_t by_page[256]; /* copies, by linear page */

static void forget_copies(void)
{
    copy_count = patch_count = 0;
    memset(by_page, 0xff, sizeof by_page);
    jumps->forget();
}

bool hv_sites_init(void)
{
    int fd = memfd_create("hvd-sites", MFD_CLOEXEC);
    size_t size = (size_t)(FIRST_COPY + COPIES) * PAGE;
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0 || (fd != HV_CELL_FD_SITES && (dup2(fd, HV_CELL_FD_SITES) < 0 || close(fd) != 0)))
        return false;
    file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, HV_CELL_FD_SITES, 0);
    enabled = file != MAP_FAILED;
    jumps = hv_paravirtual() ? &hv_far_jumps : &hv_near_jumps;
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
static struct hv_patch *covering(uint32_t eip, uint64_t *frame)
{
    if (!copy_count)
        return NULL;
    const struct copy *copy = hv_shadow_shows_copy(eip / PAGE, frame) ? find(eip / PAGE, *frame) : NULL;
    for (uint32_t i = copy ? copy->first_patch : NONE; i != NONE; i = patches[i].next)
        if (eip - patches[i].start < patches[i].covers)
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
    jumps->hide();
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

/* The guest has a mapping of its own where slots are, or might be. */
static void evict(void)
{
    if (++evictions == MOST_EVICTIONS || jumps == &hv_near_jumps)
        hv_sites_give_up();
    else
        drop_copies();
}

void hv_sites_mapped(uint32_t first, uint32_t end)
{
    if (enabled && jumps->overlaps(first, end))
        evict();
}

void hv_sites_verify(void)
{
    if (copy_count && !jumps->is_free())
        evict();
}

void hv_sites_verify_page(uint32_t linear)
{
    if (jumps->overlaps(linear / PAGE, linear / PAGE + 1))
        hv_sites_verify();
}

/* ---- copies */

static void patch_site(struct copy *copy, const uint8_t *page, uint32_t offset, bool of_kernel)
{
    uint8_t *to = file + (size_t)(FIRST_COPY + (uint32_t)(copy - copies)) * PAGE;
    struct hv_patch *patch = &patches[patch_count];
    if (patch_count == HV_PATCHES || (!of_kernel && (page[offset] != 0xcd || page[offset + 1] != 0x80)))
        return;
    if (!(of_kernel ? hv_device_jump : jumps->make)(patch, patch_count, file, to, page, copy->page * PAGE, offset))
        return;
    patch->next = copy->first_patch;
    copy->first_patch = patch_count++;
}

bool hv_sites_of_kernel(uint32_t page, uint64_t frame)
{
    const struct row *row = row_of(frame);
    return row && row->of_kernel && row->page == page;
}

uint32_t hv_sites_copy(uint32_t page, uint64_t frame)
{
    struct row *row = row_of(frame);
    const uint8_t *original = hv_memory_at(frame * PAGE, false, NULL);
    if (!enabled || suspended || !row || !row->hot || !original || (row->of_kernel && row->page != page))
        return 0;
    struct copy *copy = find(page, frame);
    if (!copy) {
        if (copy_count == COPIES || patch_count + MOST_SITES > HV_PATCHES || jumps->full(row->count))
            drop_copies();
        copy = &copies[copy_count];
        uint8_t *to = file + (size_t)(FIRST_COPY + copy_count) * PAGE;
        memcpy(to, original, PAGE);
        *copy = (struct copy){page, frame, NONE, by_page[page % 256]};
        for (unsigned i = 0; i < row->count; i++)
            if (row->site[i].hits >= HITS << row->spoiled)
                patch_site(copy, original, row->site[i].offset, row->of_kernel);
        by_page[page % 256] = copy_count++;
    }
    return (FIRST_COPY + (uint32_t)(copy - copies)) * PAGE;
}

static bool is_flat(const struct hv_segment *code) { return code->base == 0 && code->limit == ~0u && code->attributes & HV_SEGMENT_32; }

static void hit(bool of_kernel)
{
    struct hv_walk walk;
    uint32_t eip = HV_CPU->eip, offset = eip % PAGE;
    if (!enabled || suspended || offset > PAGE - HV_LONGEST_INSTRUCTION || !is_flat(&HV_CPU->segment[HV_CS]))
        return;
    if (hv_paravirtual() && !HV_CPU->user_limit) /* its pages are hidden from programs one by one, and so would slots be */
        return;
    hv_walk(&walk, eip, false, !of_kernel, true, false);
    if (walk.error || walk.physical >> 32 || (of_kernel && walk.user))
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
        *row = (struct row){.used = true, .frame = frame, .of_kernel = of_kernel, .page = eip / PAGE};
    if (row->of_kernel != of_kernel || (of_kernel && row->page != eip / PAGE))
        return;
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
            patch_site(copy, original, offset, of_kernel);
        hv_shadow_renew(eip, !of_kernel);
    } else if (row->site[i].hits >= wanted && !copy) { /* they were dropped meanwhile */
        hv_shadow_renew(eip, !of_kernel);
    }
}

void hv_sites_hit(void) { hit(false); }
void hv_sites_kernel(void) { hit(true); }

/* ---- in and out of programs */

bool hv_sites_in_slot(uint64_t rip, uint16_t cs) { return copy_count && jumps->is_slot(rip, cs); }

/* In a tail of its own (jumps.h): a far jump is where it leads to, everything else where the guest has it. */
static uint32_t guest_eip_in_tail(const struct hv_patch *patch, uint32_t offset)
{
    const uint8_t *code = (const uint8_t *)(uintptr_t)patch->tail + offset;
    uint32_t eip = patch->site;
    if (*code == 0xea) {
        memcpy(&eip, code + 1, sizeof eip);
        return eip;
    }
    for (unsigned i = 0; i < patch->places; i++)
        if (offset >= patch->place[i].host)
            eip = patch->site + patch->place[i].guest;
    return eip;
}

uint32_t hv_sites_guest_eip(uint32_t host_eip, uint16_t cs)
{
    if (!hv_sites_in_slot(host_eip, cs))
        return host_eip;
    unsigned index = jumps->index(host_eip);
    if (!index || index > patch_count)
        return host_eip;
    const struct hv_patch *patch = &patches[index - 1];
    if (patch->tail && host_eip - patch->tail < TAIL_BYTES)
        return guest_eip_in_tail(patch, host_eip - patch->tail);
    uint32_t offset = host_eip - patch->slot;
    if (offset >= patch->bytes)
        return host_eip;
    if (jumps == &hv_far_jumps)
        return offset ? patch->site : patch->start;
    uint32_t eip = patch->site;
    for (unsigned i = 0; i < patch->places; i++)
        if (offset >= patch->place[i].host)
            eip = patch->site + patch->place[i].guest;
    return eip;
}

/* Where the code for an instruction that a jump covers is: of its tail. 0 = the jump covers no instruction there, or only the monitor can execute it.
 * cs: the host selector that the program has. */
static uint32_t code_at(struct hv_patch *patch, uint32_t eip, uint16_t cs)
{
    uint32_t index = (uint32_t)(patch - patches);
    for (unsigned i = 0; i < patch->places; i++)
        if (patch->site + patch->place[i].guest == eip)
            return !jumps->tail ? patch->slot + patch->place[i].host : jumps->tail(patch, index, file, cs) ? patch->tail + patch->place[i].host : 0;
    return 0;
}

bool hv_sites_cover(uint32_t eip)
{
    uint64_t frame;
    return covering(eip, &frame);
}

bool hv_sites_interpret(void)
{
    uint64_t frame;
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    uint32_t eip = HV_CPU->eip;
    if (jumps == &hv_near_jumps)
        return false;
    struct hv_patch *patch = covering(eip, &frame);
    if (patch && patch->of_kernel) /* which is in it still, or cannot jump */
        return eip != patch->start || HV_CPU->eflags & HV_TF || !is_flat(&HV_CPU->segment[HV_CS]);
    if (HV_CPU->eflags & HV_TF)
        return false;
    if (!patch || eip == patch->start || code_at(patch, eip, hv_twin_below(&HV_CPU->segment[HV_CS], HV_CPU->user_limit)))
        return false;
    unsigned available = hv_fetch_at(eip, bytes);
    if (available && hv_decode(&insn, bytes, available, true) == HV_DECODED && hv_is_tail(&insn))
        return true;
    hv_sites_written(frame);
    return false;
}

void hv_sites_covered(void)
{
    for (unsigned i = 0; i < MOST_OF_TAIL && (!i || hv_sites_interpret()); i++)
        hv_emulate();
}

uint32_t hv_sites_enter(uint16_t *cs)
{
    uint32_t eip = HV_CPU->eip;
    suspended = hv_trap.stepping || hv_debugging || HV_CPU->eflags & HV_TF || !is_flat(&HV_CPU->segment[HV_CS]);
    if (suspended && copy_count)
        drop_copies();
    else if (jumps == &hv_far_jumps) /* the kernel may have mapped pages there, and told nobody */
        hv_sites_verify();
    uint64_t frame;
    struct hv_patch *patch = covering(eip, &frame);
    if (!patch || (jumps == &hv_far_jumps && eip == patch->start))
        return eip;
    uint32_t code = code_at(patch, eip, *cs);
    if (code) {
        if (jumps->tail)
            *cs = jumps->tail_selector();
        return code;
    }
    if (jumps == &hv_near_jumps && eip <= patch->site)
        return patch->slot;
    hv_sites_written(frame); /* in the middle of an instruction that the jump covers: not with copies */
    return eip;
}
