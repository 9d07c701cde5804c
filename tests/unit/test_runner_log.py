"""The console log and the exit record: format, rotation, disks that fill up."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from hvd.runner import log as log_module
from hvd.runner.directory import ExitRecord, process_identity, process_start_time, read_json
from hvd.runner.log import LONGEST_LINE, ConsoleLog

LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\+00:00) (stdout|stderr) ([FP]) ([^\n]*)\n")


def parse(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(stream, tag, text) of every line; every byte must belong to one."""
    lines = [match.groups() for match in LINE.finditer(data)]
    assert sum(len(b" ".join(line)) + 1 for line in lines) == len(data), data[-200:]
    return [(stream, tag, text) for _, stream, tag, text in lines]


def text_of(path: Path, stream: bytes = b"stdout") -> bytes:
    parts = [text + (b"\n" if tag == b"F" else b"") for s, tag, text in parse(path.read_bytes()) if s == stream]
    return b"".join(parts)


class FailingDisk:
    """os.write that fails, after a few bytes, while it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.room = 0
        self._write = os.write
        monkeypatch.setattr(log_module.os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if not self.error:
            return self._write(fd, data)
        if self.room:
            done = self._write(fd, bytes(data)[: self.room])
            self.room -= done
            return done
        raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def test_lines(path: Path) -> None:
    log = ConsoleLog(str(path), 1 << 20)
    log.console(b"one\r\ntw")
    log.console(b"o\n\nthree")
    assert parse(path.read_bytes()) == [
        (b"stdout", b"F", b"one\r"), (b"stdout", b"F", b"two"), (b"stdout", b"F", b""),
    ]  # fmt: skip
    assert log.deadline is not None
    log.flush()
    assert log.deadline is None
    log.message(b"said\nby the guest\n")
    log.console(b" and more\n")
    log.close()
    assert parse(path.read_bytes())[3:] == [
        (b"stdout", b"P", b"three"),
        (b"stderr", b"F", b"said"),
        (b"stderr", b"F", b"by the guest"),
        (b"stdout", b"F", b" and more"),
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_without_end_does_not_pile_up(path: Path) -> None:
    log = ConsoleLog(str(path), 1 << 20)
    for _ in range(5):
        log.console(b"x" * 6000)
    assert path.stat().st_size >= 30000 - LONGEST_LINE
    log.close()
    assert text_of(path) == b"x" * 30000


def test_rotation_loses_nothing_that_it_need_not(path: Path) -> None:
    log = ConsoleLog(str(path), 64 << 10)
    sent = b"".join(b"line %d\n" % n for n in range(900))
    for at in range(0, len(sent), 777):
        log.console(sent[at : at + 777])
    old = path.with_name("console.log.1")
    assert path.stat().st_size <= 32 << 10
    assert 0 < old.stat().st_size <= 32 << 10
    log.close()
    assert text_of(old) + text_of(path) == sent


def test_many_rotations_in_one_write(path: Path) -> None:
    log = ConsoleLog(str(path), 8192)
    log.console(b"\n" * 65536)
    log.console(b"last\n")
    log.close()
    assert path.stat().st_size <= 4096
    assert text_of(path).endswith(b"\nlast\n")
    assert sorted(os.listdir(path.parent)) == ["console.log", "console.log.1"]


def test_a_line_longer_than_a_file(path: Path) -> None:
    log = ConsoleLog(str(path), 100)
    log.console(b"y" * 8000 + b"\nend\n")
    log.close()
    assert text_of(path.with_name("console.log.1")) == b"y" * 8000 + b"\n"
    assert text_of(path) == b"end\n"


def test_a_log_that_somebody_removed(path: Path) -> None:
    log = ConsoleLog(str(path), 8192)
    log.console(b"a" * 3000 + b"\n")
    path.unlink()
    log.console(b"b" * 3000 + b"\n")
    log.close()
    assert log.error == ""
    assert text_of(path) == b"b" * 3000 + b"\n"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch, error: int, room: int) -> None:
    disk = FailingDisk(monkeypatch)
    log = ConsoleLog(str(path), 1 << 20)
    log.console(b"before\n")
    disk.error, disk.room = error, room
    log.console(b"lost 1\n")
    disk.room = room
    log.console(b"lost 2\n")
    lost = log.lost_bytes
    assert lost >= len("lost 1\nlost 2\n")
    assert os.strerror(error) in log.error and str(lost) in log.error
    assert text_of(path) == b"before\n"  # no half lines
    disk.error = 0
    log.console(b"after\n")
    assert (log.error, log.lost_bytes) == ("", 0)
    log.close()
    assert text_of(path) == b"before\nafter\n"
    note = text_of(path, b"stderr")
    assert b"%d bytes" % lost in note and os.strerror(error).encode() in note


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    log = ConsoleLog(str(directory / "console.log"), 1 << 20)
    log.console(b"lost\n")
    assert log.error
    directory.mkdir()
    log.console(b"kept\n")
    assert log.error == ""
    log.close()
    assert text_of(directory / "console.log") == b"kept\n"


# ---- exit record, pid file


def test_the_exit_record_has_its_place_from_the_start(tmp_path: Path) -> None:
    record = ExitRecord(str(tmp_path))
    assert not (tmp_path / "exit.json").exists()
    assert (tmp_path / "exit.json.new").stat().st_blocks * 512 >= 16384
    record.write("HALTED", "m" * 100_000, 0, {"address": "x" * 5000})
    document = json.loads((tmp_path / "exit.json").read_text())
    assert (document["state"], document["reason"], document["exit_code"]) == ("STOPPED", "HALTED", 0)
    assert len(document["message"]) == 2048
    assert sorted(os.listdir(tmp_path)) == ["exit.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "nul"])
def test_what_is_no_json_object_reads_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    assert read_json(str(tmp_path / "f")) is None
    assert read_json(str(tmp_path / "missing")) is None


def test_identity_of_a_process() -> None:
    identity = process_identity(os.getpid())
    assert identity["start_time"] == process_start_time(os.getpid())
    assert len(identity["boot_id"]) == 36
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process_start_time(child) is None  # a zombie runs no guest
    os.waitpid(child, 0)
    assert process_start_time(child) is None
    with pytest.raises(ProcessLookupError):
        process_identity(child)
