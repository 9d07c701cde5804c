"""What runners show and log of their guests' consoles, and what they take from whoever types."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
from pathlib import Path

import pytest
from runner_rig import (
    SECONDS,
    Launch,
    console_out_bytes,
    console_text,
    counter,
    ended,
    read_until,
    until,
)

from hvd.errors import HvdError
from hvd.runner.ended import read_exit


async def test_two_viewers_and_the_log_see_the_same(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("echo")
    async with instance.attach_console(False) as one, instance.attach_console(True) as two:
        await one.write(b"to be seen by both\r")
        for console in (one, two):
            assert b"to be seen by both\r" in await read_until(console, b"both\r")
        with pytest.raises(HvdError):
            await two.write(b"x")
        # A prompt without line end is in the log soon.
        await one.write(b"prompt> ")
        await until(lambda: b"prompt> " in console_text(tmp_path))
    assert b"to be seen by both" in console_text(tmp_path)


async def test_the_console_ends_with_the_guest_and_after_its_record(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("echo")
    async with instance.attach_console(False) as console:
        await console.write(b"bye q")
        got = b""
        async with asyncio.timeout(SECONDS):
            async for piece in console.output():
                got += piece if isinstance(piece, bytes) else b""
        assert got.endswith(b"bye ") or b"bye" in got
        assert read_exit(tmp_path) is not None


async def test_a_slow_viewer_holds_up_nobody(launch: Launch, tmp_path: Path) -> None:
    """Lines are numbered: what the slow viewer got, plus what it was told to have missed, is everything."""
    instance = await launch("flood", command_line="count=40000")
    async with instance.attach_console(True) as slow, instance.attach_console(True) as quick:
        total = 0
        async with asyncio.timeout(60):
            async for piece in quick.output():
                total += piece if isinstance(piece, int) else len(piece)
        pieces = [piece async for piece in slow.output()]
    assert (await ended(instance)).reason == "EXITED"
    skipped = sum(piece for piece in pieces if isinstance(piece, int))
    got = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    # Its socket and backlog hold far less than the flood; the end came before it was told of the last gap.
    assert 0 < len(got) < total
    assert len(got) + skipped <= total
    numbers = [int(number) for number in re.findall(rb"(?m)^(\d+) the quick brown fox jumps", got)]
    assert numbers == sorted(set(numbers))
    assert console_text(tmp_path).endswith(b"flood: ok\r\n")


async def test_a_viewer_that_catches_up_learns_what_it_missed(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("flood")
    async with instance.attach_console(True) as slow:
        await until(lambda: console_out_bytes(tmp_path) > 4 << 20)
        async with asyncio.timeout(SECONDS):
            async for piece in slow.output():
                if isinstance(piece, int):
                    assert piece > 0
                    break


async def test_a_flood_is_logged_within_bounds(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("flood", command_line="count=20000", log_max_bytes=256 << 10)
    assert (await ended(instance)).exit_code == 0
    for name in ("console.log", "console.log.1"):
        assert (tmp_path / name).stat().st_size <= 128 << 10
    numbers = [int(n) for n in re.findall(rb"(?m)^(\d+) the quick brown fox", console_text(tmp_path))]
    assert numbers == list(range(numbers[0], 20000))


async def test_typing_at_a_guest_that_does_not_read(launch: Launch) -> None:
    instance = await launch("spin")
    async with instance.attach_console(False) as console:
        typing = asyncio.create_task(console.write(b"x" * (1 << 20)))
        assert (await instance.status()).state == "RUNNING"
        await instance.pause()
        await instance.resume()
        assert not typing.done()
        typing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await typing
    assert (await instance.status()).state == "RUNNING"


async def test_a_long_paste_arrives_whole(launch: Launch, tmp_path: Path) -> None:
    """More than the console's ring and the sockets hold: every byte comes to the UART (what echo does with them is
    its own affair)."""
    instance = await launch("echo")
    async with instance.attach_console(False) as console:
        await asyncio.wait_for(console.write(b"0123456789" * 50_000), SECONDS)
    # The viewer has gone; what it typed has not.
    await until(lambda: counter(tmp_path, 48) == 500_000)


async def test_a_full_disk_under_the_log(launch: Launch, tmp_path: Path) -> None:
    """RLIMIT_FSIZE on the runner stands for the disk: the guest goes on, the loss is told, the log resumes."""
    instance = await launch("ticker", jailed=False)  # or its limits would be its own user's
    limits = resource.prlimit(instance.pid, resource.RLIMIT_FSIZE)
    status = await instance.status()
    resource.prlimit(instance.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
    failing = await asyncio.wait_for(instance.wait_change(status), SECONDS)
    assert failing.state == "RUNNING"
    assert "File too large" in failing.log_error
    written = console_out_bytes(tmp_path)
    await until(lambda: console_out_bytes(tmp_path) > written)
    resource.prlimit(instance.pid, resource.RLIMIT_FSIZE, limits)
    recovered = await asyncio.wait_for(instance.wait_change(failing), SECONDS)
    assert recovered == status
    assert b"bytes of the guest's output are missing here: File too large" in console_text(tmp_path, "stderr")


async def test_the_end_is_recorded_on_a_full_disk(launch: Launch) -> None:
    instance = await launch("ticker", jailed=False)
    _, hard = resource.prlimit(instance.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(instance.pid, resource.RLIMIT_FSIZE, (4096, hard))
    await instance.kill()
    assert (await instance.status()).reason == "KILLED"
