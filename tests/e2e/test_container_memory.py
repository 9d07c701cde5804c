"""The address space of a container's processes: a program that tells where it has put what, read from outside."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import RealDaemon
from test_containers import box, root

from hvd.backends.container import memory

__all__ = ["box", "root"]
KNOWN = b"known bytes across pages"


@pytest.fixture
def known(box: RealDaemon, tmp_path: Path) -> Iterator[RealDaemon]:
    """Guests "a" and "b" run the program."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed")
    folder = busybox_root(tmp_path / "root")
    subprocess.run(["gcc", "-static", "-o", folder / "known", Path(__file__).parent / "known.c"], check=True)
    box.ok("image", "import", "known", str(folder))
    for name in ("a", "b"):
        box.ok("run", "-d", "--name", name, "--image", "known", "--memory", "32M", "--", "/known")
        box.wait_logs(name, "0x")
    yield box
    for name in ("a", "b"):
        box.ok("delete", "--force", name)
    box.ok("image", "delete", "known")


def document(box: RealDaemon, *words: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(box.ok("mem", *words, "-o", "json").stdout)
    return found


def test_known_bytes_are_read_and_have_frames(known: RealDaemon) -> None:
    written, untouched, closed = known.ok("logs", "a").stdout.split()
    pid, other = (known.show(name)["host_pid"] for name in ("a", "b"))
    assert base64.b64decode(str(document(known, "read", "a", written, str(len(KNOWN)))["data"])) == KNOWN
    # Each page has a frame of its own, which is not that of the other container's, whose pages hold the same bytes.
    frames = {
        int(str(document(known, "translate", guest, f"{process}:{int(address, 16) + offset:#x}")["physical_address"])) >> 12
        for guest, process in (("a", pid), ("b", other))
        for address in [known.ok("logs", guest).stdout.split()[0]]
        for offset in (0, 10)
    }
    assert len(frames) == 4
    low = int(str(document(known, "translate", "a", f"{pid}:{written}")["physical_address"]))
    assert low & 0xFFF == int(written, 16) & 0xFFF
    # A page that was never touched has no frame; to read it gives it the kernel's page of zeros.
    assert "never touched" in known.ok("mem", "translate", "a", f"{pid}:{untouched}").stdout
    assert "00 00 00 00" in known.ok("mem", "read", "a", untouched, "16").stdout
    assert "never touched" not in known.ok("mem", "translate", "a", f"{pid}:{untouched}").stdout
    # One that the program itself may not read.
    assert "closed" in known.ok("mem", "read", "a", closed, "6").stdout
    assert "read-only" in known.ok("mem", "translate", "a", f"{pid}:{closed}").stdout
    # Past the end of a mapping, and the other container's.
    done = known.hvctl("mem", "read", "a", untouched, "1M")
    assert done.returncode != 0 and "is not mapped" in done.stderr
    for stranger in (other, os.getpid()):
        done = known.hvctl("mem", "read", "a", written, "8", "--pid", str(stranger))
        assert done.returncode != 0 and "is no process of this container" in done.stderr
    # Paused it is read, too.
    known.ok("pause", "a")
    assert "known" in known.ok("mem", "read", "a", written, "16").stdout


def test_reasons_of_pages_without_a_frame(known: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this host cannot show: a page in the swap area, a kernel that hides frames."""
    written = int(known.ok("logs", "a").stdout.split()[0], 16)
    guest = known.show("a")
    for entry, text in ((1 << 62, "in the swap area"), (1 << 63, "does not tell"), (0, "not resident")):
        monkeypatch.setattr(memory, "_entry", lambda *_, entry=entry: entry)
        found = memory.translate(guest["uid"], int(guest["host_pid"]), written)
        assert text in found.fault and not found.physical_address
    vsyscall = memory.translate(guest["uid"], int(guest["host_pid"]), 0xFFFFFFFFFF600000)
    assert not vsyscall.physical_address and (not vsyscall.fault or "kernel" in vsyscall.fault or "no mapping" in vsyscall.fault)
