"""Loaders on bad images: every one a clear error with its reason, and never a byte outside of what the guest owns."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import images
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from images import ElfImage, Segment

from hvd.board.loaders import identify, load
from hvd.board.memory import GuestMemory
from hvd.errors import HvdError

MIB = 1 << 20


def elf(**fields: object) -> bytes:
    image = images.pvh()
    for name, value in fields.items():
        setattr(image, name, value)
    return image.build()


def with_segments(*segments: Segment) -> bytes:
    return images.pvh(segments=list(segments)).build()


def patched(data: bytes, offset: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


CODE = Segment(0x100000, b"\xf4" * 64)
BAD: dict[str, tuple[bytes, str, str]] = {
    # name: image, reason, a part of the message
    "empty": (b"", "IMAGE_FORMAT", "it is empty"),
    "one byte": (b"\x7f", "IMAGE_FORMAT", "no header that is known"),
    "random": (random.Random(1).randbytes(100_000), "IMAGE_FORMAT", "no header that is known"),
    "text": (b"#!/bin/sh\n" * 1000, "IMAGE_FORMAT", "no header that is known"),
    # ELF
    "ARM": (elf(machine=40), "IMAGE_FORMAT", "an ELF file for ARM, not for x86"),
    "AArch64": (elf(bits=64, machine=183), "IMAGE_FORMAT", "for AArch64"),
    "big-endian": (b"\x7fELF\x01\x02\x01" + bytes(9) + b"\0\2\0\x14" + bytes(60), "IMAGE_FORMAT", "for PowerPC"),
    "no class": (patched(elf(), 4, "B", 0), "IMAGE_FORMAT", "class 0"),
    "object file": (elf(type=1), "IMAGE_FORMAT", "a relocatable object"),
    "shared library": (elf(type=3), "IMAGE_FORMAT", "position-independent or a library"),
    "plain executable": (ElfImage([CODE]).build(), "IMAGE_FORMAT", "without a PVH note or a Multiboot 1 header"),
    "only the magic": (b"\x7fELF", "IMAGE_TRUNCATED", "ends at byte 4"),
    "header cut": (elf()[:40], "IMAGE_TRUNCATED", "ends at byte 40"),
    "table cut": (elf()[:60], "IMAGE_TRUNCATED", "ends at byte 60"),
    "segment cut": (elf()[:130], "IMAGE_TRUNCATED", "ends at byte 130"),
    "no program headers": (patched(elf(), 44, "<H", 0), "IMAGE_LAYOUT", "0 program headers"),
    "odd program headers": (patched(elf(), 42, "<H", 20), "IMAGE_LAYOUT", "of 20 bytes"),
    "nothing to load": (with_segments(), "IMAGE_LAYOUT", "no segment to load"),
    "overlap": (with_segments(CODE, Segment(0x10003F, b"x")), "IMAGE_LAYOUT", "overlap"),
    "same place twice": (with_segments(CODE, CODE), "IMAGE_LAYOUT", "overlap"),
    "above 3 GiB": (with_segments(CODE, Segment(0xC0000000, b"x")), "IMAGE_LAYOUT", "above 3 GiB"),
    "more in the file": (with_segments(Segment(0x100000, b"abcd", 3)), "IMAGE_LAYOUT", "more bytes in the file"),
    "outside of RAM": (with_segments(CODE, Segment(16 * MIB - 4, b"12345")), "IMAGE_TOO_LARGE", "16777217 bytes"),
    "huge bss": (with_segments(Segment(0x100000, b"\xf4", 1 << 30)), "IMAGE_TOO_LARGE", "there are 16777216"),
    "64-bit address": (
        images.pvh(0x100000, 64, [CODE, Segment((1 << 64) - 64, b"x" * 64)]).build(),
        "IMAGE_LAYOUT",
        "above 3 GiB",
    ),
    "PVH entry outside": (images.pvh(0x90000000).build(), "IMAGE_LAYOUT", "PVH entry 0x90000000 lies in no segment"),
    # Multiboot
    "Multiboot entry outside": (
        ElfImage([Segment(0x100000, images.multiboot_header())], 0x400000).build(),
        "IMAGE_LAYOUT",
        "its entry 0x400000 lies in no segment",
    ),
    "unknown feature": (images.multiboot(0x13).build(), "IMAGE_FORMAT", "unknown features (0x10)"),
    "Multiboot and no ELF": (images.multiboot_header() + bytes(100), "IMAGE_FORMAT", "no load addresses"),
    "address fields cut": (images.multiboot_header(1 << 16), "IMAGE_TRUNCATED", "needs 32"),
    "header before its image": (
        images.multiboot_header(1 << 16, (0x100100, 0x100000, 0, 0, 0x100100)),
        "IMAGE_LAYOUT",
        "its place in the file contradicts",
    ),
    "load end below": (
        images.multiboot_header(1 << 16, (0x100000, 0x100000, 0xFFFFF, 0, 0x100000)),
        "IMAGE_LAYOUT",
        "load end",
    ),
    "bss end below": (
        images.multiboot_header(1 << 16, (0x100000, 0x100000, 0x100020, 0x100010, 0x100000)),
        "IMAGE_LAYOUT",
        "bss end",
    ),
    "loads more than it has": (
        images.multiboot_header(1 << 16, (0x100000, 0x100000, 0x200000, 0, 0x100000)),
        "IMAGE_TRUNCATED",
        "needs 1048576",
    ),
    "loads above 3 GiB": (
        images.multiboot_header(1 << 16, (0xFFFFFF00, 0xFFFFFF00, 0, 0, 0xFFFFFF00)) + bytes(1000),
        "IMAGE_LAYOUT",
        "above 3 GiB",
    ),
    # bzImage
    "setup cut": (images.bzimage()[:0x210], "IMAGE_TRUNCATED", "ends at byte 528"),
    "payload cut": (images.bzimage()[:-20], "IMAGE_TRUNCATED", "ends at byte"),
    "no payload": (images.bzimage(payload=b""), "IMAGE_TRUNCATED", "needs 2561"),
    "ancient": (images.bzimage(version=0x0201), "IMAGE_FORMAT", "2.01 is older than 2.02"),
    "zImage": (images.bzimage(loadflags=0), "IMAGE_FORMAT", "zImage"),
    "header too long": (images.bzimage(header_end=0x301), "IMAGE_FORMAT", "ends at 0x301"),
    "loads at 0": (images.bzimage(relocatable=0, preferred=0x1000), "IMAGE_LAYOUT", "at 0x1000"),
    "needs too much": (images.bzimage(init_size=0x1000000), "IMAGE_TOO_LARGE", "needs 33554432 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image(name: str) -> None:
    image, reason, part = BAD[name]
    with GuestMemory(16 * MIB) as memory:
        with pytest.raises(HvdError) as caught:
            load(memory, image)
        assert caught.value.reason == reason
        assert part in str(caught.value)
        assert memory.allocated_bytes() == 0, "a bad image writes nothing"
    if reason != "IMAGE_TOO_LARGE":
        with pytest.raises(HvdError) as caught:
            identify(image)
        assert caught.value.reason == reason


GOOD: dict[str, Callable[[], bytes]] = {
    "bzimage": lambda: images.bzimage(preferred=0x200000),
    "bzimage64": lambda: images.bzimage(preferred=0x200000, xloadflags=1),
    "pvh": lambda: images.pvh().build(),
    "pvh64": lambda: images.pvh(bits=64).build(),
    "multiboot": lambda: images.multiboot().build(),
    "kludge": lambda: images.multiboot_header(1 << 16, (0x100000, 0x100000, 0, 0x102000, 0x100020)) + b"\xf4" * 200,
}


@pytest.mark.parametrize("kind", GOOD)
def test_initrd_too_large(kind: str, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(16 * MIB)
    with GuestMemory(16 * MIB) as memory:
        with pytest.raises(HvdError) as caught:
            load(memory, GOOD[kind](), initrd)
        assert caught.value.reason == "IMAGE_TOO_LARGE"
        assert "the initrd needs 16777216 bytes" in str(caught.value)


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(("line", "part"), [("a\0b", "NUL"), ("x" * 5000, "5000 bytes")])
def test_bad_command_line(kind: str, line: str, part: str) -> None:
    with GuestMemory(16 * MIB) as memory:
        with pytest.raises(HvdError, match=part) as caught:
            load(memory, GOOD[kind](), None, line)
        assert caught.value.reason == "FIELD_INVALID"


@pytest.mark.parametrize("kind", GOOD)
def test_too_little_memory(kind: str) -> None:
    with GuestMemory(64 << 10) as memory, pytest.raises(HvdError) as caught:
        load(memory, GOOD[kind]())
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("address", [1, 0xFFF, 3 << 30, 1 << 64, -1])
def test_flat_at_a_bad_address(address: int) -> None:
    with pytest.raises(HvdError) as caught:
        identify(b"x", address)
    assert caught.value.reason == "FIELD_INVALID"


def test_flat_too_large(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with GuestMemory(1 * MIB) as memory, pytest.raises(HvdError) as caught:
        load(memory, huge, None, "", 0x10000)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    from hvd.board.loaders.image import ImageFile

    path = tmp_path / "kernel"
    path.write_bytes(bytes(100))
    with ImageFile(path) as image:
        path.write_bytes(bytes(50))
        with pytest.raises(HvdError) as caught:
            image.read(0, 100)
    assert caught.value.reason == "IMAGE_TRUNCATED"


def test_a_file_that_shrinks_before_it_is_copied(tmp_path: Path) -> None:
    from hvd.board.loaders.image import ImageFile

    path = tmp_path / "kernel"
    path.write_bytes(bytes(100))
    with ImageFile(path) as image, GuestMemory(1 * MIB) as memory:
        path.write_bytes(bytes(50))
        with pytest.raises(HvdError) as caught:
            image.copy(10, 90, memory, 0x1000)
    assert caught.value.reason == "IMAGE_TRUNCATED"
    assert caught.value.metadata["length"] == "50"


def test_loading_ahead_fails_where_it_is_waited_for(tmp_path: Path) -> None:
    from hvd.board.loaders.ahead import LoadAhead
    from hvd.board.spec import MachineSpec

    with GuestMemory(1 * MIB) as memory:
        with pytest.raises(FileNotFoundError):
            LoadAhead(memory, MachineSpec("x", "none", "", 1 * MIB, str(tmp_path / "nowhere"))).loaded()
        path = tmp_path / "kernel"
        path.write_bytes(b"no kernel at all")
        with pytest.raises(HvdError) as caught:
            LoadAhead(memory, MachineSpec("x", "none", "", 1 * MIB, str(path))).loaded()
    assert caught.value.reason == "IMAGE_FORMAT"


def attempt(data: bytes, initrd: bytes | None = None, line: str = "", flat: int = 0) -> None:
    """Only HvdError comes out; if it loads, the entry lies in RAM, and so does all that the state points to."""
    with GuestMemory(4 * MIB) as memory:
        try:
            state = load(memory, data, initrd, line, flat).entry
        except HvdError as error:
            assert error.reason in {
                "IMAGE_FORMAT",
                "IMAGE_TRUNCATED",
                "IMAGE_TOO_LARGE",
                "IMAGE_LAYOUT",
                "FIELD_INVALID",
            }
            return
        entry = state.registers.get("eip", state.registers.get("rip", -1))
        assert 0 <= entry < memory.size
        memory.read(state.gdt[0], state.gdt[1] + 1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000), st.sampled_from([b"", b"\x7fELF", b"\x7fELF\1\1\1", b"\x7fELF\2\1\1"]))
def test_random_bytes(data: bytes, prefix: bytes) -> None:
    attempt(prefix + data)


INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0xFFF, 0xFFFF, 0x10000, 0xFFFFF, 0x100000, 0x3FFFFF, 0x400000, 0x7FFFFFFF]
INTERESTING += [0x80000000, 0xC0000000, 0xFFFFFFFF, 0xFFFFF000]


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(
        st.tuples(st.integers(0, 700), st.sampled_from(INTERESTING) | st.integers(0, 0xFFFFFFFF), st.integers(1, 4)),
        max_size=4,
    ),
    st.none() | st.integers(0, 5000),
    st.none() | st.integers(0, 6 * MIB),
    st.text(max_size=20),
)
@example("pvh64", [(64 + 24, 0xFFFFFFFF, 4)], None, None, "")
def test_mutated_headers(
    kind: str, changes: list[tuple[int, int, int]], cut: int | None, initrd: int | None, line: str
) -> None:
    data = bytearray(GOOD[kind]())
    # In ELF files all the headers are at the start; in a bzImage the header begins at 0x1f1.
    base = 0x1F1 if kind.startswith("bzimage") else 0
    span = 0x80 if kind.startswith("bzimage") else min(240, len(data) - 4)
    for offset, value, width in changes:
        at = base + offset % span
        data[at : at + width] = value.to_bytes(4, "little")[:width]
    attempt(bytes(data[:cut]), None if initrd is None else bytes(initrd), line)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=500), st.integers(-1, 1 << 33), st.text(max_size=5000))
def test_flat_anywhere(data: bytes, address: int, line: str) -> None:
    attempt(data, b"initrd", line, address)
