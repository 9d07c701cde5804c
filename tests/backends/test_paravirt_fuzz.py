"""Random kernels as hvpvcc builds them, with hypercalls: replaced under paravirt, and as they are under emulation. The same exceptions in the same
order, registers, flags and memory.

HVD_FUZZ_SEEDS=first:last runs many more than the suite does. What is found is shrunk, and printed as a line for corpus/replaced.jsonl.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_programs import Maker
from replaced_guest import ReplacedSide
from replaced_programs import ReplacedMaker, instructions, sites
from stream_compare import Pair, all_same, difference, disassembled
from stream_guest import Program, Side
from stream_kernel import KERNEL

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.paravirt.backend import BACKEND as PARAVIRT

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
AVAILABLE = PARAVIRT.probe() if NATIVE.available else NATIVE
pytestmark = pytest.mark.skipif(not AVAILABLE.available, reason=f"{AVAILABLE.reason}; {AVAILABLE.remedy}")

CORPUS = Path(__file__).parent / "corpus" / "replaced.jsonl"
KERNELS, INTERRUPTED, PROGRAMS = range(200), range(200_000, 200_080), range(100_000, 100_080)
TIMER = 400  # periods of the 8254: 335 us
MOST_SHOWN = 4


class ReplacedPair(Pair):
    other: ReplacedSide


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplacedPair]:
    pair = ReplacedPair(
        Side("emulation", tmp_path_factory.mktemp("neutral")), ReplacedSide(tmp_path_factory.mktemp("replaced"))
    )
    yield pair
    pair.close()


def look(pair: Pair, programs: list[Program], timer: int = 0) -> None:
    found = pair.differences(programs, timer)
    lines = []
    for program, text in found[:MOST_SHOWN]:
        small = program if text.startswith("not") else pair.shrink(program, timer)
        lines += [f"seed {program.seed}: {text}", disassembled(small), "corpus: " + small.dump()]
    assert not found, f"{len(found)} differences\n" + "\n".join(lines)


@functools.cache
def kernels() -> list[Program]:
    return [ReplacedMaker(seed).program() for seed in KERNELS]


def test_kernels(pair: Pair) -> None:
    look(pair, kernels())


def test_interrupted(pair: Pair) -> None:
    """By a timer and by kicks, in the middle of thunks: nothing of it is to be seen."""
    look(pair, [ReplacedMaker(seed).program() for seed in INTERRUPTED], TIMER)


def test_programs(pair: Pair) -> None:
    look(pair, [Maker(seed, ring=3).program() for seed in PROGRAMS])


def test_with_a_limit_of_programs(pair: ReplacedPair) -> None:
    """SET_USER_LIMIT: what programs do beyond it is executed by the monitor."""
    programs = [Maker(seed, ring=3).program() for seed in PROGRAMS]
    pair.other.limit(KERNEL)
    try:
        look(pair, [*kernels()[:40], *(program for program in programs if not loads_a_segment_of_the_host(program))])
    finally:
        pair.other.limit(0)


def loads_a_segment_of_the_host(program: Program) -> bool:
    """By which it reads its kernel's memory (docs/paravirtualisation.md, "Isolation"). Programs have one whose selector is 23."""
    return any(b"\xbb\x23\0\0\0" in atom for chunk in program.chunks for atom in chunk)


def test_sites_of_all_kinds_and_calls_are_among_them() -> None:
    code = [atom for program in kernels() for chunk in program.chunks for atom in chunk]
    found = {
        site.shape.code[:2] if site.shape.code[0] == 0x0F else site.shape.code[:1]
        for atom in code
        for site in sites(atom, 0)
    }
    for opcode in (
        "fa",
        "fb",
        "9c",
        "9d",
        "cf",
        "cb",
        "06",
        "1f",
        "8c",
        "8e",
        "c4",
        "ee",
        "0f20",
        "0f22",
        "0f00",
        "0f01",
        "0f02",
        "0fa0",
        "0fa1",
        "0fb4",
    ):
        assert bytes.fromhex(opcode) in found, opcode
    calls = {
        one[1]
        for atom in code
        if b"\xff\xd2" in atom
        for one, _ in instructions(atom)
        if one[0] == 0xB8 and 64 <= one[1] < 94 and one[2:] == bytes(3)
    }
    assert {64, 65, 66, 67, 69, 70, 71, 72, 80, 87} <= calls


@pytest.mark.skipif("HVD_FUZZ_SEEDS" not in os.environ, reason="HVD_FUZZ_SEEDS=first:last is not set")
@pytest.mark.timeout(0)
def test_many_more(pair: Pair) -> None:
    first, last = map(int, os.environ["HVD_FUZZ_SEEDS"].split(":"))
    for at in range(first, last, 100):
        seeds = range(at, min(at + 100, last))
        print(f"seeds {seeds.start} to {seeds.stop}", flush=True)
        look(pair, [ReplacedMaker(seed).program() for seed in seeds])
        look(pair, [ReplacedMaker(seed).program() for seed in seeds], TIMER)
        look(pair, [Maker(seed, ring=3).program() for seed in seeds])


@pytest.mark.parametrize("line", CORPUS.read_text().splitlines(), ids=lambda line: Program.load(line).notes["about"])
def test_what_was_found_once(pair: Pair, line: str) -> None:
    one, two = pair.run([Program.load(line)])
    assert all_same(one.records[0], two.records[0]), difference(one, two)
