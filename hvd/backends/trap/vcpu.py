"""The vcpu of trap and emulate: a cell in trap mode."""

from __future__ import annotations

from typing import Any

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import Vcpu
from hvd.cell import process
from hvd.cell.area import Mode
from hvd.cell.features import REHEARSED, features, preload
from hvd.cell.vcpu import CellVcpu, Cpuid
from hvd.errors import HvdError
from hvd.trace.points import BackendId

__all__ = ["REHEARSED", "create", "preload"]


def create(board: HotBoard, memory: GuestMemory, cpuid: Cpuid, engine: str) -> Vcpu:
    """The vcpu of one machine. Raises HvdError ENGINE_UNKNOWN, NATIVE_MISSING, RUNNER_START_FAILED."""
    if engine:
        raise HvdError("ENGINE_UNKNOWN", backend="trap", engine=engine, known="one way of executing, which has no name")
    table: dict[Any, Any] = cpuid(features, process.tsc_hz())
    return CellVcpu(board, memory, BackendId.TRAP, Mode.TRAP, table)
