"""The toy as the daemon sees it."""

from __future__ import annotations

from collections.abc import Sequence

from hvd.backends.contract import Availability, Capability, EngineInfo, LaunchSpec
from hvd.backends.machine import MachineBackend
from hvd.board.libhv import LIBRARY
from hvd.board.loaders.kernel import Kernel
from hvd.errors import HvdError
from hvd.trace.points import BackendId


class ToyBackend(MachineBackend):
    name = "toy"
    id = BackendId.OTHER
    kind = "emulation"
    description = "six instructions, one at a time"
    capabilities = frozenset({
        Capability.CONSOLE, Capability.PAUSE, Capability.RESET, Capability.MEMORY_READ, Capability.MEMORY_WRITE,
        Capability.MEMORY_MAP, Capability.REGISTERS, Capability.TRACE,
    })  # fmt: skip
    preference = 0

    def probe(self) -> Availability:
        if not LIBRARY.exists():
            return Availability(False, f"{LIBRARY} (the board's devices) was not built", "make native (needs gcc)")
        return Availability(True)

    def engines(self) -> Sequence[EngineInfo]:
        return ()

    def check_kernel(self, spec: LaunchSpec, kernel: Kernel) -> None:
        if kernel.format != "flat":
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend=self.name,
                problem=f"it runs flat binaries, this kernel is {kernel.description}",
                remedy="use backend emulation",
            )


BACKEND = ToyBackend()
