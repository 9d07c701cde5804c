"""The template: runners are its forks, share its pages, and neither needs the other to go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
import pytest_asyncio

from hvd.backends.contract import Capability, InstanceStatus, LaunchSpec
from hvd.runner import process
from hvd.runner.client import RunnerInstance
from hvd.runner.directory import PID, read_json
from hvd.runner.process import Template

KERNELS = Path(__file__).resolve().parents[2] / "build" / "guests"
Start = Callable[..., Awaitable[RunnerInstance]]  # memory_bytes, and more of a LaunchSpec
MOST = 2  # spares, where nobody wants another number
MIB = 1 << 20


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Template:
    """One of this test's own, which it may harm."""
    made = Template("emulation")
    monkeypatch.setattr(process, "template_of", lambda backend: made)
    return made


@pytest_asyncio.fixture
async def start(tmp_path: Path, template: Template) -> AsyncIterator[Start]:
    kernel = KERNELS / "spin.elf"
    if not kernel.exists():
        pytest.skip(f"{kernel} is not built (`make setup`)")
    started: list[RunnerInstance] = []
    numbers = itertools.count()

    async def one(memory_bytes: int = 16 * MIB, initrd: Path | None = None, spare_runners: int = MOST) -> RunnerInstance:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        spec = LaunchSpec("u", "spin", "", memory_bytes, 1, kernel, initrd, "", 0, False, False, spare_runners=spare_runners)
        instance = await RunnerInstance.launch(directory, spec, "emulation", frozenset(Capability))
        started.append(instance)
        return instance

    yield one
    for instance in started:
        await instance.kill()
        await instance.close()
    template.close()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def runs(pid: int) -> bool:
    """Not when it has ended, whether or not whoever inherited it has reaped it by now."""
    try:
        return state(pid) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def ended(instance: RunnerInstance) -> InstanceStatus:
    status = await instance.status()
    async with asyncio.timeout(60):
        while status.state == "RUNNING":
            status = await instance.wait_change(status)
    return status


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def spares(template_pid: int) -> set[int]:
    """Those that are ready: then they take that name."""
    children = Path(f"/proc/{template_pid}/task/{template_pid}/children").read_text().split()
    found = set()
    for pid in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text() == "hvd:spare\n":
                found.add(int(pid))
    return found


def opened(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def spares_of(template_pid: int, used: Collection[int] = (), count: int = MOST) -> set[int]:
    """As many as a template keeps, once they are ready; none of them used."""
    async with asyncio.timeout(60):
        while len(found := spares(template_pid) - set(used)) != count:
            await asyncio.sleep(0.02)
    return found


async def test_runners_are_forks_of_one_template(start: Start) -> None:
    runners = [await start() for _ in range(3)]
    parents = {parent(runner.pid) for runner in runners}
    assert len(parents) == 1 and os.getpid() not in parents


async def test_how_a_runner_was_killed_is_known(start: Start) -> None:
    instance = await start()
    os.kill(instance.pid, signal.SIGKILL)
    assert "was ended by SIGKILL" in (await ended(instance)).message
    assert not exists(instance.pid)  # reaped


async def test_a_killed_template_harms_no_guest_and_hinders_none(start: Start) -> None:
    first = await start()
    os.kill(parent(first.pid), signal.SIGKILL)
    second, third = await start(), await start()
    assert parent(second.pid) == os.getpid()  # alone
    assert parent(third.pid) not in (os.getpid(), parent(first.pid))  # of a new template
    for instance in (first, second, third):
        assert (await instance.status()).state == "RUNNING"
    os.kill(first.pid, signal.SIGKILL)
    assert (await ended(first)).state == "FAILED"


async def test_a_template_that_hangs_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await start()
    template_pid = parent(first.pid)
    template = process.template_of("emulation")
    assert template._socket is not None
    template._socket.settimeout(2)
    os.kill(template_pid, signal.SIGSTOP)
    starting = asyncio.create_task(start())
    # Nobody but the start waits for it.
    assert (await first.status()).state == "RUNNING"
    assert not starting.done()
    second = await starting
    assert not exists(template_pid)
    assert parent(second.pid) == os.getpid()
    assert [(await instance.status()).state for instance in (first, second)] == ["RUNNING", "RUNNING"]


async def test_a_start_that_is_cancelled_leaves_no_runner(start: Start, tmp_path: Path) -> None:
    first = await start()
    template = process.template_of("emulation")
    assert template._socket is not None
    template._socket.settimeout(0.5)
    os.kill(parent(first.pid), signal.SIGSTOP)
    starting = asyncio.create_task(start())
    assert (await first.status()).state == "RUNNING"  # by now it waits for the template
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    identity = read_json(str(tmp_path / "1" / PID))
    assert identity is None or not exists(identity["pid"])


async def test_the_next_runners_are_the_spares(start: Start) -> None:
    first = await start()
    ahead = await spares_of(parent(first.pid))
    others = [await start() for _ in range(MOST)]
    pids = {other.pid for other in others}
    assert pids == ahead and {(await other.status()).state for other in others} == {"RUNNING"}
    assert not await spares_of(parent(first.pid), used=pids) & ahead
    os.kill(others[0].pid, signal.SIGKILL)
    assert "was ended by SIGKILL" in (await ended(others[0])).message
    assert not exists(others[0].pid)


async def test_as_many_spares_as_are_wanted(start: Start) -> None:
    first = await start(spare_runners=1)
    (one,) = await spares_of(parent(first.pid), count=1)
    second = await start(spare_runners=0)
    assert second.pid == one
    third = await start(spare_runners=3)  # nothing was made for it
    assert not {second.pid, third.pid} & await spares_of(parent(first.pid), count=3)


async def test_spares_that_were_killed_hinder_no_start(start: Start) -> None:
    first = await start()
    ahead = await spares_of(parent(first.pid))
    for spare in ahead:
        os.kill(spare, signal.SIGKILL)
    async with asyncio.timeout(60):
        while any(runs(spare) for spare in ahead):
            await asyncio.sleep(0.02)
    second = await start()
    assert parent(second.pid) == parent(first.pid) and (await second.status()).state == "RUNNING"
    assert second.pid not in ahead and not any(exists(spare) for spare in ahead)  # reaped


async def test_no_start_waits_for_a_spare_that_somebody_has_stopped(start: Start) -> None:
    first = await start()
    ahead = await spares_of(parent(first.pid))
    for spare in ahead:
        os.kill(spare, signal.SIGSTOP)
    async with asyncio.timeout(10):
        while {state(spare) for spare in ahead} != {"T"}:
            await asyncio.sleep(0.01)
        second = await start()
    assert second.pid not in ahead and not any(exists(spare) for spare in ahead)  # reaped


async def test_spares_end_with_their_template(start: Start) -> None:
    first = await start()
    ahead = await spares_of(parent(first.pid))
    os.kill(parent(first.pid), signal.SIGKILL)
    async with asyncio.timeout(60):
        while any(runs(spare) for spare in ahead):
            await asyncio.sleep(0.02)
    assert (await first.status()).state == "RUNNING"


async def test_many_starts_at_once_have_runners_of_their_own(start: Start) -> None:
    first = await start()
    await spares_of(parent(first.pid))
    others = await asyncio.gather(*(start() for _ in range(MOST + 3)))
    assert len({first.pid, *(other.pid for other in others)}) == MOST + 4
    assert {(await other.status()).state for other in others} == {"RUNNING"}


def memories(pid: int) -> dict[int, os.stat_result]:
    """The guests' memory that a process has open, by its file's number."""
    found = [os.stat(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if "hvd-guest-ram" in os.readlink(entry)]
    return {about.st_ino: about for about in found}


async def test_a_spare_has_a_machine_like_the_last_and_nothing_of_its_rehearsal(start: Start) -> None:
    first = await start()
    template_pid = parent(first.pid)
    for spare in await spares_of(template_pid):
        (memory,) = memories(spare).values()
        assert (memory.st_size, memory.st_blocks) == (16 * MIB, 0)
        kinds = {target.partition(":")[2] for target in opened(spare) if target.startswith("anon_inode:")}
        assert kinds <= {"[eventpoll]", "[eventfd]"}, opened(spare)
        assert not [name for name in ("/trace", "/counters") if name in mapped(spare)], mapped(spare)
        assert os.readlink(f"/proc/{spare}/cwd") == os.readlink(f"/proc/{template_pid}/cwd")


async def test_the_machine_made_ahead_is_the_next_guests(start: Start) -> None:
    first = await start()
    ahead = {spare: memories(spare).keys() for spare in await spares_of(parent(first.pid))}
    second = await start()
    assert memories(second.pid).keys() == ahead[second.pid] and memories(first.pid).keys() != ahead[second.pid]
    assert (await second.status()).state == "RUNNING"


async def test_a_guest_with_other_memory_gets_a_machine_of_its_own(start: Start) -> None:
    first = await start()
    ahead = {spare: memories(spare).keys() for spare in await spares_of(parent(first.pid))}
    second = await start(32 * MIB)
    not_taken = ahead[second.pid]
    assert (await second.status()).state == "RUNNING"
    own = {number: about for number, about in memories(second.pid).items() if number not in not_taken}
    assert [about.st_size for about in own.values()] == [32 * MIB]
    assert sum(about.st_blocks for number, about in memories(second.pid).items() if number in not_taken) == 0


async def test_the_kernel_of_the_last_is_in_a_spares_memory_and_of_no_use_to_another(start: Start, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd" * MIB)
    os.utime(initrd, (1, 1))
    await asyncio.sleep(1.1)  # what was changed just now is not taken
    first = await start(initrd=initrd)
    ahead = {spare: memories(spare).popitem()[1] for spare in await spares_of(parent(first.pid))}
    assert all(about.st_blocks * 512 >= 6 * MIB for about in ahead.values())
    second, third = await start(initrd=initrd), await start()  # with it, and without
    assert {second.pid, third.pid} == ahead.keys()
    for other, least, most in ((second, 6 * MIB, 7 * MIB), (third, 0, MIB)):
        (memory,) = memories(other.pid).values()
        assert least <= memory.st_blocks * 512 <= most
        assert (await other.status()).state == "RUNNING"
    assert {memories(spare).popitem()[1].st_blocks for spare in await spares_of(parent(first.pid), used=ahead)} == {0}
    fourth = await start(32 * MIB, initrd=initrd)
    await spares_of(parent(first.pid), used={*ahead, fourth.pid})
    fifth = await start()  # which needs a machine of its own: what the other's memory had has gone
    assert sum(about.st_blocks * 512 for about in memories(fifth.pid).values()) < MIB


async def test_a_guest_gets_the_spare_with_a_machine_like_its_own(start: Start) -> None:
    first, second = await start(), await start(32 * MIB)
    ahead = await spares_of(parent(first.pid))  # both with 32 MiB
    third = await start()
    assert third.pid in ahead and second.pid not in ahead
    sizes = {spare: memories(spare).popitem()[1].st_size for spare in await spares_of(parent(first.pid), used={third.pid})}
    assert sorted(sizes.values()) == [16 * MIB, 32 * MIB]  # the next one is like the last that was started
    fitting = {size: spare for spare, size in sizes.items()}
    assert (await start()).pid == fitting[16 * MIB] and (await start(32 * MIB)).pid == fitting[32 * MIB]
