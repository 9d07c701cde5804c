"""The trap backend as the daemon sees it."""

from __future__ import annotations

from hvd.backends.cell import CellBackend
from hvd.trace.points import BackendId


class TrapBackend(CellBackend):
    name = "trap"
    id = BackendId.TRAP
    kind = "trap and emulate"
    description = "the kernel runs natively in ring 3, what is privileged traps: fast, but right only for kernels without sensitive instructions"
    preference = 5  # below emulation: many kernels run wrong here, and only who asks for it wants to see that


BACKEND = TrapBackend()
