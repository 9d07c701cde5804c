/* Instructions of translated code that access devices' registers. The access is a signal, some 2 us; one that does it again and again
 * is called out for instead, 0.3 us. It may access memory as well, but the monitor can do that, too.
 *
 * String instructions stay as they are: of one that copies here and there, all rounds would be the monitor's. */
#include <string.h>

#include "rules.h"
#include "translate.h"

#define PAGE 4096u
#define SITES 1024u
#define ENOUGH 8u

static struct {
    uint32_t eip, accesses, kind;
} sites[SITES]; /* by EIP: of two in the same row the later one begins anew */

static uint64_t enough[SITES / 64]; /* a bit for each row whose instruction has: a few lines of the processor's cache */

static uint64_t pages; /* those that they are in, by the lower bits of their numbers */

static uint32_t row_of(uint32_t eip) { return (eip ^ eip / SITES) % SITES; }

/* Of another kind than this it is not the instruction that was counted, and perhaps one that the monitor cannot execute, of the x87 or SSE. */
static uint32_t kind_of(const struct hv_insn *insn) { return (uint32_t)insn->map << 16 | (uint32_t)insn->opcode << 8 | insn->modrm; }

bool hv_device_sites_in(uint32_t page) { return pages >> page % 64 & 1; }

bool hv_device_site(uint32_t eip, const struct hv_insn *insn)
{
    uint32_t row = row_of(eip);
    return enough[row / 64] >> row % 64 & 1 && sites[row].eip == eip && sites[row].kind == kind_of(insn);
}

void hv_device_accessed(uint32_t eip, uint64_t physical)
{
    const struct hv_cell_region *region = hv_region_at(physical);
    uint8_t bytes[HV_LONGEST_INSTRUCTION];
    struct hv_insn insn;
    if (region && region->kind == HV_REGION_RAM)
        return;
    unsigned available = hv_fetch_at(eip, bytes);
    if (!available || hv_decode(&insn, bytes, available, true) != HV_DECODED || hv_is_string(&insn))
        return;
    uint32_t row = row_of(eip);
    if (sites[row].eip != eip || sites[row].kind != kind_of(&insn)) {
        sites[row].eip = eip;
        sites[row].kind = kind_of(&insn);
        sites[row].accesses = 0;
        enough[row / 64] &= ~(1ull << row % 64);
    }
    if (++sites[row].accesses == ENOUGH) {
        enough[row / 64] |= 1ull << row % 64;
        pages |= 1ull << eip / PAGE % 64;
        hv_code_drop(eip);
    }
}

void hv_device_sites_forget(void)
{
    memset(sites, 0, sizeof sites);
    memset(enough, 0, sizeof enough);
    pages = 0;
}
