"""Walks faults through the verbs of a real daemon: the first call of a kind that a verb makes fails, then the second, and so on, until a
verb gets by without reaching it."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_table import FaultTable
from hvapi.v1 import guest_pb2
from hvctl.sdk import Client, HvctlError
from real_daemon import RealDaemon, kernel

# The daemon's own files; "" = anything.
OWN = "OWN"
# (call, error, what it is for): what a kernel answers when something has run out, or a disk fails. Not the interpreter's own memory:
# CPython 3.11 waits for ever for a thread that finds none.
FAULTS = (
    ("open", errno.EMFILE, OWN),
    ("open", errno.ENOSPC, OWN),
    ("open", errno.EIO, OWN),
    ("write", errno.ENOSPC, OWN),
    ("write", errno.EIO, OWN),
    ("read", errno.EIO, OWN),
    ("sync", errno.EIO, OWN),
    ("truncate", errno.ENOSPC, OWN),
    ("allocate", errno.ENOSPC, OWN),
    ("rename", errno.ENOSPC, OWN),
    ("mkdir", errno.ENOSPC, OWN),
    ("map", errno.ENOMEM, OWN),
    ("map", errno.ENOMEM, "/memfd:"),
    ("memfd", errno.ENOMEM, ""),
    ("pipe", errno.EMFILE, ""),
    ("socket", errno.EMFILE, ""),
    ("eventfd", errno.EMFILE, ""),
    ("spawn", errno.EAGAIN, ""),
    ("spawn", errno.ENOMEM, ""),
)
MOST_CALLS = 60


@dataclass
class Walked:
    """What came of it: faults injected, by verb and outcome ("ok", or the reason)."""

    faults: int = 0
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # verb, fault, outcome


class Verbs:
    """Each verb with what makes it possible again. `victim` is a running guest; containers only where `root` is given."""

    def __init__(self, daemon: RealDaemon, client: Client, root: Path | None) -> None:
        self.daemon, self.client = daemon, client
        self.digest = client.upload_file(Path(kernel("ticker.elf")))
        self._create("victim")
        client.start_guest(name="guests/victim")
        self._create("idle")
        self.containers = root is not None
        if root is not None:
            daemon.ok("image", "import", "box", str(root))
            daemon.ok("run", "-d", "--name", "box", "--image", "box", "--", "sleep", "100000")
            daemon.ok("create", "--name", "idle-box", "--image", "box", "--", "sleep", "100000")

    def _create(self, name: str) -> None:
        guest = guest_pb2.Guest(backend="emulation", machine={"kernel": self.digest, "memory_bytes": 4 << 20})
        guest.machine.disks.add(size_bytes=1 << 20)
        self.client.create_guest(guest_id=name, guest=guest)

    def table(self) -> Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]]:
        client = self.client

        def gone(name: str) -> Callable[[], Any]:
            return lambda: client.delete_guest(name=f"guests/{name}", force=True, allow_missing=True)

        def killed(name: str) -> Callable[[], Any]:
            return lambda: client.kill_guest(name=f"guests/{name}")

        def logs() -> None:
            for _ in client.get_logs(name="guests/victim", tail=3):
                pass

        def copied() -> bytes:
            return b"".join(answer.chunk for answer in client.copy_out(name="guests/box", path="/etc"))

        found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "create": (lambda: self._create("new"), gone("new")),
            "start": (lambda: client.start_guest(name="guests/idle"), killed("idle")),
            "snapshot": (
                lambda: client.snapshot_guest(name="guests/victim", snapshot_id="s", timeout=60),
                lambda: client.delete_snapshot(name="guests/victim/snapshots/s", allow_missing=True),
            ),
            "log": (logs, lambda: None),
            "clone": (lambda: client.clone_guest(source="guests/idle", guest_id="twin", timeout=60), gone("twin")),
        }
        if self.containers:
            found["copy"] = (copied, lambda: None)
            found["start box"] = (lambda: client.start_guest(name="guests/idle-box"), killed("idle-box"))
        return found


def outcome_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except HvctlError as error:
        return error.reason if error.reason != "NOT_EXPLAINED" else f"NOT_EXPLAINED {error}"
    return "ok"


def walk(faults: FaultTable, verbs: Verbs, processes: tuple[str, ...], kinds: tuple[tuple[str, int, str], ...] = FAULTS,
         names: tuple[str, ...] = ()) -> Walked:  # fmt: skip
    """processes: "" = any of hvd's. After each fault the verb is done without one, and must succeed."""
    walked = Walked()
    for verb, (do, undo) in verbs.table().items():
        if names and verb not in names:
            continue
        for call, error, what in kinds:
            for process in processes:
                for skip in range(MOST_CALLS):
                    path = verbs.daemon.directory if what == OWN else what
                    faults.set(call, error=error, path=path, process=process, skip=skip, most=1)
                    outcome = outcome_of(do)
                    done = faults.done()
                    faults.clear()
                    assert verbs.daemon.is_alive, f"{verb} with {errno.errorcode[error]} at {call} {skip} ended the daemon"
                    after = outcome_of(undo)
                    assert after == "ok", f"{verb} after {errno.errorcode[error]} at {call} {skip} ({outcome}): {after}"
                    if not done:
                        assert outcome == "ok", f"{verb} without a fault: {outcome}"
                        break
                    walked.faults += 1
                    walked.outcomes[verb, f"{call} {errno.errorcode[error]}", outcome] += 1
    return walked
