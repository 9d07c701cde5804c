/* The board's state for snapshots: one table of named fields (state.c), from which saving, restoring and docs/snapshots.md come.
 *
 * A snapshot names each field, so that a newer board reads an older one: what is missing has its value after reset. Every value that
 * is put back is checked against the field's limits, since a file may be forged: nothing in here may make the board's code index,
 * shift or divide by what it must not.
 */
#ifndef HV_STATE_H
#define HV_STATE_H

#include "board.h"

struct hv_field {
    const char *name;  /* "pic.master.irr"; of an array without its index */
    uint32_t offset;   /* in struct hv_board */
    uint32_t width;    /* bytes of an element: 1, 2, 4, 8 */
    uint32_t count;    /* elements; 1 = no array */
    uint64_t least, most;
};

size_t hv_board_field_count(void);
const struct hv_field *hv_board_field(size_t index); /* NULL behind the last */
uint64_t hv_board_get_field(const struct hv_board *, size_t index, uint32_t element);
bool hv_board_set_field(struct hv_board *, size_t index, uint32_t element, uint64_t value); /* false: no such field, or out of limits */
/* After the last hv_board_set_field, before the board is used: what must hold between fields is made to hold. */
void hv_board_restored(struct hv_board *);
/* The clock is stopped at this virtual time (at most HV_MOST_NS): the first step of restoring. */
bool hv_clock_set(struct hv_clock *, uint64_t ns);
#define HV_MOST_NS ((uint64_t)INT64_MAX / 2)

/* ---- pages.c: guest memory and files; all of it without Python's lock. */
#define HV_PAGE 4096u
/* The first run of pages at or behind `from` that are not all zero: its start, with its end in *end. `length` when there is none.
 * base, length and from are multiples of HV_PAGE. */
size_t hv_nonzero_run(const uint8_t *base, size_t length, size_t from, size_t *end);
/* CRC-32C (Castagnoli; RFC 3720, B.4) of what has `crc` so far; begin with 0. */
uint32_t hv_crc32c(uint32_t crc, const uint8_t *data, size_t length);
/* Bytes of a file, from an offset on, into a memory file: how many there were, or -errno. */
int64_t hv_store_file(int memory, uint64_t offset, int file, uint64_t from, uint64_t length);
unsigned hv_make_large(int memory, uint64_t offset, uint64_t length);

#endif
