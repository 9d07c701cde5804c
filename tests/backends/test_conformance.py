"""What every VM backend promises, on the project's own kernels: one suite, all backends and engines.

A backend says what it can run (check()) and what its guests can do (capabilities); everything it says is tested, nothing else is asked.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from harness import SECONDS, Bench
from hvapi.record import decode

from hvd.backends.contract import Capability, InstanceStatus
from hvd.errors import HvdError
from hvd.runner.directory import ENDS
from hvd.snapshot.container import Reader
from hvd.trace.points import Kind
from hvd.trace.ring import RingReader, write_enabled

# kernel -> reason, exit code, what its last line must be
ENDINGS = {
    "hello.elf": ("EXITED", 0, "hello: ok"),
    "flat.bin": ("EXITED", 3, "flat: ok"),
    "pvh.elf": ("EXITED", 0, "pvh: ok"),
    "hypercalls.elf": ("EXITED", 0, "hypercalls: ok"),
    "interrupts.elf": ("EXITED", 0, "interrupts: ok"),
    "apic.elf": ("EXITED", 0, "apic: ok"),
    "exceptions.elf": ("EXITED", 0, "exceptions: ok"),
    "paging.elf": ("EXITED", 0, "paging: ok"),
    "long.elf": ("EXITED", 0, "long: ok"),
    "alias.elf": ("EXITED", 0, "alias: ok"),
    "virtio.elf": ("EXITED", 0, "virtio: ok"),
    "compute.elf": ("EXITED", 0, "compute: ok"),
    "halt.elf": ("HALTED", 0, "halt: ok"),
    "triple.elf": ("TRIPLE_FAULT", 0, "triple: ok"),
    "reset.elf": ("RESET", 0, "reset: ok"),
    "wild.elf": ("EXECUTION_ERROR", None, "wild: ok"),
}
# What an engine documents that it cannot do: its guests end with EXECUTION_ERROR and a message that says which feature is missing.
BEYOND = {
    ("emulation", "public"): {
        "exceptions.elf": "the error code of exception 13",
        "paging.elf": "the error code of exception 14",
        "long.elf": "PAE paging or 64-bit mode",
        "alias.elf": "PAE paging or 64-bit mode",
    }
}


# How much slower than the others an engine computes, so that it gets less to do: one interprets what is between two jumps, or pays a breakpoint.
SLOWER = {("emulation", "public"): 10, ("rewriting", "breakpoint"): 2000}


def rounds(bench: Bench, n: int) -> str:
    """compute.elf's, for this engine: and of a smaller table, if it has one, which takes as many turns of a loop as it has words."""
    slower = SLOWER.get((bench.backend.name, bench.engine), 1)
    return f"n={n // slower}" + (" words=16384" if slower > 1000 else "")


def beyond(bench: Bench) -> dict[str, str]:
    return BEYOND.get((bench.backend.name, bench.engine), {})


@pytest.mark.parametrize("name", ENDINGS)
async def test_ends(bench: Bench, name: str) -> None:
    reason, exit_code, last_line = ENDINGS[name]
    if name in beyond(bench):
        status, console = await bench.run(name)
        assert (status.state, status.reason) == ("FAILED", "EXECUTION_ERROR"), (status, console)
        assert beyond(bench)[name] in status.message
        return
    status, console = await bench.run(name, command_line=rounds(bench, 1000000) if name == "compute.elf" else "")
    assert console.splitlines()[-1:] == [last_line], console
    assert (status.state, status.reason, status.exit_code) == (ENDS[reason], reason, exit_code), status.message
    if reason == "EXECUTION_ERROR":
        assert status.metadata and status.metadata["address"].startswith("0x")


async def test_killed(bench: Bench) -> None:
    running = await bench.start("spin.elf")
    await running.wrote("spin: ok")
    await running.instance.kill()
    status = await running.end()
    assert (status.state, status.reason) == ("STOPPED", "KILLED")


@pytest.mark.parametrize("name", ["reset.elf", "triple.elf"])
async def test_restart_on_reset(bench: Bench, name: str) -> None:
    running = await bench.start(name, restart_on_reset=True)
    async with asyncio.timeout(SECONDS):
        while (await running.instance.status()).resets < 3:
            await asyncio.sleep(0.02)
        # What it wrote reaches the log a moment after the reset is counted.
        while running.console().count(name.removesuffix(".elf") + ": ok") < 3:
            await asyncio.sleep(0.02)


async def test_console_input_by_interrupt(bench: Bench) -> None:
    running = await bench.start("echo.elf")
    await running.wrote("type, q ends")
    async with running.instance.attach_console(read_only=False) as console:
        await console.write(b"the quick brown fox jumps over the lazy dog".replace(b"q", b"k"))
        await running.wrote("lazy dog")
        await console.write(b"q")
        status = await running.end()
    assert (status.reason, status.exit_code) == ("EXITED", 7)


async def test_read_only_viewer_types_nothing(bench: Bench) -> None:
    running = await bench.start("echo.elf")
    await running.wrote("type, q ends")
    async with running.instance.attach_console(read_only=True) as viewer, running.instance.attach_console(read_only=False) as typist:
        with pytest.raises(HvdError) as error:
            await viewer.write(b"qqqq")
        assert error.value.reason == "REQUEST_INVALID"
        await typist.write(b"abc")
        await running.wrote("abc")
        assert (await running.instance.status()).state == "RUNNING"


async def test_pause_stops_guest_and_clock(bench: Bench) -> None:
    if Capability.PAUSE not in bench.backend.capabilities:
        pytest.skip(f"{bench.backend.name} cannot pause")
    running = await bench.start("ticker.elf")
    await running.wrote("3")
    await running.instance.pause()
    assert (await running.instance.status()).state == "PAUSED"
    before, ticks = running.console(), running.count("interrupt")
    await asyncio.sleep(0.5)  # five of the guest's lines, if it ran
    assert running.console() == before
    assert running.count("interrupt") == ticks
    await running.instance.pause()  # idempotent
    await running.instance.resume()
    await running.instance.resume()
    async with asyncio.timeout(SECONDS):
        while running.console() == before:
            await asyncio.sleep(0.02)


async def test_memory(bench: Bench) -> None:
    running = await bench.start("spin.elf")
    await running.wrote("spin: ok")
    instance = running.instance
    pattern = bytes(range(256)) * 64
    await instance.write_memory(0x800000, pattern, virtual=False)
    assert await instance.read_memory(0x800000, len(pattern), virtual=False) == pattern
    regions = (await instance.memory_map()).regions
    assert any(region.start == 0 and region.length == 16 << 20 and region.kind == region.RAM for region in regions)
    with pytest.raises(HvdError) as error:
        await instance.read_memory((16 << 20) - 8, 16, virtual=False)
    assert error.value.reason == "ADDRESS_OUTSIDE"


async def test_registers_at_a_whole_instruction(bench: Bench) -> None:
    running = await bench.start("spin.elf")
    await running.wrote("spin: ok")
    registers = await running.instance.registers(0)
    values = {register.name: register.value for register in registers.registers}
    assert (registers.mode, registers.privilege_level) == ("protected", 0)
    assert 0x100000 <= values["rip"] < 0x110000
    assert values["cr0"] & 1


async def test_stops_do_not_disturb(bench: Bench) -> None:
    """The bug class of asynchronous stops: a computation that is stopped all the time comes out right."""
    for longer in (1, 10, 100):  # a guest may be over before it was stopped
        if await _stops(bench, rounds(bench, 2000000 * longer)):
            return
    raise AssertionError("no guest was stopped")


async def _stops(bench: Bench, n: str) -> int:
    undisturbed, console = await bench.run("compute.elf", command_line=f"{n} memory=1")
    assert undisturbed.exit_code == 0
    running = await bench.start("compute.elf", command_line=f"{n} memory=1 timer=1000")
    stops = 0
    while (await running.instance.status()).state == "RUNNING":
        try:
            await running.instance.registers(0)
        except HvdError as error:
            if error.reason != "RUNNER_GONE":
                raise
            break
        stops += 1
    await running.end()
    assert _checksum(running.console()) == _checksum(console)
    return stops


def _checksum(console: str) -> str:
    return next(line.rsplit("checksum ", 1)[1] for line in console.splitlines() if "checksum" in line)


async def test_crossings_are_counted(bench: Bench) -> None:
    running = await bench.start("hypercalls.elf")
    assert (await running.end()).exit_code == 0
    assert running.count("port-out") + running.count("hypercall.console") > 10  # what it wrote
    assert running.count("hypercall.version") >= 1
    assert running.count("hypercall.exit") == 1
    assert running.counters().points
    assert running.counters().first_instruction_ns


async def test_all_that_the_guest_executed_is_counted_as_its_time(bench: Bench) -> None:
    """Also what lies between the crossings that leave no trace in the host, and behind the last of them."""
    gap = 100_000 // SLOWER.get((bench.backend.name, bench.engine), 1)
    running = await bench.start("ports.elf", command_line=f"n=100 gap={gap}")
    assert (await running.end()).reason == "EXITED"
    counters = running.counters()
    longest = time.monotonic_ns() - counters.first_instruction_ns
    shortest = 100 * gap / 10  # turns of a loop: no processor does ten a nanosecond
    assert shortest <= counters.run_ns and counters.run_ns + counters.halted_ns <= longest


async def test_recorded_on_demand(bench: Bench) -> None:
    running = await bench.start("ticker.elf")
    await running.wrote("2")
    assert running.counters().records == 0  # nobody listens
    reader = RingReader(running.ring)
    try:
        write_enabled(running.ring, 1 << Kind.INTERRUPT)
        async with asyncio.timeout(SECONDS):
            while running.counters().records < 5:
                await asyncio.sleep(0.02)
        write_enabled(running.ring, 0)
        records = list(decode(reader.read(1000)[0]))
    finally:
        reader.close()
    assert records and all(record.kind == Kind.INTERRUPT for record in records)
    assert all(record.backend == bench.backend.id for record in records)
    times = [record.time_ns for record in records]
    assert times == sorted(times)


async def test_guests_are_apart(bench: Bench) -> None:
    """Several guests at once: each has its own guest-physical memory and process; the death of one is nobody else's."""
    guests = [await bench.start("spin.elf") for _ in range(4)]
    assert len({guest.instance.pid for guest in guests}) == 4
    for number, guest in enumerate(guests):
        await guest.instance.write_memory(0x900000, bytes([number]) * 4096, virtual=False)
    await guests[0].instance.kill()
    for number, guest in enumerate(guests[1:], start=1):
        assert await guest.instance.read_memory(0x900000, 4096, virtual=False) == bytes([number]) * 4096
        assert (await guest.instance.status()).state == "RUNNING"


async def test_start_paused(bench: Bench) -> None:
    running = await bench.start("hello.elf", start_paused=True)
    assert (await running.instance.status()).state == "PAUSED"
    assert running.console() == ""
    await running.instance.resume()
    assert (await running.end()).exit_code == 0


async def test_adopted_by_another_daemon(bench: Bench) -> None:
    running = await bench.start("echo.elf")
    await running.wrote("type, q ends")
    again = await bench.backend.adopt(running.directory)
    try:
        assert again.pid == running.instance.pid
        async with again.attach_console(read_only=False) as console:
            await console.write(b"q")
        assert (await running.end()).exit_code == 7
    finally:
        await again.close()


# ---- snapshots

# What a guest computes, and how it ends, in spite of any number of moves from machine to machine.
MOVED = {
    "compute.elf": "memory=1 timer=1000",
    "interrupts.elf": "",
    "alias.elf": "",
}
MOVED_ROUNDS = 1500000
MOST_MOVES = 12


def _moved(bench: Bench, name: str) -> str:
    return f"{rounds(bench, MOVED_ROUNDS)} {MOVED[name]}" if name == "compute.elf" else MOVED[name]


def _snapshots(bench: Bench) -> None:
    if not bench.backend.vcpu_format(bench.engine):
        pytest.skip(f"{bench.backend.name} {bench.engine} saves no vcpu")


@pytest.mark.parametrize("name", MOVED)
async def test_moved_by_snapshots(bench: Bench, name: str) -> None:
    """Saved at any moment and restored in another process, again and again: it ends as if nothing had happened."""
    _snapshots(bench)
    numbers = random.Random(name)
    undisturbed, console = await bench.run(name, command_line=_moved(bench, name))
    moves = 0
    for attempt in range(30):  # a guest that is too quick for the first pauses is tried again
        status, output, moved = await _run_moving(bench, name, numbers, attempt)
        assert (status.state, status.reason, status.exit_code) == (undisturbed.state, undisturbed.reason, undisturbed.exit_code), output
        assert _lasting(output) == _lasting(console)
        moves += moved
        if moves >= MOST_MOVES // 2:
            break
    assert moves, "it was never caught"


def _lasting(console: str) -> list[str]:
    """What does not depend on how long it took."""
    return [line.rsplit(" in ", 1)[0] for line in console.splitlines() if "ticks" not in line]


async def _run_moving(bench: Bench, name: str, numbers: random.Random, attempt: int) -> tuple[InstanceStatus, str, int]:
    # The quickest are over before a runner that was started is told of: so they begin paused.
    running = await bench.start(name, command_line=_moved(bench, name), start_paused=True)
    output, moves = b"", 0
    while moves < MOST_MOVES:
        await running.instance.resume()
        await asyncio.sleep(numbers.random() * 0.05 / (attempt + 1) ** 2)
        path = running.directory / "moved.hvdsnap"
        try:
            await running.instance.save_snapshot(path, b"{}")
        except HvdError as error:
            if error.reason != "RUNNER_GONE":
                raise
            break
        await running.instance.kill()
        await running.end()
        # It went on meanwhile: what it wrote since then belongs to the machine that is given up.
        output = (output + running.console_bytes())[: _bytes_written(path)]
        running = await bench.start(name, command_line=_moved(bench, name), snapshot=path, start_paused=True)
        moves += 1
    else:
        await running.instance.resume()
    status = await running.end()
    text = (output + running.console_bytes()).decode(errors="replace")
    return status, text.replace("\r", ""), moves


def _bytes_written(path: Path) -> int:
    """To the console, since the guest was started first."""
    with Reader(path) as reader:
        return int(reader.read_json("machine")["board"]["uart.tx_bytes"])


async def test_a_paused_guest_is_saved_paused(bench: Bench) -> None:
    _snapshots(bench)
    running = await bench.start("ticker.elf")
    await running.wrote("3")
    await running.instance.pause()
    path = running.directory / "paused.hvdsnap"
    await running.instance.save_snapshot(path, b"{}")
    assert (await running.instance.status()).state == "PAUSED"
    restored = await bench.start("ticker.elf", snapshot=path)
    assert (await restored.instance.status()).state == "PAUSED"
    assert restored.console() == ""
    await restored.instance.resume()
    await restored.wrote("tick")
