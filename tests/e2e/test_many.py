"""Many guests at once, each in a process of its own; runners that are killed; a daemon that goes and comes back."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from hvctl.sdk import Client
from real_daemon import RealDaemon, is_process, kernel, wait_for

GUESTS = 50
MEMORY = 4 << 20


def start_many(daemon: RealDaemon, count: int) -> dict[str, str]:
    """name -> kernel: mostly waiting ones, some that tick, one that spins."""
    kinds = {"echo.elf": kernel("echo.elf"), "ticker.elf": kernel("ticker.elf"), "spin.elf": kernel("spin.elf")}
    made = {}
    with Client(daemon.endpoint, timeout=120.0) as client:
        for number in range(count):
            kind = "spin.elf" if number == 0 else "ticker.elf" if number % 10 == 1 else "echo.elf"
            name = f"g{number:02}"
            client.run_guest(name=name, backend="emulation", kernel=kinds[kind], memory_bytes=MEMORY)
            made[name] = kind
    return made


def test_fifty_guests_each_with_its_own_process_and_memory(daemon: RealDaemon) -> None:
    made = start_many(daemon, GUESTS)
    listed = daemon.listed()
    assert set(listed) == set(made)
    assert {guest["state"] for guest in listed.values()} == {"RUNNING"}
    pids = {name: int(guest["host_pid"]) for name, guest in listed.items()}
    assert len(set(pids.values())) == GUESTS and daemon.pid not in pids.values()
    assert all(is_process(pid) for pid in pids.values())

    # The same guest-physical address holds something else in each.
    with Client(daemon.endpoint) as client:
        for name in made:
            client.write_memory(name=f"guests/{name}", address=0x300000, data=name.encode())
        for name in made:
            data = b"".join(chunk.data for chunk in client.read_memory(name=f"guests/{name}", address=0x300000, length=8))
            assert data == name.encode().ljust(8, b"\0")
        for name in made:
            (ram,) = (region for region in client.get_memory_map(name=f"guests/{name}").regions if region.length == MEMORY)
            assert ram.start == 0

    # Killing some harms no other.
    victims = [name for name in made if name.endswith("5")]
    for name in victims:
        os.kill(pids[name], signal.SIGKILL)
    for name in victims:
        assert daemon.wait(name)["state"] == "FAILED"
    listed = daemon.listed()
    assert {name for name, guest in listed.items() if guest["state"] != "RUNNING"} == set(victims)
    assert all(int(listed[name]["host_pid"]) == pid for name, pid in pids.items() if name not in victims)
    other = next(name for name, kind in made.items() if kind == "echo.elf" and name not in victims)
    console = daemon.spawn("console", other)
    console.wait_out("echo: type")
    console.type("alive\nq")
    assert console.end() == 0 and "alive" in console.out
    ticker = next(name for name, kind in made.items() if kind == "ticker.elf")
    daemon.wait_logs(ticker, f"tick {daemon.ok('logs', ticker).stdout.count('tick') + 1}")


@pytest.fixture
def survivors(own_daemon: RealDaemon) -> Iterator[RealDaemon]:
    """A daemon whose guests are: an echo, a ticker, one that is paused, one that has ended."""
    daemon = own_daemon
    for name, guest in (("echo", "echo.elf"), ("ticker", "ticker.elf"), ("paused", "ticker.elf"), ("ended", "hello.elf")):
        daemon.run(guest, name=name)
    daemon.wait_logs("paused", "tick 0")
    daemon.ok("pause", "paused")
    daemon.wait("ended")
    daemon.wait_logs("echo", "echo: type")
    yield daemon


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_guests_and_consoles_survive_the_daemon(survivors: RealDaemon, number: signal.Signals) -> None:
    daemon = survivors
    before = daemon.listed()
    viewer, log = daemon.spawn("console", "echo"), daemon.spawn("logs", "-f", "ticker")
    viewer.wait_out("echo: type")
    viewer.type("one\n")
    viewer.wait_out("one")
    log.wait_out("tick 0")
    code = daemon.stop(number)
    assert code == (0 if number == signal.SIGTERM else -number)
    for name in ("echo", "ticker", "paused"):
        assert is_process(int(before[name]["host_pid"])), f"{name} did not survive"
    viewer.wait_err("lost the daemon")
    daemon.start()

    after = daemon.listed()
    for field in ("state", "host_pid", "uid", "start_time"):
        assert {name: guest[field] for name, guest in after.items()} == {name: guest[field] for name, guest in before.items()}
    assert after["paused"]["state"] == "PAUSED" and after["ended"]["exit_code"] == 0
    assert daemon.ok("doctor", "-o", "json").json["guests"] == 4

    # The viewer that was there is attached again, and a new one sees what came before.
    viewer.wait_err("attached again")
    viewer.type("two\n")
    viewer.wait_out("two")
    again = daemon.spawn("console", "echo")
    assert re.search(r"one\s+two", again.wait_out("two"))
    again.type("q")
    assert again.end() == 0 and viewer.end() == 0
    assert daemon.show("echo")["exit_code"] == 7

    # The ticker ticked on meanwhile: its log has no gap.
    ticks = [int(number) for number in re.findall(r"tick (\d+)", daemon.ok("logs", "ticker").stdout)]
    assert ticks == list(range(len(ticks)))
    daemon.ok("resume", "paused")
    daemon.wait_logs("paused", "tick 2")
    daemon.ok("kill", "paused", "ticker")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_end_while_no_daemon_is_there_is_recorded(own_daemon: RealDaemon, number: signal.Signals) -> None:
    daemon = own_daemon
    # Their ends: a guest's own code, a crash of the runner, both while nobody looks.
    for name in ("exits", "crashes"):
        daemon.run("echo.elf", name=name)
        daemon.wait_logs(name, "echo: type")
    pids = {name: daemon.runner(name) for name in ("exits", "crashes")}
    uid = daemon.show("exits")["uid"]
    daemon.stop(number)
    os.kill(pids["crashes"], signal.SIGKILL)
    # The guest's own socket is all there is to type at now (hvd/runner/directory.py).
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as console:
        console.connect(str(daemon.runtime_dir / "guests" / uid / "attach"))
        console.send(b"q")
        wait_for(lambda: not is_process(pids["exits"]), "the guest ends")
    wait_for(lambda: not any(map(is_process, pids.values())), "both runners end")
    ended = time.time()
    daemon.start()
    listed = daemon.listed()
    assert {key: listed["exits"][key] for key in ("state", "reason", "exit_code")} == {"state": "STOPPED", "reason": "EXITED", "exit_code": 7}
    assert (listed["crashes"]["state"], listed["crashes"]["reason"]) == ("FAILED", "RUNNER_CRASHED")
    assert listed["exits"]["end_time"] < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended + 1))
    assert "echo: ok" in daemon.ok("logs", "exits").stdout
    daemon.ok("start", "crashes")
    assert daemon.show("crashes")["state"] == "RUNNING"


def test_many_are_adopted_at_once(own_daemon: RealDaemon) -> None:
    daemon = own_daemon
    made = start_many(daemon, 20)
    before = {name: guest["host_pid"] for name, guest in daemon.listed().items()}
    daemon.restart(signal.SIGKILL)
    listed = daemon.listed()
    assert {name: guest["host_pid"] for name, guest in listed.items()} == before and len(before) == len(made)
    assert {guest["state"] for guest in listed.values()} == {"RUNNING"}
