"""Which virtio devices a machine has, in the order of their slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hvd.board.net.plug import open_port
from hvd.board.virtio.block import Block
from hvd.board.virtio.console import Console
from hvd.board.virtio.device import VirtioDevice
from hvd.board.virtio.net import Net
from hvd.board.virtio.rng import Rng

if TYPE_CHECKING:
    from hvd.board.machine import Machine


def virtio_devices(machine: Machine) -> Iterator[VirtioDevice]:
    for disk in machine.disks:
        if disk.spec.bus == "virtio":
            yield Block(disk.image, disk.spec.name, machine.log)
    yield Rng()
    yield Console(machine)
    for number, card in enumerate(machine.spec.network_interfaces):
        yield Net(
            card.name,
            card.mac_address,
            open_port(card),
            watcher=machine.watcher,
            log=machine.log,
            is_paused=lambda: machine.state == "PAUSED",
            counters=machine.board.nic_counters(number),
            note=_noting(machine, number),
        )


def _noting(machine: Machine, slot: int) -> Callable[[int, int, int], None]:
    return lambda point, start_ns, length: machine.board.note(point, start_ns, slot, length)
