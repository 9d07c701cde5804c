"""The rewriting backend as the daemon sees it."""

from __future__ import annotations

from collections.abc import Sequence

from hvd.backends.cell import CellBackend
from hvd.backends.contract import EngineInfo
from hvd.trace.points import BackendId


class RewritingBackend(CellBackend):
    name = "rewriting"
    id = BackendId.REWRITING
    kind = "binary rewriting"
    description = "kernel code is translated at run time, so that nothing sensitive slips through; programs run natively: unmodified kernels, fast"
    preference = 9  # many times faster than emulation, and younger: it is not chosen by itself yet

    def engines(self) -> Sequence[EngineInfo]:
        available = self.probe()
        return (
            EngineInfo("translate", "kernel code is translated, block by block, into 64-bit code: real kernels", available),
            EngineInfo(
                "breakpoint",
                "a breakpoint register is set to the next sensitive instruction or jump, which is emulated: the textbook's, slow",
                available,
            ),
        )


BACKEND = RewritingBackend()
