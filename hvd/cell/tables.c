/* Where the translator's tables lie.
 *
 * Half of what a page of the host's costs is not its clearing: one large page is had for the price of some 120 small ones. A guest with little code needs
 * fewer of them. So a table begins in small pages; when it is longer than that it moves to its part of large ones which all of them share, two tables to a
 * page, and from there, in a guest with a lot of code, to large pages of its own.
 */
#include "tables.h"

#include <string.h>
#include <sys/mman.h>

#define KIB 1024u
#define SMALL_PAGE (4u * KIB)
#define AHEAD (64u * KIB) /* bytes that are made present at once */
#define FEW (64u * KIB)   /* of a table in small pages */

struct hv_rows hv_row_tables[HV_ROW_TABLES];

/* Of the large pages that they share: what a Linux with a few drivers needs until its shell is there, and half as much again. */
static const size_t part[HV_ROW_TABLES] = {
    [HV_BLOCK_ROWS] = 1280 * KIB, [HV_EXIT_ROWS] = 768 * KIB, [HV_ENTRY_ROWS] = 1024 * KIB, [HV_PLACE_ROWS] = 1024 * KIB,
};

enum { SMALL, SHARED, OWN, STAGES };
static struct stage {
    uint8_t *at;
    size_t bytes;
} stages[HV_ROW_TABLES][STAGES];

uint8_t *hv_reserve_tables(size_t size)
{
    uint8_t *at = mmap(NULL, size + HV_LARGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    uint8_t *aligned = (uint8_t *)(((uintptr_t)at + HV_LARGE_PAGE - 1) & ~(uintptr_t)(HV_LARGE_PAGE - 1));
    if (aligned > at)
        munmap(at, (size_t)(aligned - at));
    if (aligned < at + HV_LARGE_PAGE)
        munmap(aligned + size, (size_t)(at + HV_LARGE_PAGE - aligned));
    return aligned;
}

uint8_t *hv_make_present(uint8_t *present, const uint8_t *until)
{
    while (present < until) {
        madvise(present, AHEAD, MADV_POPULATE_WRITE); /* without it, or where the host has none, they come one by one */
        present += AHEAD;
    }
    return present;
}

void hv_make_all_present(void *at, size_t size)
{
    uintptr_t first = (uintptr_t)at & ~(uintptr_t)(SMALL_PAGE - 1);
    madvise((void *)first, (uintptr_t)at + size - first, MADV_POPULATE_WRITE);
}

void hv_tables_ahead(void)
{
    for (unsigned i = 0; i < HV_ROW_TABLES; i++)
        hv_make_present(stages[i][SHARED].at, stages[i][SHARED].at + part[i]);
}

bool hv_tables_init(const size_t most_bytes[HV_ROW_TABLES])
{
    size_t shared = 0, own = 0;
    for (unsigned i = 0; i < HV_ROW_TABLES; i++) {
        shared += part[i];
        own += most_bytes[i];
    }
    uint8_t *at = hv_reserve_tables(shared + own + HV_ROW_TABLES * FEW), *small = at + shared + own;
    if (!at)
        return false;
    madvise(at, shared + own, MADV_HUGEPAGE); /* a host without them gives small ones */
    for (unsigned i = 0; i < HV_ROW_TABLES; i++) {
        stages[i][SMALL] = (struct stage){small + i * FEW, FEW};
        stages[i][SHARED] = (struct stage){at, part[i]};
        at += part[i];
        hv_row_tables[i] = (struct hv_rows){.at = stages[i][SMALL].at, .room = FEW};
    }
    for (unsigned i = 0; i < HV_ROW_TABLES; at += most_bytes[i++])
        stages[i][OWN] = (struct stage){at, most_bytes[i]};
    return true;
}

/* All of it: rows may have been added behind what was made present. */
static void move(struct hv_rows *rows, enum hv_row_table table)
{
    unsigned stage = rows->stage + 1;
    uint8_t *to = stages[table][stage].at, *present = hv_make_present(to, to + rows->room);
    memcpy(to, rows->at, rows->room);
    *rows = (struct hv_rows){.at = to, .present = (size_t)(present - to), .room = stages[table][stage].bytes, .stage = stage};
}

void hv_rows_extend(enum hv_row_table table, size_t bytes)
{
    struct hv_rows *rows = &hv_row_tables[table];
    while (bytes > rows->room && rows->stage < OWN)
        move(rows, table);
    rows->present = (size_t)(hv_make_present(rows->at + rows->present, rows->at + bytes) - rows->at);
}
