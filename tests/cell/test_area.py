"""What C and Python share of a cell: every offset of both descriptions (area.h, cpu.h, start.h and hvd/cell/area.py)."""

from __future__ import annotations

import ctypes

import pytest
from c_numbers import c_numbers

from hvd.board.memory import RegionKind
from hvd.board.vcpu import CensusCommand, DebugCause, ExitReason
from hvd.cell import area
from hvd.cell.rewritten import Replacement

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "struct hv_cell_exit": area.CellExit,
    "struct hv_segment": area.CellSegment,
    "struct hv_table": area.CellTable,
    "struct hv_cpu": area.CellCpu,
    "struct hv_cell_cpuid": area.CellCpuid,
    "struct hv_cell_debug": area.CellDebug,
    "struct hv_cell_counters": area.CellCounters,
    "struct hv_cell_code": area.CellCode,
    "struct hv_cell_site": area.CellSite,
    "struct hv_cell_census": area.CellCensus,
}
NUMBERS = {
    "HV_AREA_BREAKPOINTS": area.BREAKPOINTS,
    "HV_AREA_WATCHPOINTS": area.WATCHPOINTS,
    "HV_AREA_CPUID": area.CPUID_ROWS,
    "HV_AREA_CODE_PAGES": area.CODE_PAGES,
    "HV_AREA_SITES": area.SITES,
    "HV_CELL_REASONS": len(ExitReason),
    "HV_SEGMENTS": len(area.SEGMENTS),
    **{f"HV_MODE_{mode.name}": mode for mode in area.Mode},
    **{f"HV_CELL_FD_{fd.name}": fd for fd in area.Fd},
    "HV_CELL_FDS": max(area.Fd) + 1,
    **{f"HV_CENSUS_{command.name}": command for command in CensusCommand},
    **{f"HV_REPLACED_{kind.name}": kind for kind in Replacement},
    **{f"HV_SANDBOX_{layer.name}": layer for layer in area.Sandbox},
    **{f"HV_AHEAD_{which.name}": which for which in area.Ahead},
    **{f"HV_CELL_{reason.name}": reason for reason in ExitReason},
    **{f"HV_REGION_{kind.name}": kind for kind in RegionKind if kind is not RegionKind.HOLE},
}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    expressions = {name: name for name in NUMBERS}
    for name, structure in STRUCTURES.items():
        expressions[name] = f"sizeof({name})"
        expressions |= {
            f"{name}.{field[0]}": f"offsetof({name}, {field[0]})" for field in structure._fields_ if not field[0].startswith("_")
        }
    return c_numbers(tmp_path_factory.mktemp("numbers"), ("host.h", "start.h"), expressions)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name: str, numbers: dict[str, int]) -> None:
    structure = STRUCTURES[name]
    assert ctypes.sizeof(structure) == numbers[name]
    offsets = {f"{name}.{field[0]}": getattr(structure, field[0]).offset for field in structure._fields_ if not field[0].startswith("_")}
    assert offsets == {key: value for key, value in numbers.items() if key.startswith(f"{name}.")}


def test_numbers(numbers: dict[str, int]) -> None:
    assert {name: numbers[name] for name in NUMBERS} == {name: int(value) for name, value in NUMBERS.items()}


def test_causes_of_a_stop() -> None:
    """check.c knows them by their limits."""
    assert [cause.value for cause in DebugCause] == [1, 2, 3]
