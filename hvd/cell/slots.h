/* Slots: the pages of the cell's two views, by number (shadow.c), in sets; and how many mappings they may be for the host. */
#ifndef HV_SLOTS_H
#define HV_SLOTS_H

#include <stdint.h>

#define PAGE 4096u
#define PAGES (1u << 20)
#define SLOTS (2 * PAGES)

/* Pages with an entry, in order: a bit each, and a bit for each word that is not zero. */
struct page_set {
    uint64_t summary[SLOTS / 64 / 64];
    uint64_t words[SLOTS / 64];
};
static inline void set_add(struct page_set *set, uint32_t page)
{
    set->words[page / 64] |= 1ull << (page % 64);
    set->summary[page / 64 / 64] |= 1ull << (page / 64 % 64);
}

static inline void set_remove(struct page_set *set, uint32_t page)
{
    if (!(set->words[page / 64] &= ~(1ull << (page % 64))))
        set->summary[page / 64 / 64] &= ~(1ull << (page / 64 % 64));
}

/* The first member at or behind `page`; something at or behind `end` when there is none before that. */
static inline uint32_t set_next(const struct page_set *set, uint32_t page, uint32_t end)
{
    while (page < end) {
        uint64_t word = set->words[page / 64] >> (page % 64);
        if (word)
            return page + (uint32_t)__builtin_ctzll(word);
        uint32_t index = page / 64 + 1;
        while (index * 64 < end) {
            uint64_t rest = set->summary[index / 64] >> (index % 64);
            if (rest) {
                index += (uint32_t)__builtin_ctzll(rest);
                break;
            }
            index = (index / 64 + 1) * 64;
        }
        page = index * 64;
    }
    return page;
}

/* Where one mapping may end and another one begin. What was mapped or unmapped in one call has no edge in it. */
struct edges {
    uint32_t count;
    uint64_t summary[SLOTS / 64 / 64 + 1]; /* a bit for each word that was not zero since edges_clear() */
    uint64_t words[SLOTS / 64 + 1];
};

static inline void edges_add(struct edges *edges, uint32_t slot)
{
    uint64_t *word = &edges->words[slot / 64], bit = 1ull << (slot % 64);
    edges->count += !(*word & bit);
    *word |= bit;
    edges->summary[slot / 64 / 64] |= 1ull << (slot / 64 % 64);
}

static inline void edges_clear(struct edges *edges)
{
    for (uint32_t i = 0; i < sizeof edges->summary / sizeof *edges->summary; i++) {
        for (uint64_t rest = edges->summary[i]; rest; rest &= rest - 1)
            edges->words[i * 64 + (uint32_t)__builtin_ctzll(rest)] = 0;
        edges->summary[i] = 0;
    }
    edges->count = 0;
}

static inline void edges_span(struct edges *edges, uint32_t first, uint32_t end)
{
    for (uint32_t slot = first + 1; slot < end; slot++) {
        uint64_t *word = &edges->words[slot / 64], bit = 1ull << (slot % 64);
        edges->count -= !!(*word & bit);
        *word &= ~bit;
    }
    edges_add(edges, first);
    edges_add(edges, end);
}

#endif
