"""Which libunicorn the native engine takes: it says what is wrong with any other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_rig import Rig

from hvd.backends.emulation import selfcheck, vcpu
from hvd.backends.emulation.backend import BACKEND
from hvd.errors import HvdError

PROJECT = Path(vcpu.__file__).parents[3]
NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")


def compile_library(source: str, directory: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed: apt install gcc"
    (directory / "fake.c").write_text(source)
    library = directory / "libunicorn.so.2"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, directory / "fake.c"], check=True, timeout=60)
    return library


def symbols() -> list[str]:
    header = (PROJECT / "hvd/backends/emulation/unicorn_abi.h").read_text()
    return re.findall(r"X\([^,]+, (\w+), \(", header)


def refusal(monkeypatch: pytest.MonkeyPatch, library: Path) -> HvdError:
    monkeypatch.setattr(vcpu, "unicorn_library", lambda: library)
    with pytest.raises(HvdError) as error:
        Rig(b"\xf4")
    assert error.value.reason == "BACKEND_UNAVAILABLE"
    assert str(library) in error.value.message and "unicorn==2.1.4" in str(error.value)
    return error.value


def test_refuses_what_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "libunicorn.so.2"
    path.write_text("not a library")
    assert "cannot load" in refusal(monkeypatch, path).message


def test_refuses_a_library_without_the_internals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = compile_library("unsigned uc_version(void) { return 0x020104ff; }", tmp_path)
    assert "does not export uc_open" in refusal(monkeypatch, library).message


@pytest.mark.parametrize(
    ("version", "text"), [(0x020103FF, "it is Unicorn 2.1.3"), (0x020104FF, "procedure linkage table")]
)
def test_refuses_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: int, text: str) -> None:
    functions = "".join(f"unsigned {name}(void) {{ return {version:#x}; }}\n" for name in symbols())
    assert len(symbols()) > 25
    assert text in refusal(monkeypatch, compile_library(functions, tmp_path)).message


def test_the_self_check_accepts_this_build() -> None:
    assert selfcheck.run() == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (b"\x0f\x0b", b"\x90\x90", "address of the invalid opcode"),
        ((1664525).to_bytes(4, "little"), (1664527).to_bytes(4, "little"), "the computation"),
        (b"\x0f\x22\xc0", b"\x90\x90\x90", "error code of the page fault"),  # paging stays off
        (b"\xbc", b"\xf4", "at least 3 timer ticks"),  # ends at once
        (b"\x0f\x01", b"\xf4\x90", "at least 3 timer ticks"),
    ],
)
def test_the_self_check_sees_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: bytes, new: bytes, found: str
) -> None:
    image = selfcheck.PROGRAM.read_bytes()
    assert old in image
    program = tmp_path / "selfcheck.bin"
    program.write_bytes(image.replace(old, new, 1))
    monkeypatch.setattr(selfcheck, "PROGRAM", program)
    assert any(problem.startswith(found) for problem in selfcheck.run())


def test_a_self_check_that_dies_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from hvd.backends.emulation import backend

    monkeypatch.setattr(backend.sys, "executable", "/bin/false")
    found = backend._probe_native.__wrapped__()
    assert not found.available and "it ended with status 1" in found.reason and found.remedy
