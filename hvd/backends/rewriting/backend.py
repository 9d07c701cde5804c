"""The rewriting backend as the daemon sees it."""

from __future__ import annotations

from hvd.backends.cell import CellBackend
from hvd.trace.points import BackendId


class RewritingBackend(CellBackend):
    name = "rewriting"
    id = BackendId.REWRITING
    kind = "binary rewriting"
    description = "kernel code is translated at run time, so that nothing sensitive slips through; programs run natively: unmodified kernels, fast"
    preference = 20  # as complete as emulation for 32-bit guests, and many times faster


BACKEND = RewritingBackend()
