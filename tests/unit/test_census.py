"""The census of sensitive instructions: what it finds, and how far it goes."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.cell.census import PAGE, Census, Descent
from hvd.cell.decoder import Decoded, Decoder
from hvd.cell.sensitive import sensitive
from hvd.images.symbol_table import read_symbols

GUESTS = Path(__file__).resolve().parents[2] / "build" / "guests"
START = 0x100000


def census_of(code: bytes, entries: tuple[int, ...] = (START,), **memory: bytes) -> Census:
    whole = {START: code} | {int(name[1:], 16): data for name, data in memory.items()}

    def read_page(page: int) -> bytes | None:
        for start, data in whole.items():
            if start <= page < start + len(data):
                return data[page - start : page - start + PAGE].ljust(PAGE, b"\0")
        return None

    return Descent(read_page).feed(entries)


SENSITIVE = {
    "9c": "pushf", "9d": "popf", "66 9d": "popf", "06": "push segment", "0e": "push segment", "16": "push segment", "1e": "push segment",
    "0f a0": "push segment", "0f a8": "push segment", "8c d8": "mov from segment", "8c 00": "mov from segment", "0f 01 00": "sgdt",
    "0f 01 08": "sidt", "0f 00 c0": "sldt", "0f 00 c8": "str", "0f 00 e0": "verr", "0f 00 e8": "verw", "0f 01 e0": "smsw", "0f 01 20": "smsw",
    "0f 02 c3": "lar", "0f 03 c3": "lsl", "0f a2": "cpuid", "0f 31": "rdtsc", "0f 01 f9": "rdtscp", "0f 01 d0": "xgetbv",
    "ea 00 00 10 00 23 00": "far transfer", "9a 00 00 10 00 33 00": "far transfer",
}  # fmt: skip
# They trap, or are nobody's business.
OTHERS = (
    "90", "fa", "fb", "f4", "cd 80", "cf", "1f", "07", "8e d8", "0f 01 10", "0f 01 18", "0f 01 38", "0f 00 d0", "0f 00 d8", "0f 20 c0",
    "0f 22 c0", "0f 30", "0f 32", "ea 00 00 10 00 08 00", "e4 80", "ec", "50", "58", "89 c3", "c3", "0f 01 c1",
)  # fmt: skip


@pytest.mark.parametrize("code", [*SENSITIVE, *OTHERS])
def test_sensitive_instructions(code: str) -> None:
    decoder = Decoder()
    data = bytes.fromhex(code)
    assert decoder.decode_bytes(data + b"\x90" * 8) == Decoded.DECODED
    assert decoder.instruction.length == len(data)
    found = sensitive(decoder.instruction)
    assert (found.name if found else None) == SENSITIVE.get(code)


def test_jumps_and_calls_are_followed() -> None:
    code = bytearray(b"\x90" * 64)
    code[0:2] = b"\x74\x0e"  # je 16
    code[2:7] = b"\xe8" + struct.pack("<i", 32 - 7)  # call 32
    code[7:9] = b"\xeb\x27"  # jmp 48
    code[16:18] = b"\x9c\xc3"
    code[32:35] = b"\x0f\xa2\xc3"
    code[48:50] = b"\x9d\xc3"
    code[50:52] = b"\x9c\xc3"  # nobody goes there
    census = census_of(bytes(code))
    assert [(finding.address - START, finding.what.name, finding.code) for finding in census.in_order()] == [
        (16, "pushf", b"\x9c"), (32, "cpuid", b"\x0f\xa2"), (48, "popf", b"\x9d")
    ]  # fmt: skip
    assert census.complete and census.pages == 1 and census.unknown == 0


def test_an_instruction_across_a_page_border() -> None:
    code = b"\x90" * (PAGE - 1) + b"\x0f\xa2\xf4\xc3"
    assert [finding.address for finding in census_of(code).in_order()] == [START + PAGE - 1]


def test_what_is_not_mapped_ends_the_way() -> None:
    census = census_of(b"\xe9" + struct.pack("<i", 0x1000000))
    assert census.instructions == 1 and not census.findings and census.complete


def test_what_the_decoder_does_not_know_is_counted() -> None:
    assert census_of(b"\x90\x0f\xff\xff").unknown + census_of(b"\x90\x0f\x04").unknown >= 1


def test_endless_loops_end() -> None:
    assert census_of(b"\xeb\xfe").instructions == 1


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=3 * PAGE), st.lists(st.integers(0, 0xFFFF_FFFF), max_size=4))
def test_any_bytes_as_code(code: bytes, entries: list[int]) -> None:
    census = census_of(code, (START, *entries))
    assert census.complete and census.instructions <= 3 * PAGE + 8
    for finding in census.in_order():
        offset = finding.address - START
        assert code[offset : offset + len(finding.code)].ljust(len(finding.code), b"\0") == finding.code


def test_no_time_means_incomplete() -> None:
    code = b"\x90" * (8 * PAGE) + b"\xc3"
    descent = Descent(lambda page: code[page - START : page - START + PAGE].ljust(PAGE, b"\0") if START <= page < START + len(code) else None)
    assert not descent.feed([START], seconds=-1).complete
    assert descent.feed([START + PAGE], seconds=30).instructions > PAGE


def test_a_second_look_goes_on_where_the_first_ended() -> None:
    code = b"\x9c\xc3" + b"\x90" * 14 + b"\x9d\xc3"
    descent = Descent(lambda page: code.ljust(PAGE, b"\0") if page == START else None)
    assert len(descent.feed([START]).findings) == 1
    before = descent.census.instructions
    assert len(descent.feed([START, START + 16]).findings) == 2
    assert descent.census.instructions == before + 2


def _segments(path: Path) -> tuple[int, dict[int, bytes]]:
    """Entry and loaded memory of a 32-bit ELF file."""
    data = path.read_bytes()
    entry, offset = struct.unpack_from("<II", data, 24)
    count = struct.unpack_from("<H", data, 44)[0]
    loaded = {}
    for n in range(count):
        kind, where, address, _, length = struct.unpack_from("<5I", data, offset + 32 * n)
        if kind == 1:
            loaded[address] = data[where : where + length]
    return entry, loaded


CLEAN = (
    "hello", "interrupts", "exceptions", "paging", "hypercalls", "compute", "echo", "ticker", "ports", "nonsense", "nano", "isolation",
    "spin", "halt", "triple", "reset", "wild", "flood", "exits", "virtio", "screen", "pvh", "modes", "garbage", "callers",
)  # fmt: skip


@pytest.mark.parametrize("name", [*CLEAN, "hole"])
def test_test_kernels(name: str) -> None:
    """The library of the test kernels stores no segment register and no flags; `hole` is there to do so."""
    path = GUESTS / f"{name}.elf"
    if not path.exists():
        pytest.fail(f"{path} is not built: make guests")
    entry, loaded = _segments(path)

    def read_page(page: int) -> bytes | None:
        for start, data in loaded.items():
            if start - start % PAGE <= page < start + len(data):
                begin = page - start
                return (data[begin : begin + PAGE] if begin >= 0 else b"\0" * -begin + data[: PAGE + begin]).ljust(PAGE, b"\0")
        return None

    census = Descent(read_page).feed([entry])
    assert census.complete and census.instructions > 100
    names = sorted(finding.what.name for finding in census.in_order())
    assert names == (["popf", "pushf"] if name == "hole" else [])


def test_symbols_of_elf_files(tmp_path: Path) -> None:
    table = read_symbols(GUESTS / "hole.elf")
    address = next(a for a, _, name in table._symbols if name == "interrupts_restore")
    assert table.name_of(address) == "interrupts_restore" and table.name_of(address + 3) == "interrupts_restore+0x3"
    assert table.name_of(0x10) == ""
    assert len(read_symbols(GUESTS / "long.elf")) > 10  # ELF64
    whole = (GUESTS / "hole.elf").read_bytes()
    for length in range(0, len(whole), 997):  # cut anywhere
        (tmp_path / "cut").write_bytes(whole[:length])
        read_symbols(tmp_path / "cut")
    assert len(read_symbols(tmp_path / "missing")) == 0


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_elf_files_have_no_symbols_or_some(data: st.DataObject) -> None:
    whole = bytearray((GUESTS / "hole.elf").read_bytes())
    for _ in range(8):
        whole[data.draw(st.one_of(st.integers(4, 63), st.integers(len(whole) - 700, len(whole) - 1)))] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file:
        file.write(whole)
        file.flush()
        read_symbols(Path(file.name))
