"""The emulation backend as the daemon sees it: what it can do, whether it runs here, how a guest is started."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from hvd.backends.contract import Availability, Capability, EngineInfo, LaunchSpec
from hvd.backends.machine import MachineBackend
from hvd.board import firmware, ia32
from hvd.board.libhv import LIBRARY
from hvd.board.loaders.kernel import Kernel
from hvd.errors import HvdError
from hvd.runner.process import template_of
from hvd.trace.points import BackendId

UNICORN_VERSION: Final = "2.1.4"
SELF_CHECK_SECONDS: Final = 60


class EmulationBackend(MachineBackend):
    name = "emulation"
    id = BackendId.EMULATION
    kind = "emulation"
    description = "every instruction translated by Unicorn: simple, complete, slow"
    capabilities = frozenset({
        Capability.CONSOLE, Capability.STOP, Capability.PAUSE, Capability.RESET, Capability.MEMORY_READ, Capability.MEMORY_WRITE,
        Capability.MEMORY_MAP, Capability.TRANSLATE, Capability.REGISTERS, Capability.TRACE, Capability.HYPERCALL,
        Capability.DISK, Capability.NETWORK, Capability.FIRMWARE,
        Capability.SCREEN, Capability.KEYBOARD, Capability.DEBUG, Capability.SNAPSHOT,
    })  # fmt: skip
    preference = 10  # the slowest: everything else that can run a guest is better

    def probe(self) -> Availability:
        native, public = _probe_native(), _probe_public()
        if native.available or public.available:
            template_of(self.name).warm()  # guests are to be expected
        return Availability(True) if native.available or public.available else native

    def engines(self) -> Sequence[EngineInfo]:
        native = EngineInfo(
            "native",
            "QEMU's own delivery of exceptions and interrupts, through a C shim; real kernels",
            _probe_native(),
        )
        public = EngineInfo(
            "public", "Unicorn's public API alone; small 32-bit kernels, any Unicorn 2, any host", _probe_public()
        )
        return (native, public) if native.availability.available else (public, native)

    def check_firmware(self, spec: LaunchSpec) -> None:
        if (spec.engine or self.engines()[0].name) == "public":
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend="emulation",
                problem="a firmware runs in real mode, where engine public cannot deliver interrupts",
                remedy="use engine native, or start a kernel (--kernel)",
            )
        firmware.check(spec.memory_bytes)

    def vcpu_format(self, engine: str) -> str:
        return "" if (engine or self.engines()[0].name) == "public" else ia32.FORMAT

    def check_kernel(self, spec: LaunchSpec, kernel: Kernel) -> None:
        engine = spec.engine or self.engines()[0].name
        if engine == "public" and kernel.bits != 32:
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend="emulation",
                problem=f"engine public runs 32-bit guests, this kernel is {kernel.description}",
                remedy="use engine native",
            )


@functools.cache
def _probe_native() -> Availability:
    if platform.machine() not in ("x86_64", "amd64"):
        return Availability(
            False, f"the shim is for x86-64 hosts, this one is {platform.machine()}", "use engine public"
        )
    if not LIBRARY.exists():
        return Availability(False, f"{LIBRARY} was not built", "make native (needs gcc)")
    try:
        version = importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        return Availability(False, "Unicorn is not installed", f"pip install unicorn=={UNICORN_VERSION}")
    if version != UNICORN_VERSION:
        return Availability(
            False,
            f"Unicorn {version} is installed, the shim knows {UNICORN_VERSION} only",
            f"pip install unicorn=={UNICORN_VERSION}",
        )
    command = [sys.executable, "-m", "hvd.backends.emulation.selfcheck"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SELF_CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Availability(
            False, f"the self-check did not finish: {error}", "see `python -m hvd.backends.emulation.selfcheck`"
        )
    try:
        problems: list[str] = json.loads(done.stdout)
    except ValueError:
        problems = [f"it ended with status {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}"]
    if problems:
        return Availability(
            False,
            f"the self-check found a wrong build of Unicorn: {'; '.join(problems)}",
            f"pip install --force-reinstall unicorn=={UNICORN_VERSION}",
        )
    return Availability(True)


@functools.cache
def _probe_public() -> Availability:
    try:
        version = importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        return Availability(False, "Unicorn is not installed", f"pip install unicorn=={UNICORN_VERSION}")
    if version.split(".", 1)[0] != "2":
        return Availability(
            False, f"Unicorn {version} is installed; any release 2 will do", f"pip install unicorn=={UNICORN_VERSION}"
        )
    if not LIBRARY.exists():
        return Availability(False, f"{LIBRARY} (the board's devices) was not built", "make native (needs gcc)")
    return Availability(True)


BACKEND = EmulationBackend()
