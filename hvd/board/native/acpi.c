/* ACPI's fixed hardware (ACPI specification 6.5, chapter 4.8) as far as it is registers: PM1 event and control, PM2 control, the power management
 * timer. The power button, switching off, and snapshots are Python's (hvd/board/devices/acpi_pm.py). */
#include "board.h"

#include <string.h>

enum { EVENT = 0x600, ENABLE = 0x602, CONTROL = 0x604, CONTROL_END = 0x606, TIMER = 0x608, TIMER_END = 0x60c, PM2_CONTROL = 0xa79 };
#define SCI 9u
#define TIMER_HZ 3579545u
#define SECOND 1000000000u
/* PM1 status and enable (4.8.3.1). */
enum { TIMER_STATUS = 1 << 0, GLOBAL = 1 << 5, POWER_BUTTON = 1 << 8, SLEEP_BUTTON = 1 << 9, RTC = 1 << 10 };
#define ENABLE_BITS (TIMER_STATUS | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC)
/* PM1 control (4.8.3.2.1): sleeping is in its upper byte. */
enum { SCI_ENABLE = 1 << 0, SLEEP_TYPE = 7 << 10, UPPER_SLEEP_ENABLE = 1 << 5, UPPER_TYPE_SHIFT = 2, TYPE_OFF = 5 };
enum { ARBITER_DISABLE = 1 };

struct hv_acpi *hv_board_acpi(struct hv_board *board) { return &board->own_acpi; }

static uint32_t timer(const struct hv_board *board) { return (uint32_t)((unsigned __int128)hv_clock_now(&board->clock) * TIMER_HZ / SECOND); }

/* TMR_STS is set whenever the timer's highest bit changes (4.8.3.3). */
static uint16_t status_of(const struct hv_board *board)
{
    const struct hv_acpi *acpi = board->acpi;
    return (uint16_t)(acpi->status | (timer(board) >> 31 != acpi->half ? TIMER_STATUS : 0));
}

uint8_t hv_acpi_read(const struct hv_board *board, unsigned port)
{
    const struct hv_acpi *acpi = board->acpi;
    unsigned shift = 8 * (port & 1);
    switch (port) {
    case EVENT ... ENABLE - 1:
        return (uint8_t)(status_of(board) >> shift);
    case ENABLE ... CONTROL - 1:
        return (uint8_t)(acpi->enable >> shift);
    case CONTROL ... CONTROL_END - 1:
        return (uint8_t)(acpi->control >> shift);
    case TIMER ... TIMER_END - 1:
        return (uint8_t)(timer(board) >> 8 * (port & 3));
    case PM2_CONTROL:
        return acpi->arbiter;
    }
    return 0;
}

/* SLP_EN with the type of S5. */
static bool switches_off(unsigned port, uint8_t value)
{
    return port == CONTROL + 1 && value & UPPER_SLEEP_ENABLE && (value >> UPPER_TYPE_SHIFT & 7) == TYPE_OFF;
}

bool hv_acpi_write(struct hv_board *board, unsigned port, uint8_t value)
{
    struct hv_acpi *acpi = board->acpi;
    unsigned shift = 8 * (port & 1), word = (unsigned)value << shift, others = ~(0xffu << shift);
    switch (port) {
    case EVENT ... ENABLE - 1: /* written as 1 to clear */
        acpi->status &= (uint16_t)~word;
        if (word & TIMER_STATUS)
            acpi->half = (uint8_t)(timer(board) >> 31);
        break;
    case ENABLE ... CONTROL - 1:
        acpi->enable = (uint16_t)(((acpi->enable & others) | word) & ENABLE_BITS);
        break;
    case CONTROL ... CONTROL_END - 1:
        acpi->control = (uint16_t)((((acpi->control & others) | word) & SLEEP_TYPE) | SCI_ENABLE);
        break;
    case PM2_CONTROL:
        acpi->arbiter = value & ARBITER_DISABLE;
        break;
    }
    return switches_off(port, value);
}

void hv_acpi_drive(struct hv_board *board) { hv_board_set_irq(board, SCI, (board->acpi->status & board->acpi->enable) != 0); }

/* Whole within one of the blocks. */
static bool here(const struct hv_board *board, uint16_t port, unsigned size)
{
    unsigned end = port + size;
    bool inside = (port >= EVENT && end <= CONTROL_END) || (port >= TIMER && end <= TIMER_END) || (port == PM2_CONTROL && size == 1);
    return inside && board->acpi->there;
}

bool hv_acpi_in(const struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (!here(board, port, size))
        return false;
    *value = 0;
    if (port >= TIMER && port < TIMER_END) { /* all of it at one moment */
        *value = timer(board) >> 8 * (port - TIMER) & 0xffffffffu >> (32 - 8 * size);
        return true;
    }
    for (unsigned i = 0; i < size; i++)
        *value |= (uint32_t)hv_acpi_read(board, port + i) << 8 * i;
    return true;
}

bool hv_acpi_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (!here(board, port, size))
        return false;
    for (unsigned i = 0; i < size; i++)
        if (switches_off(port + i, (uint8_t)(value >> 8 * i)))
            return false;
    for (unsigned i = 0; i < size; i++)
        hv_acpi_write(board, port + i, (uint8_t)(value >> 8 * i));
    hv_acpi_drive(board);
    return true;
}

void hv_acpi_take(struct hv_acpi *acpi, const struct hv_acpi *theirs)
{
    struct hv_acpi new;
    memcpy(&new, theirs, sizeof new);
    __asm__ volatile("" : : : "memory"); /* the compiler may not look there again */
    acpi->status &= new.status; /* only the device sets one */
    acpi->enable = new.enable & ENABLE_BITS;
    acpi->control = (new.control & SLEEP_TYPE) | SCI_ENABLE;
    acpi->arbiter = new.arbiter & ARBITER_DISABLE;
    acpi->half = new.half & 1;
}
