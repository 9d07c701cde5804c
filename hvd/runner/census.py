"""The census of a guest's kernel (hvd.cell.census), in the runner: looked at again while the kernel reaches new code, on request, and at
the guest's end, when it may explain that end: census.json of the guest's directory.

The decoding is done in a thread of its own; the vcpu is only asked for its registers.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hvd.board.end import End
from hvd.board.machine import Machine
from hvd.board.paging import AddressSpace
from hvd.board.vcpu import DebugCause, Exit
from hvd.cell.census import PAGE, Census, Descent
from hvd.errors import HvdError
from hvd.runner.directory import CENSUS, read_json, write_json

if TYPE_CHECKING:
    from hvapi.v1 import inspect_pb2

# Between two looks at whether there is new code: soon after there was, seldom when there is none.
LOOK_SECONDS: Final = (0.1, 5.0)
LOOK_MOST_SECONDS: Final = 5.0
# A kernel that was made for paravirtualisation misses nothing, most likely: decoding must not compete with its boot.
FIRST_LOOK_SECONDS: Final = 2.0
PAUSE: Final = 3.0  # after a look, in times of what it took
# What the last look may take, when the guest ends by itself and when it is killed.
LAST_SECONDS: Final = (1.0, 0.2)
REQUEST_SECONDS: Final = 30.0
# Breakpoints that a vcpu may have at once (hvd/cell/area.h).
BREAKPOINTS: Final = 64
MOST_FINDINGS: Final = 16384  # an answer must fit into a frame of 2 MiB
# Ends that the guest meant: they need no explanation.
_INTENDED: Final = frozenset({"EXITED", "POWEROFF", "KILLED", "LOAD_FAILED", "DEVICE_ERROR"})

Done = Callable[[Census | None, dict[int, int], HvdError | None], None]


class CensusWatch:
    """Of one machine. The main thread's, except where something else is said."""

    def __init__(self, machine: Machine, post: Callable[[Callable[[], None]], None], changed: Callable[[], None]) -> None:
        """changed: `count` is another one."""
        self.count = 0
        self._machine = machine
        self._post = post
        self._changed = changed
        self._delay = LOOK_SECONDS[0]
        self._seen = 0
        self._busy = False
        self._not_before = time.monotonic() + FIRST_LOOK_SECONDS if getattr(machine.vcpu, "paravirtual", False) else 0.0
        self._descent: Descent | None = None
        self._registers: dict[str, int] = {}

    def look(self) -> float | None:
        """Is there new code? Seconds until this should be asked again; None: never."""
        if not self._seen and (left := self._not_before - time.monotonic()) > 0:
            return left
        code = self._machine.vcpu.executed_code()
        if code is None:
            return None
        if len(code) == self._seen:
            self._delay = min(self._delay * 2, LOOK_SECONDS[1])
        elif not self._busy and time.monotonic() >= self._not_before:
            self._busy = True
            self._seen = len(code)
            self._delay = LOOK_SECONDS[0]
            self._machine.call(self._machine.vcpu.registers, lambda registers, error: self._begin(registers, list(code)))
        return self._delay

    def _begin(self, registers: dict[str, int] | None, entries: list[int]) -> None:
        """In the vcpu thread."""
        if registers is None:  # it has ended: the last look is enough
            return

        def work() -> None:
            start = time.monotonic()
            self._registers = registers
            if self._descent is None:
                native = self._machine.vcpu.census_native
                self._descent = Descent(lambda page: _page(self._machine, self._registers, page), native=native)
            self._descent.feed([*entries, *_handlers(self._machine, registers)], LOOK_MOST_SECONDS)
            # A kernel that reaches new code all the time must not cost a processor.
            spent = time.monotonic() - start
            self._post(lambda: self._looked(spent))

        threading.Thread(target=work, name="census", daemon=True).start()

    def _looked(self, spent: float) -> None:
        self._busy = False
        self._not_before = time.monotonic() + PAUSE * spent
        if self._descent is not None and len(self._descent.census.findings) != self.count:
            self.count = len(self._descent.census.findings)
            self._changed()


def last_look(machine: Machine) -> None:
    """In the vcpu thread, before the vcpu is closed: the kernel as it was at its end, and what that means for the end."""
    code = machine.vcpu.executed_code()
    if code is None or machine.end is None:
        return
    try:
        census = take(machine, machine.vcpu.registers(), list(code), LAST_SECONDS[machine.end.reason == "KILLED"])
        write_json(CENSUS, document(census))
    except (OSError, HvdError) as error:
        print(f"the last census was not kept: {error}", file=sys.stderr)
        return
    machine.end = explained(machine.end, census, machine.spec.name)


def explained(end: End, census: Census, name: str) -> End:
    """The end with what the census has to say about it."""
    if not census.findings:
        return end
    count = len(census.findings)
    message, metadata = end.message, end.metadata | {"sensitive_instructions": str(count)}
    if end.reason not in _INTENDED:
        first = census.in_order()[0]
        what = "1 sensitive instruction" if count == 1 else f"{count} sensitive instructions"
        example = f"{first.what.name} at {first.address:#x}"
        message += f"; the kernel has {what} that cannot trap, such as {example}: `hvctl census {name}`"
    return dataclasses.replace(end, message=message, metadata=metadata)


def take(machine: Machine, registers: dict[str, int], entries: Sequence[int], seconds: float) -> Census:
    """A whole census, as memory is now. Any thread."""
    descent = Descent(lambda page: _page(machine, registers, page), native=machine.vcpu.census_native)
    here = (registers.get("cs.base", 0) + registers["rip"]) & 0xFFFF_FFFF
    own = [here] if not registers["cs"] & 3 else []
    return descent.feed([*entries, *_handlers(machine, registers), *own], seconds)


def _page(machine: Machine, registers: dict[str, int], page: int) -> bytes | None:
    if page in machine.vcpu.census_pages:
        return None
    try:
        return AddressSpace(machine.memory, registers).read(page, PAGE)
    except HvdError:
        return None


def _handlers(machine: Machine, registers: dict[str, int]) -> list[int]:
    """Where the IDT's interrupt and trap gates lead (SDM vol. 3A, 6.11); segments are taken for flat."""
    space = AddressSpace(machine.memory, registers)
    entries = []
    for vector in range(min(256, (registers["idtr.limit"] + 1) // 8)):
        try:
            gate = int.from_bytes(space.read(registers["idtr.base"] + 8 * vector & 0xFFFF_FFFF, 8), "little")
        except HvdError:
            continue
        if gate >> 47 & 1 and gate >> 40 & 0x17 in (0x06, 0x07):
            entries.append(gate >> 32 & 0xFFFF_0000 | gate & 0xFFFF)
    # A vector that is nobody's has often no handler of its own: zero.
    return [entry for entry in entries if entry]


def request(machine: Machine, count_ns: int, done: Done) -> None:
    """Any thread. done(census, hits by address, None) or done(None, {}, error), in another one."""

    def begun(found: tuple[dict[str, int], list[int]] | None, error: HvdError | None) -> None:
        if found is None:
            done(None, {}, error)
        else:
            threading.Thread(target=work, args=found, name="census", daemon=True).start()

    def work(registers: dict[str, int], entries: list[int]) -> None:
        try:
            census = take(machine, registers, entries, REQUEST_SECONDS)
            hits = _counted(machine, sorted(census.findings), count_ns / 1e9) if count_ns and census.findings else {}
        except HvdError as error:
            done(None, {}, error)
        except OSError as error:
            done(None, {}, HvdError("INTERNAL", problem=repr(error)))
        else:
            done(census, hits, None)

    def ask() -> tuple[dict[str, int], list[int]]:
        code = machine.vcpu.executed_code()
        if code is None:
            raise HvdError("CAPABILITY_MISSING", backend=machine.spec.backend, capability="census")
        return machine.vcpu.registers(), list(code)

    machine.call(ask, begun)


def _counted(machine: Machine, addresses: list[int], seconds: float) -> dict[int, int]:
    """Executions of each, counted by breakpoints: of more than there can be at once, in turns, each for its share of the time. Raises
    HvdError DEBUGGER_ATTACHED, CAPABILITY_MISSING, RUNNER_GONE."""
    counter = _Counter(machine)
    groups = [addresses[n : n + BREAKPOINTS] for n in range(0, len(addresses), BREAKPOINTS)]
    _in_vcpu(machine, counter.attach)
    try:
        for group in groups:
            _in_vcpu(machine, lambda group=group: counter.watch(group))  # type: ignore[misc]
            counter.ended.wait(seconds / len(groups))
    finally:
        _in_vcpu(machine, counter.detach)
    return {address: counter.hits.get(address, 0) for address in addresses}


def _in_vcpu(machine: Machine, function: Callable[[], Any]) -> None:
    """Wait for it. Raises HvdError."""
    finished = threading.Event()
    errors: list[HvdError] = []

    def done(result: Any, error: HvdError | None) -> None:
        if error is not None:
            errors.append(error)
        finished.set()

    machine.call(function, done)
    finished.wait()
    if errors:
        raise errors[0]


class _Counter:
    """What hvd.debug.debugger.Debugger is for a person, for counting: it never lets the guest stand. In the vcpu thread."""

    def __init__(self, machine: Machine) -> None:
        self.hits: dict[int, int] = {}
        self.ended = threading.Event()  # set by nobody: waiting for it passes the time
        self._machine = machine
        self._watched: frozenset[int] = frozenset()

    def attach(self) -> None:
        if self._machine.debugger is not None:
            raise HvdError(
                "DEBUGGER_ATTACHED",
                name=self._machine.spec.name,
                problem="counting needs the guest's breakpoints",
                remedy="end the debugger (`detach` in gdb) and repeat",
            )
        self._machine.vcpu.fpu()  # a vcpu that cannot be debugged says so
        self._machine.set_debugger(self)

    def watch(self, addresses: Sequence[int]) -> None:
        self._watched = frozenset(addresses)
        self._arm()

    def detach(self) -> None:
        if self._machine.debugger is self:
            self._machine.set_debugger(None)
            self._machine.vcpu.set_debug(frozenset(), frozenset(), step=False)

    def _arm(self) -> None:
        self._machine.vcpu.set_debug(self._watched, frozenset(), step=False)

    # ---- the machine's side

    def exited(self, exit_: Exit) -> None:
        if exit_.value == DebugCause.BREAKPOINT and exit_.address in self._watched:
            self.hits[exit_.address] = self.hits.get(exit_.address, 0) + 1
            self._machine.vcpu.set_debug(frozenset(), frozenset(), step=True)  # over it
        else:
            self._arm()

    def paused(self) -> None:
        pass

    def check_resume(self) -> None:
        pass


def message(census: Census, hits: dict[int, int]) -> inspect_pb2.Census:
    """For the daemon, which adds what stands in no guest: texts and symbols."""
    from hvapi.v1 import inspect_pb2

    answer = inspect_pb2.Census(
        decoded_instructions=census.instructions,
        code_pages=census.pages,
        unknown=census.unknown,
        incomplete=not census.complete or len(census.findings) > MOST_FINDINGS,
    )
    for finding in census.in_order()[:MOST_FINDINGS]:
        entry = answer.instructions.add(address=finding.address, code=finding.code, name=finding.what.name)
        if finding.address in hits:
            entry.hits = hits[finding.address]
    return answer


def document(census: Census) -> dict[str, Any]:
    """For census.json."""
    return {
        "findings": [[f.address, f.code.hex(), f.what.name] for f in census.in_order()[:MOST_FINDINGS]],
        "instructions": census.instructions,
        "pages": census.pages,
        "unknown": census.unknown,
        "complete": census.complete and len(census.findings) <= MOST_FINDINGS,
    }


def read(directory: Path) -> dict[str, Any] | None:
    """The last census of a guest that has ended, in the form of document(); None when there is none, or nothing that makes sense: what
    stands in a guest directory is not trusted."""
    found = read_json(str(directory / CENSUS))
    if found is None:
        return None
    try:
        rows: list[list[Any]] = [[int(address), bytes.fromhex(code).hex(), str(name)] for address, code, name in found["findings"]]
        numbers = {name: found[name] for name in ("instructions", "pages", "unknown")}
        sound = all(type(value) is int and 0 <= value < 1 << 40 for value in numbers.values())
        if not sound or len(rows) > MOST_FINDINGS or not all(0 <= row[0] < 1 << 32 and len(row[1]) <= 30 for row in rows):
            return None
        return {"findings": rows, **numbers, "complete": bool(found["complete"])}
    except (KeyError, TypeError, ValueError):
        return None
