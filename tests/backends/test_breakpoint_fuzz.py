"""Random kernels and programs under engine breakpoint of rewriting and under emulation, as test_rewriting_fuzz.py has them for translate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chained_programs import ChainedMaker
from rare_programs import RareMaker
from stream_compare import Pair, all_same, difference
from stream_guest import Program, Side
from test_rewriting_fuzz import TIMER, look, withheld

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.rewriting.backend import BACKEND as REWRITING

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
BREAKPOINT = next(engine for engine in REWRITING.engines() if engine.name == "breakpoint").availability
AVAILABLE = BREAKPOINT if NATIVE.available else NATIVE
pytestmark = pytest.mark.skipif(not AVAILABLE.available, reason=f"{AVAILABLE.reason}; {AVAILABLE.remedy}")

PROGRAMS = 100


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("streams")
    pair = Pair(Side("emulation", directory), Side("rewriting-breakpoint", directory))
    yield pair
    pair.close()


def test_kernels(pair: Pair) -> None:
    look(pair, [RareMaker(seed, ring=0).program() for seed in range(800_000, 800_000 + PROGRAMS)])


def test_programs(pair: Pair) -> None:
    look(pair, [RareMaker(seed, ring=3).program() for seed in range(810_000, 810_000 + PROGRAMS)])


def test_interrupted(pair: Pair) -> None:
    look(pair, [RareMaker(seed, timer=True).program() for seed in range(820_000, 820_000 + PROGRAMS)], TIMER)


def test_interrupted_before_a_store_by_sse(pair: Pair) -> None:
    """To the page that it is in. When the processor executed such stores, the first instruction of the handler, PUSH DS, was the one that ran
    natively instead: in one run of three of this program."""
    look(pair, [ChainedMaker(9_361_094, timer=True).program()] * 30, TIMER)


def test_withheld_programs(pair: Pair) -> None:
    look(pair, [withheld(seed) for seed in range(830_000, 830_000 + PROGRAMS)])


CODE = 0x48000000  # of a program
LONG = 28  # instructions: no run that the monitor executes


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("opcode", ["d93d", "f30f1105"], ids=["fnstcw", "movss"])
def test_stores_to_the_page_that_they_run_in(pair: Pair, opcode: str, ring: int) -> None:
    """By x87 and SSE instructions: to another place of the page, then to what is executed next (FNSTCW stores JG there)."""
    into = LONG + 2 * (len(opcode) // 2 + 4) + 3
    stores = [bytes.fromhex(opcode) + (CODE + at).to_bytes(4, "little") for at in (0xE00, into)]
    code = [b"\x90"] * LONG + stores + [b"\x43"] * LONG  # INC EBX
    one, two = pair.run([Program(ring, 2, [0x11111111 * n for n in range(8)], [code])])
    assert all_same(one.records[0], two.records[0]), difference(one, two)
    assert two.end.startswith("exit"), two.end
