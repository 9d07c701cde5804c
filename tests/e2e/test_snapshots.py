"""Snapshots of real guests: in the middle of a computation, under load, into another daemon; clones; and what may go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from real_daemon import SECONDS, RealDaemon, wait_for

from tests.guest_images import PROMPT, GuestImage, GuestUnavailable, guest_image, is_built

BOOT_SECONDS = 240.0
WORK_SECONDS = 300.0
ROUNDS = 60
# A chain of hashes, each by a process of its own, and sums of floating-point numbers between them: what is lost or stale shows.
WORK = (
    's=0; for i in $(seq {rounds}); do s=$(echo $s $i | sha256sum | cut -c1-64); '
    'f=$(awk -v n=$i "BEGIN {{ x = 0; for (k = 1; k < 2000; k++) x += sqrt(k * n) * sin(k); printf \\"%.9f\\", x }}"); '
    'echo "ro""und $i"; s=$(echo $s $f | sha256sum | cut -c1-64); done; echo "res""ult $s"\n'
)


def images() -> Iterator[object]:
    yield pytest.param("debian-cloud", marks=pytest.mark.timeout(900))
    for name in ("linux-i386", "linux-x86_64"):
        marks = [pytest.mark.timeout(900)] + ([] if is_built(name) else [pytest.mark.slow])
        yield pytest.param(name, marks=marks)


def _image(name: str) -> GuestImage:
    try:
        return guest_image(name)
    except GuestUnavailable as error:
        pytest.skip(str(error))


def _start_linux(daemon: RealDaemon, name: str, image: GuestImage) -> None:
    """A Linux that runs in the background, at its shell's prompt."""
    daemon.ok("run", "-d", "--name", name, "--backend", "emulation", "--kernel", str(image.kernel), "--initrd", str(image.initrd),
              "--append", image.append)  # fmt: skip
    daemon.wait_logs(name, PROMPT.decode(), BOOT_SECONDS)


def _compute(daemon: RealDaemon, name: str) -> None:
    """Type WORK at its shell; it runs when this returns."""
    console = daemon.spawn("console", name, "--no-replay")
    console.type(WORK.format(rounds=ROUNDS))
    console.wait_out("round 1", WORK_SECONDS)
    console.close()


def _results(daemon: RealDaemon, name: str) -> list[str]:
    return re.findall(r"^result ([0-9a-f]{64})", daemon.ok("logs", name).stdout, re.M)


def _wait_result(daemon: RealDaemon, name: str, count: int = 1) -> str:
    found = wait_for(lambda: (seen := _results(daemon, name)) and len(seen) >= count and seen, f"result {count}", WORK_SECONDS)
    return found[-1]


def _rounds(daemon: RealDaemon, name: str) -> int:
    return daemon.ok("logs", name).stdout.count("round ")


@pytest.mark.parametrize("name", list(images()))
def test_linux_in_the_middle_of_a_computation(daemon: RealDaemon, name: str) -> None:
    """Undisturbed, snapshotted, restored here, restored in a second daemon, as a clone: one result."""
    _start_linux(daemon, "a", _image(name))
    _compute(daemon, "a")
    right = _wait_result(daemon, "a")

    _compute(daemon, "a")
    wait_for(lambda: _rounds(daemon, "a") >= ROUNDS + ROUNDS // 3, "a third of the second run", WORK_SECONDS)
    taken = daemon.ok("snapshot", "a", "middle", "-o", "json", timeout=SECONDS).json
    assert taken["name"] == "guests/a/snapshots/middle" and taken["vcpu_format"] == "ia32/1"
    assert _wait_result(daemon, "a", 2) == right  # it went on

    daemon.ok("restore", "a", "middle")
    assert _wait_result(daemon, "a", 3) == right
    daemon.ok("clone", "a/middle", "b")
    assert _wait_result(daemon, "b") == right

    file = daemon.directory / "middle.hvdsnap"
    daemon.ok("snapshots", "export", "a/middle", str(file))
    with RealDaemon() as second:
        assert second.ok("snapshots", "import", str(file), "-o", "name").stdout.strip() == "guests/a/snapshots/middle"
        assert second.listed()["a"]["state"] == "STOPPED"
        second.ok("restore", "a", "middle")
        assert _wait_result(second, "a") == right
        second.ok("reset", "a")  # the kernel came along
        wait_for(lambda: second.ok("logs", "a").stdout.count("Linux version") >= 1, "a boot", BOOT_SECONDS)


@pytest.mark.timeout(900)
def test_twenty_snapshots_in_a_row_under_load(daemon: RealDaemon) -> None:
    _start_linux(daemon, "a", _image("debian-cloud"))
    _compute(daemon, "a")
    right = _wait_result(daemon, "a")
    _compute(daemon, "a")
    wait_for(lambda: _rounds(daemon, "a") > ROUNDS, "the second run", WORK_SECONDS)
    at_work = 0
    for number in range(20):
        daemon.ok("snapshot", "a", f"s{number}")
        if len(_results(daemon, "a")) == 1:
            at_work = number
    assert at_work, "the second run was over too soon"
    listed = daemon.ok("snapshots", "list", "a", "-o", "json").json["snapshots"]
    assert [snapshot["name"].rpartition("/")[2] for snapshot in listed] == [f"s{number}" for number in range(20)]
    assert _wait_result(daemon, "a", 2) == right
    for count, number in enumerate(sorted({0, at_work // 2, at_work}), 3):
        daemon.ok("restore", "a", f"s{number}")
        assert _wait_result(daemon, "a", count) == right


@pytest.mark.timeout(600)
def test_an_idle_guest_wakes_up(daemon: RealDaemon) -> None:
    """Saved while it waits in HLT for its timer: time goes on from there, neither late nor in a burst."""
    _start_linux(daemon, "a", _image("debian-cloud"))
    console = daemon.spawn("console", "a", "--no-replay")
    console.type('while :; do read a b </proc/uptime; echo "at" "$a"; sleep 1; done\n')
    console.wait_out("\nat ", WORK_SECONDS)
    console.close()
    for number in range(5):
        daemon.ok("snapshot", "a", f"s{number}")
    for number in (0, 4):
        before = len(_uptimes(daemon))
        daemon.ok("restore", "a", f"s{number}", "--paused")
        saved = len(_uptimes(daemon))
        daemon.ok("resume", "a")
        wait_for(lambda n=before: len(_uptimes(daemon)) >= n + 5, "five more lines", WORK_SECONDS)
        uptimes = _uptimes(daemon)[saved:]
        steps = [later - earlier for earlier, later in pairwise(uptimes)]
        assert all(0.9 < step < 30 for step in steps), steps


def _uptimes(daemon: RealDaemon) -> list[float]:
    return [float(text) for text in re.findall(r"^at ([0-9.]+)", daemon.ok("logs", "a").stdout, re.M)]
