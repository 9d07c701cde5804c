/* The blocks of translated code: found by EIP, chained to each other, gone when the code they came from changes or is mapped elsewhere. */
#include <sys/mman.h>

#include "emit.h"
#include "paravirt.h"
#include "sites.h"
#include "tables.h"
#include "translate.h"

#define PAGE 4096u
#define BLOCKS (1u << 18)
#define ENTRIES (1u << 19)
#define EXITS (1u << 20)
#define PLACES (1u << 22)
#define BUCKETS (1u << 16)
#define BUCKET_BYTES 16u /* of the guest's code, so that neighbours' buckets are neighbours */
#define FRAMES (1u << 20) /* guest-physical pages below 4 GiB */
#define PAGES (1u << 20)
#define LARGE_PAGES 1024u /* of 4 MiB, or of 2 MiB and its neighbour */
#define ROOM (64u << 10)  /* bytes that one block may need */
#define FEW_LOOKUPS 64u   /* of a guest that has not many */
#define FEW_BYTES (128u << 10) /* of the cache, in small pages; behind them it goes on in large ones, which fewer instructions are not worth */
#define LARGE_CACHE (2u << 20)
#define FEW_BLOCKS 64u    /* of a guest that has not many */
#define ALIGNED 32u       /* blocks begin there: a loop of few instructions that crosses a line of the processor's cache takes twice as long */
#define NONE HV_BLOCK_NONE

/* A direct jump out of a block: to its stub, which calls out, or chained to a block. Places are bytes from the cache's start. */
struct exit {
    uint32_t displacement, stub;
    uint32_t eip;
    uint32_t target, next; /* block, and the next exit that jumps there */
};

/* Where a block is entered: rows of few bytes, of which many are in a line of the processor's cache. */
struct entry {
    uint32_t eip, next; /* next: as in buckets */
    uint32_t host;      /* bytes from the cache's start */
    uint32_t block;
    uint32_t next_of_block;
    bool user;          /* as its block */
};

/* What is known of a few bytes of the guest's code. Numbers plus 1: memory that nobody has touched says that there is none. */
struct bucket {
    uint32_t entry;    /* the first one */
    uint32_t covering; /* the last block that has instructions there */
};

static struct hv_block *blocks;
static struct entry *entries;
static struct exit *exits;
static struct hv_place *places;
static uint32_t block_count, entry_count, exit_count, place_count;
static struct bucket buckets[BUCKETS]; /* by EIP */
static uint32_t *by_frame;             /* blocks, in the same way */

/* Linear pages that blocks were translated from: those whose mapping must stay what it was. */
static uint32_t code_pages[PAGES], code_page_count;
static uint32_t code_frame[PAGES]; /* of such a page: the frame that it is mapped to; NONE = its blocks are gone */
static uint8_t is_code_page[PAGES]; /* 1 = in the list; 2 = as well, and not global */
static bool some_not_global;        /* since all were last looked at */
static uint8_t is_user_page[PAGES]; /* some of its blocks are a program's */
static bool some_of_user;

static uint32_t rows_used; /* of the tables for indirect jumps, in time */
static uint8_t *cache, *first_block, *next_block;
static uint8_t *present_few, *present_large; /* how far the cache's parts are */
static uint64_t cached;                      /* bytes of blocks in it */

static struct bucket *bucket_of(uint32_t eip) { return &buckets[(eip / BUCKET_BYTES ^ eip / BUCKET_BYTES / BUCKETS) % BUCKETS]; }

/* Tables are zero, which no EIP but 0 takes for its own row. */
static void start_empty(void)
{
    block_count = entry_count = exit_count = place_count = 0;
    next_block = first_block;
    cached = 0;
    cell.lookup[0].host = cell.user_lookup[0].host = (uint64_t)hv_stubs.miss;
}

bool hv_blocks_init(void)
{
    cache = mmap((void *)HV_CACHE, HV_CACHE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    by_frame = (uint32_t *)hv_reserve_tables(sizeof *by_frame * FRAMES);
    static const size_t most[HV_ROW_TABLES] = {
        [HV_BLOCK_ROWS] = sizeof *blocks * BLOCKS, [HV_EXIT_ROWS] = sizeof *exits * EXITS,
        [HV_ENTRY_ROWS] = sizeof *entries * ENTRIES, [HV_PLACE_ROWS] = sizeof *places * PLACES,
    };
    if (cache != (void *)HV_CACHE || !by_frame || !hv_tables_init(most))
        return false;
    madvise(cache + LARGE_CACHE, HV_CACHE_BYTES - LARGE_CACHE, MADV_HUGEPAGE); /* a host without them gives small ones */
    present_few = cache;
    present_large = cache + LARGE_CACHE;
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
            hv_shadow_release_frame((uint64_t)blocks[i].frame[k] * PAGE, HV_FRAME_CODE);
        }
    }
    for (uint32_t i = 0; i < code_page_count; i++)
        is_code_page[code_pages[i]] = 0;
    code_page_count = 0;
    hv_cross_here(HV_POINT_TRANSLATION_FLUSH, block_count, cached, 0, 0);
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

uint8_t *hv_entry_host(uint32_t entry) { return cache + entries[entry].host; }

static struct hv_lookup *lookup_row(uint32_t eip, bool user) { return &(user ? cell.user_lookup : cell.lookup)[eip % HV_LOOKUP]; }

/* After some of them it will be many, all over the table. */
void hv_entry_look_up(uint32_t entry)
{
    uint32_t eip = entries[entry].eip;
    if (rows_used++ == FEW_LOOKUPS)
        hv_make_all_present(cell.lookup, sizeof cell.lookup);
    if (eip) /* whose negative is the key of empty rows */
        *lookup_row(eip, entries[entry].user) = (struct hv_lookup){-eip, 0, (uint64_t)hv_entry_host(entry)};
}

static uint32_t add_entry(struct bucket *bucket, uint32_t eip, uint32_t index, uint32_t host)
{
    struct hv_block *block = &blocks[index];
    entries[entry_count] = (struct entry){eip, bucket->entry, host, index, block->first_entry, block->user};
    bucket->entry = entry_count + 1;
    block->first_entry = entry_count;
    return entry_count++;
}

/* In the middle of a block that came this way, if an instruction begins there, as loops do: what comes from another is not translated twice. */
static uint32_t enter(struct bucket *bucket, uint32_t eip, bool user)
{
    if (!bucket->covering || entry_count >= hv_row_tables[HV_ENTRY_ROWS].room / sizeof *entries)
        return HV_ENTRY_NONE;
    uint32_t index = bucket->covering - 1;
    const struct hv_block *block = &blocks[index];
    uint32_t offset = eip - block->eip;
    if (!block->valid || block->user != user || block->one_way_in || offset >= block->guest_bytes)
        return HV_ENTRY_NONE;
    const struct hv_place *place = &places[block->first_place], *end = place + block->place_count;
    while (place < end && place->guest != offset) /* and without HV_PLACE_* */
        place++;
    return place < end ? add_entry(bucket, eip, index, (uint32_t)(block->host - cache) + place->host) : HV_ENTRY_NONE;
}

uint32_t hv_entry_find(uint32_t eip)
{
    struct bucket *bucket = bucket_of(eip);
    bool user = HV_CPU->cpl == 3;
    for (uint32_t i = bucket->entry; i; i = entries[i - 1].next)
        if (entries[i - 1].eip == eip && entries[i - 1].user == user)
            return i - 1;
    return enter(bucket, eip, user);
}

void hv_entry_announce(uint32_t eip) { __builtin_prefetch(bucket_of(eip)); }

void hv_entry_expect(uint32_t eip)
{
    const struct bucket *bucket = bucket_of(eip);
    if (bucket->entry)
        __builtin_prefetch(&entries[bucket->entry - 1]);
    if (bucket->covering)
        __builtin_prefetch(&blocks[bucket->covering - 1]);
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

static void retarget(const struct exit *exit, uint32_t to)
{
    uint32_t displacement = to - (exit->displacement + 4);
    memcpy(cache + exit->displacement, &displacement, 4);
}

uint32_t hv_exit_eip(uint32_t exit) { return exits[exit].eip; }

void hv_block_chain(uint32_t index, uint32_t entry)
{
    struct exit *exit = &exits[index];
    uint32_t to = entries[entry].block;
    if (exit->target != NONE)
        return;
    retarget(exit, entries[entry].host);
    exit->target = to;
    exit->next = blocks[to].incoming;
    blocks[to].incoming = index;
    cell.board.crossings.counters->chained_jumps++;
}

static void kill_entry(uint32_t index)
{
    const struct entry *entry = &entries[index];
    uint32_t *at = &bucket_of(entry->eip)->entry;
    while (*at && *at != index + 1)
        at = &entries[*at - 1].next;
    if (*at)
        *at = entry->next;
    struct hv_lookup *row = lookup_row(entry->eip, entry->user);
    if (row->negative_eip == -entry->eip)
        *row = (struct hv_lookup){0, 0, (uint64_t)hv_stubs.miss};
}

static void kill_block(uint32_t index)
{
    struct hv_block *block = &blocks[index];
    if (!block->valid)
        return;
    block->valid = false;
    for (uint32_t i = block->first_entry; i != NONE; i = entries[i].next_of_block)
        kill_entry(i);
    block->first_entry = NONE;
    for (uint32_t i = block->incoming; i != NONE;) {
        struct exit *exit = &exits[i];
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

bool hv_block_fits(void)
{
    return block_count < BLOCKS && entry_count <= ENTRIES - 512 && exit_count <= EXITS - 512 && place_count <= PLACES - 1024 && next_block + ROOM <= cache + HV_CACHE_BYTES;
}

/* Was a block made for it before? A bit stands for several places of 4 GiB, seldom for two of one guest's; neighbours' bits are neighbours. */
static uint64_t made[1 << 14];
static uint32_t made_bit(uint32_t eip) { return (eip ^ (eip >> 20) * 0x9e370u) & 0xfffff; }

static bool again(uint32_t eip)
{
    uint32_t bit = made_bit(eip);
    uint64_t mask = 1ull << (bit & 63), *word = &made[bit >> 6];
    bool was = *word & mask;
    *word |= mask;
    return was;
}

static void make_room(void)
{
    if (next_block < cache + LARGE_CACHE && next_block + ROOM > cache + FEW_BYTES)
        next_block = cache + LARGE_CACHE;
    if (next_block < cache + LARGE_CACHE)
        present_few = hv_make_present(present_few, next_block + ROOM);
    else
        present_large = hv_make_present(present_large, next_block + ROOM);
    if (block_count == FEW_BLOCKS) { /* there will be many, all over them */
        hv_make_all_present(buckets, sizeof buckets);
        hv_make_all_present(made, sizeof made);
    }
    blocks = hv_rows(HV_BLOCK_ROWS, sizeof *blocks * (block_count + 1));
    entries = hv_rows(HV_ENTRY_ROWS, sizeof *entries * (entry_count + 512));
    exits = hv_rows(HV_EXIT_ROWS, sizeof *exits * (exit_count + 512));
    places = hv_rows(HV_PLACE_ROWS, sizeof *places * (place_count + 1024));
}

void hv_blocks_ahead(void)
{
    present_few = hv_make_present(present_few, cache + FEW_BYTES);
    present_large = hv_make_present(present_large, cache + LARGE_CACHE + HV_LARGE_PAGE);
    hv_make_all_present(cell.lookup, sizeof cell.lookup);
    hv_make_all_present(buckets, sizeof buckets);
    hv_make_all_present(made, sizeof made);
    hv_tables_ahead();
}

struct hv_block *hv_block_begin(uint32_t eip, uint32_t *index)
{
    __builtin_prefetch(&made[made_bit(eip) >> 6], 1);
    if (!hv_block_fits())
        hv_blocks_flush();
    make_room();
    *index = block_count;
    struct hv_block *block = &blocks[block_count];
    *block = (struct hv_block){.eip = eip, .host = next_block, .first_place = place_count, .first_entry = NONE, .incoming = NONE, .user = HV_CPU->cpl == 3};
    return block;
}

void hv_block_place(struct hv_block *block, const struct hv_emitter *e, uint32_t guest)
{
    places[place_count++] = (struct hv_place){(uint16_t)(e->at - block->host), (uint16_t)guest};
    block->place_count++;
}

struct hv_place *hv_block_places(void) { return &places[place_count]; }

void hv_block_placed(struct hv_block *block, unsigned count)
{
    place_count += count;
    block->place_count = (uint16_t)(block->place_count + count);
}

uint32_t hv_block_exit(uint8_t *displacement, uint8_t *stub, uint32_t eip)
{
    struct exit *exit = &exits[exit_count];
    *exit = (struct exit){(uint32_t)(displacement - cache), (uint32_t)(stub - cache), eip, NONE, NONE};
    retarget(exit, exit->stub);
    return exit_count++;
}

uint32_t hv_block_end(uint32_t index, const struct hv_emitter *e, bool global)
{
    struct hv_block *block = &blocks[index];
    struct hv_cell_counters *counters = &cell.area->counters;
    block->host_bytes = (uint16_t)(e->at - block->host);
    block->valid = true;
    cell.board.crossings.counters->retranslated_blocks += again(block->eip);
    block_count = index + 1;
    next_block = (uint8_t *)(((uintptr_t)e->at + ALIGNED - 1) & ~(uintptr_t)(ALIGNED - 1));
    for (uint32_t at = 0; at < block->guest_bytes; at += BUCKET_BYTES)
        bucket_of(block->eip + at)->covering = index + 1;
    uint32_t entry = add_entry(bucket_of(block->eip), block->eip, index, (uint32_t)(block->host - cache));
    for (unsigned k = 0; k < block->page_count; k++) {
        uint32_t frame = block->frame[k], page = block->page[k];
        block->next_in_frame[k] = by_frame[frame];
        by_frame[frame] = index + 1;
        hv_shadow_protect_frame((uint64_t)frame * PAGE, HV_FRAME_CODE);
        if (k) {
            struct hv_walk walk;
            hv_walk(&walk, page * PAGE, false, false, true, false);
            global = walk.global;
        }
        if (!is_code_page[page])
            code_pages[code_page_count++] = page;
        else if (code_frame[page] != NONE && code_frame[page] != frame)
            kill_page(page, code_frame[page]); /* the guest has mapped it elsewhere, and not told yet */
        is_code_page[page] = global ? 1 : 2;
        some_not_global |= !global;
        code_frame[page] = frame;
        is_user_page[page] |= block->user;
        some_of_user |= block->user;
    }
    counters->translated_blocks++;
    counters->translated_instructions += block->instructions;
    counters->translated_bytes += block->guest_bytes;
    cached += (uint64_t)(next_block - block->host);
    cell.board.crossings.counters->cache_bytes = cached;
    return entry;
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

bool hv_code_page(uint32_t page, uint32_t *frame, bool *global)
{
    *frame = code_frame[page];
    *global = is_code_page[page] == 1;
    return is_code_page[page] && *frame != NONE;
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
