"""The vcpu of binary rewriting: a cell that translates kernel code, or runs it from breakpoint to breakpoint."""

from __future__ import annotations

from typing import Final

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import Vcpu
from hvd.cell.ahead import CellAhead
from hvd.cell.area import Mode
from hvd.cell.features import REHEARSED, preload, told
from hvd.cell.vcpu import CellVcpu, Cpuid
from hvd.errors import HvdError
from hvd.trace.points import BackendId

__all__ = ["REHEARSED", "create", "create_ahead", "preload"]

ENGINES: Final = {"": Mode.REWRITING, "translate": Mode.REWRITING, "breakpoint": Mode.BREAKPOINT}


def create(board: HotBoard, memory: GuestMemory, cpuid: Cpuid, engine: str) -> Vcpu:
    """The vcpu of one machine. Raises HvdError ENGINE_UNKNOWN, NATIVE_MISSING, RUNNER_START_FAILED."""
    if engine not in ENGINES:
        raise HvdError("ENGINE_UNKNOWN", backend="rewriting", engine=engine, known="translate, breakpoint")
    return CellVcpu(board, memory, BackendId.REWRITING, ENGINES[engine], told(cpuid))


def create_ahead(board: HotBoard, memory: GuestMemory, cpuid: Cpuid, engine: str) -> Vcpu | None:
    """One whose guest is not known yet. None: of this engine there are none, since a breakpoint register is had by what a runner keeps for it alone.
    Raises what create() raises; OSError."""
    mode = ENGINES.get(engine)
    return CellAhead(board, memory, BackendId.REWRITING, mode, told(cpuid)) if mode is Mode.REWRITING else None
