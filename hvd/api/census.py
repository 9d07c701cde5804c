"""GetCensus: the sensitive instructions of a guest's kernel that cannot trap, or what they were replaced by, with names and texts for people."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hvapi.v1 import inspect_pb2

from hvd.api.interceptors import require
from hvd.api.roles import Permission
from hvd.backends.contract import Capability
from hvd.cell import sensitive
from hvd.errors import HvdError
from hvd.guests.lifecycle import GuestLife
from hvd.guests.model import ENDED
from hvd.guests.supervisor import Supervisor
from hvd.images.symbol_table import SymbolTable, read_symbols
from hvd.runner import census as runners
from hvd.runner import rewritten

MOST_SECONDS = 60.0
_JUMPS = frozenset({inspect_pb2.CHAINED_JUMP, inspect_pb2.LOOKUP})
# The guest's process ends when it has written its exit record.
END_SECONDS = 5.0


async def census(supervisor: Supervisor, request: inspect_pb2.GetCensusRequest) -> inspect_pb2.Census:
    """Raises HvdError GUEST_NOT_FOUND, GUEST_WRONG_STATE, CAPABILITY_MISSING, FIELD_INVALID, ROLE_FORBIDDEN, DEBUGGER_ATTACHED,
    RUNNER_GONE."""
    life = supervisor.get(request.name)
    seconds = request.count.seconds + request.count.nanos / 1e9
    if not 0 <= seconds <= MOST_SECONDS:
        remedy = f"use at most {MOST_SECONDS:.0f} s"
        raise HvdError("FIELD_INVALID", field="count", value=f"{seconds:g} s", problem="is out of range", remedy=remedy)
    if seconds:
        require(Permission.TRACE, "GetCensus (count)")  # it slows the guest, and says what it does
    backend = life.backend
    if Capability.CENSUS not in backend.capabilities:
        why = backend.limitations.get(Capability.CENSUS, "no sensitive instruction of a kernel passes it by")
        raise HvdError("CAPABILITY_MISSING", backend=f"{backend.name} ({why})", capability=Capability.CENSUS.value)
    answer = await _of_the_dead(life) if life.instance is None and life.guest.state in ENDED else None
    if answer is None:
        instance, run = life.reachable("census", Capability.CENSUS), life.run
        try:
            answer = await instance.census(seconds)
        except HvdError as error:
            if error.reason != "RUNNER_GONE" or await life.end_of(run, END_SECONDS) is None:
                raise
            if (answer := await _of_the_dead(life)) is None:
                raise
    await asyncio.to_thread(_explain, answer, supervisor.symbol_files(life.guest), request.jumps)
    return answer


async def _of_the_dead(life: GuestLife) -> inspect_pb2.Census | None:
    if (replaced := await asyncio.to_thread(rewritten.read, life.directory)) is not None:
        answer = await asyncio.to_thread(rewritten.census_of, replaced, False)
        answer.ended = True
        return answer
    found = await asyncio.to_thread(runners.read, life.directory)
    if found is None:
        return None
    answer = inspect_pb2.Census(
        decoded_instructions=found["instructions"],
        code_pages=found["pages"],
        unknown=found["unknown"],
        incomplete=not found["complete"],
        ended=True,
    )
    for address, code, name in found["findings"]:
        answer.instructions.add(address=address, code=bytes.fromhex(code), name=name)
    return answer


def _explain(answer: inspect_pb2.Census, files: list[Path], jumps: bool) -> None:
    """Texts, symbols, effects and the summary; in a thread. symbols: the first of the files that has any."""
    import capstone  # only for this

    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    table = next((table for table in map(read_symbols, files) if table), SymbolTable([]))
    for entry in answer.instructions:
        row = sensitive.BY_NAME.get(entry.name)
        entry.effect = row.effect if row else ""
        entry.symbol = table.name_of(entry.address)
        for _, _, mnemonic, operands in disassembler.disasm_lite(entry.code, entry.address, 1):
            entry.text = f"{mnemonic} {operands}".strip()
    _summarize(answer, disassembler)
    if not jumps:
        kept = [entry for entry in answer.rewritten if entry.replacement not in _JUMPS]
        del answer.rewritten[:]
        answer.rewritten.extend(kept)
    for site in answer.rewritten:
        site.symbol = table.name_of(site.address)


def _summarize(answer: inspect_pb2.Census, disassembler: Any) -> None:
    """Texts of what was rewritten, and how much there is of each."""
    rows: dict[tuple[str, int], inspect_pb2.RewrittenSummary] = {}
    for site in answer.rewritten:
        name = "?"
        for _, _, name, operands in disassembler.disasm_lite(site.code, site.address, 1):
            site.text = f"{name} {operands}".strip()
        row = rows.setdefault((name, site.replacement), inspect_pb2.RewrittenSummary(name=name, replacement=site.replacement))
        row.sites += 1
        if site.HasField("hits"):
            row.hits += site.hits
    answer.summary.extend(sorted(rows.values(), key=lambda row: (row.replacement in _JUMPS, -row.hits, -row.sites, row.name)))
