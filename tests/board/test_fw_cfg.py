"""fw_cfg, read as SeaBIOS and Linux read it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ide_rig import MemoryImage

from hvd.board import firmware
from hvd.board.bus import Bus
from hvd.board.devices.fw_cfg import DMA_ERROR, DMA_READ, DMA_SELECT, DMA_SKIP, DMA_WRITE, FwCfg
from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.pci.bus import PciBus
from hvd.board.virtio.block import Block
from hvd.board.virtio.pci import VirtioPci
from hvd.trace.points import BackendId

MIB = 1 << 20
VIDEO = b"video bios" * 50


class Rig:
    def __init__(self, boot: str = "disk", disks: tuple[Any, ...] = ()) -> None:
        self.memory = GuestMemory(2 * MIB)
        self.changed: list[tuple[int, int]] = []
        vcpu = SimpleNamespace(memory_changed=lambda address, length: self.changed.append((address, length)))
        spec = SimpleNamespace(boot=boot, uid="00112233-4455-6677-8899-aabbccddeeff")
        self.machine: Any = SimpleNamespace(
            spec=spec, disks=disks, memory=self.memory, memory_bytes=2 * MIB, vcpu=vcpu,
            msi=lambda address, data: None, board=HotBoard(BackendId.EMULATION),
        )  # fmt: skip
        blocks = [Block(each.image, "disk", lambda text: None) for each in disks if each.spec.bus == "virtio"]
        functions = [VirtioPci(self.machine, block) for block in blocks]
        bus = PciBus(self.machine, [(slot, 0, function) for slot, function in enumerate(functions, 2)])
        self.machine.device = lambda kind: bus
        self.device = FwCfg(self.machine)
        self.bus = Bus([self.device])

    def read(self, item: int, length: int) -> bytes:
        self.bus.write_port(0x510, 2, item)
        return bytes(self.bus.read_port(0x511, 1) for _ in range(length))

    def dma(self, control: int, length: int = 0, address: int = 0, at: int = 0x1000) -> int:
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        for port, part in ((0x514, at >> 32), (0x518, at & 0xFFFFFFFF)):
            self.bus.write_port(port, 4, int.from_bytes(part.to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")

    def directory(self) -> dict[str, tuple[int, int]]:
        count = int.from_bytes(self.read(0x19, 4), "big")
        entries = self.read(0x19, 4 + 64 * count)[4:]
        found = {}
        for at in range(0, len(entries), 64):
            size, item, _, name = struct.unpack_from(">IHH56s", entries, at)
            found[name.rstrip(b"\0").decode()] = (item, size)
        return found

    def file(self, name: str) -> bytes:
        item, size = self.directory()[name]
        return self.read(item, size)


@pytest.fixture(autouse=True)
def video_bios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "read_video_bios", lambda: VIDEO)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.memory.close()


def test_items(rig: Rig) -> None:
    assert rig.read(0, 6) == b"QEMU\0\0"  # zeroes behind the end
    assert rig.read(1, 4) == struct.pack("<I", 3)
    assert rig.read(2, 16).hex() == "00112233445566778899aabbccddeeff"
    assert rig.read(3, 8) == struct.pack("<Q", 2 * MIB)
    assert rig.read(0x7777, 2) == bytes(2)


def test_files(rig: Rig) -> None:
    assert rig.file("etc/e820") == struct.pack("<QQI", 0, 2 * MIB, 1)
    assert rig.file("etc/sercon-port") == struct.pack("<H", 0x3F8)
    assert rig.file("vgaroms/vgabios.bin") == VIDEO
    assert rig.file("bootorder") == b"HALT\0"


def disk(bus: str, cdrom: bool = False) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(name="disk", bus=bus, cdrom=cdrom), image=MemoryImage(bytes(4096)))


def test_boot_order() -> None:
    disks = (disk("ide"), disk("virtio"), disk("ide", True), disk("ide"), disk("ide", True), disk("virtio"))
    first, second = (Rig(boot, disks).file("bootorder").rstrip(b"\0").decode().split("\n") for boot in ("disk", "cdrom"))
    assert first == [
        "/pci@i0cf8/ide@1,1/drive@0/disk@0",
        "/pci@i0cf8/scsi@2/disk@0,0",
        "/pci@i0cf8/ide@1,1/drive@0/disk@1",
        "/pci@i0cf8/scsi@3/disk@0,0",
        "HALT",
    ]
    assert second == [*(f"/pci@i0cf8/ide@1,1/drive@1/disk@{side}" for side in (0, 1)), "HALT"]


def test_a_machine_without_firmware_has_none() -> None:
    assert Rig("kernel").device.ports == ()


def test_dma(rig: Rig) -> None:
    signature = struct.pack("<II", rig.bus.read_port(0x514, 4), rig.bus.read_port(0x518, 4))
    assert signature == b"QEMU CFG"
    item, size = rig.directory()["vgaroms/vgabios.bin"]
    assert rig.dma(item << 16 | DMA_SELECT | DMA_READ, size, 0x8000) == 0
    assert rig.memory.read(0x8000, size) == VIDEO and (0x8000, size) in rig.changed
    assert rig.dma(item << 16 | DMA_SELECT | DMA_SKIP, 3) == 0
    assert rig.dma(DMA_READ, 4, 0x8000) == 0
    assert rig.memory.read(0x8000, 4) == VIDEO[3:7]
    rig.memory.write(0x9000, b"x" * 8)
    assert rig.dma(0 << 16 | DMA_SELECT | DMA_READ, 8, 0x9000) == 0
    assert rig.memory.read(0x9000, 8) == b"QEMU\0\0\0\0"


def test_dma_that_fails(rig: Rig) -> None:
    assert rig.dma(DMA_SELECT | DMA_WRITE, 4, 0x8000) == DMA_ERROR
    for address, length in ((2 * MIB, 1), (2 * MIB - 1, 2), (0x8000, 0xFFFFFFFF), (1 << 63, 16)):
        assert rig.dma(DMA_SELECT | DMA_READ, length, address) == DMA_ERROR
    rig.bus.write_port(0x518, 4, 0xFFFFFFFF)  # a descriptor that lies nowhere


def test_save(rig: Rig) -> None:
    rig.read(0, 2)
    state = json.loads(json.dumps(rig.device.save()))
    other = Rig()
    other.device.restore(state)
    assert [other.bus.read_port(0x511, 1) for _ in range(2)] == list(b"MU")
    for broken in ({"offset": True}, {"selected": -1, "offset": 0, "dma_high": 0}, {"selected": 0, "offset": "x", "dma_high": 0}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            other.device.restore(broken)
    other.memory.close()


ports = st.sampled_from(range(0x510, 0x51C))
sizes = st.sampled_from([1, 2, 4])
addresses = st.integers(0, 2 * MIB + 16) | st.integers(0, (1 << 64) - 1)
write = st.tuples(st.just("write"), ports, sizes, st.integers(0, 0xFFFFFFFF))
read = st.tuples(st.just("read"), ports, sizes, st.just(0))
dma = st.tuples(st.just("dma"), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), addresses)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(write, read, dma), max_size=40))
def test_anything(asked: list[tuple[str, int, int, int]]) -> None:
    rig = Rig()
    for kind, first, second, third in asked:
        if kind == "write":
            rig.bus.write_port(first, second, third & (1 << 8 * second) - 1)
        elif kind == "read":
            assert 0 <= rig.bus.read_port(first, second) < 1 << 8 * second
        else:
            assert rig.dma(first, second, third) >= 0
    state = rig.device.save()
    rig.device.restore(json.loads(json.dumps(state)))
    assert rig.device.save() == state
    rig.memory.close()
