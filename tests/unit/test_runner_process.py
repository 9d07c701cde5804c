"""Real runner processes with real guests (emulation): how they start and end, what can be asked of them, who may adopt them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hvapi.runner.v1 import control_pb2
from hvapi.v1 import inspect_pb2
from runner_rig import (
    ALL,
    SECONDS,
    Launch,
    console_out_bytes,
    console_text,
    counter,
    ended,
    kernel,
    read_until,
    spec,
    until,
)

from hvd.backends.contract import InstanceStatus
from hvd.errors import HvdError
from hvd.runner.client import RunnerInstance, read_exit
from hvd.runner.protocol import ControlClient

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
        from runner_rig import ALL, spec
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
