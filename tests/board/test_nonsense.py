"""Whatever a guest asks of its board, the board answers: no access and no hypercall ends the machine by a bug of ours."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hvapi.record import FLAG_LONG
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_bench import CALL, RESULT, Bench
from scripted_vcpu import ScriptedVcpu, Step, port_in, port_out

from hvd.board.vcpu import Exit, ExitReason

EXIT_PORT = 0xF4
EXIT_CALL = 5
# What a call may answer: not more than a machine's state says, or one of the standard's errors (docs/hypercall.md).
ERRORS = {-errno.EPERM, -errno.EFAULT, -errno.EINVAL, -errno.ENOSYS}

qword = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, 0xFFF, 0x1000, 0xFFFFF, 0x100000, (1 << 63), (1 << 64) - 1])
registers = st.fixed_dictionaries(
    {
        "cr0": st.sampled_from([0, 1, 0x80000001, 0x80010001, 0x80000000]),
        "cr3": qword,
        "cr4": st.sampled_from([0, 0x10, 0x20, 0x30, 0x1020, 0xFFFFFFFF]),
        "efer": st.sampled_from([0, 0x100, 0x500, 0xD01]),
    }
)
numbers = (st.integers(0, 70) | st.integers(0, (1 << 32) - 1)).filter(lambda number: number != EXIT_CALL)
calls = st.tuples(numbers, st.tuples(qword, qword | st.integers(0, 2000), qword), registers, st.sampled_from([0, FLAG_LONG]))

sizes = st.sampled_from([1, 2, 4])
device_ports = st.sampled_from(
    [0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0x4D0, 0x4D1, *range(0x3F8, 0x400),
     *range(CALL, CALL + 8), 0xCF8, 0xCF9, 0xCFC, 0x3B4, 0x3B5, 0x3BA, *range(0x3C0, 0x3D0), 0x3D4, 0x3D5, 0x3DA, 0x600, *range(0x606, 0x60C), 0xA79]
)  # fmt: skip
ports = (device_ports | st.integers(0, 0xFFFF)).filter(
    lambda port: not EXIT_PORT - 4 < port <= EXIT_PORT + 3 and not 0x601 <= port <= 0x605  # soft-off: tests/board/test_acpi_pm.py
)
values = st.integers(0, (1 << 32) - 1)
addresses = st.integers(1 << 20, (1 << 52) - 1) | st.integers(0xA0000, 0xBFFFF)


def hypercall(number: int, arguments: tuple[int, ...], control: dict[str, int], flags: int) -> Callable[[ScriptedVcpu], Exit]:
    def step(vcpu: ScriptedVcpu) -> Exit:
        vcpu.values.update(zip(("rbx", "rcx", "rsi"), arguments, strict=True))
        vcpu.values.update(control)
        return port_out(CALL, number, 4, flags)

    return step


@settings(max_examples=60, deadline=None)
@given(st.lists(calls, min_size=1, max_size=30))
def test_hypercalls_with_any_arguments(asked: list[tuple[int, tuple[int, ...], dict[str, int], int]]) -> None:
    steps: list[Step] = []
    for number, arguments, control, flags in asked:
        steps += [hypercall(number, arguments, control, flags), port_in(RESULT, 4), port_in(RESULT, 4)]
    with TemporaryDirectory() as directory:
        one = Bench(Path(directory), [*steps, port_out(EXIT_PORT, 7)])
        end = one.run()
    assert (end.reason, end.exit_code) == ("EXITED", 7), end
    for low, high in zip(one.vcpu.answers[::2], one.vcpu.answers[1::2], strict=True):
        (result,) = struct.unpack("<q", struct.pack("<II", low, high))
        assert result >= 0 or result in ERRORS
    assert all(len(text) <= 1024 for text in one.logged)


def access(kind: ExitReason, place: int, size: int, value: int) -> Exit:
    if kind in (ExitReason.PORT_IN, ExitReason.PORT_OUT):
        return port_in(place, size) if kind is ExitReason.PORT_IN else port_out(place, value & (1 << 8 * size) - 1, size)
    return Exit(kind, address=place, size=size, value=value & (1 << 8 * size) - 1)


accesses = st.one_of(
    st.builds(access, st.sampled_from([ExitReason.PORT_IN, ExitReason.PORT_OUT]), ports, sizes, values),
    st.builds(access, st.sampled_from([ExitReason.MMIO_READ, ExitReason.MMIO_WRITE]), addresses, st.sampled_from([1, 2, 4, 8]), values),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(accesses, max_size=200))
def test_any_accesses_to_any_device(asked: list[Exit]) -> None:
    """on_reset=restart: pulling the reset line is no end. A hypercall 5 may be among them."""
    widths = [exit_.size for exit_ in asked if exit_.reason in (ExitReason.PORT_IN, ExitReason.MMIO_READ)]
    with TemporaryDirectory() as directory:
        one = Bench(Path(directory), [*asked, port_out(EXIT_PORT, 7)], restart_on_reset=True)
        end = one.run()
    assert end.reason == "EXITED", end
    for width, value in zip(widths, one.vcpu.answers, strict=False):
        assert 0 <= value < 1 << 8 * width
