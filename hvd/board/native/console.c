#include "board.h"

#include <errno.h>
#include <unistd.h>

/* Each ring has one writer and one reader: a head only its writer moves, a tail only its reader moves, both free-running, so that
 * head - tail is the fill level. A side publishes its own index with release order and looks at the other's with acquire order. */

static uint32_t acquire(const uint32_t *index)
{
    return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

/* Bytes between two indices; no more than the ring holds, whatever they are. */
static uint32_t level(uint32_t head, uint32_t tail, uint32_t capacity)
{
    return head - tail < capacity ? head - tail : capacity;
}

void hv_console_init(struct hv_console *console)
{
    console->out_head = console->out_tail = console->in_head = console->in_tail = 0;
    console->out_notify = console->out_doze = 0;
}

bool hv_console_full(const struct hv_console *console)
{
    return level(console->out_head, acquire(&console->out_tail), HV_CONSOLE_OUT) == HV_CONSOLE_OUT;
}

static void wake(int out_event)
{
    uint64_t one = 1;
    /* EAGAIN means that the event is at its maximum: the reader is being woken anyway. */
    while (write(out_event, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

/* Publish what the writer put behind out_head. */
static void publish(struct hv_console *console, int out_event, uint32_t head)
{
    /* Sequentially consistent, as is the reader's side in hv_console_sleep: either we see that it sleeps or it sees our bytes. */
    __atomic_store_n(&console->out_head, head, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&console->out_notify, __ATOMIC_SEQ_CST) && __atomic_exchange_n(&console->out_notify, 0, __ATOMIC_SEQ_CST) &&
        out_event >= 0)
        wake(out_event);
}

void hv_console_rest(struct hv_console *console, int out_event)
{
    if (console->out_head != acquire(&console->out_tail) && out_event >= 0 && __atomic_load_n(&console->out_doze, __ATOMIC_RELAXED) &&
        __atomic_exchange_n(&console->out_doze, 0, __ATOMIC_RELAXED))
        wake(out_event);
}

size_t hv_console_write(struct hv_console *console, int out_event, const uint8_t *bytes, size_t length)
{
    uint32_t head = console->out_head;
    size_t room = HV_CONSOLE_OUT - level(head, acquire(&console->out_tail), HV_CONSOLE_OUT);
    if (length > room)
        length = room;
    for (size_t i = 0; i < length; i++)
        console->out[(head + i) % HV_CONSOLE_OUT] = bytes[i];
    if (length)
        publish(console, out_event, head + (uint32_t)length);
    return length;
}

int hv_console_read(struct hv_console *console)
{
    if (acquire(&console->in_head) == console->in_tail)
        return -1;
    uint8_t byte = console->in[console->in_tail % HV_CONSOLE_IN];
    __atomic_store_n(&console->in_tail, console->in_tail + 1, __ATOMIC_RELEASE);
    return byte;
}

size_t hv_console_unread(const struct hv_console *console, uint8_t *buffer, size_t capacity)
{
    uint32_t tail = console->in_tail;
    size_t available = level(acquire(&console->in_head), tail, HV_CONSOLE_IN);
    size_t length = available < capacity ? available : capacity;
    for (size_t i = 0; i < length; i++)
        buffer[i] = console->in[(tail + i) % HV_CONSOLE_IN];
    return length;
}

size_t hv_console_take(struct hv_console *console, uint8_t *buffer, size_t capacity)
{
    uint32_t head = acquire(&console->out_head), tail = console->out_tail;
    size_t available = level(head, tail, HV_CONSOLE_OUT);
    size_t length = available < capacity ? available : capacity;
    for (size_t i = 0; i < length; i++)
        buffer[i] = console->out[(tail + i) % HV_CONSOLE_OUT];
    /* A head that is further away than the ring is long is forged: it shall not give the ring's bytes over and over. */
    __atomic_store_n(&console->out_tail, head - tail > HV_CONSOLE_OUT ? head : tail + (uint32_t)length, __ATOMIC_RELEASE);
    return length;
}

size_t hv_console_put(struct hv_console *console, const uint8_t *bytes, size_t length)
{
    uint32_t head = console->in_head;
    size_t room = HV_CONSOLE_IN - level(head, acquire(&console->in_tail), HV_CONSOLE_IN);
    if (length > room)
        length = room;
    for (size_t i = 0; i < length; i++)
        console->in[(head + i) % HV_CONSOLE_IN] = bytes[i];
    __atomic_store_n(&console->in_head, head + (uint32_t)length, __ATOMIC_RELEASE);
    return length;
}

void hv_console_doze(struct hv_console *console)
{
    __atomic_store_n(&console->out_doze, 1, __ATOMIC_RELAXED);
}

bool hv_console_sleep(struct hv_console *console)
{
    __atomic_store_n(&console->out_doze, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&console->out_notify, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&console->out_head, __ATOMIC_SEQ_CST) == console->out_tail)
        return true;
    __atomic_store_n(&console->out_notify, 0, __ATOMIC_SEQ_CST);
    return false;
}
