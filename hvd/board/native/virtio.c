/* The registers of virtio over PCI (VIRTIO 1.2, 4.1.4.3 and 4.1.4.5): a driver that looks for its device touches them a hundred times. Python's
 * (hvd/board/virtio/pci.py) are the reset of a device that was used, queues that break the rules or lie above 4 GiB, notifications for which there
 * is something to do, and the device's own configuration. */
#include "board.h"

#include <string.h>

/* A page of the BAR for each structure (hvd/board/virtio/pci.py, PAGES). */
#define PAGE 0x1000u
enum page { COMMON, ISR, DEVICE, NOTIFY };

#define NOTIFY_BYTES 4u /* each queue has its own place in that page */

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64, FAILED = 128 }; /* NEEDS_RESET is the device's */
#define FOUND (ACKNOWLEDGE | DRIVER)
#define BY_DRIVER (FOUND | DRIVER_OK | FEATURES_OK | FAILED)
#define VERSION_1 (1ull << 32)
#define LARGEST 1024u /* descriptors of a queue (hvd/board/virtio/queue.py) */
enum { RINGS = 3 };

struct __attribute__((packed)) common { /* virtio_pci_common_cfg */
    uint32_t feature_select, feature, driver_select, accepted;
    uint16_t config_vector, queues;
    uint8_t status, generation;
    uint16_t queue_select, queue_size, queue_vector, queue_enable, notify_offset;
    uint64_t descriptors, driver, device;
    uint16_t notify_data, queue_reset;
};
#define AT(field) offsetof(struct common, field)

static struct hv_virtio_queue *selected(struct hv_virtio *virtio)
{
    bool there = virtio->queue_select < virtio->queues && virtio->queue_select < HV_VIRTIO_QUEUES;
    return there ? &virtio->queue[virtio->queue_select] : NULL;
}

static uint32_t word(uint64_t features, uint32_t select) { return select < 2 ? (uint32_t)(features >> 32 * select) : 0; }

static void read_common(struct hv_virtio *virtio, uint8_t *to)
{
    const struct hv_virtio_queue *queue = selected(virtio);
    struct common common = {
        .feature_select = virtio->feature_select,
        .feature = word(virtio->offered, virtio->feature_select),
        .driver_select = virtio->driver_select,
        .accepted = word(virtio->accepted, virtio->driver_select),
        .config_vector = virtio->config_vector,
        .queues = virtio->queues,
        .status = virtio->status,
        .generation = virtio->generation,
        .queue_select = virtio->queue_select,
        .queue_vector = HV_VIRTIO_NO_VECTOR,
    };
    if (queue) {
        common.queue_size = queue->size;
        common.queue_vector = queue->vector;
        common.queue_enable = queue->enabled;
        common.notify_offset = virtio->queue_select;
        common.descriptors = queue->descriptors;
        common.driver = queue->driver;
        common.device = queue->device;
    }
    memcpy(to, &common, sizeof common);
}

bool hv_virtio_read(struct hv_virtio *virtio, uint64_t offset, unsigned size, uint64_t *value)
{
    uint8_t bytes[sizeof(struct common) + sizeof *value] = {0}; /* beyond the end are zeros */
    uint64_t page = offset / PAGE;
    if (page == DEVICE)
        return false;
    offset %= PAGE;
    *value = 0;
    if (page == COMMON && offset < sizeof(struct common)) {
        read_common(virtio, bytes);
        memcpy(value, bytes + offset, size); /* both are little-endian: this board is for x86 hosts */
    } else if (page == ISR && !offset) {
        *value = virtio->isr;
        virtio->isr = 0;
    }
    return true;
}

static uint16_t vector_of(const struct hv_virtio *virtio, uint64_t value) { return value < virtio->vectors ? (uint16_t)value : HV_VIRTIO_NO_VECTOR; }

/* A register of 64 bits, whole or by its halves. */
static void write_ring(uint64_t *ring, bool upper, unsigned size, uint64_t value)
{
    uint64_t mask = (size < 8 ? (1ull << 8 * size) - 1 : ~0ull) << (upper ? 32 : 0);
    *ring = (*ring & ~mask) | ((value << (upper ? 32 : 0)) & mask);
}

static void write_rings(struct hv_virtio *virtio, uint64_t offset, unsigned size, uint64_t value)
{
    struct hv_virtio_queue *queue = selected(virtio);
    bool upper = offset & 4;
    if (!queue || queue->enabled)
        return;
    switch (offset & ~4ull) {
    case AT(descriptors):
        write_ring(&queue->descriptors, upper, size, value);
        break;
    case AT(driver):
        write_ring(&queue->driver, upper, size, value);
        break;
    case AT(device):
        write_ring(&queue->device, upper, size, value);
        break;
    }
}

static unsigned queue_count(const struct hv_virtio *virtio) { return virtio->queues < HV_VIRTIO_QUEUES ? virtio->queues : HV_VIRTIO_QUEUES; }

/* Nothing was negotiated, enabled or told yet: the device in Python knows nothing of its driver. */
static bool is_fresh(const struct hv_virtio *virtio)
{
    for (unsigned i = 0; i < queue_count(virtio); i++)
        if (virtio->queue[i].enabled)
            return false;
    return !(virtio->status & ~FOUND) && !virtio->isr && !virtio->generation;
}

static void reset(struct hv_virtio *virtio)
{
    virtio->status = 0;
    virtio->feature_select = virtio->driver_select = virtio->queue_select = 0;
    virtio->accepted = 0;
    virtio->config_vector = HV_VIRTIO_NO_VECTOR;
    for (unsigned i = 0; i < queue_count(virtio); i++) {
        struct hv_virtio_queue *queue = &virtio->queue[i];
        queue->size = queue->most;
        queue->descriptors = queue->driver = queue->device = 0;
        queue->next = queue->used = queue->told = 0;
        queue->vector = HV_VIRTIO_NO_VECTOR;
    }
}

/* 3.1.1, step 5: features that were not offered are refused, and so are legacy drivers. */
static void set_status(struct hv_virtio *virtio, uint8_t value)
{
    uint8_t fresh = value & BY_DRIVER & (uint8_t)~virtio->status;
    if (virtio->accepted & ~virtio->offered || !(virtio->accepted & VERSION_1))
        fresh &= (uint8_t)~FEATURES_OK;
    virtio->status |= fresh;
}

/* False: the device was used; resetting it is Python's. */
static bool write_status(struct hv_virtio *virtio, uint8_t value)
{
    if (value)
        set_status(virtio, value);
    else if (is_fresh(virtio))
        reset(virtio);
    else
        return false;
    return true;
}

struct range {
    uint64_t start, bytes;
};

static void find_rings(const struct hv_virtio_queue *queue, struct range ring[RINGS])
{
    uint64_t size = queue->size;
    ring[0] = (struct range){queue->descriptors, 16 * size};
    ring[1] = (struct range){queue->driver, 6 + 2 * size};
    ring[2] = (struct range){queue->device, 6 + 8 * size};
}

static bool overlap(const struct range *one, const struct range *other)
{
    return one->start < other->start + other->bytes && other->start < one->start + one->bytes;
}

/* Whole, in RAM (what begins at 0 is all that C knows of it), apart from each other and from those of the queues that are enabled. */
static bool is_sound(const struct hv_virtio *virtio, const struct hv_virtio_queue *queue)
{
    static const uint64_t unaligned[RINGS] = {15, 1, 3};
    struct range ring[RINGS], other[RINGS];
    if (!queue->size || queue->size > queue->most || queue->size > LARGEST || queue->size & (queue->size - 1))
        return false;
    find_rings(queue, ring);
    for (unsigned i = 0; i < RINGS; i++) {
        if (ring[i].start & unaligned[i] || ring[i].start > virtio->ram_end || virtio->ram_end - ring[i].start < ring[i].bytes)
            return false;
        for (unsigned k = 0; k < i; k++)
            if (overlap(&ring[i], &ring[k]))
                return false;
    }
    for (unsigned q = 0; q < queue_count(virtio); q++) {
        find_rings(&virtio->queue[q], other);
        for (unsigned i = 0; virtio->queue[q].enabled && i < RINGS; i++)
            for (unsigned k = 0; k < RINGS; k++)
                if (overlap(&ring[i], &other[k]))
                    return false;
    }
    return true;
}

static bool enable(const struct hv_virtio *virtio, struct hv_virtio_queue *queue)
{
    if (!is_sound(virtio, queue))
        return false;
    queue->enabled = true;
    return true;
}

static void write_accepted(struct hv_virtio *virtio, uint64_t value)
{
    unsigned shift = 32 * (virtio->driver_select & 1);
    if (!(virtio->status & FEATURES_OK) && virtio->driver_select < 2)
        virtio->accepted = (virtio->accepted & ~(0xffffffffull << shift)) | value << shift;
}

#define REGISTER(field, size) ((uint64_t)AT(field) << 4 | (size))

/* Registers take accesses of their own width (4.1.3.1), those of 64 bits also their halves. Others are lost. */
static bool write_common(struct hv_virtio *virtio, uint64_t offset, unsigned size, uint64_t value)
{
    struct hv_virtio_queue *queue = selected(virtio);
    switch (offset << 4 | size) {
    case REGISTER(feature_select, 4):
        virtio->feature_select = (uint32_t)value;
        return true;
    case REGISTER(driver_select, 4):
        virtio->driver_select = (uint32_t)value;
        return true;
    case REGISTER(accepted, 4):
        write_accepted(virtio, value);
        return true;
    case REGISTER(config_vector, 2):
        virtio->config_vector = vector_of(virtio, value);
        return true;
    case REGISTER(status, 1):
        return write_status(virtio, (uint8_t)value);
    case REGISTER(queue_select, 2):
        virtio->queue_select = (uint16_t)value;
        return true;
    case REGISTER(queue_size, 2):
        if (queue && !queue->enabled)
            queue->size = (uint16_t)value;
        return true;
    case REGISTER(queue_vector, 2):
        if (queue)
            queue->vector = vector_of(virtio, value);
        return true;
    case REGISTER(queue_enable, 2):
        return value != 1 || !queue || queue->enabled || enable(virtio, queue);
    }
    if ((size == 4 && !(offset & 3)) || (size == 8 && !(offset & 7)))
        write_rings(virtio, offset, size, value);
    return true;
}

bool hv_virtio_write(struct hv_virtio *virtio, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t page = offset / PAGE;
    if (page == COMMON)
        return write_common(virtio, offset, size, value);
    return page == ISR;
}

bool hv_virtio_ready(const struct hv_virtio *virtio)
{
    return (virtio->status & (DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED)) == (DRIVER_OK | FEATURES_OK);
}

struct hv_virtio_queue *hv_virtio_notified(struct hv_virtio *virtio, uint64_t offset)
{
    uint64_t index = offset % PAGE / NOTIFY_BYTES;
    return offset / PAGE == NOTIFY && offset % NOTIFY_BYTES == 0 && index < queue_count(virtio) ? &virtio->queue[index] : NULL;
}

static bool has_random(const struct hv_virtio *virtio)
{
    for (unsigned i = 0; i < queue_count(virtio); i++)
        if (virtio->queue[i].purpose == HV_VIRTIO_RANDOM)
            return true;
    return false;
}

void hv_virtio_take(struct hv_virtio *virtio, const struct hv_virtio *theirs)
{
    if (is_fresh(virtio))
        virtio->status = 0; /* it may have been reset */
    virtio->feature_select = theirs->feature_select;
    virtio->driver_select = theirs->driver_select;
    virtio->queue_select = theirs->queue_select;
    virtio->config_vector = vector_of(virtio, theirs->config_vector);
    if (!(virtio->status & FEATURES_OK))
        virtio->accepted = theirs->accepted;
    set_status(virtio, theirs->status);
    virtio->isr &= theirs->isr;
    if (has_random(virtio)) /* it may have been served */
        virtio->isr |= theirs->isr & HV_VIRTIO_ISR_QUEUE;
    for (unsigned i = 0; i < virtio->queues && i < HV_VIRTIO_QUEUES; i++) {
        struct hv_virtio_queue *queue = &virtio->queue[i];
        const struct hv_virtio_queue *their = &theirs->queue[i];
        queue->vector = vector_of(virtio, their->vector);
        if (queue->purpose == HV_VIRTIO_RANDOM) {
            queue->next = their->next;
            queue->used = their->used;
            queue->told = their->told;
        }
        if (!queue->enabled) {
            queue->size = their->size;
            queue->descriptors = their->descriptors;
            queue->driver = their->driver;
            queue->device = their->device;
            if (their->enabled)
                enable(virtio, queue);
        }
    }
}
