/* Data ports of devices in Python: an IDE disk hands a block over with hundreds of accesses to one port, of which each would otherwise
 * be a trip to Python. The device opens a window on its port; accesses are served from the window's buffer as long as something is
 * left behind them. The last one, with which the device goes on to its next block, leaves for Python. */
#include "board.h"

#include <string.h>

static struct hv_window *find(struct hv_board *board, uint16_t port, bool out)
{
    for (unsigned i = 0; i < HV_WINDOWS; i++) {
        struct hv_window *window = &board->window[i];
        if (window->open && window->port == port && window->out == out)
            return window;
    }
    return NULL;
}

/* Where the next access of that size begins; NULL when it is the device's business. Nothing in a window is trusted: it is restored from
 * snapshots. */
static uint8_t *next(struct hv_board *board, uint16_t port, unsigned size, bool out)
{
    struct hv_window *window = find(board, port, out);
    if (!window || window->length > HV_WINDOW_BYTES || window->position >= window->length || size >= window->length - window->position)
        return NULL;
    uint8_t *at = window->data + window->position;
    window->position += size;
    return at;
}

bool hv_window_in(struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    const uint8_t *at = next(board, port, size, false);
    if (!at)
        return false;
    *value = 0;
    memcpy(value, at, size); /* both are little-endian: this board is for x86 hosts, as is what runs on it */
    return true;
}

bool hv_window_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    uint8_t *at = next(board, port, size, true);
    if (!at)
        return false;
    memcpy(at, &value, size);
    return true;
}

struct hv_window *hv_board_window(struct hv_board *board, unsigned index)
{
    return index < HV_WINDOWS ? &board->window[index] : NULL;
}
