"""The nanobenchmark: a kernel that measures, tells and ends, and a program for what of it a process can do."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf import duration_pb2
from hvapi.v1 import guest_pb2, system_pb2

from hvctl.compare.places import Crossings, backend_id, guest, told_end
from hvctl.compare.workloads import Cost, costs
from hvctl.sdk import Client
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.guests import GuestSpec

MEMORY_BYTES: Final = 16 << 20
SECONDS: Final = 120.0
_LOOK: Final = duration_pb2.Duration(nanos=100_000_000)


class KernelRun(NamedTuple):
    costs: dict[str, Cost]
    crossings: Crossings | None
    memory_bytes: int


@dataclass(slots=True)
class KernelGuest:
    """Under a backend."""

    client: Client
    backend: system_pb2.Backend
    kernel: Path
    name: str

    def run(self, append: str, seconds: float = SECONDS) -> KernelRun:
        """Raises HvctlError."""
        name = f"guests/{self.name}"
        spec = GuestSpec(name=self.name, backend=backend_id(self.backend), kernel=self.kernel, memory_bytes=MEMORY_BYTES, append=append)
        with guest(self.client, spec):
            memory = 0
            with self.client.watch_stats(names=[name], interval=_LOOK, timeout=seconds) as responses:
                for response in responses:
                    memory = max(memory, response.stats[0].memory_resident_bytes)
                    if response.stats[0].state != guest_pb2.Guest.State.Name(guest_pb2.Guest.RUNNING):
                        break
            with self.client.get_logs(name=name) as logs:
                text = b"".join(line.text for response in logs for line in response.lines).decode(errors="replace")
            found = costs(text)
            if not found:
                raise told_end(self.client, self.name, HvctlError.local("NOT_EXPLAINED", problem=f"it reported nothing but {text[-200:]!r}"))
            rows = self.client.summarize_trace(name=name).rows
            return KernelRun(found, {(row.kind, row.reason): row.count for row in rows}, memory)


@dataclass(slots=True)
class KernelUnderQemu:
    program: str
    kernel: Path

    def run(self, append: str, seconds: float = SECONDS) -> KernelRun:
        """Raises HvctlError."""
        command = [
            self.program, "-accel", "tcg", "-m", str(MEMORY_BYTES >> 20), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
            "-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(self.kernel), "-append", append,
        ]  # fmt: skip
        return _told(command, seconds)


@dataclass(frozen=True, slots=True)
class KernelNatively:
    """The program that stands for it in a process of the host."""

    program: Path

    def run(self, append: str, seconds: float = SECONDS) -> KernelRun:
        """Raises HvctlError."""
        return _told([str(self.program), append], seconds)


def _told(command: Sequence[str], seconds: float) -> KernelRun:
    """Of a process that tells on its standard output. Raises HvctlError."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise _failed(command, f"not done after {seconds:.0f} s") from error
    except OSError as error:
        raise _failed(command, error.strerror or str(error)) from error
    found = costs(done.stdout.decode(errors="replace"))
    if not found:
        raise _failed(command, f"exit code {done.returncode}: {done.stderr.decode(errors='replace')[-200:]}")
    return KernelRun(found, None, 0)


def _failed(command: Sequence[str], problem: str) -> HvctlError:
    return HvctlError.local("PROGRAM_FAILED", program=command[0], problem=problem, remedy="")
