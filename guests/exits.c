/* What an access costs, device by device: for each row "NAME COUNT", then COUNT reads, then "done". Whoever reads the console takes the time
 * between the two lines (bench/exit_cost.py). "slow=N", "fast=N": accesses to a device that hvd has in Python, and to one in C. */
#include "pci.h"

const char guest_name[] = "exits";

static void port(const char *name, uint16_t number, uint32_t count)
{
	print("%s %u\n", name, count);
	for (uint32_t n = 0; n < count; n++)
		inb(number);
	print("done\n");
}

static void memory(const char *name, uint32_t address, uint32_t count)
{
	if (!address)
		return;
	print("%s %u\n", name, count);
	for (uint32_t n = 0; n < count; n++)
		(void)*mmio32(address);
	print("done\n");
}

int main(void)
{
	uint32_t slow = option("slow", 5000), fast = option("fast", 500000), slot = pci_find(0x1af4, 0x1044), common;

	port("8259", 0x21, fast);
	port("8254", 0x40, fast);
	port("uart", 0x3fd, fast);
	port("unclaimed-port", 0xed, fast);
	memory("local-apic", 0xfee00020, fast);
	memory("ioapic", 0xfec00000, fast);
	port("cmos", 0x71, fast);
	port("keyboard", 0x64, fast);
	port("acpi", 0x604, fast); /* PM1 control */
	port("reset-control", 0xcf9, slow);
	port("vga", 0x3cc, fast); /* miscellaneous output */
	outl(0xcf8, 0x80000000u);
	port("pci-configuration", 0xcfc, fast);
	if (slot < 32) {
		pci_write(slot, 4, pci_read(slot, 4) | 6);
		common = virtio_structure(slot, VIRTIO_COMMON);
		memory("virtio-configuration", common, fast);
		memory("virtio-isr", virtio_structure(slot, VIRTIO_ISR), fast);
	}
	return done();
}
