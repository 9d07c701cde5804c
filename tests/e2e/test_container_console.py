"""A container's console: standard input and its end, terminals, detaching."""

from __future__ import annotations

import os
import signal

from real_daemon import RealDaemon, wait_for
from test_containers import box, root  # noqa: F401  fixtures

RUN = ("run", "--backend", "container", "--image", "box")


def test_the_end_of_a_pipe_is_the_end_of_standard_input(box: RealDaemon) -> None:  # noqa: F811
    assert box.ok(*RUN, "--", "cat", stdin="hi\n").stdout == "hi\n"
    assert box.ok(*RUN, "--", "cat").stdout == ""
    large = "".join(f"line {number}\n" for number in range(40_000))
    assert box.ok(*RUN, "--", "cat", stdin=large).stdout == large
    assert box.ok(*RUN, "--", "sh", "-c", "sleep 0.5; wc -c", stdin=large).stdout.strip() == str(len(large))
    assert box.hvctl(*RUN, "--", "sh", "-c", "exit 3", stdin=large).returncode == 3  # it reads nothing


def test_a_viewer_that_leaves_ends_nothing_and_the_daemon_does(box: RealDaemon) -> None:  # noqa: F811
    child = box.spawn(*RUN, "--name", "c", "--", "sh", "-c", "while read word; do echo got $word; done; echo end")
    child.type("one\n")
    child.wait_out("got one")
    for words in (("--read-only",), ()):
        viewer = box.spawn("console", *words, "c")
        viewer.wait_out("got one")
        assert viewer.interrupt() == 130
    child.type("two\n")
    child.wait_out("got two")
    assert "end" not in child.out
    box.restart(signal.SIGKILL)
    assert "end" in box.wait_logs("c", "end\n")
    assert box.wait("c")["exit_code"] == 0


def test_a_detached_container_has_no_standard_input(box: RealDaemon) -> None:  # noqa: F811
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "cat")
    assert box.wait("c")["exit_code"] == 0
    box.ok("run", "-d", "-i", "--name", "open", "--image", "box", "--", "cat")
    typing = box.spawn("console", "open")
    typing.type("typed\n")
    typing.wait_out("typed")
    assert typing.popen.stdin
    typing.popen.stdin.close()  # its end is not that of an input which was to be kept open
    again = box.spawn("console", "open")
    again.type("more\n")
    again.wait_out("more")
    assert box.show("open")["state"] == "RUNNING"


def test_a_terminal_detaches_and_follows_the_size_of_the_window(box: RealDaemon) -> None:  # noqa: F811
    terminal = box.terminal("run", "-t", "--name", "c", "--image", "box", "--", "sh", rows=33, columns=77)
    terminal.type("stty size\n")
    terminal.wait_for("33 77")
    terminal.resize(20, 50)

    def is_resized() -> bool:
        terminal.type("stty size\n")
        return "20 50" in terminal.wait_for("/ # ")

    wait_for(is_resized, "the terminal has the window's size")
    terminal.type("\x1d")
    assert terminal.end() == 0 and terminal.restored
    assert box.show("c")["state"] == "RUNNING"
    again = box.terminal("console", "c")
    again.type("exit 6\n")
    assert again.end() == 0 and again.restored
    assert box.show("c")["exit_code"] == 6


def test_a_monitor_that_takes_its_viewer_late(box: RealDaemon) -> None:  # noqa: F811
    """It writes the log, and to those whom it has accepted; one that waits to be accepted misses nothing of a program that ends at once."""
    box.ok("create", "--name", "late", "--image", "box", "--", "sh", "-c", "read go; echo out")
    with box.client() as client:
        guest = client.start_guest(name="guests/late", attach_stdin=True)
        monitor = guest.monitor_pid
        with client.console("guests/late", replay_bytes=1 << 16) as typist:
            frames = typist.frames()
            assert next(frames).HasField("attached")
            os.kill(monitor, signal.SIGSTOP)  # busy with something else
            try:
                with client.console("guests/late", replay_bytes=1 << 16) as console:
                    late = console.frames()
                    assert next(late).HasField("attached")
                    typist.write(b"go\n")
                    os.kill(monitor, signal.SIGCONT)
                    shown = [frame for frame in late if frame.WhichOneof("frame") in ("output", "ended")]
            finally:
                if os.path.exists(f"/proc/{monitor}"):
                    os.kill(monitor, signal.SIGCONT)
        assert b"".join(frame.output for frame in shown if frame.WhichOneof("frame") == "output") == b"out\n"
