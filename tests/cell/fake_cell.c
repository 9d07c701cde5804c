/* A cell that its guest has taken over: it executes nothing, and what it says is forged, at random. The seed is the number at the end of
 * its name. Most turns make sense, so that it gets far; of some seeds it gets further than of others. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "area.h"

#define TURNS 2000

static uint64_t state;
static struct hv_cell_area *area;
static uint32_t patience; /* one of so many turns may be the end */

static uint32_t next(void) /* xorshift64* (Vigna 2014) */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1dull >> 32);
}

static void scribble(void *at, size_t size, unsigned times)
{
    while (times--)
        ((volatile uint8_t *)at)[next() % size] = (uint8_t)next();
}

static void sensible(void)
{
    static const uint16_t ports[] = {0x70, 0x71, 0x60, 0x64, 0xcf8, 0xcfc, 0x1f0, 0x1f7, 0x3d4, 0x600, 0x604, 0xb2};
    struct hv_cell_exit *exit = &area->exit;
    exit->size = 1u << next() % 3;
    exit->value = next() | (uint64_t)next() << 32;
    exit->count = next() % 4 ? next() % 3 : next() % (HV_AREA_STRING + 1);
    exit->rip = next();
    exit->start_ns = hv_host_ns();
    if (area->kick && next() % 4) {
        area->kick = 0;
        exit->reason = HV_CELL_INTERRUPTED;
    } else if (next() % 2) {
        exit->reason = next() % 2 ? HV_CELL_PORT_IN : HV_CELL_PORT_OUT;
        exit->address = next() % 2 ? ports[next() % (sizeof ports / sizeof *ports)] : next() & 0xffff;
        if (exit->address == 0xf4) /* the exit port: that would be all too early */
            exit->address = 0x70;
    } else {
        const struct hv_cell_region *region = &area->regions[next() % (area->region_count ? area->region_count : 1)];
        exit->reason = next() % 2 ? HV_CELL_MMIO_READ : HV_CELL_MMIO_WRITE;
        exit->address = region->start + (region->length ? next() % region->length : 0);
        if (region->kind != HV_REGION_MMIO || region->hot)
            exit->reason = HV_CELL_INTERRUPTED;
    }
}

static void left(uint64_t times)
{
    if (write(HV_CELL_FD_LEFT, &times, sizeof times) < 0)
        _exit(2);
}

static void turn(void)
{
    uint64_t most = UINT64_MAX - 1;
    sensible();
    unsigned what = next() % 64;
    if (what <= 2 || what >= 12)
        what = next() % patience ? 64 : what;
    switch (what) {
    case 0:
        scribble(&area->exit, sizeof area->exit, 1 + next() % 8);
        break;
    case 1:
        scribble(&area->cpu, sizeof area->cpu, 1 + next() % 200);
        break;
    case 2:
        scribble(&area->devices, sizeof area->devices, 1 + next() % 3);
        break;
    case 3 ... 8:
        scribble(&area->console, 24, 1 + next() % 24);
        break;
    case 9:
        area->exit.reason = HV_CELL_CONSOLE_FULL;
        area->console.out_head = area->console.out_tail + HV_CONSOLE_OUT * (next() % 2);
        break;
    case 10:
        left(1 + next() % 5);
        break;
    case 11:
        area->kick = next() % 2;
        break;
    case 12:
        scribble(&area->counters, sizeof area->counters + sizeof area->code, 5000);
        break;
    case 13:
        if (next() % 4 == 0)
            scribble(area, sizeof *area, 100000);
        break;
    case 14:
        if (next() % 4 == 0 && write(HV_CELL_FD_GO, &most, sizeof most) < 0)
            _exit(3);
        break;
    case 15:
        if (next() % 4 == 0)
            _exit((int)next() & 0xff);
        break;
    case 16:
        if (next() % 4 == 0)
            *(volatile uint32_t *)(uintptr_t)next() = 0;
        break;
    default:
        break;
    }
    left(1);
}

int main(int argc, char **argv)
{
    const char *name = argc ? argv[0] : "0";
    size_t length = strlen(name);
    while (length && name[length - 1] >= '0' && name[length - 1] <= '9')
        length--;
    uint64_t seed = strtoull(name + length, NULL, 10);
    state = seed * 0x9e3779b97f4a7c15ull | 1;
    patience = 1u << seed % 8;
    area = mmap(NULL, sizeof *area, PROT_READ | PROT_WRITE, MAP_SHARED, HV_CELL_FD_AREA, 0);
    if (area == MAP_FAILED)
        return 1;
    for (int i = 0; i < TURNS; i++) {
        uint64_t count;
        if (read(HV_CELL_FD_GO, &count, sizeof count) != sizeof count || area->quit)
            return 0;
        turn();
    }
    return 0;
}
