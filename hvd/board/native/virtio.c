/* The registers of virtio over PCI that only hold what the driver wrote (VIRTIO 1.2, 4.1.4.3 and 4.1.4.5): a driver that looks for its device
 * touches them a hundred times. Three writes are Python's (hvd/board/virtio/pci.py): those of the status that negotiate or reset, enabling a
 * queue, notifications; and the device's own configuration. */
#include "board.h"

#include <string.h>

/* A page of the BAR for each structure (hvd/board/virtio/pci.py, PAGES). */
#define PAGE 0x1000u
enum page { COMMON, ISR, DEVICE, NOTIFY };

enum { ACKNOWLEDGE = 1, DRIVER = 2, FEATURES_OK = 8 };
#define HARMLESS (ACKNOWLEDGE | DRIVER) /* of the status: bits that only tell how far the driver has come */

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

/* False: it is more than that the driver knows the device. */
static bool write_status(struct hv_virtio *virtio, uint8_t value)
{
    if (!value || value & ~virtio->status & ~HARMLESS)
        return false;
    virtio->status |= value & HARMLESS;
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
        return value != 1 || !queue || queue->enabled;
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

void hv_virtio_take(struct hv_virtio *virtio, const struct hv_virtio *theirs)
{
    virtio->feature_select = theirs->feature_select;
    virtio->driver_select = theirs->driver_select;
    virtio->queue_select = theirs->queue_select;
    virtio->config_vector = vector_of(virtio, theirs->config_vector);
    if (!(virtio->status & FEATURES_OK))
        virtio->accepted = theirs->accepted;
    virtio->status |= theirs->status & HARMLESS;
    virtio->isr &= theirs->isr;
    for (unsigned i = 0; i < virtio->queues && i < HV_VIRTIO_QUEUES; i++) {
        struct hv_virtio_queue *queue = &virtio->queue[i];
        const struct hv_virtio_queue *their = &theirs->queue[i];
        queue->vector = vector_of(virtio, their->vector);
        if (!queue->enabled) {
            queue->size = their->size;
            queue->descriptors = their->descriptors;
            queue->driver = their->driver;
            queue->device = their->device;
        }
    }
}
