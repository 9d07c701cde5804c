"""Loaders on good images: what is put where, and in which state the guest begins."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from images import Segment

from hvd.board import memory as memory_module
from hvd.board.loaders import DEFAULT_LOAD_ADDRESS, identify, load
from hvd.board.memory import GuestMemory
from hvd.board.paging import walk
from hvd.board.tables import RSDP_ADDRESS
from hvd.board.vcpu import EntryState
from hvd.errors import HvdError

MIB = 1 << 20
GIB = 1 << 30
INITRD = bytes(range(256)) * 20


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 * MIB) as memory:
        yield memory


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestMemory]:
    monkeypatch.setattr(memory_module, "host_memory_available", lambda: 64 * GIB)
    with GuestMemory(5 * GIB) as memory:
        yield memory


def string(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, 4096).partition(b"\0")[0]


def check_protected(memory: GuestMemory, state: EntryState) -> None:
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (0x11, 0, 0, 0)
    assert state.registers["eflags"] == 2
    cs = state.segments["cs"]
    assert (cs.base, cs.limit, cs.attributes) == (0, 0xFFFF_FFFF, 0xC09B00)
    check_gdt(memory, state)


def check_gdt(memory: GuestMemory, state: EntryState) -> None:
    """The descriptors in memory say the same as the segments' hidden parts."""
    base, limit = state.gdt
    for name, segment in state.segments.items():
        if not segment.selector:
            continue
        assert segment.selector + 7 <= limit
        low, high = struct.unpack("<II", memory.read(base + segment.selector, 8))
        assert high & 0xF0FF00 == segment.attributes, name
        size = high & 0xF0000 | low & 0xFFFF
        assert (size << 12 | 0xFFF if high & 1 << 23 else size) == segment.limit, name
        assert high & 0xFF0000FF | low >> 16 == segment.base, name


def e820(memory: GuestMemory) -> list[tuple[int, ...]]:
    count = memory.read(0x101E8, 1)[0]
    return [struct.unpack("<QQI", memory.read(0x102D0 + 20 * n, 20)) for n in range(count)]


def test_bzimage_32_bit(memory: GuestMemory) -> None:
    loaded = load(memory, images.bzimage(payload=b"KERNEL" * 400), INITRD, "console=ttyS0")
    assert loaded.format == "bzimage"
    assert loaded.description == "Linux 6.1.0-x, 32-bit boot protocol 2.15"
    assert loaded.entry.registers == {"eip": 0x100000, "esi": 0x10000, "eflags": 2}
    check_protected(memory, loaded.entry)
    assert memory.read(0x100000, 2400) == b"KERNEL" * 400
    line, image, size = (struct.unpack("<I", memory.read(0x10000 + at, 4))[0] for at in (0x228, 0x218, 0x21C))
    assert string(memory, line) == b"console=ttyS0"
    assert (image, size) == (64 * MIB - 8192, len(INITRD))
    assert memory.read(image, size) == INITRD
    assert memory.read(0x10210, 1) == b"\xff"
    assert memory.read(0x10202, 4) == b"HdrS"
    assert e820(memory) == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x100000, 63 * MIB, 1)]


def test_bzimage_64_bit(memory: GuestMemory) -> None:
    loaded = load(memory, images.bzimage(xloadflags=1))
    state = loaded.entry
    assert state.registers == {"rip": 0x100200, "rsi": 0x10000, "rflags": 2}
    assert (state.cr0, state.cr4, state.efer) == (0x8000_0011, 0x20, 0x500)
    assert state.segments["cs"].selector == 0x10 and state.segments["cs"].attributes == 0xA09B00
    assert all(state.segments[name].selector == 0x18 for name in ("ds", "es", "ss"))
    check_gdt(memory, state)
    for address in (0, 0x100200, 0xDEAD_BEEF, 4 * GIB - 1):
        found = walk(memory, state.cr0, state.cr3, state.cr4, state.efer, address)
        assert found.physical_address == address and found.allows(write=True, execute=True)
    assert "PDPTE" in walk(memory, state.cr0, state.cr3, state.cr4, state.efer, 4 * GIB).fault


def test_bzimage_with_memory_above_4_gib(large: GuestMemory) -> None:
    load(large, images.bzimage(initrd_max=0x37FF_FFFF), INITRD)
    assert e820(large)[-2:] == [(0x100000, 3 * GIB - MIB, 1), (4 * GIB, 2 * GIB, 1)]
    image = struct.unpack("<I", large.read(0x10218, 4))[0]
    assert image == 0x3800_0000 - 8192  # as high as initrd_addr_max permits


def test_bzimage_that_cannot_move(memory: GuestMemory) -> None:
    loaded = load(memory, images.bzimage(relocatable=0, preferred=0x200000))
    assert loaded.entry.registers["eip"] == 0x200000
    assert memory.read(0x200000, 1) == b"\xf4"
    assert memory.read(0x10214, 4) == struct.pack("<I", 0x200000)


def test_old_bzimage(memory: GuestMemory) -> None:
    """Protocol 2.02: no relocation, no initrd_addr_max, 255 bytes of command line."""
    loaded = load(memory, images.bzimage(version=0x0202, header_end=0x22C), INITRD, "x" * 255)
    assert loaded.entry.registers["eip"] == 0x100000
    with pytest.raises(HvdError, match="this kernel takes 255"):
        load(memory, images.bzimage(version=0x0202, header_end=0x22C), None, "x" * 256)


@pytest.mark.parametrize("bits", [32, 64])
def test_pvh(memory: GuestMemory, bits: int) -> None:
    code = Segment(0x200000, b"code", 0x2000, virtual=0xC0200000)
    loaded = load(memory, images.pvh(0x200002, bits, [code]).build(), INITRD, "root=/dev/x")
    assert (loaded.format, loaded.description) == ("pvh", f"PVH kernel, ELF{bits}")
    check_protected(memory, loaded.entry)
    assert loaded.entry.registers["eip"] == 0x200002
    info = struct.unpack("<IIIIQQQQII", memory.read(loaded.entry.registers["ebx"], 56))
    magic, version, flags, modules, module_list, line, rsdp, table, entries, _ = info
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 1, RSDP_ADDRESS)
    assert string(memory, line) == b"root=/dev/x"
    address, size, _, _ = struct.unpack("<QQQQ", memory.read(module_list, 32))
    assert memory.read(address, size) == INITRD and address % 4096 == 0
    shown = [struct.unpack("<QQII", memory.read(table + 24 * n, 24))[:3] for n in range(entries)]
    assert shown == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x100000, 63 * MIB, 1)]


def test_pvh_note_padded_to_8(memory: GuestMemory) -> None:
    """As some linkers do for 64-bit files: names and descriptions padded to 8 bytes, p_align 8."""
    image = images.pvh(0x100000, 64)
    notes = image.segments[-1]
    notes.alignment = 8
    # "GNU", 5 bytes; then "Xen", 8 bytes.
    notes.data = struct.pack("<III", 4, 5, 3) + b"GNU\0" + b"12345\0\0\0"
    notes.data += struct.pack("<III", 4, 8, 18) + b"Xen\0" + struct.pack("<Q", 0x100004)
    assert load(memory, image.build()).entry.registers["eip"] == 0x100004
    # A name of 5 bytes makes the difference: the description is at 24 instead of 20.
    notes.data = struct.pack("<III", 5, 4, 3) + b"name\0".ljust(12, b"\0") + b"1234\0\0\0\0" + notes.data[24:]
    assert load(memory, image.build()).entry.registers["eip"] == 0x100004


def test_multiboot(memory: GuestMemory) -> None:
    loaded = load(memory, images.multiboot().build(), INITRD, "a b")
    assert (loaded.format, loaded.description) == ("multiboot", "Multiboot 1 kernel, ELF32")
    assert [loaded.entry.segments[name].selector for name in ("cs", "ds", "ss")] == [0x08, 0x10, 0x10]
    check_protected(memory, loaded.entry)
    registers = loaded.entry.registers
    assert (registers["eax"], registers["eip"]) == (0x2BADB002, 0x10000C)
    info = memory.read(registers["ebx"], 116)
    flags, lower, upper = struct.unpack_from("<III", info, 0)
    assert flags == 0b10_0100_1101 and (lower, upper) == (0x9FC00 // 1024, 63 * 1024)
    line, modules, module_list = struct.unpack_from("<III", info, 16)
    assert string(memory, line) == b"a b" and modules == 1
    start, end, name, _ = struct.unpack("<IIII", memory.read(module_list, 16))
    assert memory.read(start, end - start) == INITRD and start % 4096 == 0
    assert string(memory, name) == b"initrd"
    length, table = struct.unpack_from("<II", info, 44)
    assert length == 3 * 24
    assert struct.unpack("<IQQI", memory.read(table + 48, 24)) == (20, 0x100000, 63 * MIB, 1)


def test_multiboot_by_address(memory: GuestMemory) -> None:
    """The "a.out kludge": header at file offset 0x40 = load address + 0x30; 0x80 bytes and a bss."""
    addresses = (0x120030, 0x120000, 0x120080, 0x121000, 0x120050)
    data = bytes(0x10) + b"\xaa" * 0x30 + images.multiboot_header(1 << 16, addresses) + b"\xbb" * 0x100
    memory.write(0x120000, b"\xee" * 0x1000)
    loaded = load(memory, data)
    assert loaded.entry.registers["eip"] == 0x120050
    assert memory.read(0x120000, 0x80) == data[0x10:0x90]
    assert memory.read(0x120080, 0xF80) == bytes(0xF80)  # bss, and nothing of the file behind it


def test_elf_entry_is_translated(memory: GuestMemory) -> None:
    image = images.multiboot()
    image.segments[0].virtual = 0xC010_0000
    image.entry = 0xC010_000C
    assert load(memory, image.build()).entry.registers["eip"] == 0x10000C


def test_bss_is_cleared(memory: GuestMemory) -> None:
    memory.write(0x100000, b"\xee" * 0x4000)
    load(memory, images.multiboot().build())
    assert memory.read(0x10004C, 0x2FB4) == bytes(0x2FB4)
    assert memory.read(0x103000, 1) == b"\xee"


def test_boot_data_keeps_clear_of_the_kernel(memory: GuestMemory) -> None:
    """A kernel over all of conventional memory: boot data goes above it."""
    image = images.multiboot()
    image.segments.append(Segment(0x1000, b"\x11" * 0x9E000))
    loaded = load(memory, image.build(), INITRD, "x" * 100)
    assert memory.read(0x1000, 0x9E000) == b"\x11" * 0x9E000
    assert loaded.entry.registers["ebx"] >= 0x9F000


def test_flat(memory: GuestMemory) -> None:
    loaded = load(memory, b"\x7fELF anything", INITRD, "words", DEFAULT_LOAD_ADDRESS)
    assert (loaded.format, loaded.description) == ("flat", "flat binary at 0x100000")
    check_protected(memory, loaded.entry)
    registers = loaded.entry.registers
    assert (registers["eip"], registers["esp"]) == (0x100000, 0x100000)
    assert memory.read(0x100000, 13) == b"\x7fELF anything"
    assert string(memory, registers["esi"]) == b"words"
    assert memory.read(registers["ebx"], registers["ecx"]) == INITRD


def test_flat_in_the_smallest_guest() -> None:
    with GuestMemory(64 << 10) as memory:
        assert load(memory, b"\xf4", None, "", 0x1000).entry.registers["eip"] == 0x1000
        # The first 0x1000 bytes are the machine's; an empty file is one byte of what is there.
        assert load(memory, b"", None, "", 0x8000).format == "flat"


def test_identify_reads_the_header_only(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(images.bzimage(xloadflags=1))
    found = identify(kernel)
    assert (found.format, found.bits, found.end) == ("bzimage", 64, 0x1400000)
    found.check_fits(64 * MIB, 20 * MIB)
    with pytest.raises(HvdError) as caught:
        found.check_fits(32 * MIB, 20 * MIB)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.write(images.multiboot().build())
        file.truncate(1 << 40)  # a sparse file of 1 TiB
    assert identify(huge).format == "multiboot"


def test_a_file_costs_no_more_than_its_size(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(INITRD)
    with GuestMemory(64 * MIB) as memory:
        load(memory, images.bzimage(xloadflags=1), initrd)
        assert memory.allocated_bytes() < 128 << 10


@pytest.mark.parametrize(("name", "bits"), [("memtest86+ia32.bin", 32), ("memtest86+x64.bin", 64)])
def test_memtest(memory: GuestMemory, name: str, bits: int) -> None:
    kernel = Path("/boot") / name
    if not kernel.exists():
        pytest.skip("Debian's memtest86+ is not installed")
    found = identify(kernel)
    assert (found.format, found.bits) == ("bzimage", bits)
    entry = load(memory, kernel, None, "console=ttyS0").entry
    assert entry.registers["eip" if bits == 32 else "rip"] == (0x100000 if bits == 32 else 0x100200)
