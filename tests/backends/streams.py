"""Random straight-line 32-bit code: integer instructions on registers and on one buffer, encoded by hand (Intel SDM vol. 2, appendix A).

ESI holds the buffer's address throughout and ESP a stack; everything else is fair game. Nothing faults and nothing depends on time.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

BUFFER_BYTES: Final = 4096
ITERATIONS_OFFSET: Final = BUFFER_BYTES  # behind the buffer: how often the stream still runs
FLAGS_OFFSET: Final = BUFFER_BYTES + 4  # a hash over EFLAGS at the end of each run
REGISTERS: Final = (0, 1, 2, 3, 5, 7)  # eax ecx edx ebx ebp edi
ESI, EDI = 6, 7
STATUS_AND_DIRECTION: Final = 0x0CD5
# Makers of what leaves flags undefined.
UNDEFINED: Final = frozenset({"_shift", "_double_shift", "_multiply", "_divide", "_bits", "_scan", "_adjust"})
COMPARE: Final = b"\x39\xe4"  # cmp esp, esp


def _imm32(rng: random.Random) -> bytes:
    value = rng.choice((rng.getrandbits(32), rng.getrandbits(8), 0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    return struct.pack("<I", value)


class Stream:
    """One stream, made from a seed."""

    def __init__(self, seed: int, length: int = 50, *, defined: bool = False) -> None:
        """defined: what leaves flags undefined is followed by a comparison, so that processors agree."""
        self._rng = random.Random(seed)
        makers: list[Callable[[], bytes]] = [
            self._alu, self._alu, self._alu_imm, self._unary, self._shift, self._double_shift, self._move, self._extend, self._exchange,
            self._compare_exchange, self._bits, self._condition, self._one_byte, self._stack, self._flags, self._divide, self._adjust,
            self._string, self._multiply, self._lea, self._scan, self._call,
        ]  # fmt: skip
        self.code = b""
        for _ in range(length):
            maker = self._rng.choice(makers)
            made = maker() + (COMPARE if defined and maker.__name__ in UNDEFINED else b"")
            if self._rng.random() < 0.1 and len(made) < 128:  # Jcc over it
                made = bytes((0x70 | self._rng.randrange(16), len(made))) + made
            self.code += made
        # cld; pushfd; pop ebp; add [esi+FLAGS], ebp; rol dword [esi+FLAGS], 1; dec dword [esi+ITERATIONS]; jnz begin
        self.code += (
            b"\xfc\x9c\x5d"
            + b"\x01\xae"
            + struct.pack("<I", FLAGS_OFFSET)
            + b"\xd1\x86"
            + struct.pack("<I", FLAGS_OFFSET)
        )
        self.code += b"\xff\x8e" + struct.pack("<I", ITERATIONS_OFFSET)
        self.code += b"\x0f\x85" + struct.pack("<i", -len(self.code) - 6)
        self.registers = [self._rng.getrandbits(32) for _ in range(8)]
        self.buffer = self._rng.randbytes(BUFFER_BYTES)

    def _width(self) -> tuple[bytes, int]:
        """Operand-size prefix and bit 0 of the opcode: 8, 16 or 32 bits."""
        return self._rng.choice(((b"", 0), (b"\x66", 1), (b"", 1), (b"", 1)))

    def _register(self, wide: int = 1) -> int:
        return self._rng.choice(REGISTERS) if wide else self._rng.randrange(8)

    def _operand(self, field: int, wide: int = 1, memory: bool | None = None) -> tuple[bytes, bytes]:
        """(what must run before, ModRM with SIB and displacement): a register or memory within the buffer."""
        rng = self._rng
        if memory is None:
            memory = rng.random() < 0.5
        if not memory:
            return b"", bytes((0xC0 | field << 3 | self._register(wide),))
        if rng.random() < 0.6:
            return b"", bytes((0x80 | field << 3 | ESI,)) + struct.pack("<I", rng.randrange(BUFFER_BYTES - 8))
        scale = rng.randrange(4)
        modrm = bytes((0x80 | field << 3 | 4, scale << 6 | EDI << 3 | ESI)) + struct.pack("<I", rng.randrange(2000))
        return b"\x81\xe7\xff\0\0\0", modrm  # and edi, 0xff

    def _form(
        self, prefix: bytes, opcode: bytes, field: int, wide: int, tail: bytes = b"", memory: bool | None = None
    ) -> bytes:
        before, operand = self._operand(field, wide, memory)
        return before + prefix + opcode + operand + tail

    def _alu(self) -> bytes:
        prefix, wide = self._width()
        kind, to_register = self._rng.randrange(8), self._rng.randrange(2)
        return self._form(prefix, bytes((kind << 3 | to_register << 1 | wide,)), self._register(wide), wide)

    def _alu_imm(self) -> bytes:
        prefix, wide = self._width()
        kind, imm = self._rng.randrange(9), _imm32(self._rng)
        if kind == 8:  # TEST
            return self._form(prefix, bytes((0xF6 | wide,)), 0, wide, imm[: 2 if prefix else 4 if wide else 1])
        if wide and self._rng.random() < 0.5:
            return self._form(prefix, b"\x83", kind, wide, imm[:1])
        return self._form(prefix, bytes((0x80 | wide,)), kind, wide, imm[: 2 if prefix else 4 if wide else 1])

    def _unary(self) -> bytes:
        prefix, wide = self._width()
        opcode, field = self._rng.choice(((0xFE, 0), (0xFE, 1), (0xF6, 2), (0xF6, 3)))  # INC DEC NOT NEG
        return self._form(prefix, bytes((opcode | wide,)), field, wide)

    def _multiply(self) -> bytes:
        prefix, wide = self._width()
        choice = self._rng.randrange(4)
        if choice < 2:  # MUL, IMUL of the accumulator
            return self._form(prefix, bytes((0xF6 | wide,)), 4 + choice, wide)
        if choice == 2:
            return self._form(prefix, b"\x0f\xaf", self._register(), 1)
        return self._form(prefix, b"\x6b", self._register(), 1, _imm32(self._rng)[:1])

    def _divide(self) -> bytes:
        """xor edx, edx; or ecx, 1; div ecx. For IDIV the dividend is positive and the divisor is not -1."""
        if self._rng.random() < 0.5:
            return b"\x31\xd2\x83\xc9\x01\xf7\xf1"
        return b"\x25\xff\xff\xff\x7f\x31\xd2\x83\xc9\x01\xf7\xf9"

    def _shift(self) -> bytes:
        prefix, wide = self._width()
        opcode = self._rng.choice((0xC0, 0xD0, 0xD2))  # by an immediate, 1, CL
        count = (
            bytes((self._rng.choice((0, 1, 7, 8, 15, 16, 31, 32, 33, self._rng.randrange(256))),))
            if opcode == 0xC0
            else b""
        )
        return self._form(prefix, bytes((opcode | wide,)), self._rng.choice((0, 1, 2, 3, 4, 5, 7)), wide, count)

    def _double_shift(self) -> bytes:
        opcode = self._rng.choice((0xA4, 0xA5, 0xAC, 0xAD))
        return self._form(
            b"", bytes((0x0F, opcode)), self._register(), 1, b"" if opcode & 1 else bytes((self._rng.randrange(64),))
        )

    def _move(self) -> bytes:
        prefix, wide = self._width()
        if self._rng.random() < 0.3:
            return bytes((0xB8 | self._register(),)) + _imm32(self._rng)
        return self._form(prefix, bytes((0x88 | self._rng.randrange(2) << 1 | wide,)), self._register(wide), wide)

    def _extend(self) -> bytes:
        opcode = self._rng.choice((0xB6, 0xB7, 0xBE, 0xBF))
        return self._form(self._rng.choice((b"", b"\x66")), bytes((0x0F, opcode)), self._register(), opcode & 1)

    def _lea(self) -> bytes:
        return self._form(b"", b"\x8d", self._register(), 1, memory=True)

    def _exchange(self) -> bytes:
        prefix, wide = self._width()
        opcode = self._rng.choice((b"\x86", b"\x0f\xc0"))  # XCHG, XADD
        return self._form(prefix, opcode[:-1] + bytes((opcode[-1] | wide,)), self._register(wide), wide)

    def _compare_exchange(self) -> bytes:
        prefix, wide = self._width()
        if self._rng.random() < 0.3:
            # LOCK CMPXCHG8B, half a dozen blocks (JMP to what follows), then flags that are defined: XOR EAX, ESI.
            return self._form(b"\xf0", b"\x0f\xc7", 1, 1, memory=True) + b"\xeb\0" * 6 + b"\x31\xf0"
        return self._form(prefix, bytes((0x0F, 0xB0 | wide)), self._register(wide), wide)

    def _bits(self) -> bytes:
        if self._rng.random() < 0.5:  # BT, BTS, BTR, BTC with an immediate
            return self._form(b"", b"\x0f\xba", self._rng.randrange(4, 8), 1, bytes((self._rng.randrange(32),)))
        return self._form(
            b"", bytes((0x0F, self._rng.choice((0xA3, 0xAB, 0xB3, 0xBB)))), self._register(), 1, memory=False
        )

    def _scan(self) -> bytes:
        if self._rng.random() < 0.3:
            return bytes((0x0F, 0xC8 | self._register()))  # BSWAP
        return self._form(b"", bytes((0x0F, self._rng.choice((0xBC, 0xBD)))), self._register(), 1)

    def _condition(self) -> bytes:
        condition = self._rng.randrange(16)
        if self._rng.random() < 0.5:
            return self._form(b"", bytes((0x0F, 0x90 | condition)), 0, 0)
        return self._form(b"", bytes((0x0F, 0x40 | condition)), self._register(), 1)

    def _one_byte(self) -> bytes:
        # CWDE CDQ LAHF SAHF CMC CLC STC CLD STD NOP SALC, and CBW, CWD
        codes = ("98", "99", "9f", "9e", "f5", "f8", "f9", "fc", "fd", "90", "d6", "6698", "6699")
        return bytes.fromhex(self._rng.choice(codes))

    def _adjust(self) -> bytes:
        # DAA DAS AAA AAS AAM AAD
        return self._rng.choice((b"\x27", b"\x2f", b"\x37", b"\x3f", b"\xd4\x0a", b"\xd5\x0a", b"\xd4\x07"))

    def _stack(self) -> bytes:
        """PUSH and POP in another order; PUSHA and POPA; ENTER and LEAVE with EBP kept."""
        rng = self._rng
        kind = rng.randrange(4)
        if kind == 0:
            return bytes(
                (0x50 | self._register(), 0x50 | self._register(), 0x58 | self._register(), 0x58 | self._register())
            )
        if kind == 1:
            return b"\x60" + bytes((0x40 | self._register(),)) + b"\x61"
        if kind == 2:
            return b"\xc8\x20\0" + bytes((rng.randrange(2),)) + b"\xc9"
        return self._form(b"", b"\xff", 6, 1, memory=True) + self._form(b"", b"\x8f", 0, 1, memory=True)

    def _flags(self) -> bytes:
        if self._rng.random() < 0.5:
            return bytes((0x9C, 0x58 | self._register()))
        value = self._rng.getrandbits(32) & STATUS_AND_DIRECTION | 0x202
        return b"\x68" + struct.pack("<I", value) + b"\x9d"

    def _string(self) -> bytes:
        """In the middle of the buffer, so that either direction stays within it. ECX is loaded for the repeated ones."""
        rng = self._rng
        operation = rng.choice((0xA4, 0xA6, 0xAA, 0xAC, 0xAE)) | rng.randrange(2)
        prefix = rng.choice((b"", b"\x66")) + rng.choice((b"", b"\xf3", b"\xf2"))
        target = struct.pack("<I", rng.randrange(1000, BUFFER_BYTES - 1000))
        source = struct.pack("<I", rng.randrange(1000, BUFFER_BYTES - 1000))
        count = b"\xb9" + struct.pack("<I", rng.randrange(200)) if b"\xf3" in prefix or b"\xf2" in prefix else b""
        return (
            b"\x56\x57"
            + b"\x8d\xbe"
            + target
            + b"\x81\xc6"
            + source
            + count
            + prefix
            + bytes((operation,))
            + b"\x5f\x5e"
        )

    def _call(self) -> bytes:
        return b"\xe8\0\0\0\0" + bytes((0x58 | self._register(),))
