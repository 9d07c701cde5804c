/* Finds and reads the MP tables (Intel MultiProcessor Specification 1.4, chapter 4): in the first KiB of the extended BIOS data area,
   in the last KiB of base memory, in the BIOS ROM. */
#include "teach.h"

struct mp mp;

struct floating {
	char signature[4]; /* "_MP_" */
	uint32_t table;
	uint8_t paragraphs, revision, checksum, type, features[4];
};

struct table {
	char signature[4]; /* "PCMP" */
	uint16_t length;
	uint8_t revision, checksum;
	char oem[8], product[12];
	uint32_t oem_table;
	uint16_t oem_length, entries;
	uint32_t local_apic;
	uint32_t extended;
};

static bool sums_up(const void *data, unsigned length)
{
	const uint8_t *bytes = data;
	uint8_t sum = 0;

	while (length--)
		sum = (uint8_t)(sum + *bytes++);
	return sum == 0;
}

static const struct floating *search(uint32_t start, uint32_t length)
{
	for (uint32_t at = start; at < start + length; at += 16) {
		const struct floating *here = (const void *)at;

		if (*(const uint32_t *)at == 0x5f504d5f && sums_up(here, sizeof *here))
			return here;
	}
	return NULL;
}

/* Of the BIOS data area. The compiler must not see the number: it takes addresses so low for a mistake. */
static uint32_t bios_word(uint32_t address)
{
	__asm__("" : "+r"(address));
	return *(const uint16_t *)address;
}

static const struct floating *find(void)
{
	uint32_t extended = bios_word(0x40e) << 4; /* a segment */
	uint32_t base = bios_word(0x413) << 10;	   /* KiB */
	const struct floating *found = NULL;

	if (extended >= 0x80000 && extended < 0xa0000)
		found = search(extended, 1024);
	if (!found)
		found = search((base ? base : 640u << 10) - 1024, 1024);
	return found ? found : search(0xf0000, 0x10000);
}

static void read_entry(const uint8_t *entry)
{
	switch (entry[0]) {
	case 0: /* processor */
		mp.processors += entry[3] & 1;
		break;
	case 1: /* bus */
		if (entry[2] == 'I' && entry[3] == 'S' && entry[4] == 'A')
			mp.isa_bus = entry[1];
		break;
	case 2: /* IOAPIC */
		if (entry[3] & 1) {
			mp.io_apic_id = entry[1];
			mp.io_apic = *(const uint32_t *)(entry + 4);
		}
		break;
	case 3: /* interrupt of a bus */
		if (entry[1] == 0 && entry[4] == mp.isa_bus && entry[5] < 16) {
			mp.pin[entry[5]] = entry[7];
			mp.flags[entry[5]] = *(const uint16_t *)(entry + 2);
		}
		break;
	}
}

void mp_init(void)
{
	const struct floating *floating = find();
	const struct table *table;
	const uint8_t *entry;

	for (unsigned irq = 0; irq < 16; irq++)
		mp.pin[irq] = (uint8_t)irq;
	if (!floating || !floating->table)
		return;
	table = (const void *)floating->table;
	if (*(const uint32_t *)table->signature != 0x504d4350 || !sums_up(table, table->length))
		return;
	mp.local_apic = table->local_apic;
	entry = (const uint8_t *)(table + 1);
	for (unsigned n = 0; n < table->entries; n++) {
		read_entry(entry);
		entry += entry[0] == 0 ? 20 : 8;
	}
	mp.found = mp.io_apic && mp.local_apic && mp.processors;
}
