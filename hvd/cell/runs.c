/* Runs: neighbouring pages of the low view that only the guest's kernel may touch, where kernel and programs share it. */
#include "runs.h"

#include <errno.h>
#include <sys/mman.h>

#include "cell.h"

#define PAGE 4096u
#define RUNS 2048u
#define MARGIN 8u      /* a few more may come of one operation */
#define EAGER_RUNS 8u  /* as few are shown at once; of more, those that are touched */

/* Of one protection; sorted. */
struct run {
    uint32_t first, end;
    int protection;
    bool hidden;
};
static struct run runs[RUNS];
static unsigned run_count;

static void protect(const struct run *run, int protection)
{
    if (mprotect((void *)((uintptr_t)run->first * PAGE), (size_t)(run->end - run->first) * PAGE, protection) != 0)
        hv_fail("mprotect of %u pages at %#x: error %d", run->end - run->first, run->first * PAGE, errno);
}

static void hide(struct run *run)
{
    if (!run->hidden)
        protect(run, PROT_NONE);
    run->hidden = true;
}

static void show(struct run *run)
{
    if (run->hidden)
        protect(run, run->protection);
    run->hidden = false;
}

/* The first run that ends behind `page`. */
static unsigned run_at(uint32_t page)
{
    unsigned low = 0, high = run_count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (runs[middle].end > page)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static void runs_delete(unsigned index)
{
    run_count--;
    __builtin_memmove(&runs[index], &runs[index + 1], (run_count - index) * sizeof *runs);
}

static void runs_insert(unsigned index, struct run run)
{
    __builtin_memmove(&runs[index + 1], &runs[index], (run_count - index) * sizeof *runs);
    run_count++;
    runs[index] = run;
}

void hv_runs_remove(uint32_t first, uint32_t end)
{
    for (unsigned i = run_at(first); i < run_count && runs[i].first < end;) {
        struct run *run = &runs[i];
        if (run->first < first && run->end > end) {
            struct run tail = {end, run->end, run->protection, run->hidden};
            run->end = first;
            runs_insert(i + 1, tail);
            return;
        }
        if (run->first >= first && run->end <= end) {
            runs_delete(i);
            continue;
        }
        if (run->first < first)
            run->end = first;
        else
            run->first = end;
        i++;
    }
}

void hv_runs_add(uint32_t first, uint32_t end, int protection)
{
    unsigned i = run_at(first ? first - 1 : 0);
    if (i < run_count && runs[i].end == first && runs[i].protection == protection && !runs[i].hidden) {
        runs[i].end = end;
        if (i + 1 < run_count && runs[i + 1].first == end && runs[i + 1].protection == protection && !runs[i + 1].hidden) {
            runs[i].end = runs[i + 1].end;
            runs_delete(i + 1);
        }
        return;
    }
    i = run_at(first);
    if (i < run_count && runs[i].first == end && runs[i].protection == protection && !runs[i].hidden)
        runs[i].first = first;
    else
        runs_insert(i, (struct run){first, end, protection, false});
}

void hv_runs_hide(uint32_t end)
{
    for (unsigned i = 0; i < run_count && runs[i].first < end; i++)
        hide(&runs[i]);
}

void hv_runs_show(void)
{
    for (unsigned i = 0; i < run_count && run_count <= EAGER_RUNS; i++)
        show(&runs[i]);
}

bool hv_runs_show_page(uint32_t page)
{
    unsigned i = run_at(page);
    if (i == run_count || runs[i].first > page || !runs[i].hidden)
        return false;
    show(&runs[i]);
    return true;
}

bool hv_runs_full(void) { return run_count > RUNS - MARGIN; }

void hv_runs_forget(void) { run_count = 0; }
