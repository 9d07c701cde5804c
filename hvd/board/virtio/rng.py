"""virtio-rng (VIRTIO 1.2, 5.4): the host's random numbers, so that a guest need not wait for entropy of its own. In a cell most requests are
served without this (hvd/cell/entropy.c)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Final

from hvd.board.pci.registers import Purpose
from hvd.board.virtio.device import VirtioDevice

MOST_AT_ONCE: Final = 64 << 10  # a driver must be content with less than it asked for


class Rng(VirtioDevice):
    name: ClassVar[str] = "virtio-rng"
    device_id: ClassVar[int] = 4
    queue_sizes = (64,)
    purposes: ClassVar[Mapping[int, Purpose]] = {0: Purpose.RANDOM}

    def handle_queue(self, index: int) -> None:
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            queue.push(chain, chain.write(os.urandom(min(chain.capacity, MOST_AT_ONCE))))
