"""Real runner processes with real guests (emulation), driven through RunnerInstance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hvapi.runner.v1 import control_pb2
from hvapi.v1 import inspect_pb2

from hvd.backends.contract import Capability, ConsoleAttachment, InstanceStatus, LaunchSpec
from hvd.errors import HvdError
from hvd.runner import client
from hvd.runner.client import RunnerInstance, read_exit
from hvd.runner.directory import COUNTERS
from hvd.runner.protocol import ControlClient, frame, socket_path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "build" / "guests"
ALL = frozenset(Capability)
SECONDS = 60.0

Launch = Callable[..., Awaitable[RunnerInstance]]


def kernel(name: str) -> Path:
    path = KERNELS / f"{name}.elf"
    missing = [str(file) for file in (path, ROOT / "hvd" / "libhv.so") if not file.exists()]
    if missing:
        reason = f"not built: {', '.join(missing)} (`make setup`)"
        if "emulation" in os.environ.get("HVD_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def spec(name: str, **values: Any) -> LaunchSpec:
    defaults: dict[str, Any] = {
        "uid": "u", "name": name, "engine": "", "memory_bytes": 16 << 20, "cpus": 1, "initrd": None, "command_line": "",
        "flat_load_address": 0, "restart_on_reset": False, "start_paused": False,
    }  # fmt: skip
    return LaunchSpec(**(defaults | {"kernel": values.pop("path", None) or kernel(name)} | values))


@pytest_asyncio.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Launch]:
    started: list[RunnerInstance] = []

    async def start(name: str, directory: Path = tmp_path, **values: Any) -> RunnerInstance:
        instance = await RunnerInstance.launch(directory, spec(name, **values), "emulation", ALL)
        started.append(instance)
        return instance

    yield start
    for instance in started:
        await instance.kill()
        await instance.close()


async def ended(instance: RunnerInstance) -> InstanceStatus:
    status = await instance.status()
    async with asyncio.timeout(SECONDS):
        while status.state in ("STARTING", "RUNNING", "PAUSED"):
            status = await instance.wait_change(status)
    return status


async def until(what: Callable[[], Any]) -> None:
    """Polls for what no event announces."""
    async with asyncio.timeout(SECONDS):
        while not what():
            await asyncio.sleep(0.01)


async def read_until(console: ConsoleAttachment, wanted: bytes) -> bytes:
    got = b""
    async with asyncio.timeout(SECONDS):
        async for piece in console.output():
            assert isinstance(piece, bytes)
            got += piece
            if wanted in got:
                return got
    raise AssertionError(f"the console ended with {got!r}")


def console_text(directory: Path, stream: str = "stdout") -> bytes:
    """What the log holds, rotated part first; every line must be well-formed."""
    text = b""
    for name in ("console.log.1", "console.log"):
        path = directory / name
        if not path.exists():
            continue
        for line in path.read_bytes().splitlines(keepends=True):
            match = re.fullmatch(rb"\S+\+00:00 (stdout|stderr) ([FP]) ([^\n]*)\n", line)
            assert match, line
            if match[1] == stream.encode():
                text += match[3] + (b"\n" if match[2] == b"F" else b"")
    return text


def counter(directory: Path, offset: int) -> int:
    with open(directory / COUNTERS, "rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 8, offset), "little")


def console_out_bytes(directory: Path) -> int:
    return counter(directory, 40)


# ---- ends


@pytest.mark.parametrize(
    ("name", "state", "reason", "code"),
    [
        ("hello", "STOPPED", "EXITED", 0),
        ("halt", "STOPPED", "HALTED", 0),
        ("triple", "STOPPED", "TRIPLE_FAULT", 0),
        ("reset", "STOPPED", "RESET", 0),
    ],
)
async def test_ends(launch: Launch, tmp_path: Path, name: str, state: str, reason: str, code: int | None) -> None:
    status = await ended(await launch(name))
    assert (status.state, status.reason, status.exit_code) == (state, reason, code)
    assert status == read_exit(tmp_path)
    assert f"{name}: ok".encode() in console_text(tmp_path)


async def test_the_guests_exit_code(launch: Launch) -> None:
    instance = await launch("echo")
    async with instance.attach_console(False) as console:
        await console.write(b"q")
        status = await ended(instance)
    assert (status.reason, status.exit_code) == ("EXITED", 7)


async def test_a_guest_that_runs_wild(launch: Launch) -> None:
    status = await ended(await launch("wild"))
    assert status.reason in ("TRIPLE_FAULT", "EXECUTION_ERROR")
    assert status.metadata and status.metadata["address"].startswith("0x")


async def test_kill(launch: Launch) -> None:
    instance = await launch("spin")
    waiting = asyncio.create_task(instance.wait_change(await instance.status()))
    await instance.kill()
    await instance.kill()
    status = await waiting
    assert (status.state, status.reason, status.exit_code) == ("STOPPED", "KILLED", 0)
    assert status == await instance.status()


async def test_kill_over_the_control_socket(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("spin")
    with ControlClient(tmp_path) as control:
        control.call(kill=control_pb2.Kill())
    assert (await ended(instance)).reason == "KILLED"


async def test_a_crashed_runner_is_lost(launch: Launch) -> None:
    instance = await launch("spin")
    waiting = asyncio.create_task(instance.wait_change(await instance.status()))
    os.kill(instance.pid, signal.SIGKILL)
    status = await asyncio.wait_for(waiting, SECONDS)
    assert (status.state, status.reason, status.exit_code) == ("FAILED", "RUNNER_CRASHED", None)
    assert "SIGKILL" in status.message
    for verb in (instance.pause(), instance.registers(0)):
        with pytest.raises(HvdError) as error:
            await verb
        assert error.value.reason == "RUNNER_GONE"


async def test_hypercalls(launch: Launch, tmp_path: Path) -> None:
    status = await ended(await launch("hypercalls"))
    assert status.exit_code == 0, console_text(tmp_path)
    assert console_text(tmp_path, "stderr").startswith(b"hypercalls says hello\n")


# ---- starts that fail


@pytest.mark.parametrize("content", [b"", b"nothing that boots", random.Random(1).randbytes(4096)])
async def test_bad_kernels(launch: Launch, tmp_path: Path, content: bytes) -> None:
    kernel("hello")
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(HvdError) as error:
        await launch("bad", path=path)
    assert error.value.reason == "IMAGE_FORMAT"
    status = read_exit(tmp_path)
    assert status is not None and (status.state, status.reason) == ("FAILED", "LOAD_FAILED")
    assert status.metadata and status.metadata["error"] == "IMAGE_FORMAT"


async def test_more_memory_than_there_is(launch: Launch) -> None:
    with pytest.raises(HvdError) as error:
        await launch("hello", memory_bytes=1 << 46)
    assert error.value.reason == "MEMORY_TOO_LARGE"


async def test_an_unknown_engine(launch: Launch) -> None:
    with pytest.raises(HvdError) as error:
        await launch("hello", engine="steam")
    assert error.value.reason == "ENGINE_UNKNOWN"


async def test_a_runner_that_cannot_even_begin(tmp_path: Path) -> None:
    wanted = spec("hello")
    with pytest.raises(HvdError) as error:
        await RunnerInstance.launch(tmp_path, wanted, "nonsense", ALL)
    assert error.value.reason == "BACKEND_UNAVAILABLE"
    with pytest.raises(HvdError) as error:
        await RunnerInstance.launch(tmp_path, wanted, "emulation", ALL, executable="/bin/false")
    assert error.value.reason == "RUNNER_START_FAILED"
    with pytest.raises(HvdError) as error:
        await RunnerInstance.launch(tmp_path / "missing", wanted, "emulation", ALL)
    assert error.value.reason == "RUNNER_START_FAILED"


# ---- verbs


async def test_pause_resume_reset(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("ticker")
    async with instance.attach_console(True) as console:
        await read_until(console, b"tick ")  # it is past its first instruction, so that a reset moves it
    running = await instance.status()
    waiting = asyncio.create_task(instance.wait_change(running))
    await instance.pause()
    paused = await waiting
    assert (running.state, paused.state) == ("RUNNING", "PAUSED")
    before = counter(tmp_path, 24), console_out_bytes(tmp_path), await registers(instance)
    await instance.pause()
    await asyncio.sleep(0.25)  # two ticks of its clock, if that went on
    assert (counter(tmp_path, 24), console_out_bytes(tmp_path), await registers(instance)) == before
    await instance.reset()
    assert await instance.status() == InstanceStatus("PAUSED", resets=1)
    assert (await registers(instance))["rip"] != before[2]["rip"]
    async with instance.attach_console(True) as console:
        await instance.resume()
        await read_until(console, b"tick 2\r\n")
    assert (await instance.status()).state == "RUNNING"


async def test_what_it_wrote_is_in_the_log_when_its_pause_is_answered(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("flood")
    for _ in range(5):
        written = console_out_bytes(tmp_path)
        await until(lambda written=written: console_out_bytes(tmp_path) > written + 1000)
        await instance.pause()
        assert len(console_text(tmp_path)) == console_out_bytes(tmp_path)
        await instance.resume()


async def registers(instance: RunnerInstance) -> dict[str, int]:
    return {register.name: register.value for register in (await instance.registers(0)).registers}


async def test_restart_on_reset(launch: Launch) -> None:
    instance = await launch("reset", restart_on_reset=True)
    status = await instance.status()
    async with asyncio.timeout(SECONDS):
        while status.resets < 3:
            status = await instance.wait_change(status)
    assert status.state == "RUNNING"


async def test_start_paused(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("hello", start_paused=True)
    assert (await instance.status()).state == "PAUSED"
    assert console_out_bytes(tmp_path) == 0
    await instance.resume()
    assert (await ended(instance)).reason == "EXITED"


async def test_inspection(launch: Launch) -> None:
    instance = await launch("spin")
    regions = (await instance.memory_map()).regions
    assert (regions[0].start, regions[0].length, regions[0].kind) == (0, 16 << 20, inspect_pb2.MemoryRegion.RAM)
    await instance.write_memory(0x30_0000, b"seen", False)
    assert await instance.read_memory(0x30_0000, 4, True) == b"seen"
    found = await instance.translate(0x30_0000)
    assert (found.physical_address, found.host_offset, found.paging_mode) == (0x30_0000, 0x30_0000, "none")
    answer = await instance.registers(0)
    assert (answer.mode, answer.privilege_level) == ("protected", 0)
    code = next(register for register in answer.registers if register.name == "cs")
    assert code.limit == 0xFFFF_FFFF
    await instance.resize_console(25, 80)
    assert await instance.request_stop() is False
    for call, reason in (
        (instance.read_memory(1 << 40, 1, False), "ADDRESS_OUTSIDE"),
        (instance.read_memory(0, (1 << 20) + 1, False), "REQUEST_INVALID"),
        (instance.registers(1), "REQUEST_INVALID"),
        (instance.resize_console(1 << 20, 1), "FIELD_INVALID"),
    ):
        with pytest.raises(HvdError) as error:
            await call
        assert error.value.reason == reason
    assert len(await instance.read_memory(0, 1 << 20, False)) == 1 << 20


async def test_calls_at_once(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("ticker")

    def hammer() -> int:
        with ControlClient(tmp_path) as control:
            return sum(control.call(read_memory=control_pb2.ReadMemory(length=16)).data != b"" for _ in range(50))

    counts = await asyncio.gather(
        *(asyncio.to_thread(hammer) for _ in range(4)), *(instance.status() for _ in range(50))
    )
    assert counts[:4] == [50] * 4


async def test_a_capability_that_the_backend_has_not(tmp_path: Path) -> None:
    instance = await RunnerInstance.launch(tmp_path, spec("spin"), "emulation", frozenset())
    try:
        with pytest.raises(HvdError) as error:
            await instance.pause()
        assert error.value.reason == "CAPABILITY_MISSING"
        assert "emulation" in error.value.message
    finally:
        await instance.kill()
        await instance.close()


# ---- console


async def test_two_viewers_and_the_log_see_the_same(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("echo")
    async with instance.attach_console(False) as one, instance.attach_console(True) as two:
        await one.write(b"to be seen by both\r")
        for console in (one, two):
            assert b"to be seen by both\r" in await read_until(console, b"both\r")
        with pytest.raises(HvdError):
            await two.write(b"x")
        # A prompt without line end is in the log soon.
        await one.write(b"prompt> ")
        await until(lambda: b"prompt> " in console_text(tmp_path))
    assert b"to be seen by both" in console_text(tmp_path)


async def test_the_console_ends_with_the_guest_and_after_its_record(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("echo")
    async with instance.attach_console(False) as console:
        await console.write(b"bye q")
        got = b""
        async with asyncio.timeout(SECONDS):
            async for piece in console.output():
                got += piece if isinstance(piece, bytes) else b""
        assert got.endswith(b"bye ") or b"bye" in got
        assert read_exit(tmp_path) is not None


async def test_a_slow_viewer_holds_up_nobody(launch: Launch, tmp_path: Path) -> None:
    """Lines are numbered: what the slow viewer got, plus what it was told to have missed, is everything."""
    instance = await launch("flood", command_line="count=40000")
    async with instance.attach_console(True) as slow, instance.attach_console(True) as quick:
        total = 0
        async with asyncio.timeout(60):
            async for piece in quick.output():
                total += piece if isinstance(piece, int) else len(piece)
        pieces = [piece async for piece in slow.output()]
    assert (await ended(instance)).reason == "EXITED"
    skipped = sum(piece for piece in pieces if isinstance(piece, int))
    got = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    # Its socket and backlog hold far less than the flood; the end came before it was told of the last gap.
    assert 0 < len(got) < total
    assert len(got) + skipped <= total
    numbers = [int(number) for number in re.findall(rb"(?m)^(\d+) the quick brown fox jumps", got)]
    assert numbers == sorted(set(numbers))
    assert console_text(tmp_path).endswith(b"flood: ok\r\n")


async def test_a_viewer_that_catches_up_learns_what_it_missed(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("flood")
    async with instance.attach_console(True) as slow:
        await until(lambda: console_out_bytes(tmp_path) > 4 << 20)
        async with asyncio.timeout(SECONDS):
            async for piece in slow.output():
                if isinstance(piece, int):
                    assert piece > 0
                    break


async def test_a_flood_is_logged_within_bounds(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("flood", command_line="count=20000", log_max_bytes=256 << 10)
    assert (await ended(instance)).exit_code == 0
    for name in ("console.log", "console.log.1"):
        assert (tmp_path / name).stat().st_size <= 128 << 10
    numbers = [int(n) for n in re.findall(rb"(?m)^(\d+) the quick brown fox", console_text(tmp_path))]
    assert numbers == list(range(numbers[0], 20000))


async def test_typing_at_a_guest_that_does_not_read(launch: Launch) -> None:
    instance = await launch("spin")
    async with instance.attach_console(False) as console:
        typing = asyncio.create_task(console.write(b"x" * (1 << 20)))
        assert (await instance.status()).state == "RUNNING"
        await instance.pause()
        await instance.resume()
        assert not typing.done()
        typing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await typing
    assert (await instance.status()).state == "RUNNING"


async def test_a_long_paste_arrives_whole(launch: Launch, tmp_path: Path) -> None:
    """More than the console's ring and the sockets hold: every byte comes to the UART (what echo does with them is
    its own affair)."""
    instance = await launch("echo")
    async with instance.attach_console(False) as console:
        await asyncio.wait_for(console.write(b"0123456789" * 50_000), SECONDS)
    # The viewer has gone; what it typed has not.
    await until(lambda: counter(tmp_path, 48) == 500_000)


async def test_a_full_disk_under_the_log(launch: Launch, tmp_path: Path) -> None:
    """RLIMIT_FSIZE on the runner stands for the disk: the guest goes on, the loss is told, the log resumes."""
    instance = await launch("ticker", jailed=False)  # or its limits would be its own user's
    limits = resource.prlimit(instance.pid, resource.RLIMIT_FSIZE)
    status = await instance.status()
    resource.prlimit(instance.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
    failing = await asyncio.wait_for(instance.wait_change(status), SECONDS)
    assert failing.state == "RUNNING"
    assert "File too large" in failing.log_error
    written = console_out_bytes(tmp_path)
    await until(lambda: console_out_bytes(tmp_path) > written)
    resource.prlimit(instance.pid, resource.RLIMIT_FSIZE, limits)
    recovered = await asyncio.wait_for(instance.wait_change(failing), SECONDS)
    assert recovered == status
    assert b"bytes of the guest's output are missing here: File too large" in console_text(tmp_path, "stderr")


async def test_the_end_is_recorded_on_a_full_disk(launch: Launch) -> None:
    instance = await launch("ticker", jailed=False)
    _, hard = resource.prlimit(instance.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(instance.pid, resource.RLIMIT_FSIZE, (4096, hard))
    await instance.kill()
    assert (await instance.status()).reason == "KILLED"


# ---- hostile and dead peers


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",  # 4 GiB
        (2 << 20 | 1).to_bytes(4, "little"),
        b"\x05\x00\x00\x00\xff\xff\xff\xff\xff",  # garbage
        b"\x10\x00\x00\x00half",
        b"GET / HTTP/1.1\r\n\r\n",
        random.Random(1).randbytes(100_000),
    ],
)
async def test_malformed_frames(launch: Launch, tmp_path: Path, data: bytes) -> None:
    instance = await launch("spin")
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, socket_path(tmp_path, "control") as path:
            sock.settimeout(SECONDS)
            sock.connect(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
    assert (await instance.status()).state == "RUNNING"


async def test_a_call_that_the_runner_does_not_know(launch: Launch, tmp_path: Path) -> None:
    await launch("spin")
    with ControlClient(tmp_path) as control:
        with pytest.raises(HvdError) as error:
            control.call()
        assert error.value.reason == "REQUEST_INVALID"
        assert control.call(get_status=control_pb2.GetStatus()).state == "RUNNING"


async def test_requests_in_a_row_are_answered_in_order(launch: Launch, tmp_path: Path) -> None:
    await launch("spin")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, socket_path(tmp_path, "control") as path:
        sock.settimeout(SECONDS)
        sock.connect(path)
        calls = [{"read_memory": control_pb2.ReadMemory(length=1 << 16)}, {"get_status": control_pb2.GetStatus()}] * 100
        requests = [control_pb2.RunnerRequest(id=n, **call) for n, call in enumerate(calls)]  # type: ignore[arg-type]
        sock.sendall(b"".join(frame(request) for request in requests))
        stream = sock.makefile("rb")
        for n in range(len(calls)):
            length = int.from_bytes(stream.read(4), "little")
            assert control_pb2.RunnerResponse.FromString(stream.read(length)).id == n


async def test_a_crowd_of_connections(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("spin")
    with contextlib.ExitStack() as stack:
        for name, kind in (("control", socket.SOCK_STREAM), ("attach", socket.SOCK_SEQPACKET)):
            for _ in range(100):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                with socket_path(tmp_path, name) as path:
                    await asyncio.to_thread(sock.connect, path)
    assert (await instance.status()).state == "RUNNING"


async def test_a_runner_that_does_not_answer(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(client, "KILL_SECONDS", 0.5)
    instance = await launch("spin")
    os.kill(instance.pid, signal.SIGSTOP)
    with pytest.raises(HvdError) as error:
        await instance.status()
    assert error.value.reason == "RUNNER_TIMEOUT"
    await instance.kill()
    status = await instance.status()
    assert (status.state, status.reason) == ("STOPPED", "KILLED")


async def test_a_runner_that_was_slow_is_used_again(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CALL_SECONDS", 0.3)
    instance = await launch("spin")
    os.kill(instance.pid, signal.SIGSTOP)
    with pytest.raises(HvdError):
        await instance.status()
    os.kill(instance.pid, signal.SIGCONT)
    monkeypatch.setattr(client, "CALL_SECONDS", SECONDS)
    assert (await instance.status()).state == "RUNNING"


# ---- daemons come and go


async def test_a_path_longer_than_a_socket_name(launch: Launch, tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    instance = await launch("echo", directory)
    async with instance.attach_console(False) as console:
        await console.write(b"here\r")
        await read_until(console, b"here")


async def test_a_runner_outlives_the_daemon_that_started_it(tmp_path: Path) -> None:
    script = f"""
        import asyncio, os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_runner_process import ALL, spec
        from hvd.runner.client import RunnerInstance

        async def main():
            await RunnerInstance.launch(Path({str(tmp_path)!r}), spec("echo"), "emulation", ALL)
            os.killpg(os.getpgid(0), 9)

        asyncio.run(main())
    """
    kernel("echo")
    daemon = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(script)], start_new_session=True, timeout=SECONDS
    )
    assert daemon.returncode == -signal.SIGKILL
    instance = await RunnerInstance.adopt(tmp_path, "emulation", ALL)
    try:
        assert (await instance.status()).state == "RUNNING"
        async with instance.attach_console(False) as console:
            await console.write(b"still here\r")
            await read_until(console, b"still here")
        waiting = asyncio.create_task(ended(instance))
        async with instance.attach_console(False) as console:
            await console.write(b"q")
            assert (await waiting).exit_code == 7
    finally:
        await instance.kill()
        await instance.close()
    with pytest.raises(HvdError) as error:
        await RunnerInstance.adopt(tmp_path, "emulation", ALL)
    assert error.value.reason == "RUNNER_GONE"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"start_time": 1}, "another one"),
        ({"boot_id": "other"}, "started anew"),
        ({"pid": "x"}, "names process"),
        ({"pid": -1}, "names process"),
        ({"pid": 1 << 40}, "does not exist"),
    ],
)
async def test_what_cannot_be_adopted(launch: Launch, tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    await launch("spin")
    pid_file = tmp_path / "pid"
    good = json.loads(pid_file.read_text())
    pid_file.write_text(json.dumps(good | change))
    with pytest.raises(HvdError, match=problem) as error:
        await RunnerInstance.adopt(tmp_path, "emulation", ALL)
    assert error.value.reason == "RUNNER_GONE"
    pid_file.write_text("garbage")
    with pytest.raises(HvdError, match="no pid file"):
        await RunnerInstance.adopt(tmp_path, "emulation", ALL)


async def test_a_runner_carries_nothing_heavy(launch: Launch) -> None:
    instance = await launch("spin")

    def extensions() -> str:
        return Path(f"/proc/{instance.pid}/maps").read_text()

    maps = extensions()
    for heavy in ("_asyncio", "cygrpc", "_ssl"):
        assert heavy not in maps
    await instance.status()
    assert "_asyncio" not in extensions()
    assert "cygrpc" not in extensions()
    with open(f"/proc/{instance.pid}/comm", encoding="ascii") as comm:  # noqa: ASYNC230  procfs
        assert comm.read() == "hvd:spin\n"
    assert os.getsid(instance.pid) == instance.pid
