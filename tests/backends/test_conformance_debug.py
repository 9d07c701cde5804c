"""What a debugger may expect of every backend that says Capability.DEBUG: the conformance suite's part for it."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from harness import Bench, Running

from hvd.backends.contract import Capability, DebugConnection
from hvd.errors import HvdError

SECONDS = 60.0


class Front:
    """A front end made by hand."""

    def __init__(self, connection: DebugConnection) -> None:
        self._connection = connection
        self._data = b""

    async def send(self, payload: bytes) -> None:
        await self._connection.write(b"$%s#%02x" % (payload, sum(payload) & 0xFF))

    async def packet(self) -> bytes:
        """The stub's next one that is no console output."""
        async with asyncio.timeout(SECONDS):
            while True:
                while (found := re.search(rb"\$([^#]*)#..", self._data)) is None:
                    data = await self._connection.read()
                    assert data, "the stub has ended the session"
                    self._data += data
                self._data = self._data[found.end() :]
                if found[1] == b"OK" or not found[1].startswith(b"O"):
                    return found[1]

    async def ask(self, payload: bytes) -> bytes:
        await self.send(payload)
        return await self.packet()

    async def interrupt(self) -> bytes:
        """Ctrl-C."""
        await self._connection.write(b"\x03")
        return await self.packet()

    async def word(self, register: int) -> int:
        return int.from_bytes(bytes.fromhex((await self.ask(b"p%x" % register)).decode()), "little")


EIP = 8


def symbol(bench: Bench, guest: str, name: str) -> int:
    """Its address in a test kernel."""
    table = subprocess.run(["nm", bench.spec(guest).kernel], capture_output=True, text=True, check=True, timeout=60).stdout
    return next(int(address, 16) for address, _, found in map(str.split, table.splitlines()) if found == name)


@asynccontextmanager
async def debugged(bench: Bench, name: str, command_line: str = "") -> AsyncIterator[tuple[Front, Running]]:
    """A guest that has not executed anything, with a debugger; skips where there is none."""
    if Capability.DEBUG not in bench.backend.capabilities:
        pytest.skip(f"{bench.backend.name} has no debugger")
    running = await bench.start(name, start_paused=True, command_line=command_line)
    try:
        async with running.instance.attach_debugger("i386") as connection:
            yield Front(connection), running
    except HvdError as error:
        if error.reason == "CAPABILITY_MISSING":
            pytest.skip(f"{bench.backend.name} {bench.engine}: {error}")
        raise


async def test_a_breakpoint_is_hit_and_the_guest_ends_well_behind_it(bench: Bench) -> None:
    async with debugged(bench, "interrupts.elf") as (front, running):
        main = symbol(bench, "interrupts.elf", "main")
        assert await front.ask(b"Z0,%x,1" % main) == b"OK"
        assert (await front.ask(b"c")).startswith(b"T05")
        assert await front.word(EIP) == main
        assert (await running.instance.status()).state == "PAUSED"
        assert await front.ask(b"z0,%x,1" % main) == b"OK"
        assert await front.ask(b"c") == b"W00", running.console()
    assert (await running.end()).exit_code == 0


def instructions(bench: Bench, guest: str, name: str) -> list[int]:
    """Their addresses, of a function in a test kernel."""
    command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={name}", bench.spec(guest).kernel]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [int(address, 16) for address in re.findall(r"^ *([0-9a-f]+):\t", listing, re.M)]


async def test_breakpoints_on_every_instruction(bench: Bench) -> None:
    """Of a function that runs once and straight on, and of one with loops: each stops where it stands, and nothing else changes."""
    async with debugged(bench, "interrupts.elf") as (front, running):
        once, loops = instructions(bench, "interrupts.elf", "pit_periodic"), instructions(bench, "interrupts.elf", "put_number")
        addresses = {*once, *loops}
        for address in addresses:
            assert await front.ask(b"Z0,%x,1" % address) == b"OK"
        stops: list[int] = []
        step = False
        while (answer := await front.ask(b"s" if step else b"c")).startswith(b"T05"):
            eip = await front.word(EIP)
            step = eip in addresses  # as gdb does: over it by a step
            if step:
                stops.append(eip)
        assert answer == b"W00", running.console()
    assert [stop for stop in stops if stop in once] == once
    others = [stop for stop in stops if stop not in once]
    assert set(others) == set(loops) and others[0] == loops[0] and others.count(loops[0]) == others.count(loops[-1])
    assert (await running.end()).exit_code == 0 and "20 ticks" in running.console()


@pytest.mark.parametrize("timer", ["", " apic=1"], ids=["8254", "local-apic"])
async def test_a_breakpoint_is_reached_although_handlers_take_longer_than_the_timers_period(bench: Bench, timer: str) -> None:
    """No instruction runs natively while there are breakpoints: a tick's handler takes several periods then."""
    if bench.backend.name != "rewriting":
        pytest.skip("elsewhere ticks have no such grace")
    async with debugged(bench, "busy.elf", f"steps=300 work=2000{timer}") as (front, running):
        done = symbol(bench, "busy.elf", "done")
        assert await front.ask(b"Z0,%x,1" % done) == b"OK"
        assert (await front.ask(b"c")).startswith(b"T05"), running.console()
        assert await front.word(EIP) == done
    assert (await running.end()).exit_code == 0, running.console()


async def test_steps_and_watchpoints(bench: Bench) -> None:
    async with debugged(bench, "interrupts.elf") as (front, running):
        start, ticks = await front.word(EIP), symbol(bench, "interrupts.elf", "ticks")
        assert (await front.ask(b"s")).startswith(b"T05")
        assert 0 < await front.word(EIP) - start <= 15
        assert await front.ask(b"Z2,%x,4" % ticks) == b"OK"
        seen = []
        while len(seen) < 3:
            assert re.fullmatch(rb"T05thread:01;watch:%x;" % ticks, await front.ask(b"c"))
            seen.append(int.from_bytes(bytes.fromhex((await front.ask(b"m%x,4" % ticks)).decode()), "little"))
        assert seen == [1, 2, 3]
    # The debugger has left: no watchpoint stops it any more.
    assert (await running.end()).exit_code == 0, running.console()


async def test_registers_and_memory_are_read_and_written(bench: Bench) -> None:
    async with debugged(bench, "spin.elf") as (front, running):
        assert await front.ask(b"P0=78563412") == b"OK"
        assert await front.word(0) == 0x12345678
        assert await front.ask(b"M8000,4:01020304") == b"OK"
        assert await front.ask(b"m8000,4") == b"01020304"
        assert await running.instance.read_memory(0x8000, 4, False) == bytes((1, 2, 3, 4))
        assert (await front.ask(b"mfffffff0,4")).startswith(b"E")


async def test_an_interrupt_stops_a_guest_that_spins(bench: Bench) -> None:
    async with debugged(bench, "spin.elf") as (front, running):
        await front.send(b"c")
        await running.wrote("spin: ok")
        assert (await front.interrupt()).startswith(b"T02")
        assert (await running.instance.status()).state == "PAUSED"


async def test_there_is_one_debugger(bench: Bench) -> None:
    async with debugged(bench, "spin.elf") as (_, running):
        with pytest.raises(HvdError) as refused:
            async with running.instance.attach_debugger(""):
                pass
        assert refused.value.reason == "DEBUGGER_ATTACHED"
