#include "board.h"

/* The board's side of its console: which one it has, its own or one that a cell shares with its runner, and the virtio console's part of it. */

struct hv_console *hv_board_console(struct hv_board *board)
{
    return board->console;
}

void hv_board_use_console(struct hv_board *board, struct hv_console *console)
{
    struct hv_console *old = board->console, *new = console ? console : &board->own_console;
    uint8_t bytes[HV_CONSOLE_IN];
    size_t length;
    if (old == new)
        return;
    new->out_notify = 1; /* the reader may have gone to sleep at the other one */
    board->console = new;
    hv_console_put(new, bytes, hv_console_unread(old, bytes, sizeof bytes));
    old->in_tail = old->in_head;
    /* So often at most: in the old one there may stand anything. */
    for (unsigned i = 0; i < HV_CONSOLE_OUT / sizeof bytes && (length = hv_console_take(old, bytes, sizeof bytes)) != 0; i++)
        hv_console_write(new, board->out_event, bytes, length);
}

size_t hv_board_console_write(struct hv_board *board, const uint8_t *bytes, size_t length)
{
    board->typed_to_virtio = true;
    length = hv_console_write(board->console, board->out_event, bytes, length);
    board->crossings.counters->console_out_bytes += length;
    return length;
}

size_t hv_board_console_read(struct hv_board *board, uint8_t *bytes, size_t capacity)
{
    size_t length = 0;
    int byte;
    while (board->typed_to_virtio && length < capacity && (byte = hv_console_read(board->console)) >= 0)
        bytes[length++] = (uint8_t)byte;
    board->crossings.counters->console_in_bytes += length;
    return length;
}

size_t hv_board_console_waiting(const struct hv_board *board)
{
    uint32_t waiting = __atomic_load_n(&board->console->in_head, __ATOMIC_ACQUIRE) - board->console->in_tail;
    return !board->typed_to_virtio ? 0 : waiting < HV_CONSOLE_IN ? waiting : HV_CONSOLE_IN;
}

bool hv_board_typed_to_virtio(const struct hv_board *board)
{
    return board->typed_to_virtio;
}

void hv_board_type_to_virtio(struct hv_board *board, bool virtio)
{
    board->typed_to_virtio = virtio;
}
