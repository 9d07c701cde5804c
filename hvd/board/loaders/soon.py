"""Which memory a Linux takes at once, besides where it was loaded: a page that the host gives when the guest touches it costs 3 us of the boot and
more, one that is there already 1.4 us, and a sixteenth of a page fault where several are mapped together (hvd/cell/mappings.c).

Its first allocator (mm/memblock.c) takes the highest free memory, which lies below the initrd: the descriptors of all pages. Its page allocator
(mm/page_alloc.c) hands out pieces of what is not a whole block of the largest order first, and those are 4 MiB: the rest of the block that the
descriptors lie in, the one behind the kernel, and the first one, of which the first MiB is not free. A bzImage moves, so that nobody knows what is
behind it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from hvd.board.loaders.kernel import ONE_MIB, Loaded
from hvd.board.memory import LARGE_PAGE, GuestMemory

LARGEST_BLOCK: Final = 4 << 20
# A small guest does without: it may not have as much to spare.
LEAST_MEMORY: Final = 64 << 20
# As much of each as the smallest Linux takes; below the initrd whole large pages of the host's, since it fills them.
LEAST_BELOW_INITRD: Final = (3 << 20) // 2
MOST_BEHIND_KERNEL: Final = (3 << 20) // 2
MOST_OF_FIRST: Final = (7 << 20) // 4


def soon_taken(memory: GuestMemory, loaded: Loaded, has_initrd: bool) -> list[tuple[int, int]]:
    """Pieces of RAM, as address and length, of a kernel that is all that is in memory, whose file
    nobody else seeks in. Raises OSError."""
    top = memory.low_ram_end
    runs = [(start, end) for start, end in _runs(memory.fd, top) if start >= ONE_MIB]
    if not has_initrd or loaded.format not in ("pvh", "bzimage") or top < LEAST_MEMORY or len(runs) < 2 or runs[-1][1] != top:
        return []
    initrd, kernel_end = runs[-1][0], runs[-2][1]
    below = (initrd - LEAST_BELOW_INITRD) // LARGE_PAGE * LARGE_PAGE
    taken = [(max(below, initrd // LARGEST_BLOCK * LARGEST_BLOCK, kernel_end), initrd)]
    if loaded.format == "pvh":
        block_end = -(-kernel_end // LARGEST_BLOCK) * LARGEST_BLOCK
        taken += [(kernel_end, min(kernel_end + MOST_BEHIND_KERNEL, block_end)), (ONE_MIB, min(ONE_MIB + MOST_OF_FIRST, runs[0][0]))]
    return [(start, end - start) for start, end in taken if start < end]


def _runs(memory_file: int, end: int) -> Iterator[tuple[int, int]]:
    """Where it has pages."""
    position = 0
    while position < end:
        try:
            start = os.lseek(memory_file, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # none any more
                return
            raise
        position = min(os.lseek(memory_file, start, os.SEEK_HOLE), end)
        if start < position:
            yield start, position
