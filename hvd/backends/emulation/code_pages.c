/* Which pages of guest RAM hold translated code, and what that means for stores to them.
 *
 * QEMU tracks it by physical page: the first block translated from a page makes every TLB entry of that page "not dirty", so that stores
 * take the slow path, which drops the blocks they hit; when the last block is gone, stores are fast again. Unicorn replaced that by a
 * mark on the one virtual address the block was translated from, with two consequences:
 *
 *  - a store through another mapping of the page that cannot execute (the kernel's direct map of a program's page) drops the blocks at
 *    its own address only and then makes the entry fast: blocks elsewhere in the page stay and run although their code is gone;
 *  - a store to any page that is mapped executable takes the slow path for ever, code or not: without NX every store of a kernel.
 *
 * Here the physical tracking is put back, between the library's own parts (plt.c).
 */
#include <stdlib.h>
#include <string.h>

#include "shim.h"

#ifdef __x86_64__

#define PAGE_SHIFT 12
#define PAGE_BYTES (1ull << PAGE_SHIFT)

/* The library's own functions, once it is patched. */
static struct {
    void (*tlb_set_page_with_attrs)(CPUState *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);
    void (*tlb_set_dirty)(CPUState *, uint64_t);
    void (*tlb_protect_code)(uc_engine *, uint64_t);
    void (*tlb_unprotect_code)(uc_engine *, uint64_t);
    void (*tb_invalidate_phys_page_fast)(uc_engine *, void *, uint64_t, int, uintptr_t);
    void (*tlb_reset_dirty_by_vaddr)(CPUState *, uint64_t, uint64_t);
} original;

/* The emulator that runs in this thread; another user of the library in this process has none and keeps the original behaviour. */
static _Thread_local struct hv_emulator *running;
static _Thread_local uint64_t stored_page; /* of the store that is being handled: RAM page number */

static bool has_code(const struct hv_emulator *e, uint64_t page)
{
    return page < e->ram_pages && e->code_pages[page >> 3] >> (page & 7) & 1;
}

/* Guest-physical address to RAM page number; ram_pages = not RAM. */
static uint64_t ram_page(const struct hv_emulator *e, uint64_t address)
{
    if (address < e->low_ram)
        return address >> PAGE_SHIFT;
    if (address >= 1ull << 32 && (address - (1ull << 32) + e->low_ram) >> PAGE_SHIFT < e->ram_pages)
        return (address - (1ull << 32) + e->low_ram) >> PAGE_SHIFT;
    return e->ram_pages;
}

static struct hv_emulator *emulator_of(uc_engine *uc) { return running && running->uc == uc ? running : NULL; }
static struct hv_emulator *emulator_of_cpu(CPUState *cpu) { return running && running->cpu == cpu ? running : NULL; }

/* A TLB entry was filled: stores through it may be fast at once unless the page has code. */
static void set_page_with_attrs(CPUState *cpu, uint64_t vaddr, uint64_t paddr, uint32_t attrs, int prot, int mmu_idx, uint64_t size)
{
    original.tlb_set_page_with_attrs(cpu, vaddr, paddr, attrs, prot, mmu_idx, size);
    struct hv_emulator *e = emulator_of_cpu(cpu);
    if (e && prot & 2) { /* PAGE_WRITE */
        uint64_t page = ram_page(e, paddr);
        if (page < e->ram_pages && !has_code(e, page))
            original.tlb_set_dirty(cpu, vaddr & ~(PAGE_BYTES - 1));
    }
}

/* The first block of a page was made: from now on every store to it is looked at, whatever mapping it uses. */
static void protect_code(uc_engine *uc, uint64_t ram_address)
{
    original.tlb_protect_code(uc, ram_address);
    struct hv_emulator *e = emulator_of(uc);
    uint64_t page = ram_address >> PAGE_SHIFT;
    if (!e || page >= e->ram_pages)
        return;
    e->code_pages[page >> 3] |= (uint8_t)(1u << (page & 7));
    e->protected_pages++;
    uint64_t start = page << PAGE_SHIFT;
    void *host = start < e->low_ram ? (uint8_t *)e->low_ram_memory + start : (uint8_t *)e->high_ram_memory + (start - e->low_ram);
    e->unicorn.tlb_reset_dirty_x86_64(e->cpu, (uint64_t)(uintptr_t)host, PAGE_BYTES);
}

/* The last block of a page is gone. */
static void unprotect_code(uc_engine *uc, uint64_t ram_address)
{
    original.tlb_unprotect_code(uc, ram_address);
    struct hv_emulator *e = emulator_of(uc);
    uint64_t page = ram_address >> PAGE_SHIFT;
    if (e && page < e->ram_pages)
        e->code_pages[page >> 3] &= (uint8_t)~(1u << (page & 7));
}

/* First half of a slow store: drops the blocks it hits. Remember which page it was for the second half. */
static void invalidate_phys_page_fast(uc_engine *uc, void *pages, uint64_t ram_address, int length, uintptr_t return_address)
{
    stored_page = ram_address >> PAGE_SHIFT;
    original.tb_invalidate_phys_page_fast(uc, pages, ram_address, length, return_address);
}

/* Second half: may the next stores through this entry be fast? Not while there is code in the page. */
static void set_dirty(CPUState *cpu, uint64_t vaddr)
{
    struct hv_emulator *e = emulator_of_cpu(cpu);
    if (!e || !has_code(e, stored_page))
        original.tlb_set_dirty(cpu, vaddr);
}

/* Unicorn's mark by virtual address, at every translation: protect_code has done it by physical address. */
static void reset_dirty_by_vaddr(CPUState *cpu, uint64_t vaddr, uint64_t length)
{
    if (!emulator_of_cpu(cpu))
        original.tlb_reset_dirty_by_vaddr(cpu, vaddr, length);
}

const struct hv_redirection hv_code_page_redirections[] = {
    { "tlb_set_page_with_attrs_x86_64", set_page_with_attrs, (void **)&original.tlb_set_page_with_attrs },
    { "tlb_set_dirty_x86_64", set_dirty, (void **)&original.tlb_set_dirty },
    { "tlb_protect_code_x86_64", protect_code, (void **)&original.tlb_protect_code },
    { "tlb_unprotect_code_x86_64", unprotect_code, (void **)&original.tlb_unprotect_code },
    { "tb_invalidate_phys_page_fast_x86_64", invalidate_phys_page_fast, (void **)&original.tb_invalidate_phys_page_fast },
    { "tlb_reset_dirty_by_vaddr_x86_64", reset_dirty_by_vaddr, (void **)&original.tlb_reset_dirty_by_vaddr },
};
const size_t hv_code_page_redirection_count = sizeof hv_code_page_redirections / sizeof *hv_code_page_redirections;

void hv_code_pages_enter_thread(struct hv_emulator *e) { running = e; }

bool hv_code_pages_any(const struct hv_emulator *e, uint64_t ram_address, uint64_t length)
{
    if (!length)
        return false;
    for (uint64_t page = ram_address >> PAGE_SHIFT, last = (ram_address + length - 1) >> PAGE_SHIFT; page <= last; page++) {
        if (!(page & 7) && page + 7 <= last && page + 7 < e->ram_pages && !e->code_pages[page >> 3])
            page += 7; /* eight at once */
        else if (has_code(e, page))
            return true;
    }
    return false;
}

/* RAM was mapped: low first. */
bool hv_code_pages_grow(struct hv_emulator *e, uint64_t length)
{
    uint64_t pages = e->ram_pages + (length >> PAGE_SHIFT);
    uint8_t *bits = realloc(e->code_pages, (pages + 7) / 8);
    if (!bits)
        return false;
    uint64_t old_bytes = (e->ram_pages + 7) / 8;
    memset(bits + old_bytes, 0, (pages + 7) / 8 - old_bytes);
    e->code_pages = bits;
    e->ram_pages = pages;
    return true;
}
#endif
