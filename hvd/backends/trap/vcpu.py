"""The vcpu of trap and emulate: a cell in trap mode."""

from __future__ import annotations

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import Vcpu
from hvd.cell.area import Mode
from hvd.cell.features import REHEARSED, preload, told
from hvd.cell.vcpu import CellVcpu, Cpuid
from hvd.errors import HvdError
from hvd.trace.points import BackendId

__all__ = ["REHEARSED", "create", "preload"]


def create(board: HotBoard, memory: GuestMemory, cpuid: Cpuid, engine: str) -> Vcpu:
    """The vcpu of one machine. Raises HvdError ENGINE_UNKNOWN, NATIVE_MISSING, RUNNER_START_FAILED."""
    if engine:
        raise HvdError("ENGINE_UNKNOWN", backend="trap", engine=engine, known="one way of executing, which has no name")
    return CellVcpu(board, memory, BackendId.TRAP, Mode.TRAP, told(cpuid))
