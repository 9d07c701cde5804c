"""The console: on a terminal, by pipes, several viewers at once, beside the log."""

from __future__ import annotations

from pathlib import Path

from real_daemon import RealDaemon, kernel

# Asks for the console's size for ever, some hundred times a second (docs/hypercall.md): mov eax, 6; mov edx, 0x6870;
# again: out dx, eax; mov ecx, 0x100000; loop $; jmp again
ASKS_FOR_SIZE = bytes.fromhex("b806000000 ba70680000 ef b900001000 e2fe ebf6")


def test_run_on_a_terminal_detach_and_attach_again(daemon: RealDaemon) -> None:
    terminal = daemon.terminal("run", "--name", "a", "--kernel", kernel("echo.elf"), "--memory", "8M")
    terminal.wait_for("echo: type, q ends\r\n")
    terminal.type("one")
    terminal.wait_for("one")
    terminal.type("\x03")  # of a raw terminal, Ctrl-C is the guest's
    terminal.wait_for("\x03")
    terminal.type("\x1d")
    assert "hvctl console a" in terminal.wait_for("ends it")
    assert terminal.end() == 0 and terminal.restored
    assert daemon.show("a")["state"] == "RUNNING"

    again = daemon.terminal("console", "a")
    again.wait_for("echo: type, q ends\r\none")  # what was before is shown again
    again.type("two")
    again.wait_for("two")
    again.type("q")
    assert again.end() == 0 and again.restored
    assert daemon.show("a")["exit_code"] == 7


def test_several_viewers_and_the_log_see_the_same(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    first = daemon.spawn("console", name)
    viewers = [daemon.spawn("console", name), daemon.spawn("console", "--read-only", name)]
    log = daemon.spawn("logs", "-f", name)
    for each in (first, *viewers, log):
        each.wait_out("echo: type")
    first.type("alpha\n")
    for each in (first, *viewers, log):
        each.wait_out("alpha")
    viewers[0].type("beta\n")
    viewers[1].type("never\n")  # read only: goes nowhere
    for each in (first, *viewers, log):
        each.wait_out("beta\n")
    viewers[0].interrupt()  # one viewer leaves, the others stay
    first.type("gamma\nq")
    for each in (first, viewers[1]):
        assert each.end() == 0
        assert "gamma" in each.out and "never" not in each.out
    assert log.end() == 0 and log.out == daemon.ok("logs", name).stdout
    assert "never" not in log.out


def test_no_replay_shows_only_what_comes(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    daemon.wait_logs(name, "echo: type")
    viewer = daemon.terminal("console", "--no-replay", name)
    viewer.wait_for("^] detaches")
    viewer.type("xyz")
    assert "echo: type" not in viewer.wait_for("xyz")


def test_a_terminals_size_reaches_the_guest(daemon: RealDaemon, tmp_path: Path) -> None:
    image = tmp_path / "size.bin"
    image.write_bytes(ASKS_FOR_SIZE)
    daemon.ok("run", "-d", "--name", "a", "--kernel", str(image), "--flat", "0x100000", "--memory", "4M")
    trace = daemon.spawn("trace", "-f", "--reason", "hypercall.console-size", "a")
    trace.wait_out("hypercall.console-size() = 0x0 ")
    terminal = daemon.terminal("console", "a", rows=33, columns=101)
    trace.wait_out(f"hypercall.console-size() = {33 << 16 | 101:#x} ")
    terminal.resize(50, 132)
    trace.wait_out(f"hypercall.console-size() = {50 << 16 | 132:#x} ")
    terminal.type("\x1d")
    assert terminal.end() == 0


def test_a_pipe_that_nobody_reads_holds_up_nobody(daemon: RealDaemon) -> None:
    """A viewer that does not read, while the guest floods its console: the guest ends nevertheless."""
    daemon.ok("create", "--name", "a", "--kernel", kernel("flood.elf"), "--memory", "8M", "--append", "count=20000")
    daemon.ok("start", "--paused", "a")
    terminal = daemon.terminal("console", "a")
    terminal.wait_for("^] detaches")
    daemon.ok("resume", "a")
    assert daemon.wait("a")["reason"] == "EXITED"
