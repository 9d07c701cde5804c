"""Logs of containers across rotations, followed and not, with and without a daemon."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import RealDaemon, require_backend, wait_for
from test_containers import box, root  # noqa: F401  fixtures

FILES, FILE_BYTES = 4, 16 << 10


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[RealDaemon]:
    """With logs that are soon full."""
    with RealDaemon("--log-max-bytes", str(FILES * FILE_BYTES), "--log-files", str(FILES)) as daemon:
        require_backend(daemon)
        yield daemon


def files(daemon: RealDaemon, name: str) -> list[Path]:
    return sorted((daemon.runtime_dir / "guests" / daemon.show(name)["uid"]).glob("console.log*"))


def numbers(text: str) -> list[int]:
    return [int(line) for line in text.splitlines() if line.isdecimal()]


# Waits for a line before each burst, so that the follower is there; a burst is less than a file.
BURSTS = "while read at; do seq $at $((at+149)); done"


def test_a_follower_loses_and_repeats_nothing_at_rotations(box: RealDaemon) -> None:  # noqa: F811
    writer = box.spawn("run", "--name", "c", "--image", "box", "--", "sh", "-c", BURSTS)
    wait_for(lambda: box.listed().get("c", {}).get("state") == "RUNNING", "the guest runs")
    follower = box.spawn("logs", "-f", "c")
    for at in range(1, 4500, 150):
        writer.type(f"{at}\n")
        follower.wait_out(f"{at + 149}\n")
    assert writer.popen.stdin
    writer.popen.stdin.close()
    assert writer.end() == 0 and follower.end() == 0
    assert numbers(follower.out) == list(range(1, 4501))
    kept = numbers(box.ok("logs", "c").stdout)
    assert kept == list(range(kept[0], 4501)) and 500 < len(kept) < 4000
    assert numbers(box.ok("logs", "--tail", "900", "c").stdout) == list(range(3601, 4501))  # of more than one file
    sizes = {path.stat().st_ino: path.stat().st_size for path in files(box, "c")}
    assert len(sizes) == FILES and max(sizes.values()) <= FILE_BYTES
    box.ok("start", "c")  # appends, and goes on rotating
    box.wait("c")
    assert numbers(box.ok("logs", "c").stdout)[-1] == 4500


def test_a_log_is_bounded_without_a_daemon_and_in_order_afterwards(box: RealDaemon) -> None:  # noqa: F811
    waits = "while [ ! -e /tmp/go ]; do sleep 0.05; done"
    script = f"{waits}; i=0; "
    script += "while [ $i -lt 40 ]; do seq $((i*150+1)) $((i*150+150)); i=$((i+1)); done; : > /tmp/done; sleep 1000"
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", script)
    guest, log = box.show("c"), files(box, "c")[0]
    box.stop(signal.SIGKILL)
    root_ = Path(guest["rootfs_path"]) / "tmp"
    (root_ / "go").touch()
    wait_for((root_ / "done").exists, "it has written")
    assert sum(path.stat().st_size for path in log.parent.glob("console.log*")) <= (FILES + 1) * FILE_BYTES
    box.start()
    found = numbers(box.wait_logs("c", "\n6000\n"))
    assert found == sorted(found) and found[-1] == 6000
    assert len({path.stat().st_ino for path in files(box, "c")}) == 2  # what was the log, and what is


def test_since_and_tail(box: RealDaemon) -> None:  # noqa: F811
    # One after the other has been logged: each has a time of its own.
    writer = box.spawn("run", "--name", "c", "--image", "box", "--", "sh", "-c", "while read word; do echo $word; done")
    for word in ("one", "two", "three"):
        writer.type(f"{word}\n")
        writer.wait_out(f"{word}\n")
    assert writer.popen.stdin
    writer.popen.stdin.close()
    assert writer.end() == 0
    lines = box.ok("logs", "-t", "c").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["one", "two", "three"]
    assert box.ok("logs", "--since", lines[1].split()[0], "c").stdout == "two\nthree\n"
    assert box.ok("logs", "--since", "1h", "--tail", "1", "c").stdout == "three\n"
    assert box.ok("logs", "--since", "0.001s", "c").stdout == ""
    assert box.ok("logs", "--tail", "0", "c").stdout == ""
    assert box.ok("logs", "-f", "--tail", "2", "c").stdout == "two\nthree\n"  # it has ended
