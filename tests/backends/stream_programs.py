"""Random programs for stream_guest: kernel and user code in which sensitive instructions, faults and self-modification are common.

Instructions that leave flags undefined are followed by a CMP, which defines them all. Left out is what differs on purpose: CPUID, RDTSC,
and for programs (ring 3) what reads the host's selectors, tables and control registers (docs/rewriting.md).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

from stream_guest import Program
from stream_kernel import CR4, STACK, USER, Paging
from streams import EDI, ESI, Stream

COMPARE: Final = b"\x39\xd8"  # cmp eax, ebx
SET_ESI: Final = b"\xbe" + struct.pack("<I", USER)
SET_ESP: Final = b"\xbc" + struct.pack("<I", STACK)
# Offsets from USER at which something is amiss, or two pages meet.
WILD: Final = (
    0xFFE,
    0xFFD,
    0xFFF,
    0x1FFE,
    0x1FFD,
    0x2000,
    0x2FFE,
    0x3000,
    0x3010,
    0x3FFE,
    0x4000,
    0x4020,
    0x5000,
    0x6010,
    0x6FFE,
    0x7010,
    0x7FFE,
    0x8010,
    0x8FFE,
    0x9010,
    0xA000,
    0xB010,
    0x11000,
    0x12000,
)
CODE_STUBS: Final = 0x1800  # offset of the buffer's part that code is written to
COUNTERS: Final = 0x1F00  # offset of loop counters


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


class PlainMaker(Stream):
    """What kernels and programs have in common; fault_programs and kernel_programs have the rest."""

    def __init__(self, seed: int, ring: int | None = None, timer: bool = False, paging: Paging = Paging.SMALL) -> None:
        self._rng = rng = random.Random(seed)
        self._paging_kind = paging
        self._cr4 = CR4 | paging.cr4
        self.ring = ring if ring is not None else rng.choice((0, 0, 0, 3))
        self.timer = timer
        self.seed = seed
        self._wild = 0.12

    def program(self, length: int = 40) -> Program:
        rng = self._rng
        chunks = [self._chunk() for _ in range(length)]
        eflags = 2 | rng.getrandbits(12) & 0x8D5 | (0x200 if self.ring == 3 else rng.choice((0, 0x200)))
        return Program(self.ring, eflags, [rng.getrandbits(32) for _ in range(8)], chunks, self.seed)

    # ---- what programs consist of

    def _chunk(self) -> list[bytes]:
        rng = self._rng
        atoms = self._atoms()
        kind = rng.random()
        if kind < 0.08 and sum(map(len, atoms)) < 100:  # Jcc over it
            jump = bytes((0x70 | rng.randrange(16), sum(map(len, atoms))))
            if rng.random() < 0.3:
                jump = b"\x0f" + bytes((0x80 | rng.randrange(16),)) + u32(sum(map(len, atoms)))
            return [jump, *atoms]
        if kind < 0.2:
            return self._loop([*atoms, *self._atoms(), *self._atoms()])
        return atoms

    def _loop(self, body: list[bytes]) -> list[bytes]:
        counter = u32(COUNTERS + 4 * self._rng.randrange(8))
        start = b"\xc7\x86" + counter + u32(self._rng.choice((3, 10, 100)))
        length = sum(map(len, body))
        restore = SET_ESI
        back = b"\xff\x8e" + counter
        jump = b"\x0f\x8f" + struct.pack("<i", -(length + len(restore) + len(back) + 6))
        # dec dword [esi + counter]; jg: what was written over ends the loop soon, too
        return [start, *body, restore, back + jump]

    def _atoms(self) -> list[bytes]:
        rng = self._rng
        tables: list[list[Callable[[], list[bytes]]]] = [self._plain_table(), self._wild_table()]
        weights = [55, 20]
        if self.ring == 0:
            tables.append(self._kernel_table())
            weights.append(45)
        else:
            tables.append(self._user_table())
            weights.append(15)
        return rng.choice(rng.choices(tables, weights)[0])()

    def _plain_table(self) -> list[Callable[[], list[bytes]]]:
        clean = (
            self._alu,
            self._alu_imm,
            self._unary,
            self._move,
            self._extend,
            self._exchange,
            self._compare_exchange,
            self._condition,
            self._one_byte,
            self._stack,
            self._lea,
            self._call,
            self._string,
        )
        dirty = (self._shift, self._double_shift, self._bits, self._divide, self._adjust, self._multiply, self._scan)
        table: list[Callable[[], list[bytes]]] = [lambda make=make: [make()] for make in clean]  # type: ignore[misc]
        table += [lambda make=make: [make() + COMPARE] for make in dirty]  # type: ignore[misc]
        return [
            *table,
            *table[:6],
            self._flags_atom,
            self._sse,
            self._x87,
            self._stack_moves,
            self._segment_operand,
            self._short_address,
            self._mem_flow,
        ]

    def _wild_table(self) -> list[Callable[[], list[bytes]]]:
        raise NotImplementedError

    def _kernel_table(self) -> list[Callable[[], list[bytes]]]:
        raise NotImplementedError

    def _user_table(self) -> list[Callable[[], list[bytes]]]:
        raise NotImplementedError

    def _operand(self, field: int, wide: int = 1, memory: bool | None = None) -> tuple[bytes, bytes]:
        rng = self._rng
        if memory is None:
            memory = rng.random() < 0.5
        if not memory:
            return b"", bytes((0xC0 | field << 3 | self._register(wide),))
        offset = self._edge() if rng.random() < self._wild else rng.randrange(CODE_STUBS - 16)
        kind = rng.randrange(10)
        if kind < 4:
            return b"", bytes((0x80 | field << 3 | ESI,)) + u32(offset)
        if kind < 6:
            scale = rng.randrange(4)
            return b"\x81\xe7\xff\0\0\0", bytes((0x80 | field << 3 | 4, scale << 6 | EDI << 3 | ESI)) + u32(offset)
        if kind == 6:  # an address alone
            return b"", bytes((field << 3 | 5,)) + u32(USER + offset)
        if kind == 7:  # index without base
            return b"\x81\xe7\x0f\0\0\0", bytes((field << 3 | 4, 0x40 * rng.randrange(4) | EDI << 3 | 5)) + u32(
                USER + offset
            )
        if kind == 8:  # ESP as base
            return b"", bytes((0x80 | field << 3 | 4, 0x24)) + u32(USER + offset - STACK)
        base = 5  # EBP, whose segment is SS
        before = b"\xbd" + u32(USER + offset - 5)
        return before, bytes((0x40 | field << 3 | base, 5))

    def _condition(self) -> bytes:
        """Not where it faults: the reference's flags are wrong then."""
        wild, self._wild = self._wild, 0.0
        made = super()._condition()
        self._wild = wild
        return made

    def _shift(self) -> bytes:
        """The same: RCL and RCR. The others' faults: _bad_shift."""
        wild, self._wild = self._wild, 0.0
        made = super()._shift()
        self._wild = wild
        return made

    def _bad_shift(self) -> list[bytes]:
        rng = self._rng
        return [
            rng.choice((b"\xd3", b"\xd1")) + bytes((0x86 | rng.choice((0, 1, 4, 5, 7)) << 3,)) + u32(self._edge()),
            COMPARE,
        ]

    def _edge(self) -> int:
        """For programs not from a page that is read-only to one that is the kernel's: which of the two is reported is the reference's own."""
        return self._rng.choice([offset for offset in WILD if self.ring == 0 or offset != 0x3FFE])

    def _flags_atom(self) -> list[bytes]:
        rng = self._rng
        if rng.random() < 0.5:
            return [b"\x9c", bytes((0x58 | self._register(),))]
        bits = 0xCD5 | (0x204000 if rng.random() < 0.3 else 0)
        value = rng.getrandbits(32) & bits | 0x2
        if self.ring == 3 or rng.random() < 0.5:
            value |= 0x200
        if self.ring == 0 and rng.random() < 0.2:
            value |= 0x3000 & rng.getrandbits(32)
        if rng.random() < 0.02:
            return [b"\x68" + u32(value | 0x100), b"\x9d", b"\x90"]
        return [b"\x68" + u32(value), b"\x9d"]

    def _sse(self) -> list[bytes]:
        rng = self._rng
        x, y = rng.randrange(8), rng.randrange(8)
        address = u32(16 * rng.randrange(300) if rng.random() > self._wild else self._edge())
        operand = bytes((0xC0 | x << 3 | y,)) if rng.random() < 0.5 else bytes((0x80 | x << 3 | ESI,)) + address
        memory = bytes((0x80 | x << 3 | ESI,)) + address
        loose = operand
        aligned = u32(int.from_bytes(address, "little") & ~15)  # the reference does not look at that
        memory, operand = memory[:1] + aligned, operand if len(operand) == 1 else operand[:1] + aligned
        anywhere = memory[:1] + address
        return [
            rng.choice(
                (
                    b"\x66\x0f\xef" + operand,
                    b"\x66\x0f\xfe" + operand,
                    b"\x66\x0f\xd4" + operand,
                    b"\x0f\x28" + operand,
                    b"\x0f\x10" + loose,
                    b"\x0f\x11" + anywhere,
                    b"\x0f\x29" + memory,
                    b"\xf3\x0f\x6f" + loose,
                    b"\xf3\x0f\x7f" + anywhere,
                    b"\x66\x0f\x7f" + memory,
                    b"\x66\x0f\x6e" + bytes((0xC0 | x << 3 | self._register(),)),
                    b"\x66\x0f\x7e" + bytes((0xC0 | x << 3 | self._register(),)),
                    b"\x66\x0f\x70" + operand + bytes((rng.randrange(256),)),
                    b"\x66\x0f\xd7" + bytes((0xC0 | self._register() << 3 | y,)),
                    b"\x66\x0f\x73" + bytes((0xD0 | y, rng.randrange(64))),
                    b"\x0f\x57" + operand,
                    b"\x66\x0f\x60" + operand,
                    b"\x0f\xc3" + anywhere,
                    b"\xf2\x0f\x11" + anywhere,
                    b"\xf3\x0f\x11" + anywhere,
                    b"\x66\x0f\xd6" + anywhere,
                    b"\x57\x8d\xbe"
                    + u32(rng.randrange(4000))
                    + b"\x66\x0f\xf7"
                    + bytes((0xC0 | x << 3 | y,))
                    + b"\x5f",
                )
            )
        ]

    def _x87(self) -> list[bytes]:
        rng = self._rng
        address = u32(8 * rng.randrange(500) if rng.random() > self._wild else self._edge())
        word = u32(2 * rng.randrange(2000))
        return [
            *rng.choice(
                (
                    [b"\xd9\xe8", b"\xdd\x9e" + address],
                    [b"\xd9\xee", b"\xd9\x9e" + address],
                    [b"\xdf\x86" + word, b"\xdb\xbe" + address],
                    [b"\xdb\x86" + word, b"\xde\x86" + word, b"\xdd\x9e" + address],
                    [b"\xd9\xbe" + word],
                    [b"\xdb\xe2"],
                    [b"\xdf\xae" + word, b"\xdf\xbe" + address],
                )
            ),
            b"\xdb\xe3",
        ]

    def _stack_moves(self) -> list[bytes]:
        """PUSH and POP of every kind, on a stack that is good."""
        rng = self._rng
        a, b = self._register(), self._register()
        offset = u32(self._edge() if rng.random() < 0.3 else rng.randrange(CODE_STUBS - 16))
        return rng.choice(
            (
                [b"\x60", b"\x61"],
                [b"\x66\x60", b"\x66\x61"],
                [b"\x66" + bytes((0x50 | a,)), b"\x66" + bytes((0x58 | b,))],
                [b"\x6a" + bytes((rng.randrange(256),)), bytes((0x58 | a,))],
                [b"\x54", bytes((0x58 | a,))],
                [b"\x50\x89\xe5", b"\x54\x5c", b"\xc9"],
                [b"\x51\xff\x34\x24" if self.timer else b"\xff\x74\x24\xfc", bytes((0x58 | a,)), SET_ESP],
                [bytes((0x50 | a,)), b"\x8f\x86" + offset, SET_ESP],
                [b"\x50", b"\x8f\x44\x24\x08", SET_ESP],
                [b"\xff\xb6" + offset, SET_ESP],
                [b"\x50", b"\x8f\x86" + offset, SET_ESP],
                [b"\x66\xff\xb6" + offset, SET_ESP],
                [b"\x50", b"\x8f\x84\x24" + offset, SET_ESP],
                [b"\xc8" + bytes((rng.randrange(64), 0, rng.randrange(4))), b"\xc9", SET_ESP],
                [b"\x68" + u32(rng.getrandbits(32)), b"\x8f" + bytes((0xC0 | a,))],
                [b"\x54\x8f\xc4" if self.timer else b"\x50\x8f\xc4", SET_ESP],
                [b"\x6a\x05\x8f\x04\x24\x83\xc4\x04", SET_ESP],
            )
        )

    def _segment_operand(self) -> list[bytes]:
        """Through FS, GS and overrides of the others; FS has a base, GS a limit as well."""
        rng = self._rng
        prefix = bytes((rng.choice((0x64, 0x65, 0x64, 0x65, 0x26, 0x36, 0x3E, 0x2E)),))
        width, wide = self._width()
        near = prefix in (b"\x64", b"\x65")
        # The reference does not look at limits: within GS's.
        offset = u32(
            (
                rng.choice((0, 0xF00, 0xFFE, 0x1000))
                if rng.random() < 0.3 and prefix != b"\x65"
                else rng.randrange(0xC00)
            )
            + (0 if near else USER)
        )
        load = bytes((0x8A if not wide else 0x8B, self._register(wide) << 3 | 5)) + offset
        store = bytes((0x88 | wide, self._register(wide) << 3 | 5)) + offset
        if prefix == b"\x2e":  # only to be read
            return [
                prefix
                + rng.choice((width + load, bytes((0xA1,)) + offset, b"\xff\x35" + offset, b"\x0f\xb6\x05" + offset)),
                SET_ESP,
            ]
        alu = bytes((rng.randrange(8) << 3 | wide, self._register(wide) << 3 | 5)) + offset
        moffs = bytes((0xA0 | rng.randrange(4) & (1 if prefix == b"\x2e" else 3),)) + offset
        return [
            b"\x50",  # for the POP: nothing else may be seen above the stack
            prefix
            + rng.choice(
                (
                    width + load,
                    width + store,
                    width + alu,
                    moffs,
                    b"\xff\x35" + offset,
                    b"\x8f\x05" + offset,
                    b"\xc7\x05" + offset + b"abcd",
                    b"\x0f\xb6\x05" + offset,
                    b"\x0f\xb1\x0d" + offset,
                )
            ),
            SET_ESP,
        ]

    def _short_address(self) -> list[bytes]:
        """16-bit addressing: everything below 64 KiB faults, LEA and FS do not."""
        rng = self._rng
        modrm = rng.randrange(0xC0)
        field = bytes((modrm & 0xC7 | self._register() << 3,)) + (
            b"" if modrm < 0x40 and modrm & 7 != 6 else b"\x10" if 0x40 <= modrm < 0x80 else b"\x10\x01"
        )
        return [
            b"\x67"
            + rng.choice(
                (
                    b"\x8d" + field,
                    b"\x8b" + field,
                    b"\x64\x8b" + field,
                    b"\x66\x8d" + field,
                    b"\xe3\x00",
                    b"\x01" + field,
                )
            )
        ]

    def _mem_flow(self) -> list[bytes]:
        """Calls and jumps through registers and memory, RET n, LOOP and JECXZ, and one that goes into the middle of an instruction.
        Behind LOOPE and LOOPNE the reference loses CF."""
        rng = self._rng
        slot = u32(rng.randrange(1000) * 4)
        pick = rng.randrange(9)
        if pick == 0:  # call next; pop; add 9..; jmp reg
            return [b"\xe8\0\0\0\0\x5b\x83\xc3\x06\xff\xe3"]
        if pick == 1:  # call reg, which returns with RET 4
            return [b"\xe8\0\0\0\0\x5b\x83\xc3\x09\x53\xff\xd3\xeb\x03\xc2\x04\x00"]
        if pick == 2:  # the address in memory
            return [b"\xe8\0\0\0\0\x5b\x83\xc3\x11\x89\x9e" + slot + b"\xff\xa6" + slot + b"\x90"]
        if pick == 3:
            return [b"\xb9" + u32(rng.choice((1, 5, 50))) + b"\x8d\x04\x88\x49\x41" + b"\xe2\xf9"]
        if pick == 4:
            return [bytes((0xE3, 1, 0x40))]
        if pick == 5:  # jmp into a MOV's immediate, whose bytes are INC ECX; INC EDX; NOP; NOP
            return [b"\xeb\x01\xb8\x41\x42\x90\x90", b"\xb8\x41\x42\x90\x90"]
        if pick == 6:  # wild jumps, into a page that is not there
            return [b"\xff\xa6" + u32(0x2000)]
        if pick == 7:
            return [b"\xe8\0\0\0\0\x83\x04\x24\x05\xc3"]
        return [b"\xc7\x86" + slot + u32(0x10) + b"\xff\xa6" + slot] if rng.random() < 0.1 else [b"\x8d\x76\x00"]
