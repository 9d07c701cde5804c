/* A hash, "n=N" rounds of it, and its checksum: the same on every backend. "memory=1": over a table of 1 MiB instead of in
 * registers, "words=N", a power of two: of so many words; "timer=HZ": with a periodic interrupt meanwhile, which must not change the result. */
#include "guest.h"

const char guest_name[] = "compute";

#define WORDS (1u << 18)

static uint32_t table[WORDS];
static volatile uint32_t ticks;

static void on_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
}

static uint32_t mix(uint32_t hash, uint32_t value)
{
	hash ^= value;
	hash *= 16777619u;
	return hash << 5 | hash >> 27;
}

static uint32_t in_registers(uint32_t rounds)
{
	uint32_t hash = 2166136261u;

	for (uint32_t n = 0; n < rounds; n++)
		hash = mix(hash, n);
	return hash;
}

static uint32_t in_memory(uint32_t rounds, uint32_t words)
{
	uint32_t hash = 2166136261u;

	for (uint32_t n = 0; n < words; n++)
		table[n] = n * 2654435761u;
	for (uint32_t n = 0; n < rounds; n++) {
		uint32_t *word = &table[hash & (words - 1)];

		hash = mix(hash, *word);
		*word += hash + n;
	}
	return hash;
}

int main(void)
{
	uint32_t rounds = option("n", 1000000), memory = option("memory", 0), words = option("words", WORDS), hz = option("timer", 0), hash;

	if (!words || words > WORDS || words & (words - 1))
		words = WORDS;
	if (hz) {
		traps_init();
		irq_enable(0, on_tick);
		pit_periodic(hz < 19 ? 19 : hz); /* the 8254 counts to 65536 at most */
		interrupts_on();
	}
	hash = memory ? in_memory(rounds, words) : in_registers(rounds);
	interrupts_off();
	if (hz)
		print("%u ticks\n", ticks);
	print("compute: n=%u memory=%u checksum 0x%x\n", rounds, memory, hash);
	return done();
}
