"""Random kernels and programs under rewriting while a debugger, the census, snapshots and moves to emulation and back are at work:
as undisturbed under emulation. HVD_FUZZ_SEEDS=first:last runs those seeds instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chained_programs import ChainedMaker
from disturbed import Disturbed
from rare_programs import RareMaker
from stream_compare import Pair
from stream_guest import Side
from stream_kernel import Paging
from test_rewriting_fuzz import TIMER, look

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.rewriting.backend import BACKEND as REWRITING

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
ENGINES = {f"rewriting-{engine.name}": engine.availability for engine in REWRITING.engines()}
PER_TURN = 40
TURNS = 3


@pytest.mark.timeout(0 if "HVD_FUZZ_SEEDS" in os.environ else 180)
@pytest.mark.parametrize("paging", (Paging.SMALL, Paging.PAE), ids=lambda paging: paging.name)
@pytest.mark.parametrize("name", ENGINES)
def test_disturbed(name: str, paging: Paging, tmp_path: Path) -> None:
    availability = ENGINES[name] if NATIVE.available else NATIVE
    if not availability.available:
        pytest.skip(f"{availability.reason}; {availability.remedy}")
    first = 1_000_000 + 1000 * list(ENGINES).index(name) + 100_000 * (paging is Paging.PAE)
    last = first + PER_TURN * TURNS
    if "HVD_FUZZ_SEEDS" in os.environ:
        first, last = map(int, os.environ["HVD_FUZZ_SEEDS"].split(":"))
    disturbed = Disturbed(name, tmp_path, paging, first)
    pair = Pair(Side("emulation", tmp_path, paging), disturbed)
    try:
        for at in range(first, last, PER_TURN):
            seeds = range(at, min(at + PER_TURN, last))
            look(pair, [RareMaker(seed, paging=paging).program() for seed in seeds])
            look(pair, [RareMaker(seed, timer=True, paging=paging).program() for seed in seeds], TIMER)
            if paging is Paging.SMALL:
                look(pair, [ChainedMaker(seed).program() for seed in seeds])
    finally:
        pair.close()
    wanted = {"debugger", "census", "restored", "looked at", "moved", "BREAKPOINT", "STEP"}
    assert not wanted - set(disturbed.counts), disturbed.counts
