"""System calls as hvctl shows them beside strace(1) of the same programs: names, results and named flags, in order, of every process."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import RealDaemon
from test_containers import box, root

from hvd.backends.container.trace.choice import choose

__all__ = ["box", "root"]
HERE = Path(__file__).parent
# Results that say who it is or where, not what happened.
ANY_RESULT = {
    "clone", "wait4", "getpid", "gettid", "set_tid_address", "mmap", "mmap2", "brk", "getuid32", "readlink", "readlinkat",
}  # fmt: skip
ERRNO = re.compile(r"-1 (E\w+)")
# A flag's name. A protocol is one of its family, which we do not look at.
FLAG = re.compile(r"\b(?!IPPROTO_)[A-Z][A-Z0-9]*_[A-Z0-9_]+\b")
LINE = re.compile(r"(\d+) +(.*)")
CALL = re.compile(r"(\w+)\((.*)\) += (.+?)(?: <.*>)?$")
Seen = tuple[str, str, frozenset[str]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("strace") is None or shutil.which("gcc") is None:
        pytest.skip("strace and gcc are needed: apt-get install strace gcc")
    where = tmp_path_factory.mktemp("calls")
    where.chmod(0o755)
    subprocess.run(["gcc", "-O1", "-w", "-static", "-o", where / "calls", HERE / "calls.c"], check=True)
    built = subprocess.run(
        ["gcc", "-m32", "-O1", "-ffreestanding", "-fno-pic", "-no-pie", "-nostdlib", "-static", "-o", where / "calls32", HERE / "calls_32.c"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return where


@pytest.fixture
def calls(box: RealDaemon, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    if why := choose("ebpf").reason:
        pytest.skip(why)
    if "images/calls" not in box.ok("image", "list", "-o", "name").stdout:
        folder = busybox_root(tmp_path_factory.mktemp("root") / "root")
        for program in programs.iterdir():
            shutil.copy2(program, folder)
        box.ok("image", "import", "calls", str(folder))
    yield box


def flags(arguments: str) -> frozenset[str]:
    outside = re.sub(r'"(?:[^"\\]|\\.)*"|\{[^}]*\}|/\*.*?\*/', "", arguments)
    return frozenset(FLAG.findall(outside))


def by_strace(program: Path) -> list[list[Seen]]:
    """By process, in the order of their beginnings; with each its name, result, and the flags' names."""
    output = program.parent / "strace"
    subprocess.run(["strace", "-f", "-o", output, program], check=False, timeout=60, capture_output=True)
    processes: dict[str, list[Seen]] = {}
    begun: dict[str, str] = {}
    for line in output.read_text().splitlines():
        match = LINE.fullmatch(line)
        assert match
        pid, text = match.groups()
        if text.startswith(("---", "+++", "[")):
            continue
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
            continue
        if text.startswith("<... "):
            text = begun.pop(pid) + text.partition("resumed>")[2]
        call = CALL.fullmatch(text)
        assert call, text
        name, arguments, result = call.groups()
        error = ERRNO.match(result)
        processes.setdefault(pid, []).append((name, f"-{error[1]}" if error else result.split()[0], flags(arguments)))
    return list(processes.values())


def by_hvctl(daemon: RealDaemon, program: str) -> list[list[Seen]]:
    daemon.ok("create", "--name", "c", "--image", "calls", "--", program)
    with contextlib.closing(daemon.spawn("trace", "c", "-f")) as process:
        process.wait_err("tracing ")
        daemon.ok("start", "c")
        assert process.end() == 0
    assert "lost" not in process.out
    processes: dict[str, list[Seen]] = {}
    for line in process.out.splitlines():
        call = re.fullmatch(r"\S+ c ([\w.-]+)\((.*)\) = (\S+)( rip=.*)?", line)
        assert call, line
        name, arguments, result = call[1].removesuffix(".32-bit"), call[2], call[3]
        tid = re.match(r"tid=(\d+)", arguments)
        assert tid
        if name == "execve" and f'pathname="{program}"' in arguments:
            processes = {}  # what came before was the runtime's
        processes.setdefault(tid[1], []).append((name, result, flags(arguments)))
    daemon.ok("delete", "--force", "c")
    return list(processes.values())


def compare(ours: list[list[Seen]], theirs: list[list[Seen]]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert [name for name, _, _ in one] == [name for name, _, _ in other]
        for (name, result, names), (_, expected, expected_names) in zip(one, other, strict=True):
            if name not in ANY_RESULT and expected != "?":
                assert int(result, 0) == int(expected, 0) if expected[-1].isdigit() else result == expected, name
            if not name.startswith("system-call"):
                assert expected_names - names == frozenset(), name


def test_calls_of_many_kinds_are_those_that_strace_shows(calls: RealDaemon, programs: Path) -> None:
    theirs = by_strace(programs / "calls")
    for process in theirs:  # of a number that does not exist
        process[:] = [("system-call.unknown" if name.startswith("syscall_") else name, *rest) for name, *rest in process]  # type: ignore[misc]
    assert sum(map(len, theirs)) > 60 and len(theirs) == 2
    compare(by_hvctl(calls, "/calls"), theirs)


def test_calls_of_a_32_bit_program_are_those_that_strace_shows(calls: RealDaemon, programs: Path) -> None:
    if subprocess.run([programs / "calls32"], check=False).returncode != 3:
        pytest.skip("this kernel runs no 32-bit programs")
    theirs = by_strace(programs / "calls32")
    for process in theirs:
        process[:] = [("system-call" if name.startswith("syscall_") else name, *rest) for name, *rest in process]  # type: ignore[misc]
    assert [name for name, _, _ in theirs[0]][:5] == ["execve", "getpid", "open", "access", "openat"]
    compare(by_hvctl(calls, "/calls32"), theirs)


def test_paths_and_addresses_of_sockets_are_read(calls: RealDaemon) -> None:
    calls.ok("create", "--name", "c", "--image", "calls", "--", "/calls")
    with contextlib.closing(calls.spawn("trace", "c", "-f")) as process:
        process.wait_err("tracing ")
        calls.ok("start", "c")
        assert process.end() == 0
    for text in (
        'openat(tid=1, dfd=AT_FDCWD, pathname="/tmp/hvd-calls", flags=O_RDWR|O_CREAT|O_TRUNC|O_CLOEXEC, mode=0640) = ',
        'pathname="", statbuf=', 'addr={AF_UNIX, "/none/socket"}, addrlen=110) = -ENOENT', "addr={AF_INET, 0.0.0.0:0}, addrlen=16) = 0",
        'oldpath="/tmp/hvd-calls", newpath="/tmp/hvd-calls.2") = 0', 'pathname="/none", argv=',
    ):  # fmt: skip
        assert text in process.out
