"""The bus of Python devices: floating, splitting, claims."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hvd.board.bus import Bus


class Recorder:
    """A device that answers each byte with its port's low byte and remembers what it was asked."""

    def __init__(self, name: str, ports: Sequence[range], widest: int = 1, mmio: Sequence[range] = ()) -> None:
        self.name, self.ports, self.widest, self.mmio = name, ports, widest, mmio
        self.seen: list[tuple[object, ...]] = []

    def read_port(self, port: int, size: int) -> int:
        self.seen.append(("in", port, size))
        return int.from_bytes(bytes((port + n) & 0xFF for n in range(size)), "little")

    def write_port(self, port: int, size: int, value: int) -> None:
        self.seen.append(("out", port, size, value))

    def read_mmio(self, address: int, size: int) -> int:
        self.seen.append(("read", address, size))
        return (1 << 80) - 1

    def write_mmio(self, address: int, size: int, value: int) -> None:
        self.seen.append(("write", address, size, value))

    def reset(self) -> None:
        self.seen.append(("reset",))


@pytest.mark.parametrize(("size", "value"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)])
def test_unclaimed_ports_float(size: int, value: int) -> None:
    bus = Bus([])
    assert bus.read_port(0xCF8, size) == value
    bus.write_port(0xCF8, size, 0)


def test_wide_access_to_a_byte_device_is_split() -> None:
    device = Recorder("d", [range(0x70, 0x72)])
    bus = Bus([device])
    assert bus.read_port(0x70, 2) == 0x7170
    bus.write_port(0x70, 2, 0xBBAA)
    assert device.seen == [("in", 0x70, 1), ("in", 0x71, 1), ("out", 0x70, 1, 0xAA), ("out", 0x71, 1, 0xBB)]


def test_wide_device_gets_the_whole_access() -> None:
    device = Recorder("d", [range(0x600, 0x604)], widest=4)
    Bus([device]).write_port(0x600, 4, 0x1_2345_6789)
    assert device.seen == [("out", 0x600, 4, 0x2345_6789)]


def test_access_beyond_a_device_is_split_and_the_rest_goes_elsewhere() -> None:
    device = Recorder("d", [range(0x600, 0x602)], widest=4)
    written: list[tuple[int, int]] = []
    bus = Bus([device], lambda port: 0x40 + (port & 0xF), lambda port, value: written.append((port, value)))
    assert bus.read_port(0x600, 4) == 0x43_42_01_00
    bus.write_port(0x5FF, 2, 0xBBAA)
    assert written == [(0x5FF, 0xAA)]
    assert device.seen[-1] == ("out", 0x600, 1, 0xBB)


def test_the_last_port_wraps() -> None:
    device = Recorder("d", [range(1), range(0xFFFF, 0x10000)])
    assert Bus([device]).read_port(0xFFFF, 2) == 0x00FF


def test_two_devices_cannot_claim_the_same_place() -> None:
    with pytest.raises(ValueError, match="both claim port 0x71"):
        Bus([Recorder("a", [range(0x70, 0x72)]), Recorder("b", [range(0x71, 0x73)])])
    with pytest.raises(ValueError, match="both claim address"):
        Bus([
            Recorder("a", [], mmio=[range(0xFEC0_0000, 0xFEC0_1000)]),
            Recorder("b", [], mmio=[range(0xFEC0_0FFF, 0xFEC0_2000)]),
        ])  # fmt: skip
    with pytest.raises(ValueError, match="claims port"):
        Bus([Recorder("a", [range(0xFFFF, 0x10001)])])


def test_mmio_reaches_its_device_only_within_its_range() -> None:
    device = Recorder("d", [], mmio=[range(0xFED0_0000, 0xFED0_0400)])
    bus = Bus([device])
    assert bus.read_mmio(0xFED0_0000, 8) == (1 << 64) - 1
    assert bus.read_mmio(0xFED0_03F8, 8) == (1 << 64) - 1
    bus.write_mmio(0xFED0_0010, 4, 0x1_0000_0002)
    assert device.seen == [("read", 0xFED0_0000, 8), ("read", 0xFED0_03F8, 8), ("write", 0xFED0_0010, 4, 2)]
    for outside in (0xFECF_FFFF, 0xFED0_03FF, 0xFED0_0400, 0):
        assert bus.read_mmio(outside, 2) == 0xFFFF
        bus.write_mmio(outside, 2, 1)
    assert len(device.seen) == 3
