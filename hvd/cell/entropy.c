/* Random numbers (virtio-rng; VIRTIO 1.2, 5.4) without a trip to the runner, out of what it has given: a Linux that boots asks for some several times.
 * Usual requests only, of one buffer in one piece, and interrupts by the pin; all others, and mistakes of the driver, are Python's
 * (hvd/board/virtio/rng.py). */
#include <string.h>

#include "cell.h"

#define MSIX_ENABLE 0x80u
#define NO_INTERRUPT 1u /* avail.flags */
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static uint16_t *word(uint8_t *ring, uint64_t offset) { return (uint16_t *)(ring + offset); }

/* Of the guest's RAM, all of it. */
static uint8_t *memory(uint64_t physical, uint64_t bytes)
{
    uint64_t left = 0;
    uint8_t *at = hv_memory_at(physical, true, &left);
    return at && left >= bytes ? at : NULL;
}

/* Each is used once, and gone then. */
static void give(uint8_t *to, uint32_t bytes)
{
    struct hv_entropy *entropy = &cell.area->entropy;
    entropy->left -= bytes;
    memcpy(to, entropy->byte + entropy->left, bytes);
    memset(entropy->byte + entropy->left, 0, bytes);
}

/* 2.7.7.2, 2.7.10.1: does the driver want an interrupt for the buffers from `old` on? */
static bool wants_interrupt(const struct hv_virtio *virtio, const struct hv_virtio_queue *queue, uint8_t *available, uint16_t old)
{
    if (!(virtio->accepted & HV_VIRTIO_EVENT_IDX))
        return !(*word(available, 0) & NO_INTERRUPT);
    uint16_t event = *word(available, 4 + 2 * queue->size);
    return (uint16_t)(queue->used - event - 1) < (uint16_t)(queue->used - old);
}

bool hv_entropy_serve(uint64_t physical)
{
    struct hv_pci_space *space;
    struct hv_virtio_queue *queue = hv_pci_notified(&cell.board, physical, &space);
    if (!queue || queue->purpose != HV_VIRTIO_RANDOM || !queue->enabled || !queue->size || queue->size & (queue->size - 1))
        return false;
    struct hv_virtio *virtio = &space->virtio;
    if (!hv_virtio_ready(virtio) || !hv_pci_may_master(space) || space->data[virtio->msix] & MSIX_ENABLE)
        return false;
    unsigned size = queue->size, mask = size - 1;
    uint8_t *descriptors = memory(queue->descriptors, 16 * size), *available = memory(queue->driver, 6 + 2 * size), *used = memory(queue->device, 6 + 8 * size);
    if (!descriptors || !available || !used || (uint16_t)(*word(available, 2) - queue->next) != 1)
        return false;
    uint16_t head = *word(available, 4 + 2 * (queue->next & mask));
    if (head >= size)
        return false;
    struct descriptor wanted;
    memcpy(&wanted, descriptors + 16 * head, sizeof wanted);
    uint8_t *to = memory(wanted.address, wanted.length);
    if (!to || (wanted.flags & (NEXT | WRITE | INDIRECT)) != WRITE || !wanted.length || wanted.length > cell.area->entropy.left || cell.area->entropy.left > HV_ENTROPY_BYTES)
        return false;
    hv_shadow_physical_changed(wanted.address, wanted.length);
    hv_shadow_physical_changed(queue->device, 6 + 8 * size);
    give(to, wanted.length);
    const uint32_t back[] = {head, wanted.length};
    memcpy(used + 4 + 8 * (queue->used & mask), back, sizeof back);
    queue->next++;
    *word(used, 2) = ++queue->used;
    if (virtio->accepted & HV_VIRTIO_EVENT_IDX)
        *word(used, 4 + 8 * size) = queue->next;
    bool interrupt = wants_interrupt(virtio, queue, available, queue->told);
    queue->told = queue->used;
    if (interrupt) {
        virtio->isr |= HV_VIRTIO_ISR_QUEUE;
        hv_pci_set_intx(&cell.board, space, true);
    }
    return true;
}
