/* The blocks of translated code: found by EIP, chained to each other, gone when the code they came from changes or is mapped elsewhere. */
#include <sys/mman.h>

#include "emit.h"
#include "paravirt.h"
#include "sites.h"
#include "translate.h"

#define PAGE 4096u
#define BLOCKS (1u << 18)
#define EXITS (1u << 20)
#define PLACES (1u << 22)
#define BUCKETS (1u << 16)
#define BUCKET_BYTES 16u /* of the guest's code, so that neighbours' buckets are neighbours */
#define FRAMES (1u << 20) /* guest-physical pages below 4 GiB */
#define PAGES (1u << 20)
#define LARGE_PAGES 1024u /* of 4 MiB, or of 2 MiB and its neighbour */
#define ROOM (64u << 10)  /* bytes that one block may need */
#define ALIGNED 32u       /* blocks begin there: a loop of few instructions that crosses a line of the processor's cache takes twice as long */
#define NONE HV_BLOCK_NONE

static struct hv_block *blocks;
static struct hv_exit *exits;
static struct hv_place *places;
static uint32_t block_count, exit_count, place_count;
/* By EIP and by frame, each with what follows it. Numbers of blocks plus 1: memory that nobody has touched says that there is none. */
static uint32_t buckets[BUCKETS], *by_frame;

/* Linear pages that blocks were translated from: those whose mapping must stay what it was. */
static uint32_t code_pages[PAGES], code_page_count;
static uint32_t code_frame[PAGES]; /* of such a page: the frame that it is mapped to; NONE = its blocks are gone */
static uint8_t is_code_page[PAGES]; /* 1 = in the list; 2 = as well, and not global */
static bool some_not_global;        /* since all were last looked at */
static uint8_t is_user_page[PAGES]; /* some of its blocks are a program's */
static bool some_of_user;

static uint8_t *cache, *first_block, *next_block;

static uint32_t bucket_of(uint32_t eip) { return (eip / BUCKET_BYTES ^ eip / BUCKET_BYTES / BUCKETS) % BUCKETS; }
static void *reserve(size_t size) { return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }

/* Tables are zero, which no EIP but 0 takes for its own row. */
static void start_empty(void)
{
    block_count = exit_count = place_count = 0;
    next_block = first_block;
    cell.lookup[0].host = cell.user_lookup[0].host = (uint64_t)hv_stubs.miss;
}

bool hv_blocks_init(void)
{
    cache = mmap((void *)HV_CACHE, HV_CACHE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    blocks = reserve(sizeof *blocks * BLOCKS);
    exits = reserve(sizeof *exits * EXITS);
    places = reserve(sizeof *places * PLACES);
    by_frame = reserve(sizeof *by_frame * FRAMES);
    if (cache != (void *)HV_CACHE || blocks == MAP_FAILED || exits == MAP_FAILED || places == MAP_FAILED || by_frame == MAP_FAILED)
        return false;
    struct hv_emitter e = {cache};
    hv_stubs_init(&e);
    first_block = e.at;
    start_empty();
    return true;
}

void hv_blocks_flush(void)
{
    for (uint32_t i = 0; i < block_count; i++) {
        for (unsigned k = 0; k < blocks[i].page_count; k++) {
            by_frame[blocks[i].frame[k]] = 0;
            hv_shadow_release_frame(blocks[i].frame[k] * PAGE, HV_FRAME_CODE);
        }
    }
    for (uint32_t i = 0; i < code_page_count; i++)
        is_code_page[code_pages[i]] = 0;
    code_page_count = 0;
    hv_cross_here(HV_POINT_TRANSLATION_FLUSH, block_count, (uint64_t)(next_block - first_block), 0, 0);
    memset(buckets, 0, sizeof buckets);
    memset(cell.lookup, 0, sizeof cell.lookup);
    if (some_of_user)
        memset(cell.user_lookup, 0, sizeof cell.user_lookup);
    some_of_user = false;
    start_empty();
    hv_device_sites_forget();
    cell.area->counters.cache_flushes++;
    cell.board.crossings.counters->cache_bytes = 0;
}

struct hv_block *hv_block(uint32_t index) { return &blocks[index]; }
uint32_t hv_block_count(void) { return block_count; }

uint32_t hv_block_find(uint32_t eip)
{
    bool user = HV_CPU->cpl == 3;
    for (uint32_t i = buckets[bucket_of(eip)]; i; i = blocks[i - 1].next_in_hash)
        if (blocks[i - 1].eip == eip && blocks[i - 1].valid && blocks[i - 1].user == user)
            return i - 1;
    return NONE;
}

/* Blocks lie in the cache in the order of their numbers. */
bool hv_blocks_locate(const uint8_t *rip, struct hv_found *found)
{
    if (!block_count || rip < blocks[0].host)
        return false;
    uint32_t low = 0, high = block_count - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if (blocks[middle].host <= rip)
            low = middle;
        else
            high = middle - 1;
    }
    const struct hv_block *block = &blocks[low];
    if (rip >= block->host + block->host_bytes || !block->place_count)
        return false;
    uint32_t offset = (uint32_t)(rip - block->host);
    const struct hv_place *place = &places[block->first_place + block->place_count - 1];
    while (place > &places[block->first_place] && place->host > offset)
        place--;
    *found = (struct hv_found){
        .eip = block->eip + (place->guest & HV_PLACE_GUEST),
        .exact = place->host == offset && !(place->guest & HV_PLACE_SHADOW),
        .popped = place->guest & HV_PLACE_POPPED,
        .valid = block->valid,
    };
    return true;
}

static void retarget(struct hv_exit *exit, const uint8_t *to)
{
    uint32_t displacement = (uint32_t)(to - (exit->displacement + 4));
    memcpy(exit->displacement, &displacement, 4);
}

void hv_block_chain(uint32_t index, uint32_t to)
{
    struct hv_exit *exit = &exits[index];
    if (exit->target != NONE)
        return;
    retarget(exit, blocks[to].host);
    exit->target = to;
    exit->next = blocks[to].incoming;
    blocks[to].incoming = index;
    cell.board.crossings.counters->chained_jumps++;
}

static void kill_block(uint32_t index)
{
    struct hv_block *block = &blocks[index];
    if (!block->valid)
        return;
    block->valid = false;
    uint32_t *at = &buckets[bucket_of(block->eip)];
    while (*at && *at != index + 1)
        at = &blocks[*at - 1].next_in_hash;
    if (*at)
        *at = block->next_in_hash;
    struct hv_lookup *row = &(block->user ? cell.user_lookup : cell.lookup)[block->eip % HV_LOOKUP];
    if (row->negative_eip == -block->eip)
        *row = (struct hv_lookup){0, 0, (uint64_t)hv_stubs.miss};
    for (uint32_t i = block->incoming; i != NONE;) {
        struct hv_exit *exit = &exits[i];
        i = exit->next;
        retarget(exit, exit->stub);
        exit->target = NONE;
    }
    block->incoming = NONE;
}

/* number, and what is returned: as in by_frame */
static uint32_t next_of(uint32_t number, uint64_t frame)
{
    const struct hv_block *block = &blocks[number - 1];
    return block->next_in_frame[block->frame[0] == frame ? 0 : 1];
}

/* The blocks that were translated from that linear page while it was mapped to that frame. */
static void kill_page(uint32_t page, uint64_t frame)
{
    for (uint32_t i = by_frame[frame]; i; i = next_of(i, frame)) {
        const struct hv_block *block = &blocks[i - 1];
        if (block->page[0] == page || (block->page_count == 2 && block->page[1] == page))
            kill_block(i - 1);
    }
}

void hv_code_drop(uint32_t eip)
{
    struct hv_walk walk;
    hv_walk(&walk, eip, false, false, true, false);
    if (walk.error || walk.physical / PAGE >= FRAMES)
        return;
    for (uint32_t i = by_frame[walk.physical / PAGE]; i; i = next_of(i, walk.physical / PAGE))
        if (eip - blocks[i - 1].eip < blocks[i - 1].guest_bytes)
            kill_block(i - 1);
}

/* ---- making one */

struct hv_block *hv_block_begin(uint32_t eip, uint32_t *index)
{
    if (block_count == BLOCKS || exit_count > EXITS - 512 || place_count > PLACES - 1024 || next_block + ROOM > cache + HV_CACHE_BYTES)
        hv_blocks_flush();
    *index = block_count;
    struct hv_block *block = &blocks[block_count];
    *block = (struct hv_block){.eip = eip, .host = next_block, .first_place = place_count, .incoming = NONE, .user = HV_CPU->cpl == 3};
    return block;
}

void hv_block_place(struct hv_block *block, const struct hv_emitter *e, uint32_t guest)
{
    places[place_count++] = (struct hv_place){(uint16_t)(e->at - block->host), (uint16_t)guest};
    block->place_count++;
}

uint32_t hv_block_exit(uint8_t *displacement, uint8_t *stub)
{
    exits[exit_count] = (struct hv_exit){displacement, stub, NONE, NONE};
    retarget(&exits[exit_count], stub);
    return exit_count++;
}

/* Was a block made for it before? A bit stands for several places of 4 GiB, seldom for two of one guest's. */
static bool again(uint32_t eip)
{
    static uint64_t made[1 << 14];
    uint32_t bit = eip * 0x9e3779b1u >> 12;
    uint64_t mask = 1ull << (bit & 63), *word = &made[bit >> 6];
    bool was = *word & mask;
    *word |= mask;
    return was;
}

void hv_block_end(uint32_t index, const struct hv_emitter *e)
{
    struct hv_block *block = &blocks[index];
    struct hv_cell_counters *counters = &cell.area->counters;
    block->host_bytes = (uint32_t)(e->at - block->host);
    block->valid = true;
    cell.board.crossings.counters->retranslated_blocks += again(block->eip);
    block_count = index + 1;
    next_block = (uint8_t *)(((uintptr_t)e->at + ALIGNED - 1) & ~(uintptr_t)(ALIGNED - 1));
    block->next_in_hash = buckets[bucket_of(block->eip)];
    buckets[bucket_of(block->eip)] = index + 1;
    for (unsigned k = 0; k < block->page_count; k++) {
        uint64_t frame = block->frame[k];
        uint32_t page = block->page[k];
        block->next_in_frame[k] = by_frame[frame];
        by_frame[frame] = index + 1;
        hv_shadow_protect_frame(frame * PAGE, HV_FRAME_CODE);
        struct hv_walk walk;
        hv_walk(&walk, page * PAGE, false, false, true, false);
        if (!is_code_page[page])
            code_pages[code_page_count++] = page;
        else if (code_frame[page] != NONE && code_frame[page] != frame)
            kill_page(page, code_frame[page]); /* the guest has mapped it elsewhere, and not told yet */
        is_code_page[page] = walk.global ? 1 : 2;
        some_not_global |= !walk.global;
        code_frame[page] = (uint32_t)frame;
        is_user_page[page] |= block->user;
        some_of_user |= block->user;
    }
    counters->translated_blocks++;
    counters->translated_instructions += block->instructions;
    counters->translated_bytes += block->guest_bytes;
    cell.board.crossings.counters->cache_bytes = (uint64_t)(next_block - first_block);
}

/* ---- when code changes */

void hv_code_written(uint64_t physical, uint64_t length)
{
    if (!length || (!by_frame && !hv_paravirtual()))
        return;
    uint64_t last = length > (uint64_t)FRAMES * PAGE - physical ? FRAMES - 1 : (physical + length - 1) / PAGE;
    for (uint64_t frame = physical / PAGE; frame <= last && frame < FRAMES; frame++) {
        if (!hv_shadow_is_code(frame * PAGE))
            continue;
        uint64_t killed = 0;
        for (uint32_t i = by_frame ? by_frame[frame] : 0; i; i = next_of(i, frame)) {
            killed += blocks[i - 1].valid;
            kill_block(i - 1);
        }
        if (by_frame)
            by_frame[frame] = 0;
        hv_cross_here(HV_POINT_TRANSLATION_CODE_WRITE, frame * PAGE, killed, 0, 0);
        hv_sites_written(frame);
        hv_shadow_release_frame(frame * PAGE, HV_FRAME_ALL);
        cell.area->counters.code_writes++;
    }
}

/* If the page is mapped elsewhere now, its blocks are gone. Returns whether it has any still. */
static bool verify(uint32_t page)
{
    uint32_t frame = code_frame[page];
    if (frame == NONE)
        return false;
    struct hv_walk walk;
    hv_walk(&walk, page * PAGE, false, false, true, false);
    if (!walk.error && walk.physical / PAGE == frame && (walk.user || !is_user_page[page])) {
        is_code_page[page] = walk.global ? 1 : 2;
        some_not_global |= !walk.global;
        return true;
    }
    kill_page(page, frame);
    code_frame[page] = NONE;
    is_user_page[page] = 0;
    return false;
}

void hv_code_verify(bool all)
{
    if (!by_frame || !(all || some_not_global))
        return;
    uint32_t kept = 0;
    some_not_global = false;
    for (uint32_t i = 0; i < code_page_count; i++) {
        uint32_t page = code_pages[i];
        if ((all || is_code_page[page] == 2) && !verify(page))
            is_code_page[page] = 0;
        else
            some_not_global |= is_code_page[code_pages[kept++] = page] == 2;
    }
    code_page_count = kept;
}

void hv_code_verify_page(uint32_t linear)
{
    if (!by_frame)
        return;
    struct hv_walk walk;
    hv_walk(&walk, linear, false, false, true, false);
    uint32_t first = linear / PAGE, count = 1;
    if (walk.large || walk.error) { /* INVLPG of a large page, or of one that was */
        first -= first % LARGE_PAGES;
        count = LARGE_PAGES;
    }
    for (uint32_t page = first; page < first + count; page++)
        if (is_code_page[page])
            verify(page);
}
