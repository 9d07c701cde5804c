/* PCI and virtio as a kernel without interrupts uses them: finds the bridges, sizes and moves a BAR, polls the random number device, breaks the
 * rules of its queue and finds it usable again after a reset. */
#include "pci.h"

const char guest_name[] = "virtio";

enum { STATUS = 0x14, QUEUE_SELECT = 0x16, QUEUE_SIZE = 0x18, QUEUE_ENABLE = 0x1c, QUEUE_DESC = 0x20, QUEUE_DRIVER = 0x28, QUEUE_DEVICE = 0x30 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
#define SIZE 8

static struct {
	struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} descriptor[SIZE];
	struct {
		uint16_t flags, index, ring[SIZE], event;
	} available;
	struct {
		uint16_t flags, index;
		struct {
			uint32_t head, length;
		} ring[SIZE];
		uint16_t event;
	} used __attribute__((aligned(4)));
} queue __attribute__((aligned(16)));

static volatile uint8_t random[2][32], many[4096];

static uint32_t slot, common;

static void start(void)
{
	volatile uint8_t *status = mmio8(common + STATUS);

	*status = 0;
	*status = ACKNOWLEDGE;
	*status = ACKNOWLEDGE | DRIVER;
	*mmio32(common + 8) = 1;
	*mmio32(common + 12) = 1; /* VERSION_1 */
	*status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
	expect("features are taken", *status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	__builtin_memset(&queue, 0, sizeof queue);
	*mmio16(common + QUEUE_SELECT) = 0;
	*mmio16(common + QUEUE_SIZE) = SIZE;
	*mmio32(common + QUEUE_DESC) = (uint32_t)&queue.descriptor;
	*mmio32(common + QUEUE_DRIVER) = (uint32_t)&queue.available;
	*mmio32(common + QUEUE_DEVICE) = (uint32_t)&queue.used;
	*mmio16(common + QUEUE_ENABLE) = 1;
	*status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

static void ask(uint64_t address, uint32_t length)
{
	volatile uint16_t *index = &queue.available.index;

	queue.descriptor[0].address = address;
	queue.descriptor[0].length = length;
	queue.descriptor[0].flags = 2; /* for the device to write */
	queue.available.ring[*index % SIZE] = 0;
	__asm__ volatile("" : : : "memory");
	++*index;
	*mmio16(virtio_structure(slot, VIRTIO_NOTIFY)) = 0;
}

static void wait_used(uint16_t index)
{
	while (*(volatile uint16_t *)&queue.used.index != index) {
	}
}

int main(void)
{
	uint32_t bar, moved = 0xe8000000u, same = 0, zero = 0, wrong = 0;

	expect("the host bridge", pci_read(0, 0), 0x12378086);
	expect("the ISA bridge", pci_read(1, 0), 0x70008086);
	slot = pci_find(0x1af4, 0x1044);
	if (!expect("a random number device", slot < 32, true))
		return done();
	/* Size of BAR 4: written with ones while decoding is off. */
	bar = pci_read(slot, 0x20);
	pci_write(slot, 4, 4);
	pci_write(slot, 0x20, 0xffffffff);
	expect("size of the BAR", ~(pci_read(slot, 0x20) & ~0xfu) + 1, 0x4000);
	pci_write(slot, 0x20, moved);
	pci_write(slot, 4, 6);
	common = virtio_structure(slot, VIRTIO_COMMON);
	expect("where it was moved to", common & 0xff000000, moved);
	expect("nothing where it was", *mmio32(bar & ~0xfu), 0xffffffff);
	start();
	for (uint16_t n = 0; n < 2; n++) {
		ask((uint32_t)random[n], sizeof random[n]);
		wait_used((uint16_t)(n + 1));
		expect("bytes that came", queue.used.ring[n].length, sizeof random[n]);
	}
	for (size_t n = 0; n < sizeof random[0]; n++) {
		same += random[0][n] == random[1][n];
		zero += !random[0][n];
	}
	expect("they are random", same < 8 && zero < 8, true);
	expect("an interrupt is pending", *mmio8(virtio_structure(slot, VIRTIO_ISR)), 1);
	expect("and taken by reading", *mmio8(virtio_structure(slot, VIRTIO_ISR)), 0);
	for (uint16_t n = 2; n < 42; n++) { /* more than are ready anywhere */
		ask((uint32_t)random[n % 2], sizeof random[0]);
		wait_used((uint16_t)(n + 1));
		wrong += queue.used.ring[n % SIZE].length != sizeof random[0];
	}
	expect("and go on coming", wrong, 0);
	ask((uint32_t)many, sizeof many);
	wait_used(43);
	expect("many at once", queue.used.ring[42 % SIZE].length, sizeof many);
	expect("an interrupt for all of them", *mmio8(virtio_structure(slot, VIRTIO_ISR)), 1);
	ask(0xfffffffffff00000ull, 4096);
	expect("a buffer outside of memory", *mmio8(common + STATUS) & NEEDS_RESET, NEEDS_RESET);
	start();
	ask((uint32_t)random[0], 4);
	wait_used(1);
	expect("after a reset it is good again", *mmio8(common + STATUS) & NEEDS_RESET, 0);
	return done();
}
