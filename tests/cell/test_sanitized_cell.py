"""The decoder, the interpreters and the judge of exit records under the address and undefined-behaviour sanitizers, on random code
and random run areas."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cell_rig import CELL, INTERPRETERS, ROOT, SANITIZE, build, sanitizers_work

HERE = Path(__file__).parent
PROGRAMS = {
    "fuzz_decoder": [HERE / "fuzz_decoder.c", CELL / "decode.c"],
    "fuzz_interpreters": [HERE / "fuzz_interpreters.c", HERE / "rig.c", *INTERPRETERS],
    "fuzz_area": [HERE / "fuzz_area.c", CELL / "check.c", *(ROOT / "hvd" / "board" / "native").glob("*.c")],
}
STEPS = {"fuzz_area": "60000"}


@pytest.fixture(scope="module", params=PROGRAMS)
def fuzzer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    if not sanitizers_work(directory):
        pytest.skip("this compiler has no sanitizers (gcc's libasan and libubsan)")
    return build(directory / request.param, *PROGRAMS[request.param], options=SANITIZE)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_input(fuzzer: Path, seed: int) -> None:
    done = subprocess.run([fuzzer, str(seed), STEPS.get(fuzzer.name, "300000")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
