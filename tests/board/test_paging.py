"""The page-table walk: every mode and page size, rights, faults; the same answers as a processor's MMU (Unicorn's)."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.memory import GuestMemory
from hvd.board.paging import AddressSpace, Translation, paging_mode, walk
from hvd.errors import HvdError

MIB = 1 << 20
PG_PE = 0x8000_0001
WP = 0x1_0000
PSE, PAE, LA57, SMEP = 0x10, 0x20, 0x1000, 0x10_0000
LMA, NXE = 0x400, 0x800
NX = 1 << 63


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(4 * MIB) as memory:
        yield memory


def put32(memory: GuestMemory, table: int, index: int, value: int) -> None:
    memory.write(table + 4 * index, struct.pack("<I", value))


def put64(memory: GuestMemory, table: int, index: int, value: int) -> None:
    memory.write(table + 8 * index, struct.pack("<Q", value))


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "mode"),
    [
        (0x11, 0, 0, "none"),
        (0x8000_0000, 0, 0, "none"),
        (PG_PE, 0, 0, "32-bit"),
        (PG_PE, PAE, 0, "PAE"),
        (PG_PE, PAE, LMA, "4-level"),
        (PG_PE, PAE | LA57, LMA, "5-level"),
    ],
)
def test_modes(cr0: int, cr4: int, efer: int, mode: str) -> None:
    assert paging_mode(cr0, cr4, efer) == mode


def test_without_paging(memory: GuestMemory) -> None:
    found = walk(memory, 0x11, 0xDEAD_B000, 0, 0, 0x1_0000_1234)
    assert (found.mode, found.physical_address, found.entries, found.page_bytes) == ("none", 0x1234, (), 0)
    assert found.allows(write=True, execute=True, user=True)


def test_32_bit(memory: GuestMemory) -> None:
    put32(memory, 0x1000, 0x300, 0x2007)  # user, writable
    put32(memory, 0x2000, 0x123, 0x0030_0005)  # user, read-only
    found = walk(memory, PG_PE | WP, 0x1018, 0, 0, 0xC012_3456)  # CR3's PCD and PWT are no address bits
    assert found.physical_address == 0x0030_0456
    assert [(e.level, e.address, e.value) for e in found.entries] == [
        ("PDE", 0x1C00, 0x2007),
        ("PTE", 0x248C, 0x0030_0005),
    ]
    assert (found.page_bytes, found.writable, found.user, found.executable) == (4096, False, True, True)
    assert found.allows(user=True) and not found.allows(write=True)
    relaxed = walk(memory, PG_PE, 0x1000, 0, 0, 0xC012_3456)
    assert relaxed.allows(write=True) and not relaxed.allows(write=True, user=True)


def test_32_bit_large(memory: GuestMemory) -> None:
    put32(memory, 0x1000, 1, 0x0080_0083)
    found = walk(memory, PG_PE, 0x1000, PSE, 0, 0x0056_789A)
    assert (found.physical_address, found.page_bytes, found.user) == (0x0096_789A, 4 * MIB, False)
    assert not found.allows(user=True)
    # Without CR4.PSE bit 7 means nothing: a table at 0x800000, which is outside of RAM.
    assert "PTE at 0x80059c lies outside of RAM" in walk(memory, PG_PE, 0x1000, 0, 0, 0x0056_789A).fault


def test_pse_36(memory: GuestMemory) -> None:
    put32(memory, 0x1000, 0, 0x0040_0083 | 0x5A << 13)
    assert walk(memory, PG_PE, 0x1000, PSE, 0, 0x12_3456).physical_address == 0x5A_0052_3456
    put32(memory, 0x1000, 0, 0x0040_0083 | 1 << 21)
    assert "bit 21" in walk(memory, PG_PE, 0x1000, PSE, 0, 0).fault


def test_pae(memory: GuestMemory) -> None:
    put64(memory, 0x1020, 3, 0x2001)  # a PDPTE has no rights; the table is 32-byte aligned
    put64(memory, 0x2000, 1, 0x3007)
    put64(memory, 0x3000, 2, 0x1_2345_6000 | NX | 3)
    found = walk(memory, PG_PE, 0x1020, PAE, NXE, 0xC020_2ABC)
    assert found.physical_address == 0x1_2345_6ABC
    assert [e.level for e in found.entries] == ["PDPTE", "PDE", "PTE"]
    assert (found.writable, found.user, found.executable) == (True, False, False)
    put64(memory, 0x2000, 0, 0x0020_0000 | 0x87)
    assert walk(memory, PG_PE, 0x1020, PAE, 0, 0xC012_3456).physical_address == 0x32_3456
    put64(memory, 0x1020, 3, 0x2003)
    assert "reserved" in walk(memory, PG_PE, 0x1020, PAE, 0, 0xC000_0000).fault


def test_4_level(memory: GuestMemory) -> None:
    put64(memory, 0x1000, 511, 0x2007)
    put64(memory, 0x2000, 510, 0x3007)
    put64(memory, 0x3000, 3, 0x4007)
    put64(memory, 0x4000, 4, 0x0010_0003)
    put64(memory, 0x3000, 5, 0x0060_0000 | 0x83)
    put64(memory, 0x2000, 509, 0x4000_0000 | NX | 0x87)
    base = 0xFFFF_FFFF_8000_0000

    def at(address: int, efer: int = LMA | NXE) -> Translation:
        return walk(memory, PG_PE, 0x1000, PAE, efer, address)

    small = at(base + (3 << 21) + 0x4ABC)
    assert (small.physical_address, small.page_bytes, small.user) == (0x10_0ABC, 4096, False)
    assert [e.level for e in small.entries] == ["PML4E", "PDPTE", "PDE", "PTE"]
    middle = at(base + (5 << 21) + 0x12345)
    assert (middle.physical_address, middle.page_bytes, middle.executable) == (0x61_2345, 2 * MIB, True)
    huge = at(base - (1 << 30) + 0x1234_5678)
    assert (huge.physical_address, huge.page_bytes, huge.executable, huge.user) == (0x5234_5678, 1 << 30, False, True)
    assert "EFER.NXE" in at(base - (1 << 30), LMA).fault
    assert "not canonical" in at(0x0000_8000_0000_0000).fault
    assert "not canonical" in at(1 << 64).fault
    assert at(0).fault == "the PML4E at 0x1000 is not present"
    put64(memory, 0x1000, 511, 0x2087)
    assert "bit 7" in at(base).fault
    put64(memory, 0x1000, 511, 0x2007)
    put64(memory, 0x3000, 5, 0x0060_0000 | 0x4083)
    assert "reserved" in at(base + (5 << 21)).fault


def test_5_level(memory: GuestMemory) -> None:
    put64(memory, 0x1000, 1, 0x2003)
    put64(memory, 0x2000, 0, 0x3003)
    put64(memory, 0x3000, 0, 0x83)
    found = walk(memory, PG_PE, 0x1000, PAE | LA57, LMA, 1 << 48 | 0x1234)
    assert (found.physical_address, len(found.entries), found.mode) == (0x1234, 3, "5-level")


def test_smep(memory: GuestMemory) -> None:
    put32(memory, 0x1000, 0, 0x87)
    found = walk(memory, PG_PE, 0x1000, PSE | SMEP, 0, 0)
    assert found.allows(execute=True, user=True) and not found.allows(execute=True)
    assert walk(memory, PG_PE, 0x1000, PSE, 0, 0).allows(execute=True)


def test_address_space(memory: GuestMemory) -> None:
    put32(memory, 0x1000, 0, 0x2007)
    put32(memory, 0x2000, 0x10, 0x0010_0007)
    put32(memory, 0x2000, 0x11, 0x0020_0005)  # elsewhere, and read-only
    put32(memory, 0x2000, 0x13, 0xF000_0007)  # outside of RAM
    space = AddressSpace(memory, {"cr0": PG_PE | WP, "cr3": 0x1000, "cr4": 0, "efer": 0})
    assert space.write(0x10FFE, b"abcd") == [(0x10_0FFE, 2), (0x20_0000, 2)]
    assert memory.read(0x10_0FFE, 2) == b"ab" and memory.read(0x20_0000, 2) == b"cd"
    assert space.read(0x10FFE, 4) == b"abcd"
    assert space.read(0x12345, 0) == b""
    with pytest.raises(HvdError) as caught:
        space.read(0x11FFF, 2)
    assert caught.value.reason == "ADDRESS_UNMAPPED"
    assert caught.value.metadata == {"address": "0x12000", "problem": "the PTE at 0x2048 is not present"}
    with pytest.raises(HvdError) as caught:
        space.read(0x13000, 1)
    assert caught.value.reason == "ADDRESS_OUTSIDE"
    with pytest.raises(HvdError):
        space.write(0x11FFF, b"xy")
    assert space.read(0x11FFF, 1) == b"\0"


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([(PSE, 0), (PAE, 0), (PAE, LMA), (PAE, LMA | NXE), (PAE | LA57, LMA)]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)
def test_any_tables_and_any_registers(seed: int, mode: tuple[int, int], cr3: int, address: int) -> None:
    """Never an exception: an answer, or a fault with its reason."""
    with GuestMemory(64 << 10) as memory:
        memory.write(0, random.Random(seed).randbytes(64 << 10))
        found = walk(memory, PG_PE, cr3, mode[0], mode[1], address)
        assert (found.physical_address is None) == bool(found.fault)
        close = walk(memory, PG_PE, cr3 & 0xF000, mode[0], mode[1], address)
        assert (close.physical_address is None) == bool(close.fault)


# Against Unicorn's MMU: the guest reads a word through the tables; the walk must say which word, or that it faults.

# By a seed, since Hypothesis's own integers favour 0: few would get past the first entry.
FLAGS = [0x00, 0x01, 0x03, 0x05, 0x07, 0x07, 0x87, 0x87]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_agrees_with_a_processor(seed: int, pae: bool) -> None:
    unicorn = pytest.importorskip("unicorn")
    x86 = pytest.importorskip("unicorn.x86_const")
    size = 8 if pae else 4
    chance = random.Random(seed)
    entries = [(chance.randrange(16), chance.choice(FLAGS)) for _ in range(64)]
    low = chance.randrange(1 << 16)
    with GuestMemory(4 * MIB) as memory:
        # Every page holds its own number, after its table entries.
        for page in range(16):
            memory.write(page << 12 | 0x800, struct.pack("<I", page) * 0x200)
        # Page 1: the code, mapped one to one by entry 0; pages 2 and 3: tables whose first entries are random.
        memory.write(0x1000, bytes.fromhex("8b06f4"))  # mov eax, [esi]; hlt
        root = 0x2000
        if pae:
            memory.write(root, struct.pack("<4Q", 0x3001, 0x3001, 0, 0x3001))
        directory = 0x3000 if pae else root
        for index in range(16):
            target, flags = entries[index]
            base = (target >> 3 << 22 if not pae else 0) if flags & 0x80 else 0x4000 + (target & 1) * 0x1000
            memory.write(directory + size * index, (base | flags).to_bytes(size, "little"))
        for table in (0x4000, 0x5000):
            for index in range(16):
                target, flags = entries[16 + index + (16 if table == 0x5000 else 0)]
                memory.write(table + size * index, (target << 12 | flags & 0x7F).to_bytes(size, "little"))
            memory.write(table + size * 1, (0x1003).to_bytes(size, "little"))
        memory.write(directory, (0x4007).to_bytes(size, "little"))  # linear 0x1000 is the code
        large_shift = 21 if pae else 22
        address = (low >> 12) << large_shift | (low & 0xF) << 12 | 0x900
        if low & 1 and pae:
            address |= 3 << 30
        cr4 = PAE if pae else PSE
        expected = walk(memory, PG_PE, root, cr4, 0, address)

        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        uc.mem_map_ptr(0, memory.size, unicorn.UC_PROT_ALL, memory.host_address)
        faults: list[int] = []

        def on_interrupt(engine: object, vector: int, _: object) -> None:
            faults.append(vector)
            uc.emu_stop()

        uc.hook_add(unicorn.UC_HOOK_INTR, on_interrupt)
        uc.reg_write(x86.UC_X86_REG_CR4, cr4)
        uc.reg_write(x86.UC_X86_REG_CR3, root)
        uc.reg_write(x86.UC_X86_REG_CR0, PG_PE)
        uc.reg_write(x86.UC_X86_REG_ESI, address)
        if expected.physical_address is not None and expected.physical_address >= memory.size:
            return  # Unicorn stops at an access to what is not mapped into it
        uc.emu_start(0x1000, 0, count=3)
        if expected.physical_address is None:
            assert faults == [14], expected
        else:
            assert not faults, expected
            wanted = struct.unpack("<I", memory.read(expected.physical_address, 4))[0]
            assert uc.reg_read(x86.UC_X86_REG_EAX) == wanted, expected
