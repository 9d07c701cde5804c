/* Twins: the guest's segments as entries of the host's LDT, so that its code runs with selectors that do what its own would do.
 *
 * A twin has the base, limit and kind of the guest's descriptor and always privilege level 3. The entry's place comes from the guest's
 * selector, so that selectors which the guest reads, keeps and loads again (none of which traps) still mean the same segment.
 */
#include <asm/ldt.h>
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "paravirt.h"

#define FIRST 1024u  /* below: nothing, so that a selector of the guest's own LDT does not mean a twin: its loads trap */
#define PLACES 1024u /* first those for the guest's GDT, then those for its LDT; a large LDT is dear to change */
#define OWN (2 * PLACES)      /* then one for each segment register */
#define ABOVE (OWN + HV_SEGMENTS) /* then the first of the GDT once more, cut short from below (hv_twin_above) */
#define ABOVE_PLACES HV_TWINS_ABOVE
#define CUT (ABOVE + ABOVE_PLACES) /* then those of the tables once more, cut short (hv_twin_below) */
#define HOST_LDT 4u
#define GUEST_LDT 4u
#define TYPE_CODE 8u
#define TYPE_DOWN 4u /* of data: expands down */
#define KEPT 0x00f0fe00u /* attributes but the accessed bit */

/* One for each segment register, since the guest's table may have changed since one was loaded, so that two registers have different
 * segments by the same selector. */
static struct twin {
    uint32_t base, limit, attributes; /* attributes 0 = not made yet */
} twins[CUT + 2 * PLACES];

static bool alike(const struct hv_segment *a, const struct hv_segment *b)
{
    return a->base == b->base && a->limit == b->limit && !((a->attributes ^ b->attributes) & KEPT);
}

/* Does a register before this one need the selector's own place for another segment? */
static bool place_is_taken(const struct hv_segment *segment)
{
    for (const struct hv_segment *other = HV_CPU->segment; other < segment; other++)
        if (other->selector >> 2 == segment->selector >> 2 && other->attributes & HV_SEGMENT_PRESENT && !alike(other, segment))
            return true;
    return false;
}

static void make(unsigned index, const struct hv_segment *segment)
{
    unsigned type = HV_SEGMENT_TYPE(segment);
    bool code = type & TYPE_CODE;
    struct user_desc wish = {
        .entry_number = FIRST + index,
        .base_addr = segment->base,
        .limit = segment->attributes & HV_SEGMENT_PAGES ? segment->limit >> 12 : segment->limit,
        .limit_in_pages = segment->attributes & HV_SEGMENT_PAGES ? 1 : 0,
        .seg_32bit = segment->attributes & HV_SEGMENT_32 ? 1 : 0,
        /* Conforming code makes no difference where all is of one level, and Linux makes none. */
        .contents = code ? MODIFY_LDT_CONTENTS_CODE : type & 4 ? MODIFY_LDT_CONTENTS_STACK : MODIFY_LDT_CONTENTS_DATA,
        .read_exec_only = type & 2 ? 0 : 1,
        .useable = 1,
    };
    if (syscall(SYS_modify_ldt, 0x11, &wish, sizeof wish) != 0)
        hv_fail("modify_ldt refused a twin of selector %#x (base %#x, limit %#x, attributes %#x): error %d", segment->selector, segment->base,
                segment->limit, segment->attributes, errno);
    cell.stale_segments = 1;
    twins[index] = (struct twin){segment->base, segment->limit, segment->attributes & KEPT};
    if (hv_paravirtual())
        hv_paravirt_forget_twin(index);
    cell.area->counters.ldt_writes++;
}

void hv_twin_code(unsigned entry)
{
    struct user_desc wish = {
        .entry_number = entry, .limit = 0xfffff, .limit_in_pages = 1, .seg_32bit = 1, .contents = MODIFY_LDT_CONTENTS_CODE, .read_exec_only = 1, .useable = 1};
    if (syscall(SYS_modify_ldt, 0x11, &wish, sizeof wish) != 0)
        hv_fail("modify_ldt refused a flat code segment: error %d", errno);
    cell.area->counters.ldt_writes++;
}

/* segment: the one that is meant, of HV_CPU, or what is left of it. */
static uint16_t twin_at(unsigned first, const struct hv_segment *segment, const struct hv_segment *meant)
{
    if (!(segment->attributes & HV_SEGMENT_PRESENT))
        return segment->selector & 3; /* null */
    unsigned place = segment->selector >> 3;
    if (place >= PLACES)
        hv_fail("selector %#x: this backend has room for the first %u descriptors of a table", segment->selector, PLACES);
    unsigned index = first + place + (segment->selector & GUEST_LDT ? PLACES : 0);
    if (place_is_taken(meant))
        index = OWN + (unsigned)(meant - HV_CPU->segment);
    struct twin *twin = &twins[index];
    if (twin->base != segment->base || twin->limit != segment->limit || twin->attributes != (segment->attributes & KEPT))
        make(index, segment);
    return (uint16_t)((FIRST + index) << 3 | HOST_LDT | 3);
}

uint16_t hv_twin(const struct hv_segment *segment) { return twin_at(0, segment, segment); }

uint16_t hv_twin_below(const struct hv_segment *segment, uint32_t end)
{
    struct hv_segment cut = *segment;
    bool down = !(HV_SEGMENT_TYPE(segment) & TYPE_CODE) && HV_SEGMENT_TYPE(segment) & TYPE_DOWN;
    /* One that is not flat may be meant to wrap around: thread-local storage is below its base. */
    if (segment->base || down || segment->limit < end)
        return hv_twin(segment);
    cut.limit = end - 1;
    cut.attributes |= HV_SEGMENT_PAGES;
    return twin_at(CUT, &cut, segment);
}

uint16_t hv_twin_above(const struct hv_segment *segment, uint32_t start)
{
    struct hv_segment cut = *segment;
    cut.attributes |= TYPE_DOWN << 8 | HV_SEGMENT_PAGES;
    cut.limit = start - 1;
    return twin_at(ABOVE, &cut, segment);
}

unsigned hv_twin_place(uint16_t host) { return (host >> 3) - FIRST; }

bool hv_twin_guest_selector(uint16_t host, uint16_t *guest)
{
    if (!(host & ~3u)) {
        *guest = host;
        return true;
    }
    if (!(host & HOST_LDT))
        return false;
    unsigned index = (host >> 3) - FIRST;
    if (index >= CUT + 2 * PLACES)
        return false;
    if (index >= OWN && index < ABOVE) {
        *guest = HV_CPU->segment[index - OWN].selector;
        return true;
    }
    if (index >= ABOVE && index < CUT)
        index -= ABOVE;
    if (index >= CUT)
        index -= CUT;
    *guest = (uint16_t)((index % PLACES) << 3 | (index >= PLACES ? GUEST_LDT : 0) | HV_CPU->cpl);
    return true;
}
