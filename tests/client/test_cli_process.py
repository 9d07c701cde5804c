"""hvctl as a process: pipes, terminals, signals, a daemon that restarts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence

import pytest
from cli_harness import environment
from fake_daemon import FakeDaemon
from hvapi.v1 import guest_pb2

Start = Callable[..., subprocess.Popen[bytes]]
DEADLINE = 60.0


def read_until(file: int, wanted: bytes) -> bytes:
    """What comes from file until wanted is among it."""
    data, end = b"", time.monotonic() + DEADLINE
    while wanted not in data:
        ready, _, _ = select.select([file], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{wanted!r} did not come, only {data!r}"
        fresh = os.read(file, 4096)
        assert fresh, f"{wanted!r} did not come, only {data!r}"
        data += fresh
    return data


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_pipe_is_typed_and_its_end_does_not_detach(process: Start, daemon: FakeDaemon) -> None:
    child = process("run", "--name", "a", "--append", "echo exit=5")
    assert child.stdin and child.stdout
    child.stdin.write(b"ls")
    child.stdin.close()
    assert read_until(child.stdout.fileno(), b"]") == b"[ls]"
    assert child.poll() is None
    daemon.consoles["guests/a"].input.put(b"q")
    assert child.wait(DEADLINE) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_of_run_rm_deletes_the_guest(process: Start, daemon: FakeDaemon, number: signal.Signals) -> None:
    child = process("run", "--rm", "--name", "a", "--append", "say=up hang", stdin=subprocess.DEVNULL)
    assert child.stdout and child.stderr
    read_until(child.stdout.fileno(), b"up")
    child.send_signal(number)
    assert child.wait(DEADLINE) == 130
    assert "guests/a" not in daemon.guests
    assert b"deleted" in child.stderr.read()


def test_interrupt_of_run_leaves_the_guest(process: Start, daemon: FakeDaemon) -> None:
    child = process("run", "--name", "a", "--append", "say=up hang", stdin=subprocess.DEVNULL)
    assert child.stdout and child.stderr
    read_until(child.stdout.fileno(), b"up")
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE) == 130
    error = child.stderr.read()
    assert b"hvctl console a" in error and b"Traceback" not in error
    assert daemon.guests["guests/a"].state == guest_pb2.Guest.RUNNING


@pytest.mark.parametrize(
    "words",
    [("events",), ("trace", "-f", "a"), ("stats",), ("wait", "a"), ("list", "--watch")],
    ids=lambda words: words[0],
)
def test_interrupt_ends_every_stream_at_once(process: Start, daemon: FakeDaemon, words: tuple[str, ...]) -> None:
    setup = process("run", "-d", "--name", "a", "--append", "hang")
    assert setup.wait(DEADLINE) == 0
    calls = len(daemon.calls)
    child = process(*words)
    wait_for(lambda: len(daemon.calls) > calls, "the call did not come")
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE) == 130
    assert child.stderr and b"Traceback" not in child.stderr.read()


def test_a_reader_that_goes_away_is_no_traceback(process: Start, daemon: FakeDaemon) -> None:
    setup = process("run", "-d", "--name", "a", "--append", "hang")
    assert setup.wait(DEADLINE) == 0
    child = process("stats", "-o", "jsonl")
    assert child.stdout and child.stderr
    read_until(child.stdout.fileno(), b"\n")
    child.stdout.close()
    child.stdout = None
    assert child.wait(DEADLINE) == 141
    assert child.stderr.read() == b""


def test_list_watch_prints_every_change(process: Start, daemon: FakeDaemon) -> None:
    setup = process("run", "-d", "--name", "a", "--append", "hang")
    assert setup.wait(DEADLINE) == 0
    child = process("list", "--watch")
    assert child.stdout
    text = read_until(child.stdout.fileno(), b"RUNNING")
    assert text.startswith(b"NAME")
    daemon.change("guests/a", state=guest_pb2.Guest.PAUSED)
    assert b"NAME" not in read_until(child.stdout.fileno(), b"PAUSED")


def test_run_survives_a_restart_of_the_daemon(process: Start, daemon: FakeDaemon) -> None:
    child = process("run", "--name", "a", "--append", "say=up echo exit=6")
    assert child.stdin and child.stdout and child.stderr
    read_until(child.stdout.fileno(), b"up\r\n")
    daemon.stop()
    read_until(child.stderr.fileno(), b"lost the daemon")
    daemon.start()
    read_until(child.stderr.fileno(), b"attached again")
    wait_for(lambda: len(daemon.requests("AttachConsole")) == 2, "it did not attach again")
    child.stdin.write(b"x")
    child.stdin.flush()
    assert read_until(child.stdout.fileno(), b"]") == b"[x]"
    child.stdin.write(b"q")
    child.stdin.flush()
    assert child.wait(DEADLINE) == 6


# Each a place that a signal reaches in the middle of putting something in order.
_LATE_SIGNALS = {
    "when the guest has ended": ("say=up exit=3", """
from hvctl.verbs import run
tell_end = run.tell_end
def interrupted(ended):
    os.kill(os.getpid(), signal.SIGTERM)
    tell_end(ended)
run.tell_end = interrupted
"""),
    "while it is deleted": ("say=up hang", """
from hvctl.sdk.client import UnaryMethod
call = UnaryMethod.__call__
def interrupted(self, *args, **fields):
    if fields.get("force"):
        os.kill(os.getpid(), signal.SIGHUP)
    return call(self, *args, **fields)
UnaryMethod.__call__ = interrupted
"""),
}  # fmt: skip


@pytest.mark.parametrize("when", _LATE_SIGNALS)
def test_run_rm_deletes_the_guest_whenever_a_signal_comes(daemon: FakeDaemon, when: str) -> None:
    append, patch = _LATE_SIGNALS[when]
    code = f"import os, signal\n{patch}\nfrom hvctl.cli import main\nmain()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "run", "--rm", "--name", "a", "--append", append],
        env=environment(daemon), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        assert child.stdout and child.stderr
        read_until(child.stdout.fileno(), b"up")
        if "hang" in append:
            child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE) == 130
        assert b"Traceback" not in child.stderr.read()
    assert "guests/a" not in daemon.guests


def test_ctrl_c_again_ends_what_the_first_has_begun(daemon: FakeDaemon) -> None:
    code = """
import sys, threading
from hvctl.cli import main
from hvctl.sdk.client import UnaryMethod
call = UnaryMethod.__call__
def waiting(self, *args, **fields):
    if fields.get("force"):
        print("deleting", file=sys.stderr, flush=True)
        threading.Event().wait()
    return call(self, *args, **fields)
UnaryMethod.__call__ = waiting
main()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, "run", "--rm", "--name", "a", "--append", "say=up hang"],
        env=environment(daemon), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        assert child.stdout and child.stderr
        read_until(child.stdout.fileno(), b"up")
        child.send_signal(signal.SIGINT)
        read_until(child.stderr.fileno(), b"deleting")
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE) == 130


class Terminal:
    """hvctl on a pseudo terminal."""

    def __init__(self, daemon: FakeDaemon, *words: str, program: Sequence[str] = ("-m", "hvctl")) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.resize(24, 80)
        self.child = subprocess.Popen(
            # Not by a preexec_fn: that makes Popen fork(2), and grpc, which serves in this process, harms such a child.
            ["setsid", "--ctty", sys.executable, *program, *words],
            env=environment(daemon),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(DEADLINE)
        os.close(self.master)
        os.close(self.slave)


def test_a_terminal_is_raw_follows_its_size_and_detaches(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "run", "--name", "a", "--append", "say=up echo")
    try:
        assert b"^] detaches" in read_until(terminal.master, b"up\r\n")
        assert daemon.sizes == [(24, 80)]
        # Raw: Ctrl-C reaches the guest as a byte.
        os.write(terminal.master, b"\x03")
        read_until(terminal.master, b"[\x03]")
        terminal.resize(50, 132)
        wait_for(lambda: (50, 132) in daemon.sizes, "the size did not come")
        os.write(terminal.master, b"y\x1dz")
        read_until(terminal.master, b"goes on")
        assert terminal.child.wait(DEADLINE) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert daemon.guests["guests/a"].state == guest_pb2.Guest.RUNNING
    finally:
        terminal.close()


def test_the_terminal_is_restored_when_the_guest_ends(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "run", "--append", "say=up echo exit=3")
    try:
        read_until(terminal.master, b"up\r\n")
        os.write(terminal.master, b"q")
        assert terminal.child.wait(DEADLINE) == 3
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


def test_the_terminal_is_restored_when_a_signal_comes_before_that(daemon: FakeDaemon) -> None:
    code = """
import os, signal
from hvctl import terminal
from hvctl.cli import main
def interrupted(self):
    os.kill(os.getpid(), signal.SIGTERM)
terminal._Keyboard.stop = interrupted
main()
"""
    terminal = Terminal(daemon, "run", "--append", "say=up echo exit=3", program=("-c", code))
    try:
        read_until(terminal.master, b"up\r\n")
        os.write(terminal.master, b"q")
        assert terminal.child.wait(DEADLINE) == 130
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


@pytest.mark.parametrize("words", [("top",), ("stats",), ("list", "--watch")], ids=" ".join)
def test_live_views_on_a_terminal(daemon: FakeDaemon, words: tuple[str, ...]) -> None:
    setup = subprocess.run(
        [sys.executable, "-m", "hvctl", "run", "-d", "--name", "busy", "--append", "hang"],
        env=environment(daemon),
        timeout=DEADLINE,
        capture_output=True,
    )
    assert setup.returncode == 0
    terminal = Terminal(daemon, *words)
    try:
        assert b"\x1b[" in read_until(terminal.master, b"busy")
        os.write(terminal.master, b"\x03")
        assert terminal.child.wait(DEADLINE) == 130
    finally:
        terminal.close()


def test_colour_on_a_terminal_only_and_never_with_no_color(daemon: FakeDaemon) -> None:
    subprocess.run(
        [sys.executable, "-m", "hvctl", "run", "-d", "--name", "a", "--append", "hang"],
        env=environment(daemon),
        timeout=DEADLINE,
        capture_output=True,
        check=True,
    )
    for words, coloured in ((("list",), True), (("list", "--no-color"), False)):
        terminal = Terminal(daemon, *words)
        try:
            text = read_until(terminal.master, b"RUNNING")
            assert (b"\x1b[32m" in text) is coloured
        finally:
            terminal.close()


def test_an_interrupt_that_a_library_turns_into_a_failure_is_still_an_interrupt(daemon: FakeDaemon) -> None:
    code = """
import os, signal, sys
import hvctl.sdk.calls, hvctl.sdk.client, hvctl.verbs.listing
from hvctl.sdk.errors import HvctlError
from hvctl.cli import main

def interrupted(self, *rest, **fields):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 5)
    except KeyboardInterrupt:
        raise HvctlError("CANCELLED", "", {}, "cancelled", "") from None

hvctl.sdk.client.Client.guests = interrupted
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "list"], env=environment(daemon), capture_output=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_an_interrupt_takes_no_lock_of_another_thread() -> None:
    """As grpc waits. Raised at once, some of these hundreds would release what the other thread holds (RuntimeError)."""
    code = """
import os, random, signal, threading, time
from hvctl import cli
signal.signal(signal.SIGTERM, cli._terminate)
condition, go = threading.Condition(threading.Lock()), threading.Event()
failures = []
def notify():
    while True:
        try:
            with condition:
                condition.notify_all()
        except RuntimeError as error:
            failures.append(error)
def interrupt():
    while go.wait():
        go.clear()
        end = time.perf_counter() + 3e-4 * random.random()
        while time.perf_counter() < end:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
for target in (notify, interrupt):
    threading.Thread(target=target, daemon=True).start()
for _ in range(200):
    cli._raised = False
    go.set()
    try:
        while True:
            with condition:
                condition.wait(0.0005)
    except KeyboardInterrupt:
        assert condition.acquire(timeout=20)
        condition.release()
assert not failures, failures
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
