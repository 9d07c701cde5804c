"""x87, MMX, SSE and SSE2 instructions that the monitor executes, beside the same ones that the processor does: engine breakpoint interprets
short runs, engine translate copies them. Registers, flags, memory and exceptions must be the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

import pytest
from stream_compare import Pair, disassembled
from stream_guest import Program, Side
from stream_kernel import CR0, CR4, DEVICE, USER
from stream_programs import u32

from hvd.backends.rewriting.backend import BACKEND as REWRITING

BREAKPOINT = next(engine for engine in REWRITING.engines() if engine.name == "breakpoint").availability
pytestmark = pytest.mark.skipif(not BREAKPOINT.available, reason=f"{BREAKPOINT.reason}; {BREAKPOINT.remedy}")

PROGRAMS = 400
IMAGE, OPERANDS, RESULT = 0x400, 0x700, 0xA00  # of the buffer: FXSAVE areas and what is in between; 16 bytes aligned
OSXMMEXCPT = 0x400
NE = 0x20
EVERYTHING_MASKED = 0x37F
# Not overflow and underflow (x87.c): invalid, denormal, zero, inexact.
X87_UNMASKED = (0, 1, 2, 4, 0x20, 0x27)
SET_ESI = b"\xbe" + u32(USER)

SINGLES = (0.0, -0.0, 1.0, -1.5, 3.25e5, 1e-40, -1e38, float("inf"), float("nan"), 7.0, 2.0**31)
DOUBLES = (*SINGLES, 1e300, 4e-320, 2.0**63)
NO, P66, PF3, PF2 = b"", b"\x66", b"\xf3", b"\xf2"
MOST = (
    *range(0x60, 0x6C), 0x6F, *range(0x74, 0x77), *range(0xD1, 0xD6), *range(0xD8, 0xE6), *range(0xE8, 0xF0), *range(0xF1, 0xF7), *range(0xF8, 0xFF),
)  # fmt: skip
# What SSE2 and its forerunners have, but for RCPPS and RSQRTPS, which each processor rounds as it likes: prefixes, opcodes behind 0F, ModRM byte.
SSE = (
    ((NO, P66), (0x14, 0x15, 0x51, *range(0x54, 0x60)), "any"),
    ((PF3, PF2), (0x10, 0x11, 0x51, 0x58, 0x59, 0x5A, 0x5C, 0x5D, 0x5E, 0x5F), "any"),
    ((NO, P66), MOST, "any"),
    ((P66,), (0x6C, 0x6D, 0xD6, 0xE6), "any"),
    ((NO, P66), (0x10, 0x11, 0x28, 0x29, 0x7F, 0x2E, 0x2F, 0x2C, 0x2D), "any"),
    ((NO,), (0x2A,), "register"),  # of memory processors differ in whether the MMX registers are entered
    ((P66,), (0x2A,), "any"),
    ((NO, P66), (0x12, 0x13, 0x16, 0x17, 0x2B, 0xE7), "memory"),
    ((NO,), (0x12, 0x16), "register"),
    ((PF3,), (0x5B, 0x6F, 0x7E, 0x7F, 0xE6), "any"),
    ((PF2,), (0xE6,), "any"),
    ((PF3, PF2), (0xD6,), "register"),
    ((NO, P66), (0x6E, 0x7E), "from general"),
    ((PF3, PF2), (0x2A,), "from general"),
    ((PF3, PF2), (0x2C, 0x2D), "to general"),
    ((NO, P66), (0x50, 0xD7), "to general"),
    ((NO, P66), (0xC5,), "to general, byte"),
    ((NO, P66), (0xC4,), "from general, byte"),
    ((NO, P66, PF3, PF2), (0x70,), "any, byte"),
    ((NO, P66), (0xC6,), "any, byte"),
    ((NO, P66, PF3, PF2), (0xC2,), "any, predicate"),
    ((NO, P66), (0xF7,), "register, EDI"),
    ((NO,), (0x77,), ""),
    ((NO,), (0xAE,), "MXCSR"),
)
SHIFTS = ((0x71, 2), (0x71, 4), (0x71, 6), (0x72, 2), (0x72, 4), (0x72, 6), (0x73, 2), (0x73, 6))
COUNTS = (0, 1, 5, 8, 15, 16, 31, 63, 64, 200)
LOADS_CONTROL = (b"\xd9\xa6", b"\xd9\xae", b"\xdd\xa6")  # FLDENV, FLDCW, FRSTOR: of [ESI + operand]
GENERAL = (0, 1, 2, 3, 5, 7)  # neither ESP nor ESI
# Bytes that a register form may have behind an x87 opcode.
X87_REGISTER = (
    range(0xC0, 0x100), [*range(0xC0, 0xD1), 0xE0, 0xE1, 0xE4, 0xE5, *range(0xE8, 0xEF), *range(0xF0, 0x100)], [*range(0xC0, 0xE0), 0xE9],
    [*range(0xC0, 0xE0), 0xE2, 0xE3, *range(0xE8, 0xF8)], range(0xC0, 0x100), [*range(0xC0, 0xC8), *range(0xD0, 0xF0)],
    [*range(0xC0, 0xD0), 0xD9, *range(0xE0, 0x100)], [0xE0, *range(0xE8, 0xF8)],
)  # fmt: skip
X87_MEMORY = (range(8), (0, 2, 3, 4, 5, 6, 7), range(8), (0, 2, 3, 5, 7), range(8), (0, 2, 3, 4, 6, 7), range(8), (0, 2, 3, 4, 5, 6, 7))


# FCOM, FICOM, FUCOM, FCOMI and theirs, of registers: opcode and /reg. Of memory: even opcodes with /2 and /3.
COMPARISONS = {0xD8: (2, 3), 0xDA: (5,), 0xDB: (5, 6), 0xDC: (2, 3), 0xDD: (4, 5), 0xDE: (2, 3), 0xDF: (5, 6)}


def is_comparison(code: bytes) -> bool:
    """Of an x87 instruction without prefixes."""
    opcode, modrm = code[:2]
    reg = modrm >> 3 & 7
    return reg in COMPARISONS.get(opcode, ()) if modrm >= 0xC0 else not opcode & 1 and reg in (2, 3)


class Maker:
    def __init__(self, seed: int, masked: bool) -> None:
        self._rng, self._masked = Random(seed), masked
        self.seed = seed

    def _stored(self, offset: int, content: bytes) -> list[bytes]:
        """MOV [ESI + offset], word after word."""
        return [b"\xc7\x86" + u32(offset + at) + content[at : at + 4] for at in range(0, len(content), 4)]

    def _number(self) -> bytes:
        rng = self._rng
        match rng.randrange(4):
            case 0:
                return rng.randbytes(16)
            case 1:
                return struct.pack("<4f", *(rng.choice(SINGLES) for _ in range(4)))
            case 2:
                return struct.pack("<2d", *(rng.choice(DOUBLES) for _ in range(2)))
            case _:
                exponent = rng.choice((0x3FFF, 0x4010, 0xC001, 0x7FFF, 0, 0x43FE))
                return struct.pack("<QHHI", rng.getrandbits(63) | 1 << 63, exponent, 0, 0)

    def _image(self) -> bytes:
        rng = self._rng
        control = (EVERYTHING_MASKED if self._masked else EVERYTHING_MASKED & ~rng.choice(X87_UNMASKED)) | rng.randrange(4) << 10
        mxcsr = 0x1F80 if self._masked else rng.choice((0x1F80, rng.randrange(64) << 7, 0))
        mxcsr |= rng.randrange(4) << 13
        top = rng.randrange(8)
        head = struct.pack("<HHBBHIIIIII", control, top << 11, rng.choice((0xFF, rng.randrange(256), 0)), 0, 0, 0, 0, 0, 0, mxcsr, 0)
        stack = b"".join(self._number()[:10] + bytes(6) for _ in range(8))
        return head + stack + b"".join(self._number() for _ in range(8))

    def _memory(self) -> bytes:
        """An offset of the operand's from ESI: aligned, or seldom not."""
        return u32(OPERANDS + 16 * self._rng.randrange(8) + (self._rng.choice((4, 8, 1)) if self._rng.random() < 0.1 else 0))

    def _other_x87(self) -> bytes:
        """Processors differ in what an invalid comparison that is not masked leaves (Intel SDM vol. 2A, "FCOM", "FCOMI")."""
        code = self._x87()
        if code[-6:-4] in LOADS_CONTROL:
            self._masked = False
        return code if self._masked or not is_comparison(code.lstrip(b"\x66\x9b")) else self._other_x87()

    def _modrm(self, form: str) -> bytes:
        rng = self._rng
        match form:
            case "any":
                return self._modrm(rng.choice(("memory", "register")))
            case "memory":
                return bytes((0x86 | rng.randrange(8) << 3,)) + self._memory()
            case "register" | "register, EDI":
                return bytes((0xC0 | rng.randrange(64),))
            case "from general":
                return bytes((0xC0 | rng.randrange(8) << 3 | rng.choice(GENERAL),))
            case "to general":
                return bytes((0xC0 | rng.choice(GENERAL) << 3 | rng.randrange(8),))
            case "MXCSR":
                return bytes((rng.choice((0x96, 0x9E)),)) + u32(OPERANDS + 0x90)
            case _:
                return b""

    def _x87(self) -> bytes:
        rng = self._rng
        group = rng.randrange(8)
        if rng.random() < 0.5:
            reg, small, offset = rng.choice(list(X87_MEMORY[group])), rng.random() < 0.1, self._memory()
            code = (P66 if small else b"") + bytes((0xD8 + group, 0x86 | reg << 3)) + offset
            if reg == 6 and group in (1, 5):  # FNSTENV, FNSAVE: where the last instruction was is each engine's own
                return code + b"".join(self._stored(struct.unpack("<I", offset)[0] + (6 if small else 12), bytes(8 if small else 16)))
            return code
        return rng.choice((b"", b"", b"", b"", b"\x9b")) + bytes((0xD8 + group, rng.choice(list(X87_REGISTER[group]))))

    def _sse(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.05:
            return self._shift()
        prefixes, opcodes, form = rng.choice(SSE)
        form, _, immediate = form.partition(", ")
        code = rng.choice(prefixes) + bytes((0x0F, rng.choice(opcodes))) + self._modrm(form)
        match immediate:
            case "byte":
                return code + rng.randbytes(1)
            case "predicate":
                return code + bytes((rng.randrange(8),))
            case "EDI":
                return b"\x8d\xbe" + u32(OPERANDS) + code  # LEA EDI, [ESI + OPERANDS]
            case _:
                return code

    def _shift(self) -> bytes:
        rng = self._rng
        (opcode, reg), wide = rng.choice(SHIFTS), rng.choice((NO, P66))
        if wide and opcode == 0x73 and rng.random() < 0.5:
            reg += 1  # PSRLDQ, PSLLDQ
        return wide + bytes((0x0F, opcode, 0xC0 | reg << 3 | rng.randrange(8), rng.choice(COUNTS)))

    def program(self) -> Program:
        rng = self._rng
        operands = b"".join(self._number() for _ in range(9)) + struct.pack("<I12x", 0x1F80)
        chunks = [[SET_ESI], self._stored(IMAGE, self._image()), self._stored(OPERANDS, operands)]
        chunks.append([b"\x0f\xae\x8e" + u32(IMAGE)])  # FXRSTOR
        kinds = rng.choice(((self._other_x87,), (self._sse,), (self._other_x87, self._sse)))
        chunks += [[rng.choice(kinds)()] for _ in range(rng.choice((1, 2, 4, 8)))]
        # FXSAVE; the last instruction's opcode and addresses, which some processors keep, are each engine's own
        chunks.append([SET_ESI, b"\x0f\xae\x86" + u32(RESULT)])
        chunks.append([b"\x66\xc7\x86" + u32(RESULT + 6) + b"\0\0", *(b"\xc7\x86" + u32(RESULT + at) + u32(0) for at in (8, 12, 16, 20))])
        registers = [rng.getrandbits(32) for _ in range(8)]
        return Program(0, 2, registers, chunks, seed=self.seed, cr0=CR0 | NE, cr4=CR4 | OSXMMEXCPT)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("streams")
    pair = Pair(Side("rewriting", directory), Side("rewriting-breakpoint", directory))
    yield pair
    pair.close()


def look(pair: Pair, programs: list[Program]) -> None:
    found = pair.differences(programs)
    lines = []
    for program, text in found[:4]:
        small = program if text.startswith("not") else pair.shrink(program)
        lines += [f"seed {program.seed}: {text}", disassembled(small), small.dump()]
    assert not found, f"{len(found)} differences\n" + "\n".join(lines)


def test_masked(pair: Pair) -> None:
    look(pair, [Maker(seed, masked=True).program() for seed in range(PROGRAMS)])


def test_exceptions(pair: Pair) -> None:
    """Unmasked ones: #MF by the next instruction that looks, #XM by the one that has it."""
    look(pair, [Maker(seed, masked=False).program() for seed in range(100_000, 100_000 + PROGRAMS)])


STORED_FROM = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
LOAD = b"\x0f\x10\x86" + u32(OPERANDS)  # MOVUPS XMM0, [ESI + OPERANDS]


@pytest.mark.parametrize("side", ["reference", "other"])
@pytest.mark.parametrize(
    ("instruction", "size"), [(b"\x0f\x11\x05", 16), (b"\xf3\x0f\x11\x05", 4), (b"\x66\x0f\x7f\x05", 16)], ids=["movups", "movss", "movdqa"]
)
def test_a_store_to_a_device(pair: Pair, side: str, instruction: bytes, size: int) -> None:
    """The processor cannot execute it there: under both engines the monitor does; the device gets at most eight bytes at once."""
    operands = [b"\xc7\x86" + u32(OPERANDS + at) + STORED_FROM[at : at + 4] for at in range(0, 16, 4)]
    program = Program(0, 2, [0] * 8, [[SET_ESI, *operands, LOAD, instruction + u32(DEVICE + 0x40)]])
    outcome = getattr(pair, side).run([program])
    got = b"".join(value.to_bytes(length, "little") for _, _, length, value in outcome.devices)
    assert outcome.end.startswith("exit") and got == STORED_FROM[:size], outcome
    assert [address for _, address, _, _ in outcome.devices] == list(range(DEVICE + 0x40, DEVICE + 0x40 + size, 8))


HIDDEN = {
    "vmovaps": "c5f828c1", "andn": "c4e270f2c2", "pfadd": "0f0fc19e", "xbegin": "c7f800000000", "xabort": "c6f800", "xsave": "0fae26",
    "xrstor": "0fae2e", "vmread": "0f78c1", "rdfsbase": "f30faec0",
}  # fmt: skip
RESERVED = {
    "d9 /1": "d90e", "db /4": "db26", "db /6": "db36", "dd /5": "dd2e", "d9 e6": "d9e6", "da ea": "daea", "dd f0": "ddf0", "0f 6c": "0f6cc1",
}  # fmt: skip


@pytest.mark.parametrize("side", ["reference", "other"])
@pytest.mark.parametrize("what", [*HIDDEN, *RESERVED])
def test_what_is_undefined_or_hidden_from_kernels(pair: Pair, side: str, what: str) -> None:
    outcome = getattr(pair, side).run([Program(0, 2, [0] * 8, [[SET_ESI], [bytes.fromhex((HIDDEN | RESERVED)[what])]])])
    assert [record[0] for record in outcome.records[0]] == [6, 0x81, 0xFEED], outcome
