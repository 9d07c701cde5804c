/* PCI's functions as far as they are registers: what the functions in Python (hvd/board/pci, hvd/board/virtio) share with the C that answers
 * for them. A part of board.h. */
#ifndef HV_PCI_H
#define HV_PCI_H

#include <stdbool.h>
#include <stdint.h>

struct hv_board;

enum hv_mmio_result {
    HV_MMIO_LEAVE,    /* nothing of the board in C is there, or it is more than that: a device in Python may answer */
    HV_MMIO_DONE,
    HV_MMIO_NOTIFIED, /* done: a queue of virtio was notified, and its device has nothing to do */
};

/* ---- virtio.c: a function's registers of virtio over PCI (VIRTIO 1.2, 4.1.4): common configuration and ISR status; negotiating and enabling
 * queues as a driver does it that keeps to the rules. The device itself is in Python, and finds here what was negotiated and enabled. */
#define HV_VIRTIO_QUEUES 4
#define HV_VIRTIO_NO_VECTOR 0xffffu
/* What a queue's buffers are for, if more than the device in Python looks after it. */
enum hv_virtio_purpose {
    HV_VIRTIO_ANY,
    HV_VIRTIO_TYPED,  /* what is typed at the console, and nothing else */
    HV_VIRTIO_RANDOM, /* random numbers: a cell has some (hvd/cell/entropy.c) */
};
struct hv_virtio_queue {
    uint64_t descriptors, driver, device; /* guest-physical addresses of its rings, as the driver wrote them; fixed while it is enabled */
    uint16_t size, vector;
    uint8_t enabled;
    uint8_t purpose; /* the device's: enum hv_virtio_purpose */
    uint16_t most;   /* likewise: descriptors that it can have, a power of two */
    /* How far the device is, modulo 65536: entries of the available ring that it took, of the used ring that it filled, and how many of those the
     * driver was interrupted for. */
    uint16_t next, used, told, reserved;
};
struct hv_virtio {
    /* The device's. */
    uint64_t offered, ram_end; /* guest-physical: RAM from 0 on */
    uint8_t bar, queues; /* the BAR of the registers; queues 0: the function is none of virtio */
    uint8_t msix;        /* the second byte of MSI-X's message control, in the function's configuration: whose bit 7 enables it */
    uint16_t vectors;    /* of MSI-X */
    /* The driver's, too. */
    uint16_t config_vector, queue_select;
    uint32_t feature_select, driver_select;
    uint64_t accepted;
    uint8_t status, generation, isr;
    uint8_t reserved[3];
    struct hv_virtio_queue queue[HV_VIRTIO_QUEUES];
};
/* offset: in the BAR; size: 1, 2, 4, 8. False: not here, Python does it. */
bool hv_virtio_read(struct hv_virtio *, uint64_t offset, unsigned size, uint64_t *value);
bool hv_virtio_write(struct hv_virtio *, uint64_t offset, unsigned size, uint64_t value);
/* The queue that a write in the BAR notifies; NULL: it is no notification. */
struct hv_virtio_queue *hv_virtio_notified(struct hv_virtio *, uint64_t offset);
bool hv_virtio_ready(const struct hv_virtio *); /* its driver is, too */
#define HV_VIRTIO_EVENT_IDX (1ull << 29)
#define HV_VIRTIO_ISR_QUEUE 1u
/* What a driver in another process did, as far as a driver can do it without Python. Whatever stands there, the result is sound. */
void hv_virtio_take(struct hv_virtio *, const struct hv_virtio *theirs);

/* ---- pci.c: configuration mechanism 1, and the functions' BARs and interrupt pins. */
#define HV_PCI_ADDRESS 0xcf8u
#define HV_PCI_DATA 0xcfcu
#define HV_PCI_WINDOW 0xe0000000ull /* in which BARs answer; up to the IOAPIC. hvd/board/pci/bus.py claims it */
#define HV_PCI_WINDOW_END 0xfec00000ull
#define HV_PCI_BARS 6
#define HV_PCI_SPACES 32
struct hv_pci {
    uint32_t address;
    uint8_t bus;           /* there is one */
    uint8_t functions[32]; /* of bus 0, by slot: a bit each */
};
struct hv_pci_space {
    /* The function's. asks, tells: dwords whose reading, whose writing is more than that and is Python's: a bit each. */
    uint64_t asks, tells;
    uint32_t bar_bytes[HV_PCI_BARS]; /* a power of two; 0 = there is none */
    uint8_t wide;                    /* BARs of 64 bits: a bit each */
    uint8_t place;                   /* slot << 3 | number */
    uint8_t gsi;                     /* what its pin is wired to; 0 = it has none */
    uint8_t writable[256];           /* bits of its configuration that a guest can write */
    /* The guest's, too. */
    uint8_t intx; /* it asserts its pin */
    uint8_t data[256];
    struct hv_virtio virtio;
};
struct hv_pci_spaces {
    uint32_t count;
    struct hv_pci_space space[HV_PCI_SPACES];
};
struct hv_pci *hv_board_pci(struct hv_board *);
struct hv_pci_spaces *hv_board_pci_spaces(struct hv_board *);
/* False: not here, Python does it. */
bool hv_pci_in(const struct hv_board *, uint16_t port, unsigned size, uint32_t *value);
bool hv_pci_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
bool hv_pci_mmio_read(struct hv_board *, uint64_t address, unsigned size, uint64_t *value);
enum hv_mmio_result hv_pci_mmio_write(struct hv_board *, uint64_t address, unsigned size, uint64_t value);
/* The queue that a write there notifies, and its function; NULL: it is no notification. */
struct hv_virtio_queue *hv_pci_notified(const struct hv_board *, uint64_t address, struct hv_pci_space **);
/* Of it, the arguments of the trace point; buffers: that came back. */
void hv_pci_notification(const struct hv_board *, uint64_t address, unsigned buffers, uint64_t arguments[4]);
bool hv_pci_may_master(const struct hv_pci_space *);
/* By the guest: the bits of its configuration that it may change. */
void hv_pci_write_space(struct hv_board *, struct hv_pci_space *, unsigned at, unsigned size, uint32_t value);
/* Which BAR answers at the address: the place of its function's space among the spaces, -1 none. */
int hv_pci_find(const struct hv_board *, uint64_t address, unsigned size, uint32_t *bar, uint64_t *offset);
/* The registers of virtio in a BAR, and what they do to the function's pin. */
bool hv_pci_virtio_read(struct hv_board *, struct hv_pci_space *, unsigned bar, uint64_t offset, unsigned size, uint64_t *value);
bool hv_pci_virtio_write(struct hv_pci_space *, unsigned bar, uint64_t offset, unsigned size, uint64_t value);
void hv_pci_set_intx(struct hv_board *, struct hv_pci_space *, bool level);
void hv_pci_drive(struct hv_board *); /* the interrupt lines, by the pins */
/* What a guest in another process did to the registers, as far as a guest can. Whatever stands there, the result is sound. */
void hv_pci_take(struct hv_pci_spaces *, const struct hv_pci_spaces *theirs);

#endif
