"""A guest that has taken its process over writes what it likes into its trace ring: whoever looks sees nonsense of that guest, and nothing else
happens."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hvapi.record import FLAG_MORE, FLAG_STACK, FLAG_TEXT, PIECE, RECORD
from real_daemon import RealDaemon, wait_for

MAX_64 = (1 << 64) - 1
HEADER, SLOT, HEAD = 64, 64, 16


class Ring:
    """The file, as the guest's process has it mapped. The guest is paused meanwhile: nobody else writes."""

    def __init__(self, daemon: RealDaemon, name: str) -> None:
        self.path: Path = daemon.runtime_dir / "guests" / daemon.show(name)["uid"] / "trace"

    def forge(self, *records: bytes) -> None:
        """The sequence number that each should have is put in."""
        with self.path.open("r+b") as file:
            capacity = struct.unpack_from("<8xI", file.read(HEADER))[0]
            file.seek(HEAD)
            (head,) = struct.unpack("<Q", file.read(8))
            for record in records:
                file.seek(HEADER + head % capacity * SLOT)
                file.write(record[:20] + struct.pack("<I", head & 0xFFFFFFFF) + record[24:])
                head += 1
        self.set_head(head)

    def set_head(self, head: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(HEAD)
            file.write(struct.pack("<Q", head))

    @property
    def head(self) -> int:
        with self.path.open("rb") as file:
            file.seek(HEAD)
            return int(struct.unpack("<Q", file.read(8))[0])


def record(time_ns: int = 1, duration: int = 5, point: int = 2, kind: int = 1, flags: int = 0, rip: int = 1, *arguments: int) -> bytes:
    return RECORD.pack(time_ns, duration, point, kind, 1, 0, flags, 0, rip, *(*arguments, 0, 0, 0, 0)[:4])


def piece(flags: int, size: int, position: int) -> bytes:
    return PIECE.pack(MAX_64, size, 2, 1, 1, position, FLAG_MORE | flags, 0, b"\xff\x1b[31m" * 6 + b"\0" * 4)


FORGED = (
    record(0, 5, 9, 0, 0, 0, MAX_64), record(0, 5, 9, 0, 0, 0, MAX_64),  # so many were lost, twice
    record(MAX_64, 0xFFFFFFFF, 65535, 255, 0xFFFF & ~(FLAG_MORE | FLAG_STACK), MAX_64, MAX_64, MAX_64, MAX_64, MAX_64),
    piece(FLAG_TEXT, 0xFFFFFFFF, 65535), piece(FLAG_STACK, 0xFFFFFFFF, 0), piece(0, 0, 0),
    *(piece(FLAG_STACK, 40, 0) for _ in range(1500)),
    record(0), record(MAX_64), record(10), record(5),
    record(1, 5, 14, 11, 0, 0, MAX_64, MAX_64, MAX_64, MAX_64),  # work of a disk that there is not
    *(random.Random(number).randbytes(64) for number in range(300)),
)  # fmt: skip


@pytest.mark.parametrize("backend", [pytest.param("emulation", marks=pytest.mark.slow), "trap"])
def test_forged_records(daemon: RealDaemon, tmp_path: Path, backend: str) -> None:
    with daemon.client() as client:
        if backend not in {each.name.removeprefix("backends/") for each in client.list_backends().backends if each.available}:
            pytest.skip(f"{backend} does not run here")
    name, other = daemon.run("ticker.elf", "--backend", backend, name=f"bad-{backend}"), daemon.run("ticker.elf")
    for session, guests in (("all", [name, other]), ("neighbour", [other])):
        daemon.ok("trace", "start", "--stack", "--name", session, *guests)
    lines = daemon.spawn("trace", "-f", name, other)
    documents = daemon.spawn("trace", "-f", "-o", "jsonl", name, other)
    perfetto = daemon.spawn("trace", "-f", "-o", "perfetto", "-O", str(tmp_path / "forged"), name, other)
    viewers = [lines, documents, perfetto]
    for viewer in viewers:
        viewer.wait_err("tracing")
    daemon.ok("pause", name)
    ring = Ring(daemon, name)
    ring.forge(*FORGED)
    wait_for(lambda: "point-65535" in lines.out and '"point-65535"' in documents.out, "forged records are shown")
    for head in (0, MAX_64, ring.head, 1 << 63, 3):
        ring.set_head(head)
    with daemon.client() as client:
        before = client.get_trace(name="traces/neighbour").records
        wait_for(lambda: client.get_trace(name="traces/neighbour").records > before + 100, "the other guest is traced as before")
        assert client.get_trace(name="traces/neighbour").lost == 0
        assert client.get_trace(name="traces/all").state == client.get_trace(name="traces/neighbour").state
    daemon.ok("delete", "--force", name, other)
    for viewer in viewers:
        assert viewer.end() == 0, viewer.err
        assert "Traceback" not in viewer.err
    assert "\x1b" not in lines.out
    assert (tmp_path / "forged").stat().st_size
    for form in ("text", "jsonl", "perfetto"):
        done = daemon.ok("trace", "follow", "all", "-o", form, "-O", str(tmp_path / form))
        assert "lost" in done.stderr
    daemon.ok("trace", "summary", "--session", "all")
    ended = daemon.ok("trace", "show", "all", "-o", "json").json
    assert ended["status_message"] == "its guests have ended" and int(ended["lost"]) >= 1 << 40
    daemon.ok("trace", "delete", "all", "neighbour")
