"""A backend that is not of this project, added as docs/add-a-backend.md says: found, started, seen, ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness import Bench
from hvapi.record import decode

import hvd.backends
from hvd.backends import all_backends
from hvd.errors import HvdError
from hvd.trace.filter import Filter
from hvd.trace.points import Kind
from hvd.trace.session import GuestTrace, TraceSwitch

ELSEWHERE = Path(__file__).resolve().parents[1] / "fakes" / "backends"
COM1, DEBUG_EXIT, KEYBOARD = 0x3F8, 0xF4, 0x64


def out(port: int, *values: int) -> bytes:
    return b"\xba" + port.to_bytes(4, "little") + b"".join(bytes((0xB0, value, 0xEE)) for value in values)


def read(port: int) -> bytes:
    return b"\xba" + port.to_bytes(4, "little") + b"\xec"


HELLO = out(COM1, *b"hello from the toy\r\n")
SPIN = b"\xeb\xfe"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What HVD_BACKEND_PATH=tests/fakes/backends does to a daemon."""
    monkeypatch.setattr(hvd.backends, "__path__", [*hvd.backends.__path__, str(ELSEWHERE)])
    all_backends.cache_clear()
    yield
    all_backends.cache_clear()


@pytest.fixture
async def toy(elsewhere: None, tmp_path: Path) -> AsyncIterator[Bench]:
    backend = all_backends()["toy"]
    availability = backend.probe()
    assert availability.available, f"{availability.reason}; {availability.remedy}"
    bench = Bench(backend, "", tmp_path)
    try:
        yield bench
    finally:
        await bench.close()


def program(directory: Path, code: bytes) -> str:
    path = directory / "program.bin"
    path.write_bytes(code)
    return str(path)


def test_it_is_found_beside_the_others(elsewhere: None) -> None:
    assert {"toy", "emulation"} <= set(all_backends())


def test_it_is_found_by_the_environment(elsewhere: None) -> None:
    command = "from hvd.backends import all_backends; print(*sorted(all_backends()))"
    environment = os.environ | {"HVD_BACKEND_PATH": str(ELSEWHERE)}
    found = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert "toy" in found.stdout.split(), found.stderr


async def test_it_runs_a_program_to_its_exit_code(toy: Bench, tmp_path: Path) -> None:
    status, console = await toy.run(program(tmp_path, HELLO + out(DEBUG_EXIT, 42)))
    assert (status.reason, status.exit_code, console) == ("EXITED", 42, "hello from the toy\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (b"\xf4", "HALTED"),
        (out(KEYBOARD, 0xFE), "RESET"),
        (b"\x90", "EXECUTION_ERROR"),
        (b"\xeb\x80" * 2, "EXECUTION_ERROR"),  # it jumps around until it meets something unknown
    ],
)
async def test_its_other_ends(toy: Bench, tmp_path: Path, code: bytes, reason: str) -> None:
    status, _ = await toy.run(program(tmp_path, HELLO + code))
    assert status.reason == reason


async def test_it_can_be_paused_looked_into_reset_and_killed(toy: Bench, tmp_path: Path) -> None:
    running = await toy.start(program(tmp_path, HELLO + SPIN))
    await running.wrote("toy")
    await running.instance.pause()
    registers = {each.name: each.value for each in (await running.instance.registers(0)).registers}
    assert registers["rip"] == 0x100000 + len(HELLO) and registers["rdx"] == COM1
    assert await running.instance.read_memory(0x100000, len(HELLO), False) == HELLO
    await running.instance.reset()
    await running.instance.resume()
    await running.wrote("toy\nhello from the toy")
    await running.instance.kill()
    assert (await running.end()).reason == "KILLED"


async def test_its_crossings_are_seen(toy: Bench, tmp_path: Path) -> None:
    running = await toy.start(program(tmp_path, read(KEYBOARD) + HELLO + b"\xf4"), start_paused=True)
    trace = GuestTrace(running.directory, Filter(["port-io"], [], toy.backend.trace_points), TraceSwitch())
    await running.instance.resume()
    await running.end()
    block, lost, _ = trace.read(1000)
    trace.close()
    records = list(decode(block))
    assert not lost and {record.kind for record in records} == {Kind.PORT_IO} and records[0].backend == 0
    assert bytes(record.a2 for record in records if record.a0 == COM1) == b"hello from the toy\r\n"
    assert (records[0].a0, records[0].a2) == (KEYBOARD, 0x14)  # answered by a device in Python


def test_it_refuses_what_it_cannot_run(toy: Bench) -> None:
    with pytest.raises(HvdError) as error:
        toy.backend.check(toy.spec("hello.elf"))
    assert error.value.reason == "BACKEND_UNAVAILABLE"
