"""What the backends on the native cell have in common: what a host must have, and which kernels they take."""

from __future__ import annotations

from collections.abc import Sequence

from hvd.backends.contract import Availability, Capability, EngineInfo, LaunchSpec
from hvd.backends.machine import MachineBackend
from hvd.board import ia32
from hvd.board.libhv import LIBRARY
from hvd.board.loaders.kernel import Kernel
from hvd.cell import process
from hvd.errors import HvdError
from hvd.runner.process import template_of


class CellBackend(MachineBackend):
    """A backend whose guests run in a cell (hvd/cell/cell.h): IA-32 code, natively, in ring 3."""

    capabilities = frozenset({
        Capability.CONSOLE, Capability.STOP, Capability.PAUSE, Capability.RESET, Capability.MEMORY_READ, Capability.MEMORY_WRITE,
        Capability.MEMORY_MAP, Capability.TRANSLATE, Capability.REGISTERS, Capability.TRACE, Capability.HYPERCALL,
        Capability.DISK, Capability.NETWORK, Capability.CENSUS,
        Capability.SCREEN, Capability.KEYBOARD, Capability.DEBUG, Capability.SNAPSHOT,
    })  # fmt: skip

    def probe(self) -> Availability:
        if not LIBRARY.exists():
            return Availability(False, f"{LIBRARY} was not built", "make native (needs gcc)")
        problem, _ = process.probe()
        if problem is not None:
            return Availability(False, problem.reason, problem.remedy)
        template_of(self.name).warm()  # guests are to be expected
        return Availability(True)

    def engines(self) -> Sequence[EngineInfo]:
        return ()

    def vcpu_format(self, engine: str) -> str:
        return ia32.FORMAT

    def check_kernel(self, spec: LaunchSpec, kernel: Kernel) -> None:
        if 64 in (kernel.bits, kernel.code_bits):
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend=self.name,
                problem=f"it runs 32-bit guests, this kernel is 64-bit ({kernel.description})",
                remedy="use emulation or kvm, or a 32-bit kernel",
            )
