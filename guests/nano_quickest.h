/* How guest and process time a row: included where both have their struct row, and run() of so many turns in nanoseconds. */
/* Of some runs of equal length: whatever else the host does hits some of them only. */
static uint64_t quickest(const struct row *row, uint32_t turns, unsigned runs)
{
	uint64_t spent, best = run(row, turns);

	while (--runs)
		if ((spent = run(row, turns)) < best)
			best = spent;
	return best;
}
