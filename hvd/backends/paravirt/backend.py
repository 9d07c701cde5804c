"""The paravirt backend as the daemon sees it."""

from __future__ import annotations

from hvd.backends.cell import CellBackend
from hvd.backends.contract import LaunchSpec
from hvd.board.loaders.kernel import Kernel
from hvd.cell.saving import PARAVIRT_FORMAT
from hvd.errors import HvdError
from hvd.trace.points import BackendId


class ParavirtBackend(CellBackend):
    name = "paravirt"
    id = BackendId.PARAVIRT
    kind = "paravirtualisation"
    description = "the kernel runs natively in ring 3 and was changed to make hypercalls: the fastest way without hardware support"
    preference = 6  # only for kernels that are made for it

    def vcpu_format(self, engine: str) -> str:
        return PARAVIRT_FORMAT

    def check_kernel(self, spec: LaunchSpec, kernel: Kernel) -> None:
        super().check_kernel(spec, kernel)
        if kernel.paravirt is None:
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend=self.name,
                problem=f"this kernel was not made for it ({kernel.description}): it has no HVD note",
                remedy="use rewriting or emulation, or build the kernel with hvpvcc",
            )


BACKEND = ParavirtBackend()
