/* PCI configuration mechanism 1 and modern virtio devices, for the test kernels: 32 bit, no paging, no interrupts. */
#ifndef PCI_H
#define PCI_H

#include "guest.h"

static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint32_t pci_read(uint32_t slot, uint32_t offset)
{
	outl(0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc));
	return inl(0xcfc);
}

static inline void pci_write(uint32_t slot, uint32_t offset, uint32_t value)
{
	outl(0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc));
	outl(0xcfc, value);
}

/* The slot of the first function 0 of this vendor and device; 32 = none. */
static inline uint32_t pci_find(uint32_t vendor, uint32_t device)
{
	uint32_t slot = 0;
	while (slot < 32 && pci_read(slot, 0) != (device << 16 | vendor))
		slot++;
	return slot;
}

/* Where a memory BAR lies; 0 above 4 GiB. */
static inline uint32_t pci_bar(uint32_t slot, uint32_t index)
{
	uint32_t low = pci_read(slot, 0x10 + 4 * index);
	return (low & 6) == 4 && pci_read(slot, 0x14 + 4 * index) ? 0 : low & ~0xfu;
}

enum { VIRTIO_COMMON = 1, VIRTIO_NOTIFY = 2, VIRTIO_ISR = 3, VIRTIO_DEVICE = 4 };

/* Address of one of its structures (VIRTIO 1.2, 4.1.4); 0 = none. */
static inline uint32_t virtio_structure(uint32_t slot, uint32_t kind)
{
	for (uint32_t at = pci_read(slot, 0x34) & 0xfc; at; at = pci_read(slot, at) >> 8 & 0xfc)
		if ((pci_read(slot, at) & 0xff) == 9 && pci_read(slot, at) >> 24 == kind) {
			uint32_t bar = pci_bar(slot, pci_read(slot, at + 4) & 0xff);
			return bar ? bar + pci_read(slot, at + 8) : 0;
		}
	return 0;
}

static inline volatile uint8_t *mmio8(uint32_t address)
{
	return (volatile uint8_t *)address;
}

static inline volatile uint16_t *mmio16(uint32_t address)
{
	return (volatile uint16_t *)address;
}

static inline volatile uint32_t *mmio32(uint32_t address)
{
	return (volatile uint32_t *)address;
}

#endif
