"""Which device of the board's Python side answers at a port or at a guest-physical address.

Where nobody answers the bus floats: reads give all ones, writes are lost. An access that is wider than its device, or
that reaches beyond it, is split, low half first, as an ISA bus controller does (Intel 82C206, "bus conversion").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvd.board.device import MmioDevice, PortDevice

PORTS = 1 << 16
ReadElsewhere = Callable[[int], int]
WriteElsewhere = Callable[[int, int], None]


def floating(size: int) -> int:
    """What a read of size bytes gives where nothing drives the bus."""
    return (1 << (8 * size)) - 1


def _float_byte(port: int) -> int:
    return 0xFF


def _lose_byte(port: int, value: int) -> None:
    return None


class Bus:
    """Ports and MMIO of the Python devices.

    An access can begin at a Python device's port and end at one of the C board's: bytes that no Python device claims
    go to read_elsewhere and write_elsewhere.
    """

    def __init__(
        self,
        devices: Iterable[PortDevice],
        read_elsewhere: ReadElsewhere = _float_byte,
        write_elsewhere: WriteElsewhere = _lose_byte,
    ) -> None:
        """Raises ValueError when two devices claim the same place: a bug in the table of devices."""
        self._ports: dict[int, PortDevice] = {}
        self._exact: dict[tuple[int, int], PortDevice] = {}  # by port and size
        self._mmio: list[tuple[int, int, MmioDevice]] = []
        self._read_elsewhere = read_elsewhere
        self._write_elsewhere = write_elsewhere
        for device in devices:
            for ports in device.ports:
                self._claim_ports(device, ports)
            for access in getattr(device, "accesses", ()):
                if access in self._exact:
                    raise ValueError(f"{device.name} and {self._exact[access].name} both claim port {access[0]:#x}")
                self._exact[access] = device
            for addresses in getattr(device, "mmio", ()):
                self._mmio.append((addresses.start, addresses.stop, device))  # type: ignore[arg-type]
        self._mmio.sort(key=lambda claim: claim[0])
        for below, above in zip(self._mmio, self._mmio[1:], strict=False):
            if above[0] < below[1]:
                raise ValueError(f"{below[2].name} and {above[2].name} both claim address {above[0]:#x}")
        self._mmio_starts = [claim[0] for claim in self._mmio]

    def _claim_ports(self, device: PortDevice, ports: range) -> None:
        for port in ports:
            if not 0 <= port < PORTS:
                raise ValueError(f"{device.name} claims port {port:#x}")
            if port in self._ports:
                raise ValueError(f"{device.name} and {self._ports[port].name} both claim port {port:#x}")
            self._ports[port] = device

    @property
    def claims(self) -> Iterable[int]:
        """Every port that a Python device claims."""
        return self._ports.keys()

    @property
    def mmio_claims(self) -> list[tuple[int, int, str]]:
        """(start, end, device's name) of every MMIO range, ascending; end is exclusive."""
        return [(start, stop, device.name) for start, stop, device in self._mmio]

    def _whole(self, port: int, size: int) -> PortDevice | None:
        """The device that takes all of the access at once."""
        device = self._exact.get((port, size))
        if device is not None:
            return device
        device = self._ports.get(port)
        if device is None or size > device.widest:
            return None
        last = port + size - 1
        return device if size == 1 or self._ports.get(last) is device else None

    def read_port(self, port: int, size: int) -> int:
        device = self._whole(port, size)
        if device is not None:
            return device.read_port(port, size) & floating(size)
        if size == 1:
            return self._read_elsewhere(port) & 0xFF
        half = size // 2
        low = self.read_port(port, half)
        return low | self.read_port((port + half) % PORTS, half) << (8 * half)

    def write_port(self, port: int, size: int, value: int) -> None:
        device = self._whole(port, size)
        if device is not None:
            device.write_port(port, size, value & floating(size))
        elif size == 1:
            self._write_elsewhere(port, value & 0xFF)
        else:
            half = size // 2
            self.write_port(port, half, value & floating(half))
            self.write_port((port + half) % PORTS, half, value >> (8 * half) & floating(half))

    def _mmio_at(self, address: int, size: int) -> MmioDevice | None:
        index = bisect_right(self._mmio_starts, address) - 1
        if index < 0:
            return None
        _, stop, device = self._mmio[index]
        return device if address + size <= stop else None

    def read_mmio(self, address: int, size: int) -> int:
        device = self._mmio_at(address, size)
        return floating(size) if device is None else device.read_mmio(address, size) & floating(size)

    def write_mmio(self, address: int, size: int, value: int) -> None:
        device = self._mmio_at(address, size)
        if device is not None:
            device.write_mmio(address, size, value & floating(size))
