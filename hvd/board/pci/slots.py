"""Which functions a machine has: the bridges, then a slot for each virtio device, in the order of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from hvd.board.pci.bridges import HostBridge, IdeFunction, IsaBridge
from hvd.board.pci.bus import PciBus, intx_gsi
from hvd.board.pci.function import PciFunction
from hvd.board.virtio.devices import virtio_devices
from hvd.board.virtio.pci import VirtioPci

if TYPE_CHECKING:
    from hvd.board.machine import Machine

# PIRQA is what pin INTA of slot 1 is wired to, INTD of slot 2, ...: what firmware (QEMU's, SeaBIOS) takes for granted.
PIRQ_SLOT: Final = 1
FIRST_VIRTIO_SLOT: Final = 2


def pci_bus(machine: Machine) -> PciBus:
    """The row of hvd.board.devices.DEVICES."""
    return PciBus(machine, _functions(machine))


def _functions(machine: Machine) -> Iterator[tuple[int, int, PciFunction]]:
    yield 0, 0, HostBridge()
    a, b, c, d = (intx_gsi(PIRQ_SLOT, pin) for pin in range(4))
    yield 1, 0, IsaBridge((a, b, c, d))
    if any(disk.spec.bus == "ide" for disk in machine.disks):
        yield 1, 1, IdeFunction()
    for slot, device in enumerate(virtio_devices(machine), FIRST_VIRTIO_SLOT):
        yield slot, 0, VirtioPci(machine, device)
