"""Kernel streams as hvpvcc would have built them: each sensitive instruction is a site, with room for what replaces it.

Under emulation they run as they are; for paravirt, hvd's own rules (hvd.hvpvcc.finish) replace the sites. Calls of the paravirtual ABI are mixed
in, beside what does the same without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Final

from kernel_programs import Maker
from stream_guest import Program
from stream_kernel import BUFFER, CR0, CR4, DIRECTORY, ECHO_VECTOR, KERNEL, OTHER_DIRECTORY, PORT, USER, USER_TABLE
from stream_programs import SET_ESP, u32

from hvd.cell.decoder import Decoded, Decoder, Instruction, Map
from hvd.hvpvcc import finish
from hvd.hvpvcc.sites import Area, Kind, Shape, Site, Table
from hvd.hvpvcc.thunks import VCPU, Thunks

AREA: Final = 0x700000  # guest-physical: hypercall page and thunks
AREA_PAGES: Final = 32
CALL: Final = KERNEL + AREA
NOP, CLI, STI = 0x90, 0xFA, 0xFB
# Opcodes that are sites, as filter/classify.c has them; those that hvpvcc leaves no room are not here (loads of SS).
_ONE: Final = frozenset(
    (0xFA, 0xFB, 0x9C, 0x9D, 0xCF, 0x06, 0x0E, 0x16, 0x1E, 0x07, 0x1F, 0x8C, 0x8E, 0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF, 0x6C, 0x6D, 0x6E,
     0x6F, 0xC4, 0xC5, 0xEA, 0x9A, 0xCA, 0xCB)
)  # fmt: skip
_TWO: Final = frozenset(
    (0x00, 0x02, 0x03, 0x06, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x32, 0xA0, 0xA1, 0xA8, 0xA9, 0xB4, 0xB5)
)
# Code that knows how far it is to what follows an instruction which grows.
_DISTANCES: Final = (
    (b"\x83\x04\x24\x05\xcf", b"\x83\x04\x24\x09\xcf"),
    (b"\x83\x04\x24\x05\xcb", b"\x83\x04\x24\x09\xcb"),
    (b"\xeb\x01\xcb", b"\xeb\x05\xcb"),
)
_UNFIT: Final = (
    bytes((0xCD, ECHO_VECTOR)), b"\x83\xc8\x08\x0f\x22\xc0", b"\x0f\x01\xf0",
    *(b"\xb8" + u32(CR0 ^ bit) for bit in (2, 4, 8)), b"\xb8" + u32(CR4 ^ 0x200),
)  # fmt: skip
_decoder = Decoder()


def is_site(instruction: Instruction) -> bool:
    opcode, fields = instruction.opcode, (instruction.mod, instruction.reg)
    if instruction.map == Map.ONE:
        if opcode == 0x8E and fields[1] == 2:
            return False
        return opcode in _ONE or (opcode == 0xFF and fields[1] in (3, 5))
    if instruction.map != Map.TWO:
        return False
    if opcode == 0x01:
        return fields[0] != 3 or fields[1] in (4, 6)
    return opcode in _TWO


def instructions(code: bytes) -> list[tuple[bytes, bool]]:
    """Those of a piece of code, with whether each is a site; what cannot be decoded is the last."""
    found = []
    while code:
        if _decoder.decode_bytes(code) != Decoded.DECODED:
            return [*found, (code, False)]
        length = _decoder.instruction.length
        found.append((code[:length], is_site(_decoder.instruction)))
        code = code[length:]
    return found


def room(code: bytes) -> int:
    return 8 if code == bytes((CLI,)) else 5


def padded(atom: bytes) -> bytes:
    """As the filter has it assembled."""
    for short, far in _DISTANCES:
        atom = atom.replace(short, far)
    made = b""
    for code, site in instructions(atom):
        padding = bytes((NOP,)) * (room(code) - len(code)) if site else b""
        made += padding + code if code == bytes((STI,)) else code + padding
    return made


def sites(code: bytes, address: int) -> list[Site]:
    """Of padded code that will be at this address."""
    found, at, nops = [], 0, 0
    for instruction, site in instructions(code):
        lead = 4 if instruction == bytes((STI,)) else 0
        behind = at + len(instruction)
        padding = max(room(instruction) - len(instruction) - lead, 0)
        if site and nops >= lead and code[behind : behind + padding] == bytes((NOP,)) * padding:
            shape = Shape(Kind.LAR, lead + len(instruction) + padding, instruction, lead, True)
            found.append(Site(address + at - lead, shape))
        nops = nops + 1 if instruction == bytes((NOP,)) else 0
        at = behind
    return found


def replacements(found: Sequence[Site]) -> tuple[list[tuple[int, bytes]], bytes]:
    """What is written for these sites, ascending, by linear address; and the thunks, which are to be at Thunks.first."""
    area = Area(CALL, AREA_PAGES, False, 0)
    thunks = Thunks(area)
    kernel = SimpleNamespace(entry=0, segments=(), sections=(), code_section=lambda address: None)
    made = finish._replacements(kernel, Table(tuple(found), area), thunks)  # type: ignore[arg-type]
    return [(each.site.address, each.code) for each in made if each.code], bytes(thunks.code)


# ---- calls

MARK: Final = b"\x3e\x8d\x76\x00"  # lea 0(%esi), %esi with a prefix: does nothing, and nobody else writes it


def marked(native: bytes, call: bytes) -> bytes:
    """[MARK; jump over the call][call; jump over the rest][what does the same without the ABI]. Nothing in it may fault."""
    native = padded(native)
    call += b"\xe9" + u32(len(native))
    return SET_ESP + MARK + b"\xe9" + u32(len(call)) + call + native


def switched(code: bytes) -> bytes:
    """With the calls, and not what stands for them."""
    return re.sub(re.escape(MARK) + b"\xe9....", MARK + bytes((NOP,)) * 5, code, flags=re.DOTALL)


def load(register: int, value: int) -> bytes:
    return bytes((0xB8 | register,)) + u32(value)


EAX, ECX, EDX, EBX, ESI, EDI = 0, 1, 2, 3, 6, 7
PUSH, POP = b"\x53\x51\x56\x57", b"\x5f\x5e\x59\x5b"  # EBX, ECX, ESI, EDI


def result(value: int) -> bytes:
    return load(EAX, value) + load(EDX, value >> 32)


class ReplacedMaker(Maker):
    """Kernels from a seed, with room for replacements. Where a call is made, both forms are there: see switched()."""

    def __init__(self, seed: int, ring: int = 0) -> None:
        super().__init__(seed, ring, True)  # what is below the stack pointer is not looked at: thunks use it

    def program(self, length: int = 40) -> Program:
        program = super().program(length)
        program.notes["replaced"] = True
        return program

    def _atoms(self) -> list[bytes]:
        if self.ring == 0 and self._rng.random() < 0.1:
            return [self._hypercall()]
        while True:
            atoms = super()._atoms()
            if self.ring or not self._unfit(atoms):
                return [padded(atom) for atom in atoms] if self.ring == 0 else atoms

    def _unfit(self, atoms: list[bytes]) -> bool:
        """What the documentation excludes: a trap flag within replacements, the ABI's page, stacks that are no stacks where there are sites,
        what stops x87 and SSE instructions, INT n of the ABI."""
        code = b"".join(atoms)
        found = instructions(code)
        own_page = any(
            (one[:1] == b"\xbb" and int.from_bytes(one[1:5], "little") >= VCPU) or (one[:1] == b"\xc8" and one[3] > 1)
            for one, _ in found
        )
        traps = (
            any(one[:1] == b"\x68" and len(one) == 5 and one[2] & 1 for one, _ in found) and (b"\x9d", True) in found
        )
        moves_stack = any(one[:1] == b"\xbc" for atom in atoms[:-1] for one, _ in instructions(atom)) and any(
            site for _, site in found
        )
        return own_page or traps or moves_stack or any(text in code for text in _UNFIT)

    def _body(self) -> bytes:
        """Code that is written at run time is nobody's to replace."""
        ring, self.ring = self.ring, 3
        made = super()._body()
        self.ring = ring
        return made

    def _hypercall(self) -> bytes:
        native, call = self._rng.choice((
            self._version, self._nothing, self._switch, self._entry, self._entries, self._invalidate, self._flush, self._segment, self._port,
            self._cr0, self._read, self._several, self._refused,
        ))()  # fmt: skip
        return marked(native, call)

    def _make(self, number: int, *arguments: int) -> bytes:
        registers = (EBX, ECX, ESI, EDI)
        code = (
            PUSH
            + b"".join(load(register, value) for register, value in zip(registers, arguments, strict=False))
            + load(EAX, number)
        )
        return code + load(EDX, CALL) + b"\xff\xd2" + POP

    def _version(self) -> tuple[bytes, bytes]:
        return result(1), self._make(64)

    def _nothing(self) -> tuple[bytes, bytes]:
        return result(-38), self._make(self._rng.choice((94, 200, 0xFFFFFFFF)))

    def _switch(self) -> tuple[bytes, bytes]:
        where = self._rng.choice((DIRECTORY, OTHER_DIRECTORY))
        back = load(EBX, DIRECTORY) + b"\x0f\x22\xdb"
        use = b"\x36\xa1" + u32(USER + 0x8010) if where == OTHER_DIRECTORY else b""
        native = b"\x53" + load(EBX, where) + b"\x0f\x22\xdb" + use + back + b"\x5b" + result(0)
        return native, self._make(67, where) + use + self._make(67, DIRECTORY)

    def _page(self) -> tuple[int, int]:
        return self._rng.choice((8, 9, 0xA, 0xB)), self._rng.choice(
            (BUFFER | 7, BUFFER + 0x1000 | 7, BUFFER | 5, 0, BUFFER + 0x3000 | 5, BUFFER + 0x4000 | 3)
        )

    def _set(self, page: int, entry: int) -> bytes:
        return (
            b"\x36\xc7\x05"
            + u32(KERNEL + USER_TABLE + 4 * page)
            + u32(entry)
            + b"\x0f\x01\x3d"
            + u32(USER + page * 0x1000)
        )

    def _entry(self) -> tuple[bytes, bytes]:
        page, entry = self._page()
        return self._set(page, entry) + result(0), self._make(
            71, USER_TABLE + 4 * page, entry, USER + page * 0x1000 | 1, 0
        )

    def _write(self, at: int, words: Sequence[int]) -> bytes:
        return b"".join(b"\x36\xc7\x05" + u32(USER + at + 4 * n) + u32(word) for n, word in enumerate(words))

    def _entries(self) -> tuple[bytes, bytes]:
        pages = [self._page() for _ in range(self._rng.randrange(1, 4))]
        at = 0x400
        store = b""
        for n, (page, entry) in enumerate(pages):
            store += self._write(at + 24 * n, (USER_TABLE + 4 * page, 0, entry, 0, USER + page * 0x1000 | 1, 0))
        native = store + b"".join(self._set(page, entry) for page, entry in pages) + result(len(pages))
        return native, store + self._make(72, USER + at, len(pages))

    def _invalidate(self) -> tuple[bytes, bytes]:
        return b"\x0f\x01\x3d" + u32(USER + 0x8000) + result(0), self._make(
            70, USER + 0x8000, self._rng.choice((1, 2, 16))
        )

    def _flush(self) -> tuple[bytes, bytes]:
        return b"\x53\x0f\x20\xdb\x0f\x22\xdb\x5b" + result(0), self._make(69, self._rng.randrange(2))

    def _segment(self) -> tuple[bytes, bytes]:
        register = self._rng.choice((0, 3, 4, 5))
        selector = self._rng.choice((0x10, 0x23, 0x20) if register in (0, 3) else (0x10, 0x30, 0x38, 0x23, 0, 3, 0x50))
        native = b"\x53" + load(EBX, selector) + b"\x8e" + bytes((0xC3 | register << 3,)) + b"\x5b" + result(0)
        back = load(EBX, {4: 0x30, 5: 0x38}.get(register, 0x10)) + b"\x8e" + bytes((0xC3 | register << 3,))
        return native + back, self._make(80, register, selector) + padded(back)

    def _port(self) -> tuple[bytes, bytes]:
        port, size = PORT + self._rng.randrange(4), self._rng.choice((1, 4))
        value = self._rng.getrandbits(8 * size)
        native = load(EDX, port) + load(EAX, value) + (b"\xee" if size == 1 else b"\xef") + result(0)
        return native, self._make(87, port, size, value)

    def _cr0(self) -> tuple[bytes, bytes]:
        bits = self._rng.choice((0x10000, 0x20, 0x40000))
        native = load(EAX, CR0 ^ bits) + b"\x0f\x22\xc0" + load(EAX, CR0) + b"\x0f\x22\xc0" + result(0)
        return native, self._make(66, CR0 ^ bits) + self._make(66, CR0)

    def _read(self) -> tuple[bytes, bytes]:
        """What the page of the virtual processor has."""
        number = self._rng.choice((0, 2, 3, 4))
        offset = 0x10 + 4 * (number - (number > 1))
        return b"\x0f\x20" + bytes((0xC3 | number << 3,)), b"\x36\x8b\x1d" + u32(VCPU + offset)

    def _several(self) -> tuple[bytes, bytes]:
        (page, entry), at = self._page(), 0x400
        rows = [
            (71, USER_TABLE + 4 * page, entry, USER + page * 0x1000 | 1, 0, 7),
            (70, USER + page * 0x1000, 1, 0, 0, 7),
            (81, 0, 0, 0, 0, 7),
            (64, 0, 0, 0, 0, 7),
        ]
        results = (0, 0, -22, 1)
        store = b"".join(self._write(at + 24 * n, row) for n, row in enumerate(rows))
        done = b"".join(self._write(at + 24 * n + 20, (value,)) for n, value in enumerate(results))
        return store + self._set(page, entry) + done + result(4), store + self._make(65, USER + at, 4)

    def _refused(self) -> tuple[bytes, bytes]:
        rows = ((-22, 80, 2, 0x10), (-22, 80, 3, 0x40), (-22, 80, 4, 0xFFFC), (-22, 65, USER, 513), (-14, 65, 0x2000, 1), (-14, 72, USER + 0x2000, 2),
                (-22, 70, 0, 0x200000),
            (-14, 85, USER + 0x2000, 8), (-22, 85, USER, 4097), (-22, 86, 0x10000, 1), (-22, 86, 0x80, 3), (-22, 92, USER + 1, 0),
                (-22, 69, 2, 0), (-22, 90, 7, 0), (-22, 66, 0x80000000, 0))  # fmt: skip
        error, number, *arguments = self._rng.choice(rows)
        return result(error), self._make(number, *arguments)
