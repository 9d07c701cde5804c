"""Reading a log across rotations, a runner's and a container's."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hvd.backends.container import rotation
from hvd.guests.logs import Line, LogReader, read_before, read_end
from hvd.runner.directory import LOG, older_log
from hvd.runner.log import ConsoleLog

STDOUT = frozenset({"stdout"})


def lines(numbers: range) -> bytes:
    return b"".join(b"line %05d\n" % number for number in numbers)


def text(reader: LogReader) -> bytes:
    found = b""
    while batch := reader.read(100, 1 << 16):
        found += b"".join(line.text for line in batch)
    return found


def test_all_files_are_read_in_order(tmp_path: Path) -> None:
    log = ConsoleLog(str(tmp_path / LOG), 5 * 8192, 5)
    log.console(lines(range(1000)))
    assert sorted(os.listdir(tmp_path)) == [LOG, *(older_log(n) for n in range(1, 5))]
    kept = text(LogReader(tmp_path))
    assert kept and lines(range(1000)).endswith(kept) and len(kept) > 4 * 8192 // 5
    assert read_end(tmp_path, 1 << 20, STDOUT) == kept
    assert b"".join(line.text for line in LogReader(tmp_path).read_tail(300)) == lines(range(700, 1000))
    position = log.position()
    try:
        assert len(position.descriptors) == 5 and read_before(position, 1 << 20, STDOUT) == kept
    finally:
        for descriptor in position.descriptors:
            os.close(descriptor)
    log.close()


def test_a_reader_that_lags_some_files_behind_loses_nothing(tmp_path: Path) -> None:
    log = ConsoleLog(str(tmp_path / LOG), 4 * 4096, 4)
    log.console(lines(range(10)))
    reader = LogReader(tmp_path)
    assert text(reader) == lines(range(10)) and not reader.has_news()
    log.console(lines(range(10, 170)))  # into the third file
    assert reader.has_news() and text(reader) == lines(range(10, 170)) and not reader.has_news()
    log.console(lines(range(170, 2000)))
    # The rest of the file that it has, a note, and what is still there.
    rest, note, kept = text(reader).partition(b"hvd: output is missing here: it was written faster than it was read\n")
    assert note and lines(range(170, 2000)).startswith(rest) and lines(range(2000)).endswith(kept) and kept
    log.close()
    reader.close()


def monitor_writes(path: Path, data: bytes, most: int) -> None:
    """As conmon does: a file that would be too large is replaced."""
    for line in data.splitlines():
        entry = b"2026-11-23T12:00:00.000000000+00:00 stdout F %s\n" % line
        if path.exists() and path.stat().st_size + len(entry) > most:
            new = path.with_name(f"{path.name}.tmp")
            new.write_bytes(b"")
            new.rename(path)
        with path.open("ab") as file:
            file.write(entry)


def test_what_the_monitor_replaces_is_kept(tmp_path: Path) -> None:
    path = tmp_path / LOG
    reader = LogReader(tmp_path)
    found = b""
    for at in range(0, 600, 20):
        monitor_writes(path, lines(range(at, at + 20)), 4096)
        rotation.catch_up(tmp_path, 3)
        rotation.catch_up(tmp_path, 3)
        found += text(reader)
        assert path.samefile(tmp_path / older_log(0))
    assert found == lines(range(600))
    assert sorted(os.listdir(tmp_path)) == [LOG, older_log(0), older_log(1), older_log(2)]
    assert lines(range(600)).endswith(text(LogReader(tmp_path)))
    # Replaced twice before anybody looked: the one in between is gone, the order is kept.
    monitor_writes(path, lines(range(600, 800)), 4096)
    rotation.catch_up(tmp_path, 3)
    order = text(LogReader(tmp_path)).splitlines()
    assert order == sorted(order) and order[-1] == b"line 00799"
    size = path.stat().st_size
    rotation.before_start(tmp_path, 3 * 4096, 3)
    assert path.exists() == (size < 2048)
    reader.close()


def test_a_directory_that_goes_away(tmp_path: Path) -> None:
    directory = tmp_path / "guest"
    directory.mkdir()
    reader = LogReader(directory)
    assert not reader.has_news() and text(reader) == b""
    log = ConsoleLog(str(directory / LOG), 8192)
    log.console(b"one\n")
    log.close()
    assert text(reader) == b"one\n"
    (directory / LOG).unlink()
    directory.rmdir()
    assert not reader.has_news() and text(reader) == b""
    reader.close()


def test_closed_while_a_thread_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the thread has been cancelled: neither does it read a file that is another's by now, nor is one left open."""
    (tmp_path / "console.log.1").write_bytes(b"2026-11-23T12:00:00.000000000+00:00 stdout F old\n")
    (tmp_path / "console.log").write_bytes(b"2026-11-23T12:00:01.000000000+00:00 stdout F new\n")
    before = len(os.listdir("/proc/self/fd"))
    reader = LogReader(tmp_path)
    parsing, closed = threading.Event(), threading.Event()
    parse = reader._parser.parse

    def slowly(raw: bytes) -> Line:
        parsing.set()
        assert closed.wait(60)
        return parse(raw)

    monkeypatch.setattr(reader._parser, "parse", slowly)
    thread = threading.Thread(target=reader.read, args=(1, 1 << 20))
    thread.start()
    assert parsing.wait(60)
    reader.close()
    closed.set()
    thread.join()
    assert len(os.listdir("/proc/self/fd")) == before and reader.read(10, 1 << 20) == []
