"""The cell's process: does it run here, and starting it."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import platform
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.cell import area
from hvd.cell.area import Ahead, Fd
from hvd.errors import HvdError

PROBE_SECONDS: Final = 30
# Beyond every number that posix_spawn's actions write to.
_ABOVE: Final = 64
# Longer than this between two looks at the time stamp counter makes its frequency exact to some millionths.
_TSC_SECONDS: Final = 0.01
# Asking for them makes an object of each.
_SIGNALS: Final = signal.valid_signals()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why no cell runs here, and what would help."""

    reason: str
    remedy: str


# What `hvd-cell --probe` tries: name -> what it means when it fails, what would help.
_NEEDED: Final[dict[str, tuple[str, str]]] = {
    "segments": (
        "the host's kernel does not let a process run 32-bit code",
        "use a kernel with CONFIG_IA32_EMULATION, and without ia32_emulation=off on its command line",
    ),
    "ldt": (
        "modify_ldt(2) does not work",
        "use a kernel with CONFIG_MODIFY_LDT_SYSCALL; if hvd runs in a container or service, let that system call through its seccomp filter",
    ),
    "seccomp": (
        "32-bit system calls cannot be caught by a seccomp filter",
        "use a kernel with CONFIG_SECCOMP_FILTER; if hvd runs in a service, SystemCallArchitectures= must contain x86",
    ),
    "fsgsbase": (
        "the host's kernel does not let a process use RDFSBASE and WRFSBASE",
        "use Linux 5.9 or later on a processor that has FSGSBASE, without nofsgsbase on its command line",
    ),
    "timer": ("no timer can be made", "raise the limit of pending signals (ulimit -i, RLIMIT_SIGPENDING)"),
}
PAGE_0: Final = "page-0"


@functools.cache
def probe() -> tuple[Problem | None, bool]:
    """(why cells do not run on this host, or None; can they map page 0: without it guest accesses there are emulated, slowly)."""
    if platform.machine() not in ("x86_64", "amd64"):
        return Problem(f"the guest's code runs natively, on x86-64 hosts only; this one is {platform.machine()}", "use emulation"), False
    if not area.PROGRAM.exists():
        return Problem(f"{area.PROGRAM} was not built", "make native (needs gcc)"), False
    try:
        done = subprocess.run([area.PROGRAM, "--probe"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Problem(f"{area.PROGRAM} cannot be run: {error}", "make native"), False
    answers = {name: rest for name, _, rest in (line.partition(" ") for line in done.stdout.splitlines())}
    for name, (reason, remedy) in _NEEDED.items():
        answer = answers.get(name, f"failed {area.PROGRAM} --probe ended with status {done.returncode}")
        if answer != "ok":
            return Problem(f"{reason} ({answer.removeprefix('failed ')})", remedy), False
    return None, answers.get(PAGE_0) == "ok"


@functools.cache
def _first_look() -> tuple[int, int]:
    lib = area.library()
    return int(lib.hv_host_ns()), int(lib.hv_host_tsc())


def preload() -> None:
    """Ahead of the first cell (hvd.runner.template): libraries, and the beginning of what tsc_hz() measures."""
    area.blocking_library()
    _first_look()


@functools.cache
def tsc_hz() -> int:
    """Frequency of the host's time stamp counter, measured since preload(). At least 1 MHz: a host without one has no cells. Measured once, in a
    spare runner ahead of its guest (hvd.runner.spare)."""
    lib = area.library()
    start_ns, start = _first_look()
    while (elapsed := int(lib.hv_host_ns()) - start_ns) < _TSC_SECONDS * 1e9:
        time.sleep(_TSC_SECONDS - elapsed / 1e9)
    measured = (int(lib.hv_host_tsc()) - start) * 1_000_000_000 // (int(lib.hv_host_ns()) - start_ns)
    return max(round(measured, -3), 1_000_000)


@functools.cache
def native_cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """CPUID of this host, asked once: under a hypervisor each time is an exit to it."""
    out = (ctypes.c_uint32 * 4)()
    area.library().hv_host_cpuid(leaf, subleaf, out)
    return out[0], out[1], out[2], out[3]


def start(host: int, board: HotBoard, memory: GuestMemory, program: str = str(area.PROGRAM), word: int = -1) -> int:
    """Start the process of a struct hv_cell_host; returns its pid. It ends with the calling thread. word: where a cell that is made ahead hears
    whose it is (hvd.cell.ahead). Raises OSError; HvdError NATIVE_MISSING."""
    lib = area.library()
    descriptors = {which: lib.hv_cell_descriptor(host, which) for which in (Fd.AREA, Fd.GO, Fd.LEFT)} | {Fd.MEMORY: memory.fd}
    with ExitStack() as copies:
        actions: list[tuple[Any, ...]] = []
        files = {Fd.COUNTERS: board.counters_path, Fd.TRACE: board.trace_path}
        if word >= 0:
            descriptors[Fd.WORD] = word
            files = dict.fromkeys(files)
            # Pages that a Linux takes at once (hvd/board/loaders/soon.py) are there for a guest with as much code.
            lib.hv_cell_make_ahead(host, Ahead.OF_MUCH if memory.taken else Ahead.YES)
        if board.out_event >= 0:
            descriptors[Fd.CONSOLE] = board.out_event
        else:
            files[Fd.CONSOLE] = None
        for which, path in files.items():
            descriptors[which] = os.open(os.devnull if path is None else path, os.O_RDWR | os.O_CLOEXEC)
            copies.callback(os.close, descriptors[which])
        for which, descriptor in descriptors.items():
            copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
            copies.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, int(which)))
        try:
            # No signal may come before the cell has a handler for it.
            pid = os.posix_spawn(program, [program], {}, file_actions=actions, setsigmask=_SIGNALS)
        except FileNotFoundError as error:
            raise HvdError("NATIVE_MISSING", path=program, problem=error) from error
        lib.hv_cell_started(host, os.pidfd_open(pid))
    return pid
