/* An IDE disk by PIO, polled (ATA-4, READ SECTORS), and the table of files on it: sector 1024 begins with "TEACHFS1" and the number of
   files, then come 32 bytes a file (struct file). */
#include "teach.h"

enum { DATA = 0x1f0, COUNT = 0x1f2, LBA_LOW, LBA_MIDDLE, LBA_HIGH, DEVICE, STATUS, COMMAND = STATUS, CONTROL = 0x3f6 };
#define BUSY 0x80
#define READY 0x40
#define REQUEST 0x08
#define FAULT 0x21 /* device fault, error */
#define READ_SECTORS 0x20
#define TABLE_SECTOR 1024u
#define MOST_FILES 31u
#define PATIENCE 1000000u

static uint8_t device;
static unsigned files;
static struct {
	char magic[8];
	uint32_t count;
	uint32_t reserved[5];
	struct file files[MOST_FILES];
} table;

static bool wait(uint8_t mask, uint8_t value)
{
	for (unsigned n = 0; n < PATIENCE; n++) {
		uint8_t status = inb(STATUS);

		if (status == 0xff)
			return false;
		if (!(status & BUSY) && (status & mask) == value)
			return true;
	}
	return false;
}

bool disk_read(uint32_t sector, void *buffer)
{
	uint16_t *words = buffer;

	outb(DEVICE, (uint8_t)(0xe0 | device << 4 | (sector >> 24 & 15))); /* LBA */
	if (!wait(READY, READY))
		return false;
	outb(CONTROL, 0x02); /* no interrupts */
	outb(COUNT, 1);
	outb(LBA_LOW, (uint8_t)sector);
	outb(LBA_MIDDLE, (uint8_t)(sector >> 8));
	outb(LBA_HIGH, (uint8_t)(sector >> 16));
	outb(COMMAND, READ_SECTORS);
	if (!wait(REQUEST | FAULT, REQUEST))
		return false;
	for (unsigned n = 0; n < SECTOR / 2; n++)
		words[n] = inw(DATA);
	return true;
}

static bool is_ours(void)
{
	static const char magic[] = "TEACHFS1";

	for (unsigned n = 0; n < sizeof table / SECTOR; n++)
		if (!disk_read(TABLE_SECTOR + n, (uint8_t *)&table + n * SECTOR))
			return false;
	for (unsigned n = 0; n < 8; n++)
		if (table.magic[n] != magic[n])
			return false;
	return table.count <= MOST_FILES;
}

bool disk_init(void)
{
	for (unsigned n = 0; n < 2; n++) {
		device = (uint8_t)n;
		if (is_ours()) {
			files = table.count;
			return true;
		}
	}
	return false;
}

const struct file *file_at(unsigned number)
{
	return number < files ? &table.files[number] : NULL;
}

const struct file *file_find(const char *name)
{
	for (unsigned n = 0; n < files; n++) {
		unsigned at = 0;

		while (at < sizeof table.files[n].name && name[at] && name[at] == table.files[n].name[at])
			at++;
		if (at < sizeof table.files[n].name && !name[at] && !table.files[n].name[at])
			return &table.files[n];
	}
	return NULL;
}
