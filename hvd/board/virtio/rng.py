"""virtio-rng (VIRTIO 1.2, 5.4): the host's random numbers, so that a guest need not wait for entropy of its own."""

from __future__ import annotations

import os
from typing import ClassVar, Final

from hvd.board.virtio.device import VirtioDevice

MOST_AT_ONCE: Final = 64 << 10  # a driver must be content with less than it asked for


class Rng(VirtioDevice):
    name: ClassVar[str] = "virtio-rng"
    device_id: ClassVar[int] = 4
    queue_sizes = (64,)

    def handle_queue(self, index: int) -> None:
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            queue.push(chain, chain.write(os.urandom(min(chain.capacity, MOST_AT_ONCE))))
