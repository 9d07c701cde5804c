/* The guest's page tables: 32-bit paging with 4K and 4M pages, and PAE (Intel SDM vol. 3A, chapter "Paging"). */
#include "cell.h"

#define PRESENT 0x1u
#define WRITABLE 0x2u
#define USER 0x4u
#define ACCESSED 0x20u
#define DIRTY 0x40u
#define LARGE 0x80u
#define GLOBAL 0x100u
#define NO_EXECUTE (1ull << 63)
#define PAE_ADDRESS 0x000ffffffffff000ull
#define PAE_RESERVED 0x7ff0000000000000ull /* bits 52-62; 63 as well without EFER.NXE */
#define EFER_NXE 0x800u

#define ERROR_PRESENT 0x1u
#define ERROR_WRITE 0x2u
#define ERROR_USER 0x4u
#define ERROR_RESERVED 0x8u
#define ERROR_FETCH 0x10u
#define FAULT 0x80000000u

const struct hv_cell_region *hv_region_at(uint64_t physical)
{
    for (uint32_t i = 0; i < cell.area->region_count && i < HV_AREA_REGIONS; i++) {
        const struct hv_cell_region *region = &cell.area->regions[i];
        if (physical - region->start < region->length)
            return region;
    }
    return NULL;
}

uint8_t *hv_memory_at(uint64_t physical, bool write, uint64_t *left)
{
    const struct hv_cell_region *region = hv_region_at(physical);
    if (!region || region->kind == HV_REGION_MMIO || (write && region->kind != HV_REGION_RAM))
        return NULL;
    if (left)
        *left = region->start + region->length - physical;
    return cell.memory + region->file_offset + (physical - region->start);
}

/* An entry of a table; what is no memory reads as all ones would be nonsense to follow: not present. */
static uint64_t *entry64(uint64_t physical)
{
    return (uint64_t *)hv_memory_at(physical & ~7ull, true, NULL);
}

static uint32_t *entry32(uint32_t physical)
{
    return (uint32_t *)hv_memory_at(physical & ~3u, true, NULL);
}

struct access {
    bool write, user, fetch, set_bits, no_execute_enabled;
};

static uint32_t fault(const struct access *access, uint32_t bits)
{
    return FAULT | bits | (access->write ? ERROR_WRITE : 0) | (access->user ? ERROR_USER : 0) |
           (access->fetch && access->no_execute_enabled ? ERROR_FETCH : 0);
}

/* Do the rights that were collected on the way allow the access? (SDM vol. 3A, "Determination of Access Rights") */
static bool allowed(const struct hv_walk *walk, const struct access *access)
{
    if (access->user && !walk->user)
        return false;
    if (access->write && !walk->writable && (access->user || HV_CPU->cr0 & HV_CR0_WP))
        return false;
    return !(access->fetch && walk->no_execute);
}

static void walk_32(struct hv_walk *walk, uint32_t linear, const struct access *access)
{
    uint32_t *directory = entry32((HV_CPU->cr3 & 0xfffff000u) + (linear >> 22) * 4);
    if (!directory || !(*directory & PRESENT)) {
        walk->error = fault(access, 0);
        return;
    }
    uint32_t pde = *directory;
    walk->writable = pde & WRITABLE;
    walk->user = pde & USER;
    walk->accessed = pde & ACCESSED;
    if (pde & LARGE && HV_CPU->cr4 & HV_CR4_PSE) {
        if (pde & 0x200000u) { /* bit 21; 13-20 are bits 32-39 of the address (PSE-36) */
            walk->error = fault(access, ERROR_PRESENT | ERROR_RESERVED);
            return;
        }
        walk->large = true;
        walk->dirty = pde & DIRTY;
        walk->global = pde & GLOBAL;
        walk->physical = (uint64_t)(pde >> 13 & 0xff) << 32 | (pde & 0xffc00000u) | (linear & 0x3fffffu);
        if (!allowed(walk, access)) {
            walk->error = fault(access, ERROR_PRESENT);
            return;
        }
        if (access->set_bits)
            *directory = pde | ACCESSED | (access->write ? DIRTY : 0);
        return;
    }
    uint32_t *table = entry32((pde & 0xfffff000u) + (linear >> 12 & 0x3ff) * 4);
    if (!table || !(*table & PRESENT)) {
        walk->error = fault(access, 0);
        return;
    }
    uint32_t pte = *table;
    walk->writable = walk->writable && pte & WRITABLE;
    walk->user = walk->user && pte & USER;
    walk->accessed = walk->accessed && pte & ACCESSED;
    walk->dirty = pte & DIRTY;
    walk->global = pte & GLOBAL;
    walk->physical = (pte & 0xfffff000u) | (linear & 0xfff);
    if (!allowed(walk, access)) {
        walk->error = fault(access, ERROR_PRESENT);
        return;
    }
    if (access->set_bits) {
        if (!(pde & ACCESSED))
            *directory = pde | ACCESSED;
        *table = pte | ACCESSED | (access->write ? DIRTY : 0);
    }
}

static void walk_pae(struct hv_walk *walk, uint32_t linear, const struct access *access)
{
    uint64_t reserved = PAE_RESERVED | (access->no_execute_enabled ? 0 : NO_EXECUTE);
    uint64_t *pointer = entry64((HV_CPU->cr3 & 0xffffffe0u) + (linear >> 30) * 8);
    if (!pointer || !(*pointer & PRESENT)) {
        walk->error = fault(access, 0);
        return;
    }
    uint64_t *directory = entry64((*pointer & PAE_ADDRESS) + (linear >> 21 & 0x1ff) * 8);
    if (!directory || !(*directory & PRESENT)) {
        walk->error = fault(access, 0);
        return;
    }
    uint64_t pde = *directory;
    if (pde & reserved) {
        walk->error = fault(access, ERROR_PRESENT | ERROR_RESERVED);
        return;
    }
    walk->writable = pde & WRITABLE;
    walk->user = pde & USER;
    walk->no_execute = pde & NO_EXECUTE;
    walk->accessed = pde & ACCESSED;
    if (pde & LARGE) {
        if (pde & 0x1fe000u) {
            walk->error = fault(access, ERROR_PRESENT | ERROR_RESERVED);
            return;
        }
        walk->large = true;
        walk->dirty = pde & DIRTY;
        walk->global = pde & GLOBAL;
        walk->physical = (pde & PAE_ADDRESS & ~0x1fffffull) | (linear & 0x1fffffu);
        if (!allowed(walk, access)) {
            walk->error = fault(access, ERROR_PRESENT);
            return;
        }
        if (access->set_bits)
            *directory = pde | ACCESSED | (access->write ? DIRTY : 0);
        return;
    }
    uint64_t *table = entry64((pde & PAE_ADDRESS) + (linear >> 12 & 0x1ff) * 8);
    if (!table || !(*table & PRESENT)) {
        walk->error = fault(access, 0);
        return;
    }
    uint64_t pte = *table;
    if (pte & reserved) {
        walk->error = fault(access, ERROR_PRESENT | ERROR_RESERVED);
        return;
    }
    walk->writable = walk->writable && pte & WRITABLE;
    walk->user = walk->user && pte & USER;
    walk->no_execute = walk->no_execute || pte & NO_EXECUTE;
    walk->accessed = walk->accessed && pte & ACCESSED;
    walk->dirty = pte & DIRTY;
    walk->global = pte & GLOBAL;
    walk->physical = (pte & PAE_ADDRESS) | (linear & 0xfff);
    if (!allowed(walk, access)) {
        walk->error = fault(access, ERROR_PRESENT);
        return;
    }
    if (access->set_bits) {
        if (!(pde & ACCESSED))
            *directory = pde | ACCESSED;
        *table = pte | ACCESSED | (access->write ? DIRTY : 0);
    }
}

bool hv_directory_present(uint32_t linear)
{
    if (!(HV_CPU->cr0 & HV_CR0_PG))
        return hv_region_at(linear);
    if (!(HV_CPU->cr4 & HV_CR4_PAE)) {
        const uint32_t *entry = entry32((HV_CPU->cr3 & 0xfffff000u) + (linear >> 22) * 4);
        return entry && *entry & PRESENT;
    }
    const uint64_t *pointer = entry64((HV_CPU->cr3 & 0xffffffe0u) + (linear >> 30) * 8);
    const uint64_t *entry = pointer && *pointer & PRESENT ? entry64((*pointer & PAE_ADDRESS) + (linear >> 21 & 0x1ff) * 8) : NULL;
    return entry && *entry & PRESENT;
}

void hv_walk(struct hv_walk *walk, uint32_t linear, bool write, bool user, bool fetch, bool set_bits)
{
    *walk = (struct hv_walk){0};
    if (!(HV_CPU->cr0 & HV_CR0_PG)) {
        *walk = (struct hv_walk){.physical = linear, .writable = true, .user = true, .global = true, .accessed = true, .dirty = true};
        return;
    }
    bool pae = HV_CPU->cr4 & HV_CR4_PAE;
    const struct access access = {write, user, fetch, set_bits, pae && HV_CPU->efer & EFER_NXE};
    if (pae)
        walk_pae(walk, linear, &access);
    else
        walk_32(walk, linear, &access);
    walk->global = walk->global && HV_CPU->cr4 & HV_CR4_PGE;
}
