/* The translator's tables of rows, which fill from their start. */
#ifndef HV_TABLES_H
#define HV_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum hv_row_table { HV_BLOCK_ROWS, HV_EXIT_ROWS, HV_ENTRY_ROWS, HV_PLACE_ROWS, HV_ROW_TABLES };

struct hv_rows {
    uint8_t *at;
    size_t present; /* bytes from there on that cost no fault */
    size_t room;    /* and that the table may have where it is */
    unsigned stage;
};
extern struct hv_rows hv_row_tables[HV_ROW_TABLES];

bool hv_tables_init(const size_t most_bytes[HV_ROW_TABLES]); /* false: no memory */
void hv_rows_extend(enum hv_row_table, size_t bytes);

/* The table, with room for that many bytes. It may have moved: pointers into it are good until then. */
static inline void *hv_rows(enum hv_row_table table, size_t bytes)
{
    if (bytes > hv_row_tables[table].present)
        hv_rows_extend(table, bytes);
    return hv_row_tables[table].at;
}

uint8_t *hv_reserve_tables(size_t size); /* from where a large page may begin; NULL = no memory */
/* present .. until, by so much that calls are few. Faults, one for each page, take three times as long. */
uint8_t *hv_make_present(uint8_t *present, const uint8_t *until);
void hv_make_all_present(void *at, size_t size); /* of a table that is used all over */
void hv_tables_ahead(void); /* what they will have in large pages that they share is present */
#define HV_LARGE_PAGE (2048u << 10)

#endif
