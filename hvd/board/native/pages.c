#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "state.h"

static bool is_zero(const uint8_t *page)
{
    /* Compared with itself, shifted by a word: memcmp runs at memory speed, and stops early in pages that are in use. */
    uint64_t first;
    memcpy(&first, page, sizeof first);
    return !first && memcmp(page, page + sizeof first, HV_PAGE - sizeof first) == 0;
}

size_t hv_nonzero_run(const uint8_t *base, size_t length, size_t from, size_t *end)
{
    while (from < length && is_zero(base + from))
        from += HV_PAGE;
    size_t stop = from;
    while (stop < length && !is_zero(base + stop))
        stop += HV_PAGE;
    *end = stop;
    return from;
}

static uint32_t crc32c_slow(uint32_t crc, const uint8_t *data, size_t length)
{
    while (length--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return crc;
}

#if defined __x86_64__
__attribute__((target("sse4.2"))) static uint32_t crc32c_fast(uint32_t crc, const uint8_t *data, size_t length)
{
    uint64_t wide = crc, word;
    for (; length >= sizeof word; data += sizeof word, length -= sizeof word) {
        memcpy(&word, data, sizeof word);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    while (length--)
        crc = __builtin_ia32_crc32qi(crc, *data++);
    return crc;
}
#endif

uint32_t hv_crc32c(uint32_t crc, const uint8_t *data, size_t length)
{
    crc = ~crc;
#if defined __x86_64__
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc32c_fast(crc, data, length);
#endif
    return ~crc32c_slow(crc, data, length);
}

/* Copied at once: nothing but the end of a process interrupts that, not even for another thread's change of the user (nptl(7)) or of the mounts. */
#define PIECE (128u << 10)

int64_t hv_store_file(int memory, uint64_t offset, int file, uint64_t from, uint64_t length)
{
    if (lseek(memory, (off_t)offset, SEEK_SET) < 0)
        return -errno;
    off_t position = (off_t)from;
    uint64_t left = length;
    while (left) {
        ssize_t count = sendfile(memory, file, &position, left < PIECE ? left : PIECE);
        if (count < 0 && errno != EINTR)
            return -errno;
        if (count == 0)
            break;
        if (count > 0)
            left -= (uint64_t)count;
    }
    return (int64_t)(length - left);
}

#define LARGE_PAGE (2ull << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

/* Whole large pages of [offset, offset + length) become such ones of the host's, which one page fault maps. Returns how many are: none where the host has none. */
unsigned hv_make_large(int memory, uint64_t offset, uint64_t length)
{
    unsigned made = 0;
    uint64_t first = (offset + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1), end = (offset + length) & ~(LARGE_PAGE - 1);
    if (first >= end)
        return 0;
    uint8_t *room = mmap(NULL, end - first + LARGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return 0;
    uint8_t *at = (uint8_t *)(((uintptr_t)room + LARGE_PAGE - 1) & ~(uintptr_t)(LARGE_PAGE - 1));
    if (mmap(at, end - first, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, (off_t)first) != MAP_FAILED)
        for (uint64_t done = 0; done < end - first; done += LARGE_PAGE)
            made += madvise(at + done, LARGE_PAGE, MADV_COLLAPSE) == 0;
    munmap(room, end - first + LARGE_PAGE);
    return made;
}
