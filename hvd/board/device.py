"""What a device of the board is: one file under devices/, a class with reads and writes on ports or MMIO, and interrupt lines.

Devices that a running kernel touches all the time are in C (native/). docs/add-a-device.md walks through adding one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from hvd.board.machine import Machine


class PortDevice(Protocol):
    """Ports and MMIO are optional; the bus asks which ranges a device wants once, when the machine is made."""

    name: ClassVar[str]
    # Bytes of the widest access it takes (1, 2, 4); the bus splits wider ones, as an ISA bus does.
    widest: ClassVar[int]

    @property
    def ports(self) -> Sequence[range]:
        """I/O ports it claims."""

    # Optional: accesses: Sequence[tuple[int, int]], pairs of port and size. Such accesses come to this device although
    # the port is another one's, which gets those of other sizes: 0xCF9 lies within PCI's 0xCF8.

    def read_port(self, port: int, size: int) -> int:
        """Value of size (1, 2, 4) bytes. Any exception is a bug of the device, never the guest's doing."""

    def write_port(self, port: int, size: int, value: int) -> None: ...

    def reset(self) -> None:
        """The reset line."""

    # Optional: begin(): the machine was made ahead of its guest, which is known now (Machine.begin).

    def save(self) -> dict[str, Any]:
        """All that reads and writes depend on, for a snapshot: JSON values only, bytes as hex text. Between two
        instructions of the guest."""

    def restore(self, state: dict[str, Any]) -> None:
        """What save() gave, perhaps that of an older board, which lacks fields: those are as after a reset
        (hvd.board.saved checks them one by one). The device was just made; interrupt lines need not be driven, the
        interrupt controllers have a state of their own. Raises ValueError, KeyError, TypeError for anything that save()
        does not give, and is safe then, too: no index, length or address out of a file is used unchecked."""


class MmioDevice(Protocol):
    """A PortDevice that has memory-mapped registers, too, or only those (ports is empty then)."""

    name: ClassVar[str]

    @property
    def mmio(self) -> Sequence[range]:
        """Guest-physical addresses it claims; none of them may be RAM."""

    def read_mmio(self, address: int, size: int) -> int:
        """Value of size (1, 2, 4, 8) bytes."""

    def write_mmio(self, address: int, size: int, value: int) -> None: ...


class DeviceFactory(Protocol):
    """An entry of hvd.board.devices.DEVICES."""

    def __call__(self, machine: Machine) -> PortDevice: ...
