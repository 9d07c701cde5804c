"""INS and OUTS at a device's data port, of which a cell does many elements in one turn: as if they were done one by one, as emulation does them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from stream_compare import DONE, Pair, all_same
from stream_guest import Program, Side
from stream_kernel import PORT, USER

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.rewriting.backend import BACKEND as REWRITING

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
AVAILABLE = REWRITING.probe() if NATIVE.available else NATIVE
pytestmark = pytest.mark.skipif(not AVAILABLE.available, reason=f"{AVAILABLE.reason}; {AVAILABLE.remedy}")

IN_PORT, OUT_PORT = PORT, PORT + 4
IN_BYTES, OUT_BYTES = 2048, 1536
INS, OUTS = 0x6C, 0x6E


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("streams")
    pair = Pair(Side("emulation", directory), Side("rewriting", directory))
    yield pair
    pair.close()


def word(value: int) -> bytes:
    return struct.pack("<I", value)


def ran(side: Side, program: Program) -> tuple[list[tuple[int, ...]], list[tuple[object, ...]], tuple[int, ...], bytes]:
    """Its records, what went to Python, how far the windows are, and what was put out."""
    give, take = side.board.window(0), side.board.window(1)
    give.open(IN_PORT, out=False, length=IN_BYTES)
    give.data[:IN_BYTES] = random.Random(7).randbytes(IN_BYTES)
    take.open(OUT_PORT, out=True, length=OUT_BYTES)
    take.data[:OUT_BYTES] = bytes(OUT_BYTES)
    outcome = side.run([program])
    assert outcome.records[0][-1][0] == DONE, outcome.end
    result = outcome.records[0], outcome.devices, (give.position, take.position), bytes(take.data[:OUT_BYTES])
    give.close()
    take.close()
    return result


def atoms(opcode: int, offset: int, count: int, *, backwards: bool, prefix: bytes) -> list[bytes]:
    index = b"\xbf" if opcode & ~1 == INS else b"\xbe"
    port = IN_PORT if opcode & ~1 == INS else OUT_PORT
    return [
        b"\xfd" if backwards else b"\xfc",
        b"\xba" + word(port) + index + word(USER + offset) + b"\xb9" + word(count),
        prefix + bytes((opcode,)),
        b"\xfc\x89\xca\xbe" + word(USER),  # ECX into EDX, for the record
    ]


CASES = {
    "a block": (0x100, 128, False, b"\xf3"),
    "across a page": (0xF02, 128, False, b"\xf3"),
    "an element across a page": (0xFFD, 9, False, b"\xf3"),
    "backwards": (0x900, 128, True, b"\xf3"),
    "into what is not there": (0x1FC2, 40, False, b"\xf3"),
    "more than the window has": (0x200, 600, False, b"\xf3"),
    "once": (0x100, 5, False, b""),
    "not at all": (0x100, 0, False, b"\xf3"),
    "REPNE": (0x100, 30, False, b"\xf2"),
    "through a segment with a base": (0x100 - USER, 30, False, b"\xf3\x64"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_strings(pair: Pair, case: str, ring: int, size: int) -> None:
    offset, count, backwards, prefix = CASES[case]
    chunks = []
    for opcode in (INS, OUTS):
        if prefix[-1:] == b"\x64" and opcode == INS:
            continue  # INS has ES
        wide = b"\x66" + prefix if size == 2 else prefix
        chunks.append(atoms(opcode | (size > 1), offset, count, backwards=backwards, prefix=wide))
    program = Program(ring, 0x3202 if ring else 2, [0] * 8, chunks)  # IOPL 3
    one, two = ran(pair.reference, program), ran(pair.other, program)
    assert all_same(one[0], two[0]), (one[0], two[0])
    assert one[1:] == two[1:]
