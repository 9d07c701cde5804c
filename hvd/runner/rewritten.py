"""The census where kernels are rewritten (docs/rewriting.md), in the runner: on request, counted, and at the guest's end: census.json of the
guest's directory.
"""

from __future__ import annotations

import base64
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hvd.board.machine import Machine
from hvd.board.vcpu import CensusCommand, Rewritten
from hvd.cell.rewritten import pack, sites, unpack, without
from hvd.errors import HvdError
from hvd.runner.directory import CENSUS, read_json, write_json

if TYPE_CHECKING:
    from hvapi.runner.v1 import control_pb2
    from hvapi.v1 import inspect_pb2

# The table, packed: an answer must fit into a frame of 2 MiB.
MOST_PACKED: Final = 3 << 19
_KEY: Final = "rewritten"

# done(what, None) or done(None, error)
Done = Callable[[Rewritten | None, HvdError | None], None]

# How many requests of this runner's one machine count now; the vcpu thread's.
_counting = [0]


def request(machine: Machine, count_ns: int, done: Done) -> None:
    """Any thread; done is called in the vcpu thread, or in one of its own. While several count, each sees its own time's executions."""
    if not count_ns:
        machine.call(lambda: collect(machine), done)
        return

    def begin() -> bytes:
        _counting[0] += 1
        return machine.vcpu.rewritten(CensusCommand.COUNT if _counting[0] == 1 else CensusCommand.COLLECT).sites

    def end(before: bytes) -> Rewritten:
        found = collect(machine)
        _counting[0] -= 1
        if not _counting[0]:
            machine.vcpu.rewritten(CensusCommand.END)
        return replace(found, sites=without(found.sites, before))

    def begun(before: bytes | None, error: HvdError | None) -> None:
        if before is None:
            done(None, error)
            return

        def wait() -> None:
            time.sleep(count_ns / 1e9)  # the time that was asked for, and nothing else is waited for
            machine.call(lambda: end(before), done)

        threading.Thread(target=wait, name="census", daemon=True).start()

    machine.call(begin, begun)


def collect(machine: Machine) -> Rewritten:
    """In the vcpu thread, between two runs."""
    return machine.vcpu.rewritten(CensusCommand.COLLECT)


def last_look(machine: Machine) -> None:
    """In the vcpu thread, before the vcpu is closed."""
    found = collect(machine)
    packed, complete = pack(found.sites, MOST_PACKED)
    document = {
        _KEY: base64.b64encode(packed).decode(),
        "blocks": found.blocks,
        "pages": found.pages,
        "instructions": found.instructions,
        "complete": complete and found.complete,
    }
    try:
        write_json(CENSUS, document)
    except OSError as error:
        print(f"the last census was not kept: {error}", file=sys.stderr)


def read(directory: Path) -> Rewritten | None:
    """The last census of a guest that has ended; None when there is none of this kind, or nothing that makes sense."""
    found: dict[str, Any] | None = read_json(str(directory / CENSUS))
    if found is None or _KEY not in found:
        return None
    try:
        blocks, pages, instructions = (found[name] for name in ("blocks", "pages", "instructions"))
        if not all(type(value) is int and 0 <= value < 1 << 40 for value in (blocks, pages, instructions)):
            return None
        return Rewritten(unpack(base64.b64decode(found[_KEY])), blocks, pages, instructions, bool(found["complete"]))
    except (KeyError, TypeError, ValueError):
        return None


def message(found: Rewritten, counted: bool) -> control_pb2.Rewritten:
    from hvapi.runner.v1 import control_pb2

    packed, complete = pack(found.sites, MOST_PACKED)
    return control_pb2.Rewritten(
        sites=packed,
        counted=counted,
        blocks=found.blocks,
        pages=found.pages,
        instructions=found.instructions,
        incomplete=not (complete and found.complete),
    )


def census_of(found: Rewritten, counted: bool) -> inspect_pb2.Census:
    """For the daemon, which adds texts, symbols and the summary. Takes its time: not in an event loop."""
    from hvapi.v1 import inspect_pb2

    answer = inspect_pb2.Census(
        decoded_instructions=found.instructions, code_pages=found.pages, blocks=found.blocks, incomplete=not found.complete
    )
    for site in sorted(sites(found.sites), key=lambda site: site.address):
        entry = answer.rewritten.add(address=site.address, code=site.code, replacement=int(site.replacement))
        if counted or site.executions:
            entry.hits = site.executions
    return answer


def census_of_message(answer: control_pb2.Rewritten) -> inspect_pb2.Census:
    """The same of a runner's answer. Raises HvdError INTERNAL when it makes no sense."""
    try:
        table = unpack(answer.sites)
    except ValueError as error:
        raise HvdError("INTERNAL", problem=f"the runner's census: {error}") from error
    found = Rewritten(table, answer.blocks, answer.pages, answer.instructions, complete=not answer.incomplete)
    return census_of(found, answer.counted)
