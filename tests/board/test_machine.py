"""The machine's loop, on a scripted vcpu: dispatch, ends, verbs, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from machine_bench import FLAT, RING, Bench, bench
from scripted_vcpu import ScriptedVcpu, port_in, port_out

from hvd.board.devices.cmos import Cmos
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import Exit, ExitReason
from hvd.errors import HvdError
from hvd.trace.counters import decode_counters
from hvd.trace.points import BY_NAME, BackendId, Kind

__all__ = ["bench"]


def test_the_machine_is_loaded_and_entered_in_the_vcpu_thread(bench: Callable[..., Bench]) -> None:
    one = bench(port_out(0xF4, 7))
    end = one.run()
    assert (end.reason, end.exit_code) == ("EXITED", 7)
    assert one.states == ["RUNNING"]
    assert one.memory.read(FLAT, 2) == b"\xf4\xf4"
    assert len(one.vcpu.entries) == 1
    assert one.vcpu.closed
    assert one.vcpu.threads == {threading.get_ident()}


@pytest.mark.parametrize(("value", "size", "code"), [(0xFF, 1, 255), (0x1234, 2, 0x1234), (0xFFFF_FFFF, 4, -1)])
def test_exit_codes(bench: Callable[..., Bench], value: int, size: int, code: int) -> None:
    assert bench(port_out(0xF4, value, size)).run().exit_code == code


def test_reads_are_answered(bench: Callable[..., Bench]) -> None:
    one = bench(
        port_in(0x64),
        port_in(0xCFA, 2),
        Exit(ExitReason.MMIO_READ, 0xFEE0_0000, 8),
        Exit(ExitReason.MMIO_WRITE, 0xFEE0_0000, 4, 1),
        port_in(0x60, 2),
        port_out(0xF4, 0),
    )
    one.run()
    assert one.vcpu.answers == [0x14, 0xFFFF, (1 << 64) - 1, one.vcpu.answers[3]]
    # 0x60 is the keyboard's, 0x61 the C board's.
    assert one.vcpu.answers[3] & 0xFF == 0
    assert one.vcpu.answers[3] >> 8 != 0xFF


@pytest.mark.parametrize(
    ("step", "reason", "code"),
    [
        (Exit(ExitReason.HALT, rip=0x10), "HALTED", 0),
        (Exit(ExitReason.SHUTDOWN, rip=0x10), "TRIPLE_FAULT", 0),
        (port_out(0x64, 0xFE), "RESET", 0),
        (port_out(0x92, 1), "RESET", 0),
        (Exit(ExitReason.ERROR, rip=0x10, detail="bad", metadata={"bytes": "0f ff"}), "EXECUTION_ERROR", None),
        (Exit(ExitReason.DEBUG, rip=0x10), "EXECUTION_ERROR", None),
    ],
)
def test_ends(bench: Callable[..., Bench], step: Exit, reason: str, code: int | None) -> None:
    one = bench(step)
    end = one.run()
    assert (end.reason, end.exit_code) == (reason, code)
    if step.reason is ExitReason.ERROR:
        assert end.metadata == {"address": "0x10", "bytes": "0f ff"}
        assert "bad" in end.message and "0x10" in end.message and "0f ff" in end.message


def test_an_error_names_the_bytes_at_its_address(bench: Callable[..., Bench]) -> None:
    one = bench(Exit(ExitReason.ERROR, rip=FLAT, detail="bad"))
    end = one.run()
    wanted = " ".join(["f4"] * 15)  # the image: HLT and nothing else
    assert end.metadata == {"address": hex(FLAT), "bytes": wanted} and wanted in end.message
    nowhere = bench(Exit(ExitReason.ERROR, rip=0xC8000000, detail="bad")).run()
    assert nowhere.metadata == {"address": "0xc8000000", "bytes": ""} and "no memory" in nowhere.message


def test_the_first_end_counts(bench: Callable[..., Bench]) -> None:
    one = bench(lambda vcpu: (one.machine.kill(), port_out(0xF4, 3))[1])
    assert one.run().reason == "KILLED"


@pytest.mark.parametrize("cause", [Exit(ExitReason.SHUTDOWN), port_out(0x64, 0xFE)])
def test_restart_on_reset(bench: Callable[..., Bench], cause: Exit) -> None:
    def spoil(vcpu: ScriptedVcpu) -> Exit:
        one.memory.write(FLAT, b"spoiled")
        one.memory.write(0x9000, b"left over")
        return cause

    one = bench(port_out(0x64, 0x60), port_out(0x60, 0), spoil, port_in(0x64), port_out(0xF4, 1), restart_on_reset=True)
    assert one.run().exit_code == 1
    assert one.machine.resets == 1
    assert len(one.vcpu.entries) == 2
    assert one.vcpu.answers == [0x14]
    assert one.memory.read(FLAT, 7) == b"\xf4" * 7
    assert one.memory.read(0x9000, 9) == bytes(9)
    assert one.vcpu.changed == [(0, 1 << 20)]
    assert one.states == ["RUNNING", "RUNNING"]


def test_an_image_that_is_gone_at_the_reset(bench: Callable[..., Bench]) -> None:
    def remove(vcpu: ScriptedVcpu) -> Exit:
        Path(one.spec.kernel).unlink()
        return Exit(ExitReason.SHUTDOWN)

    one = bench(remove, restart_on_reset=True)
    end = one.run()
    assert (end.reason, end.exit_code) == ("LOAD_FAILED", None)


def test_a_kernel_that_cannot_be_loaded(bench: Callable[..., Bench]) -> None:
    one = bench(flat_load_address=0)
    end = one.run()
    assert end.reason == "LOAD_FAILED"
    assert end.metadata["error"] == "IMAGE_FORMAT"
    assert one.machine.start_error is not None and one.machine.start_error.reason == "IMAGE_FORMAT"
    assert one.states == []


def test_a_kernel_that_is_missing(bench: Callable[..., Bench]) -> None:
    one = bench(kernel="/nonexistent")
    assert one.run().reason == "LOAD_FAILED"
    assert one.machine.start_error is not None and one.machine.start_error.reason == "RUNNER_START_FAILED"


def test_a_bug_in_a_device_ends_the_guest(bench: Callable[..., Bench], capsys: pytest.CaptureFixture[str]) -> None:
    one = bench(port_out(0x64, 0xAA))

    def broken(port: int, size: int, value: int) -> None:
        raise ZeroDivisionError("oops")

    device = next(device for device in one.machine.devices if device.name == "keyboard")
    device.write_port = broken  # type: ignore[method-assign]
    end = one.run()
    assert (end.reason, end.exit_code) == ("DEVICE_ERROR", None)
    assert end.metadata["where"] == "port 0x64"
    assert "oops" in end.metadata["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_bug_in_the_vcpu_ends_the_guest(bench: Callable[..., Bench], capsys: pytest.CaptureFixture[str]) -> None:
    def broken(vcpu: ScriptedVcpu) -> Exit:
        raise RuntimeError("oops")

    one = bench(broken)
    assert one.run().reason == "EXECUTION_ERROR"
    assert one.vcpu.closed
    assert "RuntimeError" in capsys.readouterr().err


# ---- other threads


def test_calls_run_in_the_vcpu_thread(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.start()
    assert one.call(threading.get_ident) == one.thread.ident
    assert one.call(lambda: one.machine.read_memory(FLAT, 2, False)) == b"\xf4\xf4"


def test_calls_before_the_start_are_kept(bench: Callable[..., Bench]) -> None:
    one = bench()
    results: list[Any] = []
    answered = threading.Event()
    one.machine.call(lambda: 5, lambda result, error: (results.append(result), answered.set()))  # type: ignore[func-returns-value]
    one.start()
    assert answered.wait(10)
    assert results == [5]


def test_many_threads_call_at_once(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.start()
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(one.call(lambda: n))) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(results) == list(range(50))


def test_errors_of_calls_reach_the_caller_and_hurt_nobody(
    bench: Callable[..., Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    one = bench()
    one.start()
    with pytest.raises(HvdError, match="not within the guest's memory"):
        one.call(lambda: one.machine.read_memory(0xFFFF_F000, 4096, False))
    with pytest.raises(HvdError) as error:
        one.call(lambda: one.machine.read_memory(0, (1 << 20) + 1, False))
    assert error.value.reason == "REQUEST_INVALID"
    with pytest.raises(HvdError) as error:
        one.call(lambda: 1 // 0)
    assert error.value.reason == "INTERNAL"
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert one.call(lambda: 1) == 1


def test_a_call_to_an_ended_machine(bench: Callable[..., Bench]) -> None:
    one = bench(Exit(ExitReason.HALT))
    one.run()
    with pytest.raises(HvdError) as error:
        one.call(lambda: 1)
    assert error.value.reason == "RUNNER_GONE"
    one.machine.kick()


def test_calls_that_are_pending_at_the_end_are_answered(bench: Callable[..., Bench]) -> None:
    errors: list[HvdError | None] = []

    def ask(vcpu: ScriptedVcpu) -> Exit:
        one.machine.call(lambda: 1, lambda result, error: errors.append(error))
        return Exit(ExitReason.HALT)

    one = bench(ask)
    one.run()
    assert [error.reason for error in errors if error] == ["RUNNER_GONE"]


def test_kill(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.start()
    one.call(one.machine.kill)
    assert one.join().reason == "KILLED"


# ---- pause, resume, reset


def test_pause_stops_the_clock(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.start()
    one.call(one.machine.pause)
    one.call(one.machine.pause)
    stopped = one.call(one.machine.clock_ns)
    until = time.monotonic_ns() + 3_000_000
    while time.monotonic_ns() < until:
        assert one.call(one.machine.clock_ns) == stopped
    one.call(one.machine.resume)
    one.call(one.machine.resume)
    after = one.call(one.machine.clock_ns)
    assert stopped < after < stopped + 3_000_000_000
    assert one.states == ["RUNNING", "PAUSED", "RUNNING"]


def test_start_paused(bench: Callable[..., Bench]) -> None:
    one = bench(port_out(0xF4, 9), start_paused=True)
    one.start()
    assert one.changed.wait(10)
    assert one.call(lambda: (one.machine.state, len(one.vcpu.steps), one.machine.clock_ns())) == ("PAUSED", 1, 0)
    one.call(one.machine.resume)
    assert one.join().exit_code == 9


def test_kill_while_paused(bench: Callable[..., Bench]) -> None:
    one = bench(start_paused=True)
    one.start()
    one.call(one.machine.kill)
    assert one.join().reason == "KILLED"


def test_reset_while_paused_stays_paused(bench: Callable[..., Bench]) -> None:
    one = bench(start_paused=True)
    one.start()
    one.call(one.machine.reset)
    assert one.machine.state == "PAUSED"
    assert one.machine.resets == 1
    assert len(one.vcpu.entries) == 2


# ---- console


def test_a_full_console_waits_for_the_reader(bench: Callable[..., Bench]) -> None:
    one = bench(Exit(ExitReason.CONSOLE_FULL), Exit(ExitReason.CONSOLE_FULL), port_out(0xF4, 0))
    one.start()
    assert one.changed.wait(10)
    one.machine.console_drained()
    while len(one.vcpu.steps) > 1:
        assert one.thread.is_alive()
    one.machine.console_drained()
    assert one.join().reason == "EXITED"


# ---- memory


def test_writing_memory_tells_the_vcpu(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.start()
    one.call(lambda: one.machine.write_memory(0x1FFE, b"abcd", True))  # paging is off: virtual is physical
    assert one.call(lambda: one.machine.read_memory(0x1FFE, 4, False)) == b"abcd"
    assert one.vcpu.changed == [(0x1FFE, 2), (0x2000, 2)]
    one.call(lambda: one.machine.write_memory(0x3000, b"xy", False))
    assert one.vcpu.changed[-1] == (0x3000, 2)


# ---- hypercalls


def test_resets_and_faults_are_crossings(bench: Callable[..., Bench]) -> None:
    one = bench(Exit(ExitReason.SHUTDOWN, rip=5, start_ns=1), Exit(ExitReason.HALT, start_ns=1), restart_on_reset=True)
    one.trace(Kind.MACHINE, Kind.HALT)
    one.run()
    assert [record.point for record in one.records()] == [BY_NAME[n].id for n in ("triple-fault", "reset", "halt")]


def test_a_machine_made_ahead_is_the_guests_that_it_begins_with(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [])
    memory = GuestMemory(1 << 20)
    ahead = Machine(replace(bench.spec, name="", kernel="", flat_load_address=0), HotBoard(BackendId.EMULATION), memory, bench.vcpu.create)
    cmos = ahead.device(Cmos)
    made_ns = ahead.start_wall_ns
    ahead.board.share(tmp_path / "own-counters", tmp_path / "own-trace", RING)
    ahead.begin(replace(bench.spec, start_paused=True, restart_on_reset=True), None)
    assert ahead.start_wall_ns > made_ns and cmos.save()["epoch_ns"] == ahead.start_wall_ns
    thread = threading.Thread(target=ahead.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while ahead.state != "PAUSED" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ahead.state == "PAUSED" and memory.read(FLAT, 2) == b"\xf4\xf4"
    ahead.call(ahead.kill, lambda result, error: None)
    thread.join(10)
    assert ahead.end is not None and ahead.end.reason == "KILLED"
    ahead.board.cross(BY_NAME["reset"].id, time.monotonic_ns(), 0, 0, 0, 0, 0, 0)
    assert decode_counters((tmp_path / "own-counters").read_bytes()).points[BY_NAME["reset"].id].count == 1
