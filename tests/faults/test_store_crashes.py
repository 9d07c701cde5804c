"""The store's process is killed at every system call on its files, and in the middle of every write: what was answered is there, and the
file is sound. What a client is answered is on the disk before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_crasher
from fault_table import FAIL, KILL, TEAR, FaultTable

from hvd.guests.store import Store

# Steps after which a guest is there, and the step that takes it away.
MADE = {"uid-a": "create a", "uid-b": "create b", "uid-c": "create c", "uid-large": "create large"}


class Crasher:
    def __init__(self, directory: Path) -> None:
        self.faults = FaultTable(directory)
        environment = os.environ | self.faults.environment
        self._process = subprocess.Popen(
            [sys.executable, store_crasher.__file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, directory: Path) -> tuple[list[str], int]:
        """The steps that were answered, and its wait status."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{directory}\n")
        self._process.stdin.flush()
        steps: list[str] = []
        for line in self._process.stdout:
            if line.startswith("end "):
                return steps, int(line.split()[1])
            steps.append(line.strip())
        raise AssertionError(f"it died after {steps}")

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """For the stores: in memory where there is such a place, since nobody cuts this host's power."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="hvd-test-") as directory:
        yield Path(directory)


@pytest.fixture
def crasher(tmp_path: Path) -> Iterator[Crasher]:
    made = Crasher(tmp_path)
    yield made
    made.close()


async def check(directory: Path, steps: list[str]) -> None:
    """The next daemon opens it."""
    store = Store(directory)
    await store.open()
    loaded = await store.load()
    assert not loaded.odd
    found = {guest.uid: guest for guest in loaded.guests}
    for uid, step in MADE.items():
        taken = uid == "uid-a" and "delete a" in steps
        if step in steps and not taken and not (uid == "uid-a" and "update b" in steps):  # its deletion was under way
            assert uid in found, f"{uid} is lost after {steps}"
        if taken:
            assert uid not in found, f"{uid} is back after {steps}"
    if "create b" in steps:
        assert await store.request("request-b") is not None
    if "update b" in steps:
        assert dict(found["uid-b"].labels) == {"x": "y"}
    unfinished = await store.unfinished()
    assert ("uid-c" in unfinished) <= ("uid-c" not in found), "a creation is unfinished or done, never both"
    if "begin c" in steps:
        assert "uid-c" in unfinished or "uid-c" in found
    if "delete a" in steps and "create large" not in steps and "finished a" not in steps and "uid-a" not in unfinished:
        assert steps[-1] == "delete a", "only its very end may have been done unanswered"
    await store.close()


@pytest.mark.parametrize(("call", "act"), [("write", KILL), ("write", TEAR), ("sync", KILL), ("truncate", KILL), ("unlink", KILL), ("open", KILL)])
async def test_killed_at_every_call(crasher: Crasher, place: Path, call: str, act: int) -> None:
    killed = 0
    while True:
        directory = place / f"{call}-{killed}"
        directory.mkdir()
        crasher.faults.set(call, act, path="hvd.sqlite", skip=killed, most=1)
        steps, status = crasher.run(directory)
        crasher.faults.clear()
        await check(directory, steps)
        if crasher.faults.done() == 0:
            assert status == 0 and steps[-1] == "close"
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    assert killed >= {"write": 15, "sync": 5}.get(call, 0), f"only {killed} calls of {call}: are they still seen?"


async def test_what_is_answered_is_on_the_disk(crasher: Crasher, place: Path) -> None:
    """After its last write to the write-ahead log comes a sync of it: what the host's death leaves of the log is a prefix."""
    crasher.faults.set("write", FAIL, path="hvd.sqlite-wal", most=0, rule=0)
    crasher.faults.set("sync", FAIL, path="hvd.sqlite", most=0, rule=1)
    store_steps = ("create a", "create b", "begin c", "create c", "update b", "delete a", "create large")
    seen: dict[str, bool] = {}
    assert crasher._process.stdin and crasher._process.stdout
    for stop in store_steps:
        # The process is held at its answer to this step: whatever comes later has not happened yet.
        directory = place / stop.replace(" ", "-")
        directory.mkdir()
        crasher.faults.set("write", KILL, path="pipe:", skip=[*STEPS].index(stop), most=1, rule=2)
        steps, _ = crasher.run(directory)
        assert stop not in steps and STEPS[[*STEPS].index(stop) - 1] in steps
        seen[stop] = crasher.faults.last(1) > crasher.faults.last(0)
    assert all(seen.values()), seen


STEPS = ("open", "create a", "create b", "begin c", "create c", "put a", "update b", "delete a", "finished a", "create large", "close")
