"""The vcpu of trap and emulate: a cell in trap mode."""

from __future__ import annotations

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


def create(board: HotBoard, memory: GuestMemory, cpuid: Cpuid, engine: str) -> Vcpu:
    """The vcpu of one machine. Raises HvdError ENGINE_UNKNOWN, NATIVE_MISSING, RUNNER_START_FAILED."""
    if engine:
        raise HvdError("ENGINE_UNKNOWN", backend="trap", engine=engine, known="one way of executing, which has no name")
    return CellVcpu(board, memory, BackendId.TRAP, Mode.TRAP, told(cpuid))


def create_ahead(board: HotBoard, memory: GuestMemory, cpuid: Cpuid, engine: str) -> Vcpu | None:
    """One whose guest is not known yet; None: of this engine there are none. Raises what create() raises; OSError."""
    return None if engine else CellAhead(board, memory, BackendId.TRAP, Mode.TRAP, told(cpuid))
