"""The base hypercall, on a scripted vcpu."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from hvapi.record import FLAG_LONG
from machine_bench import CALL, FLAT, RESULT, Bench, bench
from scripted_vcpu import ScriptedVcpu, Step, port_in, port_out

from hvd.board.vcpu import Exit
from hvd.trace.points import BY_NAME, Kind

__all__ = ["bench"]


def call(number: int, *arguments: int, flags: int = 0) -> Callable[[ScriptedVcpu], Exit]:
    def step(vcpu: ScriptedVcpu) -> Exit:
        vcpu.values.update(zip(("rbx", "rcx", "rsi"), arguments, strict=False))
        return port_out(CALL, number, 4, flags)

    return step


def results(*calls: Callable[[ScriptedVcpu], Exit]) -> list[Step]:
    steps: list[Step] = []
    for one in calls:
        steps += [one, port_in(RESULT, 4), port_in(RESULT, 4)]
    return steps


def signed(answers: Sequence[int]) -> list[int]:
    pairs = zip(answers[::2], answers[1::2], strict=True)
    return [struct.unpack("<q", struct.pack("<II", low, high))[0] for low, high in pairs]


def test_hypercall_results(bench: Callable[..., Bench]) -> None:
    one = bench(
        *results(
            call(0), call(1, FLAT, 5), call(1, FLAT, 1025), call(1, 0xFFFF_0000, 16), call(2, 1, 2), call(4), call(6)
        ),
        *results(call(7), call(0xFFFF_FFFF)),
        call(5, 0x1_0000_112A),  # only the low 8 bits count
    )
    one.machine.console_size = (25, 80)
    end = one.run()
    assert signed(one.vcpu.answers) == [1, 0, -22, -14, 0, 0, 25 << 16 | 80, -38, -38]
    assert one.logged == [b"\xf4" * 5]
    assert (end.reason, end.exit_code) == ("EXITED", 42)


def test_hypercall_signature_and_widths(bench: Callable[..., Bench]) -> None:
    one = bench(
        port_in(CALL, 4), port_in(CALL, 1), port_in(CALL, 2), port_in(RESULT, 1), port_out(CALL, 5, 1), port_out(RESULT, 5, 4),
        port_out(0xF4, 3),
    )  # fmt: skip
    assert one.run().exit_code == 3
    assert one.vcpu.answers == [0x31647668, 0xFF, 0xFFFF, 0xFF]


def test_the_result_alternates_and_begins_anew_with_a_call(bench: Callable[..., Bench]) -> None:
    reads = [port_in(RESULT, 4) for _ in range(3)]
    one = bench(call(7), *reads, call(0), port_in(RESULT, 4), port_out(0xF4, 0))
    one.run()
    assert one.vcpu.answers == [(1 << 32) - 38, (1 << 32) - 1, (1 << 32) - 38, 1]


def test_the_clock_call_is_the_virtual_clock(bench: Callable[..., Bench]) -> None:
    one = bench(*results(call(3)), port_out(0xF4, 0))
    one.run()
    (clock,) = signed(one.vcpu.answers)
    assert 0 < clock <= one.machine.clock_ns()


def test_long_mode_arguments_have_64_bits(bench: Callable[..., Bench]) -> None:
    wide = 0xFFFF_8000_0000_0000 | FLAT
    one = bench(*results(call(1, wide, 4), call(1, wide, 4, flags=FLAG_LONG)), port_out(0xF4, 0))
    one.vcpu.values |= {"cr0": 0x8000_0001, "cr4": 0x20, "efer": 0x500, "cr3": 0x41000}
    one.memory.write(0x41000, struct.pack("<Q", 0x42003))  # PML4E 0 -> PDPT
    one.memory.write(0x41000 + 8 * 256, struct.pack("<Q", 0x42003))
    one.memory.write(0x42000, struct.pack("<Q", 0x43003))
    one.memory.write(0x43000, struct.pack("<Q", 0x83))  # 2 MiB page at 0
    one.run()
    assert signed(one.vcpu.answers) == [0, 0]
    # Without the flag it is the low half, which the same tables map to the same place.
    assert one.logged == [b"\xf4" * 4] * 2


def test_a_call_is_one_record_of_its_own_point(bench: Callable[..., Bench]) -> None:
    one = bench(call(2, 0xAB, 0xCD, 0xEF), port_in(RESULT, 4), call(9, 1), port_out(0xF4, 0))
    one.trace(Kind.HYPERCALL, Kind.PORT_IO)
    one.run()
    records = one.records()
    names = {point.id: name for name, point in BY_NAME.items()}
    assert [names[record.point] for record in records] == [
        "hypercall.annotate", "port-in", "hypercall.unknown", "port-out",
    ]  # fmt: skip
    assert records[0][-4:] == (0xAB, 0xCD, 0, 0)
    assert records[0].rip == 0x1000
    assert records[0].duration_ns > 0
    assert records[1][-4:-1] == (RESULT, 4, 0)
    assert records[2][-4:] == (9, 0, 0, (1 << 64) - 38)
    assert records[3][-4:-1] == (0xF4, 1, 0)
