/* What sites.py and finish.py do for each of a kernel's thousands of sites, for the start of a guest: a table in order is read and grouped by
 * shape, and what the shapes are replaced by is written into the guest's memory. A table that is not in order is only said to be so: Python
 * reads it again and tells why. Nothing here believes the file: every offset is checked against what is there. */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct hv_record { /* struct hv_site of guests/include/hv/sites.h */
    uint32_t address;
    uint8_t kind, length, original, lead;
};

struct hv_range {
    uint64_t start, size;
    int64_t offset; /* what is added to an address: of code, to get its place in the file; of a segment, in the guest's memory */
};

struct hv_shape {
    uint32_t first; /* site of this shape */
    uint32_t plain; /* first one that is HV_PLAIN, or HV_NONE */
    uint64_t content; /* of the first, in the file */
};

/* What a shape is replaced by. */
struct hv_plan {
    uint32_t target; /* of a branch at address 0, less its length */
    uint8_t form;    /* 0 = nothing, 1 = code, 2 = a branch: opcode and 32 bits; no-operations behind it */
    uint8_t opcode;
    uint8_t bytes;
    uint8_t code[9];
};

enum { HV_PLAIN, HV_BARE, HV_ENABLING }; /* there is no stack yet; STI with another site directly behind it */

#define HV_NONE 0xFFFFFFFFu
#define HV_BUCKETS 4096u /* a power of 2 */
#define HV_MOST_SHAPES 1024u
#define HV_NOP 0x90
#define HV_STI 0xFB

static int by_address(const void *left, const void *right) {
    uint32_t a = ((const struct hv_record *)left)->address, b = ((const struct hv_record *)right)->address;
    return (a > b) - (a < b);
}

static int by_value(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static bool holds(const struct hv_range *range, uint32_t address, uint32_t length) {
    return range->start <= address && (uint64_t)address + length <= range->start + range->size;
}

/* The last range that begins at the address or before, if it holds all the bytes; ranges ascend. */
static const struct hv_range *find(const struct hv_range *ranges, uint32_t count, uint32_t address, uint32_t length) {
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (ranges[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low && holds(&ranges[low - 1], address, length) ? &ranges[low - 1] : NULL;
}

static uint32_t hash(const struct hv_record *site, const uint8_t *content) {
    uint32_t value = 2166136261u;
    const uint8_t *key = &site->kind;
    for (unsigned i = 0; i < 4; i++)
        value = (value ^ key[i]) * 16777619u;
    for (unsigned i = 0; i < site->length; i++)
        value = (value ^ content[i]) * 16777619u;
    return value;
}

struct hv_table {
    const uint8_t *file;
    uint64_t file_size;
    const struct hv_range *code; /* sections of code, ascending */
    const struct hv_range *stackless; /* those whose code runs before there is a stack */
    const uint32_t *bare; /* addresses of such instructions elsewhere, ascending */
    uint32_t codes, stackless_count, bare_count;
    uint32_t last_kind;
    uint64_t area, area_end; /* the place for thunks */
};

static uint8_t state_of(const struct hv_table *table, const struct hv_record *site, const struct hv_record *next, const uint8_t *content) {
    uint32_t instruction = site->address + site->lead;
    if (bsearch(&instruction, table->bare, table->bare_count, sizeof instruction, by_value))
        return HV_BARE;
    for (uint32_t i = 0; i < table->stackless_count; i++)
        if (holds(&table->stackless[i], site->address, 1))
            return HV_BARE;
    bool sti = site->original == 1 && content[site->lead] == HV_STI;
    return sti && next && next->address == site->address + site->length ? HV_ENABLING : HV_PLAIN;
}

/* Of *count records: leaves those of sites (the others are of the place for thunks, or, at address 0, of sections that the linker left out), puts
 * them in order, and numbers their shapes. Gives how many shapes there are, or -1: something is wrong with the table, or it is beyond what is
 * done here. shapes: room for HV_MOST_SHAPES. */
int hv_sites_group(const struct hv_table *table, struct hv_record *sites, uint32_t *count, uint16_t *shape, uint8_t *state, struct hv_shape *shapes) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < *count; i++)
        if (sites[i].kind && sites[i].address)
            sites[left++] = sites[i];
    *count = left;
    qsort(sites, left, sizeof *sites, by_address);
    uint16_t bucket[HV_BUCKETS];
    memset(bucket, 0xFF, sizeof bucket);
    const struct hv_range *section = NULL;
    uint64_t behind = 0;
    uint32_t known = 0;
    for (uint32_t i = 0; i < left; i++) {
        const struct hv_record *site = &sites[i];
        if (site->kind > table->last_kind || site->original == 0 || site->original > 15 || site->lead + site->original > site->length)
            return -1;
        if (!section || !holds(section, site->address, site->length))
            section = find(table->code, table->codes, site->address, site->length);
        if (!section)
            return -1;
        int64_t at = section->offset + site->address;
        if (at < 0 || (uint64_t)at + site->length > table->file_size)
            return -1;
        uint64_t end = (uint64_t)site->address + site->length;
        if (site->address < behind || (site->address < table->area_end && table->area < end))
            return -1;
        behind = end;
        const uint8_t *content = table->file + at;
        uint32_t slot = hash(site, content) % HV_BUCKETS;
        for (; bucket[slot] != 0xFFFF; slot = (slot + 1) % HV_BUCKETS) {
            const struct hv_shape *other = &shapes[bucket[slot]];
            if (!memcmp(&sites[other->first].kind, &site->kind, 4) && !memcmp(table->file + other->content, content, site->length))
                break;
        }
        if (bucket[slot] == 0xFFFF) {
            if (known == HV_MOST_SHAPES)
                return -1;
            shapes[known] = (struct hv_shape){.first = i, .plain = HV_NONE, .content = (uint64_t)at};
            bucket[slot] = (uint16_t)known++;
        }
        shape[i] = bucket[slot];
        state[i] = state_of(table, site, i + 1 < left ? &sites[i + 1] : NULL, content);
        if (state[i] == HV_PLAIN && shapes[shape[i]].plain == HV_NONE)
            shapes[shape[i]].plain = i;
    }
    return (int)known;
}

/* Writes what the shapes' plans say into memory, which has so many bytes. False: a site is not in a segment or not in memory; what came
 * before it was written. */
bool hv_sites_write(const struct hv_record *sites, const uint16_t *shape, const uint8_t *state, uint32_t count, const struct hv_plan *plans,
                    const struct hv_range *segments, uint32_t segment_count, uint8_t *memory, uint64_t memory_bytes) {
    const struct hv_range *segment = NULL;
    for (uint32_t i = 0; i < count; i++) {
        const struct hv_record *site = &sites[i];
        const struct hv_plan *plan = &plans[shape[i]];
        if (plan->form == 0 || (plan->form == 2 && state[i] != HV_PLAIN))
            continue;
        for (uint32_t n = 0; n < segment_count && !(segment && holds(segment, site->address, 1)); n++)
            segment = &segments[n];
        if (!segment || !holds(segment, site->address, 1))
            return false;
        int64_t at = segment->offset + site->address;
        if (at < 0 || (uint64_t)at + site->length > memory_bytes)
            return false;
        uint8_t code[255];
        uint32_t bytes = plan->bytes;
        if (plan->form == 1) {
            memcpy(code, plan->code, sizeof plan->code);
        } else {
            uint32_t distance = plan->target - site->address;
            code[0] = plan->opcode;
            memcpy(code + 1, &distance, sizeof distance);
            bytes = 1 + sizeof distance;
        }
        if (bytes > site->length || bytes > sizeof code)
            return false;
        memset(code + bytes, HV_NOP, site->length - bytes);
        memcpy(memory + at, code, site->length);
    }
    return true;
}
