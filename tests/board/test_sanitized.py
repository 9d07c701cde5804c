"""The hot devices under the address and undefined-behaviour sanitizers: driven at random (fuzz_board.c), and out of forged
snapshots (fuzz_state.c)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hvd.trace import points

NATIVE = Path(points.__file__).resolve().parents[1] / "board" / "native"
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]


@pytest.fixture(scope="module", params=["fuzz_board", "fuzz_state"])
def fuzzer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed: apt install gcc"
    (directory / "empty.c").write_text("int main(void) { return 0; }\n")
    probe = [compiler, *FLAGS, "-o", str(directory / "empty"), str(directory / "empty.c")]
    if subprocess.run(probe, capture_output=True, timeout=60).returncode:
        pytest.skip("this compiler has no sanitizers (gcc's libasan and libubsan)")
    (directory / "points.h").write_text(points.c_header())
    for file in (
        *NATIVE.glob("*.c"),
        *(header for header in NATIVE.glob("*.h") if header.name != "points.h"),
        Path(__file__).with_name(f"{request.param}.c"),
    ):
        shutil.copy(file, directory)
    (directory / "empty.c").unlink()
    program = directory / request.param
    command = [compiler, *FLAGS, "-fno-sanitize-recover=all", "-o", str(program), *map(str, directory.glob("*.c"))]
    subprocess.run(command, check=True, timeout=100)
    return program


@pytest.mark.parametrize("seed", range(1, 6))
def test_random_accesses(fuzzer: Path, seed: int) -> None:
    done = subprocess.run([fuzzer, str(seed), "200000"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
