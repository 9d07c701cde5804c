"""A backend in memory: every promise of hvd/backends/contract.py kept by the simplest means, for tests of all that lies
above it.

Its guests are scripted by words of their command line:
    deaf            cannot hear a power button        stubborn       hears it and goes on
    end=REASON:N    ends as soon as it runs           refuse=REASON  the launch fails
    slow=SECONDS    the launch takes so long
Each has a real process (it only sleeps), so that pid files, adoption and killing are real too. Guests live as long as
the FakeBackend, not as the daemon: giving it to a second daemon is what a restart looks like from above.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hvapi.record import RECORD
from hvapi.v1 import guest_pb2, inspect_pb2

from hvd.backends.contract import (
    Availability,
    Backend,
    Capability,
    ConsoleAttachment,
    EngineInfo,
    Instance,
    InstanceStatus,
    LaunchSpec,
)
from hvd.errors import HvdError
from hvd.guests import records
from hvd.runner import directory as names
from hvd.trace.counters import COUNTERS_BYTES
from hvd.trace.points import BY_NAME, BackendId

MEMORY = 1 << 20


class FakeGuest:
    """What in the real world is the guest's process."""

    def __init__(self, directory: Path, spec: LaunchSpec) -> None:
        self.directory = directory
        self.spec = spec
        self.words = spec.command_line.split()
        self.status = InstanceStatus("PAUSED" if spec.start_paused else "RUNNING")
        self.changed = asyncio.Condition()
        self.viewers: list[asyncio.Queue[bytes | int | None]] = []
        self.typed = bytearray()
        self.size = (0, 0)
        self.shown = b"a\x07"  # of a screen of one character
        self.looks = 0
        self.strokes: list[tuple[str, ...]] = []
        self.key_room = 1000
        self.memory = bytearray(MEMORY)
        self.process = subprocess.Popen(["sleep", "600"])
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        identity = {"pid": self.process.pid, "start_time": int(stat[19]), "boot_id": records.boot_id()}
        (directory / names.PID).write_text(json.dumps(identity))
        (directory / names.LOG).touch()
        self.ring = FakeRing(directory / names.TRACE)
        (directory / names.COUNTERS).write_bytes(struct.pack("<II", 0x54435648, 1).ljust(COUNTERS_BYTES, b"\0"))

    async def set(self, **fields: Any) -> None:
        self.status = replace(self.status, **fields)
        async with self.changed:
            self.changed.notify_all()

    def write(self, text: bytes) -> None:
        """The guest writes to its console."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000+00:00").encode()
        with (self.directory / names.LOG).open("ab") as log:
            for line in text.splitlines(keepends=True):
                log.write(stamp + b" stdout " + (b"F " + line if line.endswith(b"\n") else b"P " + line + b"\n"))
        for viewer in self.viewers:
            viewer.put_nowait(text)

    async def end(self, reason: str, code: int | None = None) -> None:
        if self.status.state in ("STOPPED", "FAILED", "LOST"):
            return
        state = names.ENDS[reason]
        record = {"state": state, "reason": reason, "message": "", "exit_code": code, "time_ns": time.time_ns()}
        (self.directory / names.EXIT).write_text(json.dumps(record))
        await self._gone(state, reason, code)

    async def crash(self) -> None:
        """Its process dies without an exit record."""
        await self._gone("FAILED", "RUNNER_CRASHED", None)

    async def _gone(self, state: str, reason: str, code: int | None) -> None:
        self.process.kill()
        self.process.wait()
        for viewer in self.viewers:
            viewer.put_nowait(None)
        await self.set(state=state, reason=reason, exit_code=code)


class FakeRing:
    """The writing side of a trace ring."""

    def __init__(self, path: Path, capacity: int = names.TRACE_RECORDS) -> None:
        self.path = path
        self.capacity = capacity
        self.head = 0
        # What the daemon switched on before the start stays on, as in hv_crossings_init.
        enabled = self.enabled if path.exists() and path.stat().st_size else 0
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.write(struct.pack("<IIIIQ", 0x52545648, 1, capacity, enabled, 0).ljust(64, b"\0"))
            file.truncate(64 + capacity * 64)

    @property
    def enabled(self) -> int:
        with self.path.open("rb") as file:
            return int(struct.unpack("<IIII", file.read(16))[3])

    def record(self, point: str, count: int = 1, *, force: bool = False) -> int:
        """Records of a point, if its kind is switched on; how many were written. a0 is the record's number."""
        kind = BY_NAME[point].kind
        if not force and not self.enabled >> kind & 1:
            return 0
        with self.path.open("r+b") as file:
            for _ in range(count):
                file.seek(64 + self.head % self.capacity * 64)
                low = self.head & 0xFFFFFFFF
                now = time.monotonic_ns()
                file.write(RECORD.pack(now, 5, BY_NAME[point].id, kind, 1, 0, 0, low, 0x1000, self.head, 0, 0, 0))
                self.head += 1
            file.seek(16)
            file.write(self.head.to_bytes(8, "little"))
        return count


class FakeInstance(Instance):
    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.directory = guest.directory
        self.pid = guest.process.pid

    async def status(self) -> InstanceStatus:
        return self.guest.status

    async def wait_change(self, known: InstanceStatus) -> InstanceStatus:
        async with self.guest.changed:
            await self.guest.changed.wait_for(lambda: self.guest.status != known)
        return self.guest.status

    async def kill(self) -> None:
        await self.guest.end("KILLED")

    async def close(self) -> None:
        pass

    def _alive(self) -> None:
        if self.guest.process.poll() is not None:
            raise HvdError("RUNNER_GONE", problem="the guest has ended")

    async def pause(self) -> None:
        self._alive()
        await self.guest.set(state="PAUSED")

    async def resume(self) -> None:
        self._alive()
        await self.guest.set(state="RUNNING")

    async def reset(self) -> None:
        self._alive()
        await self.guest.set(resets=self.guest.status.resets + 1)

    async def request_stop(self) -> bool:
        self._alive()
        if "deaf" in self.guest.words:
            return False
        if "stubborn" not in self.guest.words:
            await self.guest.end("POWEROFF")
        return True

    def _range(self, address: int, length: int) -> slice:
        if address + length > len(self.guest.memory):
            raise HvdError("ADDRESS_OUTSIDE", length=length, address=hex(address))
        return slice(address, address + length)

    async def read_memory(self, address: int, length: int, virtual: bool, pid: int = 0) -> bytes:
        return bytes(self.guest.memory[self._range(address, length)])

    async def write_memory(self, address: int, data: bytes, virtual: bool) -> None:
        self.guest.memory[self._range(address, len(data))] = data

    async def memory_map(self, pid: int = 0) -> inspect_pb2.MemoryMap:
        region = inspect_pb2.MemoryRegion(start=0, length=MEMORY, kind=inspect_pb2.MemoryRegion.RAM, owner="ram")
        return inspect_pb2.MemoryMap(regions=[region])

    async def translate(self, address: int, pid: int = 0) -> inspect_pb2.AddressTranslation:
        return inspect_pb2.AddressTranslation(virtual_address=address, physical_address=address, paging_mode="none")

    async def registers(self, vcpu: int) -> inspect_pb2.Registers:
        return inspect_pb2.Registers(registers=[inspect_pb2.Register(name="rip", value=0x100000)], mode="protected")

    async def screen(self) -> guest_pb2.Screen:
        self._alive()
        self.guest.looks += 1
        return guest_pb2.Screen(columns=1, rows=1, cells=self.guest.shown, palette=bytes(48))

    async def type_keys(self, strokes: Sequence[Sequence[str]]) -> int:
        """At most two at a time, as long as there is room."""
        while not self.guest.key_room:
            await asyncio.sleep(0.01)
        taken = min(2, self.guest.key_room, len(strokes))
        self.guest.key_room -= taken
        self.guest.strokes += [tuple(stroke) for stroke in strokes[:taken]]
        await asyncio.sleep(0)
        return taken

    async def resize_console(self, rows: int, columns: int) -> None:
        self.guest.size = (rows, columns)

    def attach_console(self, read_only: bool) -> ConsoleAttachment:
        return FakeConsole(self.guest)


class FakeConsole(ConsoleAttachment):
    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.packets: asyncio.Queue[bytes | int | None] = asyncio.Queue()

    async def __aenter__(self) -> FakeConsole:
        self.guest.viewers.append(self.packets)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.guest.viewers.remove(self.packets)

    async def output(self) -> AsyncIterator[bytes | int]:
        while (packet := await self.packets.get()) is not None:
            yield packet

    async def write(self, data: bytes) -> None:
        self.guest.typed += data


class FakeBackend(Backend):
    id = BackendId.EMULATION
    kind = "emulation"
    description = "in memory, for tests"
    capabilities = frozenset(Capability) - {Capability.CONTAINER}

    def __init__(self, *, name: str = "fake", preference: int = 1, available: Availability | None = None) -> None:
        self.name = name
        self.preference = preference
        self.available = available or Availability(True)
        self.guests: dict[str, FakeGuest] = {}
        self.launches = 0
        self.probes = 0
        self.refuse_all = ""
        self.adopt_hangs = False
        self._runs: Counter[str] = Counter()
        self._launched = asyncio.Condition()
        self.go_on = asyncio.Event()  # what a launch waits for that is "held"

    def probe(self) -> Availability:
        self.probes += 1
        return self.available

    def engines(self) -> Sequence[EngineInfo]:
        return (
            EngineInfo("plain", "the usual way", Availability(True)),
            EngineInfo("broken", "a way that does not work here", Availability(False, "it is broken", "mend it")),
        )

    def check(self, spec: LaunchSpec) -> None:
        if self.refuse_all:
            raise HvdError(self.refuse_all, what="kernel", problem="it is not liked")

    async def launch(self, spec: LaunchSpec, directory: Path) -> Instance:
        assert set(os.listdir(directory)) <= {records.GUEST, names.TRACE, names.LOG, f"{names.LOG}.1", *names.FIRST_FILES}
        self.launches += 1
        script = dict(word.partition("=")[::2] for word in spec.command_line.split())
        if "slow" in script:
            await asyncio.sleep(float(script["slow"]))
        if "held" in script:
            await self.go_on.wait()
        if "refuse" in script:
            raise HvdError(script["refuse"], problem="scripted", log="nowhere")
        guest = self.guests[spec.uid] = FakeGuest(directory, spec)
        async with self._launched:
            self._runs[spec.uid] += 1
            self._launched.notify_all()
        if "end" in script:
            reason, _, code = script["end"].partition(":")
            await guest.end(reason, int(code) if code else None)
        return FakeInstance(guest)

    async def launched(self, uid: str, runs: int) -> None:
        """Wait until the guest was started so many times."""
        async with self._launched:
            await self._launched.wait_for(lambda: self._runs[uid] >= runs)

    async def adopt(self, directory: Path) -> Instance:
        if self.adopt_hangs:
            await asyncio.sleep(3600)
        guest = self.guests.get(directory.name)
        if guest is None or guest.process.poll() is not None:
            raise HvdError("RUNNER_GONE", problem="no such process")
        return FakeInstance(guest)

    def close(self) -> None:
        for guest in self.guests.values():
            with contextlib.suppress(ProcessLookupError):
                guest.process.kill()
            guest.process.wait()
