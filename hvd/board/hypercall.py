"""The base hypercall: a pair of ports through which any guest can talk to the hypervisor, whatever executes it
(docs/hypercall.md).

    0x6870 CALL    in: 0x31647668 ("hvd1") tells that the ABI is there. out: EAX = number runs the call, its arguments
    are in EBX, ECX
                   and ESI (RBX, RCX and RSI in 64-bit mode)
    0x6874 RESULT  in: the low 32 bits of the last call's 64-bit result, then the high 32 bits, and so on in turn

Both are 32 bits wide; narrower accesses float. Errors are negative: -14 EFAULT, -22 EINVAL, -38 ENOSYS. Names and
arguments of the calls stand in hvd.trace.points.HYPERCALLS. A call is recorded as a crossing of its own point instead
of the OUT that made it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from hvd.board import saved
from hvd.board.bus import floating
from hvd.board.paging import AddressSpace
from hvd.errors import HvdError
from hvd.trace.points import HYPERCALL_BASE, HYPERCALL_UNKNOWN, HYPERCALLS

if TYPE_CHECKING:
    from hvd.board.machine import Machine

CALL, RESULT = 0x6870, 0x6874
MAGIC = 0x31647668  # "hvd1", little-endian
VERSION = 1
LOG_BYTES = 1024
MASK_64 = (1 << 64) - 1


class Arguments(NamedTuple):
    """EBX, ECX and ESI, and the registers that say how guest-virtual addresses are translated."""

    first: int
    second: int
    third: int
    registers: Mapping[str, int]


class HypercallPort:
    """The two ports."""

    name: ClassVar[str] = "hypercall"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.reset()

    @property
    def ports(self) -> Sequence[range]:
        return (range(CALL, RESULT + 4),)

    def reset(self) -> None:
        self._result = 0
        self._high_next = False

    def save(self) -> dict[str, Any]:
        return {"result": self._result, "high_next": self._high_next}

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(self.save()), self.name)
        self._result = saved.number(state, "result", MASK_64)
        self._high_next = saved.flag(state, "high_next")

    def read_port(self, port: int, size: int) -> int:
        if size != 4 or port not in (CALL, RESULT):
            return floating(size)
        if port == CALL:
            return MAGIC
        half = self._result >> 32 if self._high_next else self._result
        self._high_next = not self._high_next
        return half & 0xFFFF_FFFF

    def write_port(self, port: int, size: int, value: int) -> None:
        if size == 4 and port == CALL:
            self._result = execute(self._machine, value) & MASK_64
            self._high_next = False


def execute(machine: Machine, number: int) -> int:
    """Run a call with the arguments in the vcpu's registers; returns its signed result."""
    registers = machine.vcpu.registers()
    width = MASK_64 if machine.in_long_mode else 0xFFFF_FFFF
    first, second, third = (registers[name] & width for name in ("rbx", "rcx", "rsi"))
    call = CALLS.get(number)
    if call is None:
        result = -errno.ENOSYS
        machine.record_as(HYPERCALL_UNKNOWN, number, 0, 0, result)
    else:
        result = call(machine, Arguments(first, second, third, registers))
        # The arguments that the call has by its table; other registers hold what the guest happened to have there.
        used = [argument.name != "-" for argument in HYPERCALLS[number][1]]
        machine.record_as(HYPERCALL_BASE + number, first * used[0], second * used[1], third * used[2], result)
    return result


def _version(machine: Machine, arguments: Arguments) -> int:
    return VERSION


def _log(machine: Machine, arguments: Arguments) -> int:
    address, length = arguments.first, arguments.second
    if length > LOG_BYTES:
        return -errno.EINVAL
    try:
        text = AddressSpace(machine.memory, arguments.registers).read(address, length)
    except HvdError:
        return -errno.EFAULT
    machine.log(text)
    return 0


def _annotate(machine: Machine, arguments: Arguments) -> int:
    return 0  # being recorded is all it does


def _clock(machine: Machine, arguments: Arguments) -> int:
    return machine.clock_ns()


def _yield(machine: Machine, arguments: Arguments) -> int:
    os.sched_yield()
    return 0


def _exit(machine: Machine, arguments: Arguments) -> int:
    machine.exit(arguments.first & 0xFF)
    return 0


def _console_size(machine: Machine, arguments: Arguments) -> int:
    rows, columns = machine.console_size
    return rows << 16 | columns


CALLS: dict[int, Callable[[Machine, Arguments], int]] = {
    0: _version, 1: _log, 2: _annotate, 3: _clock, 4: _yield, 5: _exit, 6: _console_size,
}  # fmt: skip
