"""The console log and the exit record: format, rotation, disks that fill up."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.guests.logs import read_before, read_end
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


# ---- runs one after the other


def test_a_new_run_appends(path: Path) -> None:
    for run in (b"first", b"second", b"third"):
        log = ConsoleLog(str(path), 1 << 20)
        log.console(run + b" run\nprompt> ")
        log.close()
    assert text_of(path) == b"first run\nprompt> \nsecond run\nprompt> \nthird run\nprompt> "


def test_a_run_after_a_crash_in_the_middle_of_a_line(path: Path) -> None:
    log = ConsoleLog(str(path), 1 << 20)
    log.console(b"whole\n")
    log.close()
    with path.open("ab") as file:
        file.write(b"2026-11-23T12:00:00.000000000+00:00 stdout F to")
    log = ConsoleLog(str(path), 1 << 20)
    log.console(b"next\n")
    log.close()
    assert text_of(path) == b"whole\nto\nnext\n"


def test_what_earlier_runs_left_counts(path: Path) -> None:
    for run in range(20):
        log = ConsoleLog(str(path), 8192)
        log.console(b"run %d\n" % run * 40)
        log.close()
    old = path.with_name("console.log.1")
    assert path.stat().st_size <= 4096 and old.stat().st_size <= 4096
    lines = (text_of(old) + text_of(path)).splitlines()
    assert lines[-40:] == [b"run 19"] * 40 and 60 < len(lines) < 8192 // 50


# ---- places in the log


STDOUT = frozenset({"stdout"})


def before(log: ConsoleLog, size: int = 1 << 20) -> bytes:
    position = log.position()
    try:
        return read_before(position, size, STDOUT)
    finally:
        for descriptor in position.descriptors:
            os.close(descriptor)


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 200)), max_size=12), min_size=1, max_size=3),
    half=st.sampled_from([4096, 64 << 10, 1 << 20]),
)
def test_a_place_has_the_runs_output_before_it(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[tuple[int, int]]], half: int
) -> None:
    """All of the present run that is kept, to the byte, however lines and writes fall."""
    path = tmp_path_factory.mktemp("log") / "console.log"
    for run in runs:
        log = ConsoleLog(str(path), 2 * half)
        sent = b""
        assert before(log) == b""
        for number, (length, width) in enumerate(run):
            data = b"".join(b"x" * (width - 1) + b"\n" for _ in range(length // width)) + b"y" * (length % width)
            log.console(data)
            log.message(b"not the console's")
            sent += data
            kept = before(log)
            assert sent.endswith(kept)
            assert len(kept) == len(sent) or half < 1 << 20
            assert before(log, 100) == kept[-100:]
            assert read_end(path.parent, len(kept), STDOUT) == kept, number
        log.close()
        assert before(log) == kept if run else True


def test_a_place_stays_where_it_is(path: Path) -> None:
    """While the log goes on and is rotated away."""
    log = ConsoleLog(str(path), 16384)
    log.console(b"early\nno end")
    position = log.position()
    for number in range(1000):
        log.console(b"later %d\n" % number)
    assert read_before(position, 1000, STDOUT) == b"early\nno end"
    assert b"early" not in read_end(path.parent, 1 << 20, STDOUT)
    for descriptor in position.descriptors:
        os.close(descriptor)
    log.close()


def test_there_is_no_place_without_a_log(tmp_path: Path) -> None:
    log = ConsoleLog(str(tmp_path / "gone" / "console.log"), 1 << 20)
    log.console(b"lost\n")
    assert log.position() == ((), 0, 0)
    assert read_before(log.position(), 1000, STDOUT) == b""
    assert read_end(tmp_path, 1000, STDOUT) == b""


def test_only_what_is_new_enough(path: Path) -> None:
    log = ConsoleLog(str(path), 1 << 20)
    log.console(b"old\n")
    now = time.time_ns()
    log.console(b"new\n")
    log.close()
    assert read_end(path.parent, 1000, STDOUT, now) == b"new\n"


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
