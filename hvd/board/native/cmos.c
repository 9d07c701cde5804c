/* The CMOS clock (MC146818A), as far as it is read: its index, its memory and the time of day. What a guest writes, and the flags of register C,
 * which reading clears, are Python's (hvd/board/devices/cmos.py). */
#include "board.h"

#define INDEX 0x70u
#define DATA 0x71u
#define SECOND 1000000000u
#define DAY 86400
#define UPDATE_NS (SECOND - (244 + 1984) * 1000u) /* the update begins 244 us after its flag rises and takes 1984 us (data sheet, figure 14) */

enum { SECONDS = 0, MINUTES = 2, HOURS = 4, WEEKDAY = 6, MONTHDAY = 7, MONTH = 8, YEAR = 9, A = 10, B = 11, C = 12, D = 13, CENTURY = 0x32 };
enum { A_UPDATE_IN_PROGRESS = 0x80, A_DIVIDER = 0x70, A_DIVIDER_RUNS = 0x20, B_BINARY = 4, B_24_HOURS = 2, D_VALID = 0x80 };

struct hv_cmos *hv_board_cmos(struct hv_board *board) { return &board->own_cmos; }

struct date {
    int64_t year;
    unsigned month, day; /* from 1 on */
};

/* Proleptic Gregorian; the year begins in March, so that the leap day is its last. */
static struct date date_of(int64_t days_since_1970)
{
    int64_t days = days_since_1970 + 719468;
    int64_t era = (days >= 0 ? days : days - 146096) / 146097; /* of 400 years */
    int64_t of_era = days - era * 146097;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    unsigned of_year = (unsigned)(of_era - (365 * year + year / 4 - year / 100)), month = (5 * of_year + 2) / 153;
    struct date date = {.year = era * 400 + year, .month = month < 10 ? month + 3 : month - 9, .day = of_year - (153 * month + 2) / 5 + 1};
    date.year += date.month <= 2;
    return date;
}

static uint8_t encode(const struct hv_cmos *cmos, uint64_t value) { return (uint8_t)(cmos->memory[B] & B_BINARY ? value : value / 10 << 4 | value % 10); }

static uint8_t encode_hour(const struct hv_cmos *cmos, unsigned hour)
{
    if (cmos->memory[B] & B_24_HOURS)
        return encode(cmos, hour);
    return encode(cmos, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned modulo(int64_t number, int64_t by) { return (unsigned)((number % by + by) % by); }

static uint8_t time_register(const struct hv_cmos *cmos, unsigned index, int64_t now_s)
{
    unsigned of_day = modulo(now_s, DAY);
    int64_t days = (now_s - of_day) / DAY;
    struct date date = date_of(days);
    switch (index) {
    case SECONDS:
        return encode(cmos, of_day % 60);
    case MINUTES:
        return encode(cmos, of_day / 60 % 60);
    case HOURS:
        return encode_hour(cmos, of_day / 3600);
    case WEEKDAY: /* 1 = Sunday; 1970 began with a Thursday */
        return encode(cmos, modulo(days + 4, 7) + 1);
    case MONTHDAY:
        return encode(cmos, date.day);
    case MONTH:
        return encode(cmos, date.month);
    case YEAR:
        return encode(cmos, modulo(date.year, 100));
    default:
        return encode(cmos, modulo(date.year, 10000) / 100);
    }
}

bool hv_cmos_register(const struct hv_board *board, unsigned index, uint32_t *value)
{
    const struct hv_cmos *cmos = board->cmos;
    index &= 0x7f;
    uint64_t ns = cmos->base_ns + (cmos->frozen ? 0 : hv_clock_now(&board->clock));
    bool updates = !cmos->frozen && (cmos->memory[A] & A_DIVIDER) == A_DIVIDER_RUNS && ns % SECOND >= UPDATE_NS;
    switch (index) {
    case A:
        *value = cmos->memory[A] | (updates ? A_UPDATE_IN_PROGRESS : 0);
        return true;
    case C:
        return false;
    case D:
        *value = D_VALID;
        return true;
    case SECONDS:
    case MINUTES:
    case HOURS:
    case WEEKDAY:
    case MONTHDAY:
    case MONTH:
    case YEAR:
    case CENTURY:
        *value = time_register(cmos, index, cmos->base_s + (int64_t)(ns / SECOND));
        return true;
    }
    *value = cmos->memory[index];
    return true;
}

bool hv_cmos_in(const struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (!board->cmos->there || size != 1 || (port != INDEX && port != DATA))
        return false;
    *value = 0xff; /* the index is write-only on the PC/AT */
    return port == INDEX || hv_cmos_register(board, board->cmos->index, value);
}

bool hv_cmos_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (!board->cmos->there || size != 1 || port != INDEX)
        return false;
    board->cmos->index = value & 0x7f; /* bit 7 gates the NMI, which nothing raises here */
    return true;
}

void hv_cmos_take(struct hv_cmos *cmos, const struct hv_cmos *theirs) { cmos->index = __atomic_load_n(&theirs->index, __ATOMIC_RELAXED) & 0x7f; }
