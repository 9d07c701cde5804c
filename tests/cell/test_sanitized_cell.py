"""The decoder and the interpreters under the address and undefined-behaviour sanitizers, on random code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cell_rig import CELL, INTERPRETERS, SANITIZE, build, sanitizers_work

HERE = Path(__file__).parent
PROGRAMS = {
    "fuzz_decoder": [HERE / "fuzz_decoder.c", CELL / "decode.c"],
    "fuzz_interpreters": [HERE / "fuzz_interpreters.c", HERE / "rig.c", *INTERPRETERS],
}


@pytest.fixture(scope="module", params=PROGRAMS)
def fuzzer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    if not sanitizers_work(directory):
        pytest.skip("this compiler has no sanitizers (gcc's libasan and libubsan)")
    return build(directory / request.param, *PROGRAMS[request.param], options=SANITIZE)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_code(fuzzer: Path, seed: int) -> None:
    done = subprocess.run([fuzzer, str(seed), "300000"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
