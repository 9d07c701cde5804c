"""Taking down containers: by two at once, and when a part of it fails; under every runtime."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from container_harness import ContainerBench

from hvd.backends.container.ending import settle
from hvd.backends.container.record import Record
from hvd.backends.container.runtime import Runtime
from hvd.errors import HvdError
from hvd.runner.directory import EXIT, read_json


def record_and_runtime(bench: ContainerBench, directory: Path) -> tuple[Record, Runtime]:
    record = Record.read(directory)
    assert record is not None
    return record, Runtime(record.engine, directory.parent / ".runtime")


async def test_deleted_by_several_at_once(container_bench: ContainerBench) -> None:
    for _ in range(3):
        running = await container_bench.start("sleep", "1000")
        record, runtime = record_and_runtime(container_bench, running.directory)
        await asyncio.gather(*(runtime.delete(record.uid) for _ in range(3)), running.instance.kill())
        assert (await running.end()).reason == "KILLED"
        await runtime.delete(record.uid)


async def test_killed_as_it_ends(container_bench: ContainerBench) -> None:
    for _ in range(3):
        running = await container_bench.start("sh", "-c", "echo up; read line", stdin=True)
        await running.wrote("up")
        async with running.instance.attach_console(False) as console:
            await console.write(b"\n")
        await asyncio.gather(running.instance.kill(), running.instance.kill())
        assert (await running.end()).state == "STOPPED"


async def test_what_can_be_taken_down_is(container_bench: ContainerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await container_bench.start("sh", "-c", "echo up; read line", stdin=True)
    await running.wrote("up")
    with monkeypatch.context() as patch:

        async def fail(runtime: Runtime, uid: str) -> None:
            raise HvdError("CONTAINER_FAILED", what="delete", problem="a bad day")

        patch.setattr(Runtime, "delete", fail)
        patch.setattr(Runtime, "forget", lambda runtime, uid: False)
        async with running.instance.attach_console(False) as console:
            await console.write(b"\n")
        status = await running.end()
    assert (status.state, status.reason) == ("FAILED", "INTERNAL") and "a bad day" in status.message
    record, runtime = record_and_runtime(container_bench, running.directory)
    assert not any(record.state_dir in left for left in container_bench.left_over())
    assert not (running.directory / EXIT).exists()
    # The next daemon, or start, does the rest.
    assert (await settle(running.directory, record, runtime)).reason == "EXITED"
    assert (running.directory / EXIT).exists() and not (runtime.root / record.uid).exists()


async def test_created_and_never_begun(container_bench: ContainerBench) -> None:
    """Held by whoever wanted it so it is PAUSED; otherwise the daemon died in the middle of a start, which is called off."""
    held = await container_bench.start("sleep", "1000", start_paused=True)
    again = await container_bench.backend.adopt(held.directory)
    assert (await again.status()).state == "PAUSED"
    await again.close()
    record, runtime = record_and_runtime(container_bench, held.directory)
    assert await runtime.status(record.uid) == "created"
    await held.instance.close()  # as the daemon that died: there is nobody else to write how it ended
    replace(record, held=False).write(held.directory)
    with pytest.raises(HvdError, match="the daemon died"):
        await container_bench.backend.adopt(held.directory)
    found = read_json(str(held.directory / EXIT))
    assert found is not None and (found["state"], found["reason"]) == ("FAILED", "START_INTERRUPTED")
    assert await runtime.status(record.uid) == ""
    assert not any(record.state_dir in left for left in container_bench.left_over())
