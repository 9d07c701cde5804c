"""Snapshots of real guests: in the middle of a computation, under load, into another daemon; clones; and what may go wrong."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from real_daemon import SECONDS, RealDaemon, wait_for

from tests.guest_images import DISK_MODULES, PROMPT, GuestImage, GuestUnavailable, guest_image

BOOT_SECONDS = 240.0
WORK_SECONDS = 300.0
ROUNDS = 300
# A chain of hashes, each by a process of its own, and sums of floating-point numbers between them: what is lost or stale shows.
WORK = (
    'dmesg -n 1; s=0; for i in $(seq {rounds}); do s=$(echo $s $i | sha256sum | cut -c1-64); '
    'f=$(awk -v n=$i "BEGIN {{ x = 0; for (k = 1; k < 2000; k++) x += sqrt(k * n) * sin(k); printf \\"%.9f\\", x }}"); '
    'echo "ro""und $i"; s=$(echo $s $f | sha256sum | cut -c1-64); done; echo "res""ult $s"\n'
)


def images() -> Iterator[object]:
    yield pytest.param("debian-cloud", marks=pytest.mark.timeout(900))
    for name in ("linux-i386", "linux-x86_64"):
        yield pytest.param(name, marks=[pytest.mark.timeout(900), pytest.mark.slow])


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


def _compute(daemon: RealDaemon, name: str, rounds: int = ROUNDS) -> None:
    """Type WORK at its shell; it runs when this returns."""
    console = daemon.spawn("console", name, "--no-replay")
    console.type(WORK.format(rounds=rounds))
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
    rounds = ROUNDS // 3
    _start_linux(daemon, "a", _image(name))
    _compute(daemon, "a", rounds)
    right = _wait_result(daemon, "a")

    _compute(daemon, "a", rounds)
    wait_for(lambda: _rounds(daemon, "a") >= rounds + rounds // 3, "a third of the second run", WORK_SECONDS)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_idle_guest_wakes_up(daemon: RealDaemon) -> None:
    """Saved while it waits in HLT for its timer: time goes on from there, neither late nor in a burst."""
    _start_linux(daemon, "a", _image("debian-cloud"))
    console = daemon.spawn("console", "a", "--no-replay")
    console.type('dmesg -n 1; while :; do read a b </proc/uptime; echo "at" "$a"; sleep 1; done\n')
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


# ---- disks and network cards

MIB = 1 << 20


class Typist:
    """A shell of a guest in the background, through its log: the guest may be ended and come back, in other daemons too."""

    def __init__(self, daemon: RealDaemon, name: str) -> None:
        self._daemon, self._name, self._count = daemon, name, 0

    def __call__(self, command: str) -> str:
        self._count += 1
        mark = f"{self._name}-{self._count}-{id(self._daemon)}"
        console = self._daemon.spawn("console", self._name, "--no-replay")
        console.type(f'echo "<""{mark}"; {command}; echo ">""{mark}"\n')
        text = console.wait_out(f">{mark}", WORK_SECONDS).replace("\r", "")
        console.close()
        return text.rpartition(f"<{mark}\n")[2].partition(f">{mark}")[0].strip()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_disks_and_cards(own_daemon: RealDaemon, tmp_path: Path) -> None:
    """What was written to a disk belongs to the snapshot, with what the guest has not flushed yet; the disk's queues and the card's
    are where they were."""
    daemon = own_daemon
    base = tmp_path / "base"
    base.write_bytes(os.urandom(8 * MIB - 2) + b"\x55\xaa")
    daemon.ok("image", "import", "base", str(base), "--kind", "disk")
    try:
        image = guest_image("debian-cloud", (*DISK_MODULES, "virtio_net"))
    except GuestUnavailable as error:
        pytest.skip(str(error))
    daemon.ok("run", "-d", "--name", "a", "--backend", "emulation", "--kernel", str(image.kernel), "--initrd", str(image.initrd),
              "--append", image.append, "--disk", "base", "--disk", "size=64M", "--network", "none", "--memory", "256M")  # fmt: skip
    daemon.wait_logs("a", PROMPT.decode(), BOOT_SECONDS)
    shell = Typist(daemon, "a")
    shell("dmesg -n 1")
    original = hashlib.md5(base.read_bytes()).hexdigest()
    assert shell("md5sum </dev/vda").startswith(original)
    assert "eth0" in shell("ls /sys/class/net")
    mac = shell("cat /sys/class/net/eth0/address")
    shell("dd if=/dev/urandom of=/dev/vda bs=4k seek=100 count=50 2>/dev/null; seq 100000 | dd of=/dev/vdb bs=64k seek=10 2>/dev/null; sync")
    first, second = shell("md5sum </dev/vda"), shell("md5sum </dev/vdb")
    assert not first.startswith(original)
    # Under way when it is saved: what is in the guest's page cache comes along in its memory, what is in the queues is done.
    console = daemon.spawn("console", "a", "--no-replay")
    write = "dd if=/dev/zero of=/dev/vdb bs=1M seek=40 count=8 conv=fsync 2>/dev/null"
    console.type(f'for i in $(seq 60); do {write}; echo wri""tten $i; done; echo fini""shed\n')
    console.wait_out("written 2", WORK_SECONDS)
    daemon.ok("snapshot", "a", "writing")
    assert "finished" not in console.out
    console.wait_out("finished", WORK_SECONDS)
    console.close()
    shell("dd if=/dev/zero of=/dev/vda bs=1M count=8 2>/dev/null; dd if=/dev/zero of=/dev/vdb bs=1M count=64 2>/dev/null; sync")
    assert shell("md5sum </dev/vda") != first

    def check(where: RealDaemon, name: str, finished: int = 1) -> None:
        wait_for(lambda: where.ok("logs", name).stdout.count("finished") >= finished, "the loop's end", WORK_SECONDS)
        typist = Typist(where, name)
        typist("echo 3 >/proc/sys/vm/drop_caches; sync")
        assert typist("md5sum </dev/vda") == first
        assert typist("md5sum </dev/vdb") == second
        assert typist("cat /sys/class/net/eth0/address") == mac

    daemon.ok("restore", "a", "writing")
    check(daemon, "a", 2)
    daemon.ok("clone", "a/writing", "b")
    check(daemon, "b")
    clones = daemon.show("b")["machine"]["disks"]
    assert [disk.get("image") for disk in clones] == ["images/base", ""]
    exported = tmp_path / "exported"
    daemon.ok("snapshots", "export", "a/writing", str(exported))
    with RealDaemon() as other:
        other.ok("snapshots", "import", str(exported), "c/writing")
        assert [found["name"] for found in other.ok("image", "list", "-o", "json").json["images"]] == ["images/base"]
        other.ok("restore", "c", "writing")
        check(other, "c")
    daemon.ok("kill", "a")
    daemon.ok("clone", "a", "d")
    daemon.ok("start", "d")
    daemon.wait_logs("d", PROMPT.decode(), BOOT_SECONDS)
    assert Typist(daemon, "d")("md5sum </dev/vda") == first
    refused = daemon.hvctl("-o", "json", "restore", "d", "a/writing")
    assert refused.returncode == 0, refused.stderr  # a clone is a guest like it
    plain = daemon.run("spin.elf", "--memory", "256M")
    assert "SNAPSHOT_MISMATCH" in daemon.hvctl("-o", "json", "restore", plain, "a/writing").stderr
