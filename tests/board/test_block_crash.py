"""What survives of an overlay when its runner dies, and when its host does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd.board.block import overlay as overlay_module
from hvd.board.block.overlay import Overlay, create_overlay

GRANULE, SECTOR = 4096, 512
SIZE = 9 * GRANULE + 2560
BASE = bytes((number // 512 + number // 7) % 251 + 1 for number in range(5 * GRANULE + 1300))


def read(image: Overlay, offset: int, length: int) -> bytes:
    data = bytearray(length)
    image.read(offset, [memoryview(data)])
    return bytes(data)


class HostDisk:
    """The overlay's file as a disk with a write cache sees it: of each sector every content since the last sync, any
    of which a crash may leave, since the kernel writes pages back when and in which order it likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durable = bytearray(path.read_bytes())
        self.since: dict[int, list[bytes]] = defaultdict(list)
        self._write_all, self._punch = overlay_module.write_all, overlay_module.punch

    def write_all(self, fd: int, offset: int, buffers: list[memoryview]) -> None:
        self._write_all(fd, offset, buffers)
        self._note(fd, offset, sum(len(buffer) for buffer in buffers))

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._punch(fd, offset, length)
        self._note(fd, offset, length)

    def _note(self, fd: int, offset: int, length: int) -> None:
        for sector in range(offset // SECTOR, -(-(offset + length) // SECTOR)):
            self.since[sector].append(os.pread(fd, SECTOR, sector * SECTOR))

    def fdatasync(self, fd: int) -> None:
        for sector, contents in self.since.items():
            self.durable[sector * SECTOR : (sector + 1) * SECTOR] = contents[-1]
        self.since.clear()

    def crash(self, chance: random.Random) -> bytes:
        left = bytearray(self.durable)
        for sector, contents in self.since.items():
            old = bytes(left[sector * SECTOR : (sector + 1) * SECTOR])
            left[sector * SECTOR : (sector + 1) * SECTOR] = chance.choice([old, *contents])
        return bytes(left)


RANGES = st.tuples(st.integers(0, SIZE // SECTOR), st.integers(0, 20))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), RANGES, st.integers(1, 250)),
        st.tuples(st.just("write"), RANGES, st.integers(1, 250)),
        st.tuples(st.just("discard"), RANGES, st.just(0)),
        st.tuples(st.just("flush"), st.just((0, 0)), st.just(0)),
    ),
    min_size=1,
    max_size=20,
)


@given(OPERATIONS, st.booleans(), st.integers(0, 2**32), st.integers(1, 3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_host_that_crashes_loses_what_was_not_flushed_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple], blank: bool, seed: int, crashes: int
) -> None:
    directory = tmp_path_factory.mktemp("crash")
    base = None if blank else directory / "image"
    if base is not None:
        base.write_bytes(BASE)
    content = bytearray((b"" if blank else BASE).ljust(SIZE, b"\0"))
    path = directory / "disk"
    boots = [f"boot-{number}" for number in range(crashes + 1)]
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay_module, "host_boot_id", lambda: boots[0])
        create_overlay(path, SIZE, base)
        for _ in range(crashes):
            host = HostDisk(path)
            for name in ("write_all", "punch"):
                patch.setattr(overlay_module, name, getattr(host, name))
            patch.setattr(overlay_module.os, "fdatasync", host.fdatasync)
            image = Overlay(path, base, SIZE)
            assert read(image, 0, SIZE) == content
            # Of each sector what a crash may leave: what was flushed, or anything that was written since.
            allowed = [{bytes(content[at : at + SECTOR])} for at in range(0, SIZE, SECTOR)]
            for name, (first, count), value in operations:
                offset = min(first * SECTOR, SIZE)
                length = min(count * SECTOR, SIZE - offset)
                if name == "flush":
                    image.flush()
                    allowed = [{bytes(content[at : at + SECTOR])} for at in range(0, SIZE, SECTOR)]
                    continue
                if name == "write":
                    data = bytes((value + number // SECTOR) % 251 + 1 for number in range(length))
                    image.write(offset, [memoryview(data)])
                else:
                    data = bytes(length)
                    image.discard(offset, length)
                content[offset : offset + length] = data
                for at in range(offset, offset + length, SECTOR):
                    allowed[at // SECTOR].add(bytes(content[at : at + SECTOR]))
            image._close_files()  # no flush: the host is gone
            path.write_bytes(host.crash(chance))
            boots.pop(0)
            operations = operations[::-1]
            patch.undo()
            patch.setattr(overlay_module, "host_boot_id", lambda: boots[0])
            image = Overlay(path, base, SIZE)
            content = bytearray(read(image, 0, SIZE))
            image.close()
            for sector, contents in enumerate(allowed):
                assert bytes(content[sector * SECTOR : (sector + 1) * SECTOR]) in contents, sector


WRITER = f"""
import random, sys
from pathlib import Path
from hvd.board.block.overlay import Overlay
directory, seed = Path(sys.argv[1]), int(sys.argv[2])
image = Overlay(directory / "disk", directory / "image", {SIZE})
chance = random.Random(seed)
while True:
    offset, length, value = chance.randrange({SIZE}), chance.randrange(1, 9000), chance.randrange(1, 251)
    length = min(length, {SIZE} - offset)
    print(offset, length, value, flush=True)
    kind = chance.randrange(8)
    if kind == 0:
        image.flush()
    image.write(offset, [memoryview(bytes([value]) * length)])
    print("done", flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_runner_that_is_killed_loses_nothing(tmp_path: Path, seed: int) -> None:
    (tmp_path / "image").write_bytes(BASE)
    create_overlay(tmp_path / "disk", SIZE, tmp_path / "image")
    content = bytearray(BASE.ljust(SIZE, b"\0"))
    chance = random.Random(seed)
    for life in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(seed * 100 + life)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        begun: list[tuple[int, int, int]] = []
        done = 0
        for _ in range(chance.randrange(1, 120)):  # ends in the middle of a write as often as between two
            line = writer.stdout.readline().strip()
            if line == "done":
                done += 1
            else:
                offset, length, value = map(int, line.split())
                begun.append((offset, length, value))
        os.kill(writer.pid, signal.SIGKILL)
        # An unbuffered interpreter (PYTHONUNBUFFERED) writes a line in pieces: what has no end was not begun, or is under way.
        for line in writer.stdout.read().split("\n")[:-1]:
            if line == "done":
                done += 1
            else:
                offset, length, value = map(int, line.split())
                begun.append((offset, length, value))
        writer.wait()
        writer.stdout.close()
        for offset, length, value in begun[:done]:
            content[offset : offset + length] = bytes([value]) * length
        image = Overlay(tmp_path / "disk", tmp_path / "image", SIZE)
        found = read(image, 0, SIZE)
        image.close()
        for offset, length, value in begun[done:]:
            for at in range(offset, offset + length):
                if found[at] == value:  # the write under way: each byte is the old or the new one
                    content[at] = value
        assert found == content
