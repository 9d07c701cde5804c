"""`hvctl gdb`: the real gdb on real guests, and what becomes of a guest whose debugger is odd, or goes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from gdb_front import Remote, conditions, start, state
from hvctl.sdk import AsyncClient, Client, HvctlError
from real_daemon import BIN, RealDaemon, also_under, kernel, wait_for

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed: apt-get install gdb")

GRUB = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
SEABIOS = Path("/usr/share/seabios/bios.bin")


def run_gdb(
    daemon: RealDaemon, *commands: str, symbols: str = "", options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    words = [*(["--symbols", kernel(symbols)] if symbols else []), *options]
    executed = [word for command in ("set width 0", *commands) for word in ("-ex", command)]
    # One stream: what gdb is told to print by the stub is on its stderr, between its own lines.
    return subprocess.run(
        [str(BIN / "hvctl"), "gdb", *words, "g", "--", "-nx", "-batch", *executed],
        env=daemon.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def gdb(daemon: RealDaemon, *commands: str, symbols: str = "", options: tuple[str, ...] = ()) -> str:
    """What gdb printed for these commands, in batch mode."""
    done = run_gdb(daemon, *commands, symbols=symbols, options=options)
    assert done.returncode in (0, 1) and "hvctl:" not in done.stdout, done.stdout  # 1: gdb's last command failed
    return done.stdout


def code(guest: str, mnemonic: str) -> list[tuple[int, int]]:
    """Where instructions of that sort are in a kernel: the one before and it."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", kernel(guest)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    lines = [line for line in listing.splitlines() if re.match(r" *[0-9a-f]+:\t", line)]
    addresses = [int(line.split(":")[0], 16) for line in lines]
    wanted = (n for n, line in enumerate(lines) if re.search(rf"\t{mnemonic}(\s|$)", line))
    return [(addresses[n - 1], addresses[n]) for n in wanted]


def same_content(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


# ---- what a debugger is for


@also_under("rewriting")
def test_break_step_registers_and_memory(daemon: RealDaemon) -> None:
    start(daemon, "interrupts.elf")
    out = gdb(
        daemon, "break main", "continue", "info registers eip esp cr0 cs", "backtrace", "x/3i $pc", "stepi", "x/s &guest_name",
        "set var *(int *)$esp = 0x1234", "x/xw $esp", "p $eax = 7", "p $eax", "p/x $cr0", "x/xw 0xf0000000",
        symbols="interrupts.elf",
    )  # fmt: skip
    assert re.search(r"Breakpoint 1, 0x[0-9a-f]+ in main \(\)", out)
    assert re.search(r"eip +0x[0-9a-f]+ +0x[0-9a-f]+ <main(\+\d+)?>", out)
    assert re.search(r"cr0 +0x11 +\[ PE ET \]", out)
    assert re.search(r"#0 +0x[0-9a-f]+ in main \(\)", out)
    assert '"interrupts"' in out
    assert "0x00001234" in out
    assert "= 7\n" in out
    assert "Cannot access memory at address 0xf0000000" in out


@also_under("rewriting")
def test_a_hardware_watchpoint_shows_old_and_new_value(daemon: RealDaemon) -> None:
    start(daemon, "interrupts.elf")
    out = gdb(
        daemon,
        "watch *(int *)&ticks",
        *["continue"] * 3,
        "delete",
        "rwatch *(int *)&ticks",
        "continue",
        symbols="interrupts.elf",
    )
    assert "Hardware watchpoint 1: *(int *)&ticks" in out
    assert "Old value = 1\nNew value = 2" in out
    assert "Hardware read watchpoint 2: *(int *)&ticks" in out
    assert re.search(r"Value = \d", out)


def test_a_step_crosses_a_hypercall_and_shows_it(daemon: RealDaemon) -> None:
    start(daemon, "hypercalls.elf")
    out = gdb(daemon, "break main", "continue", *["stepi"] * 300, symbols="hypercalls.elf")
    crossings = re.findall(r"hvd: (\S+\(.*?\)(?: = \S+)?) rip=0x([0-9a-f]+)\n0x([0-9a-f]+) in", out)
    calls = [text for text, _, _ in crossings if text.startswith("hypercall.")]
    assert calls[0] == "hypercall.version() = 1"
    assert re.fullmatch(r"hypercall\.log\(address=0x[0-9a-f]+, length=21\) = 0", calls[1])
    for text, at, then in crossings:
        if text.startswith("hypercall."):
            assert int(then, 16) == int(at, 16) + 1, "behind OUT, which is one byte long"
    assert state(daemon) != "FAILED"


def test_what_led_to_a_stop_is_shown_on_demand(daemon: RealDaemon) -> None:
    start(daemon, "interrupts.elf")
    watching = ("watch *(int *)&ticks", "continue", "continue")
    out = gdb(daemon, "monitor trace on", *watching, symbols="interrupts.elf")
    assert re.search(r"hvd: interrupt\(vector=0x20\) rip=0x[0-9a-f]+\n(hvd: .*\n)*\nHardware watchpoint 1", out)
    daemon.ok("delete", "--force", "g")
    start(daemon, "interrupts.elf")
    assert "hvd: " not in gdb(daemon, *watching, symbols="interrupts.elf")


@pytest.mark.parametrize(
    ("mnemonic", "handler", "crossing"),
    [
        ("int3", "stub_3", r"software-interrupt\(vector=0x03, accumulator=0x[0-9a-f]+\)"),
        ("ud2", "stub_6", r"exception\.invalid-opcode\(error-code=0x0\)"),
        ("div    %ecx", "stub_0", r"exception\.divide-error\(error-code=0x0\)"),
    ],
)
def test_a_step_over_a_trap_ends_in_its_handler_and_shows_it(
    daemon: RealDaemon, mnemonic: str, handler: str, crossing: str
) -> None:
    start(daemon, "exceptions.elf")
    before, at = code("exceptions.elf", mnemonic)[-1]
    out = gdb(
        daemon,
        f"break *{before:#x}",  # gdb by itself skips an INT3 that has a breakpoint
        "continue",
        "stepi",
        "stepi",
        "info registers eip",
        "delete",
        "continue",
        symbols="exceptions.elf",
    )
    assert re.search(rf"hvd: {crossing} rip={at:#x}\n", out)
    assert re.search(rf"eip +0x[0-9a-f]+ +0x[0-9a-f]+ <{handler}>", out)
    assert "exited normally" in out
    assert daemon.wait("g")["reason"] == "EXITED"


def test_a_step_over_hlt_waits_for_the_interrupt(daemon: RealDaemon) -> None:
    start(daemon, "interrupts.elf")
    out = gdb(daemon, f"break *{code('interrupts.elf', 'hlt')[-1][1]:#x}", "continue", "stepi",
              symbols="interrupts.elf")  # fmt: skip
    assert re.search(r"hvd: halt\(interrupts=true\)", out)
    assert re.search(r"hvd: interrupt\(vector=0x20\)", out)
    assert "in stub_32 ()" in out


def test_a_64_bit_guest(daemon: RealDaemon) -> None:
    """It begins in 32-bit mode; the symbols say what it will be."""
    start(daemon, "long.elf")
    out = gdb(
        daemon,
        "break main",
        "continue",
        "info registers rip rsp r15 efer",
        "monitor translate main",
        "monitor translate 0x100000",
        "show architecture",
        "watch *(long *)(0xffffffff80000000 + (long)&'word.1')",  # where the guest writes it
        "continue",
        symbols="long.elf",
    )
    assert re.search(r"Breakpoint 1, 0x0*[0-9a-f]+ in main \(\)", out)
    assert re.search(r"efer +0x[0-9a-f]*500 +\[ LME LMA \]", out)
    assert "i386:x86-64" in out
    assert re.search(r"PML4E +at 0x[0-9a-f]+: 0x[0-9a-f]{16}", out)
    assert re.search(r"0x100000 -> 0x100000 \(4-level paging, 2048 KiB page, rwx", out)
    assert "'main' is no number" in out
    assert "New value = 42" in out


@pytest.mark.skipif(
    not (GRUB.exists() and SEABIOS.exists()), reason="no grub-rescue-pc or seabios: apt-get install them"
)
def test_a_boot_sector_in_real_mode(daemon: RealDaemon) -> None:
    """From the reset vector through the BIOS to the boot loader."""
    daemon.ok("image", "import", "grub", str(GRUB), "--kind", "cdrom")
    try:
        daemon.ok("create", "--name", "g", "--backend", "emulation", "--boot", "cdrom", "--cdrom", "grub")
        daemon.ok("start", "--paused", "g")
        out = gdb(
            daemon,
            "info registers eip cs_base",
            "break *0x7c00",
            "continue",
            "info registers eip cs_base",
            "x/2i $pc",
            "stepi",
        )
        assert re.search(r"eip +0xfff0 .*\ncs_base +0xffff0000 ", out)
        assert re.search(r"Breakpoint 1, 0x0*7c00 in", out)
        assert re.search(r"0x7c00:\tcall +0x7c03\n +0x7c03:\tjmp", out), "16-bit code"
        assert "0x00007c03 in" in out
    finally:
        daemon.ok("delete", "--force", "g")
        daemon.ok("image", "delete", "grub")


def test_virtual_and_physical_memory(daemon: RealDaemon) -> None:
    """paging.elf maps a page twice; the monitor reads what lies behind."""
    start(daemon, "long.elf")
    out = gdb(
        daemon, "break main", "continue", "x/xw 0xffffffff80100000", "x/xw 0x100000", "monitor xp 0x100000 4", "monitor phys on",
        "x/xw 0xffffffff80100000", "x/xw 0x100000", "monitor phys off", "monitor xp 0xf0000000 4", "monitor xp 1", symbols="long.elf",
    )  # fmt: skip
    words = re.findall(r"^0x(?:ffffffff80)?100000.*:\s+0x([0-9a-f]{8})$", out, re.MULTILINE)
    assert len(words) == 3 and len(set(words)) == 1
    assert bytes.fromhex(words[0])[::-1].hex(" ") in out
    assert "Cannot access memory at address 0xffffffff80100000" in out
    assert "not within the guest's memory" in out and "monitor xp ADDRESS LENGTH" in out


def test_floating_point_and_vector_registers(daemon: RealDaemon) -> None:
    start(daemon, "spin.elf")
    out = gdb(daemon, "p $xmm1.v4i32[2] = 77", "p $xmm1", "p $st0 = 1.5", "p $st0", "info float",
              "p $fctrl", "p $mxcsr")  # fmt: skip
    assert "v4i32 = {0, 0, 77, 0}" in out
    assert "= 1.5\n" in out
    assert "[ IM DM ZM OM UM PM ]" in out


def test_the_guests_own_symbols(daemon: RealDaemon) -> None:
    """Given to `hvctl run`, fetched by `hvctl gdb`, and kept."""
    cache = daemon.directory / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    try:
        start(daemon, "hello.elf", "--symbols", kernel("hello.elf"))
        for _ in range(2):
            assert "in _start ()" in gdb(daemon)
        (kept,) = (cache / "hvctl" / "symbols").iterdir()
        assert kept.read_bytes() == Path(kernel("hello.elf")).read_bytes()
        assert "in ?? ()" in gdb(daemon, options=("--no-symbols",))
    finally:
        del os.environ["XDG_CACHE_HOME"]


def test_the_guests_end_is_the_debuggers_news(daemon: RealDaemon) -> None:
    start(daemon, "hello.elf", "--append", "exit=3")
    out = gdb(daemon, "continue")
    assert re.search(r"\[Inferior 1 \(.*\) exited (with code 0\d|normally)\]", out)
    daemon.wait("g")


def test_gdbs_kill_is_the_guests_end(daemon: RealDaemon) -> None:
    start(daemon, "spin.elf", paused=False)
    gdb(daemon, "kill")
    assert daemon.wait("g")["reason"] == "KILLED"


# ---- interrupting, going and coming back


def test_ctrl_c_on_a_terminal(daemon: RealDaemon) -> None:
    start(daemon, "spin.elf", paused=False)
    terminal = daemon.terminal("gdb", "--symbols", kernel("spin.elf"), "g", "--", "-nx", "-ex", "set style enabled off")
    terminal.wait_for("(gdb) ")
    terminal.type("continue\n")
    terminal.wait_for("Continuing.")
    wait_for(lambda: state(daemon) == "RUNNING", "the guest runs")
    terminal.type("\x03")
    terminal.wait_for("Program received signal SIGINT")
    terminal.wait_for("in main ()")
    terminal.wait_for("(gdb) ")
    assert state(daemon) == "PAUSED"
    terminal.type("detach\n")
    terminal.wait_for("detached]")
    terminal.wait_for("(gdb) ")
    wait_for(lambda: state(daemon) == "RUNNING", "the guest goes on")
    # gdb comes back over the same bridge.
    terminal.type("target remote " + terminal_socket(terminal) + "\n")
    terminal.wait_for("in main ()")
    terminal.type("quit\n")
    terminal.wait_for("(y or n) ")
    terminal.type("y\n")
    assert terminal.end() == 0
    wait_for(lambda: state(daemon) == "RUNNING" and not conditions(daemon), "the guest goes on")


def terminal_socket(terminal: object) -> str:
    """The socket of an `hvctl gdb`: its gdb has the path among its arguments."""
    pid = terminal.child.pid  # type: ignore[attr-defined]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    while children:
        words = Path(f"/proc/{children[0]}/cmdline").read_bytes().split(b"\0")
        for word in words:
            if word.startswith(b"target remote "):
                return word.removeprefix(b"target remote ").decode()
        children = Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split()
    raise AssertionError("no gdb")


def test_a_guest_goes_on_when_its_debugger_vanishes(daemon: RealDaemon) -> None:
    start(daemon, "spin.elf", paused=False)
    bridge = daemon.spawn("gdb", "--stdio", "g")
    bridge.type("$?#3f")
    bridge.wait_out("$T05thread:01;#")
    bridge.type("$Z0,100000,1#79")
    wait_for(lambda: state(daemon) == "PAUSED" and conditions(daemon) == {"DEBUGGED"}, "the debugger holds it")
    bridge.popen.kill()
    wait_for(lambda: state(daemon) == "RUNNING" and not conditions(daemon), "it goes on")
    # Another one finds no trace of the first.
    assert "No breakpoints" in gdb(daemon, "info breakpoints")


def test_a_guest_that_was_paused_stays_paused(daemon: RealDaemon) -> None:
    start(daemon, "spin.elf")
    gdb(daemon, "info registers")
    assert state(daemon) == "PAUSED"
    gdb(daemon, "stepi")
    wait_for(lambda: state(daemon) == "RUNNING", "gdb has let it go, and then it left")


def test_one_debugger_at_a_time(daemon: RealDaemon, client: Client) -> None:
    start(daemon, "spin.elf", paused=False)
    with client.debug("guests/g"):
        done = run_gdb(daemon)
        assert done.returncode == 4
        assert "a guest has one debugger at a time" in done.stdout
        with pytest.raises(HvctlError) as refused:
            client.debug("guests/g")
        assert refused.value.reason == "DEBUGGER_ATTACHED"
    wait_for(lambda: not conditions(daemon), "it has left")
    gdb(daemon)


def test_other_verbs_while_a_debugger_is_attached(daemon: RealDaemon, client: Client) -> None:
    start(daemon, "ticker.elf", "--append", "count=100000")
    with client.debug("guests/g") as session:
        remote = Remote(session)
        assert remote.ask(b"?") == b"T05thread:01;"
        done = daemon.hvctl("resume", "g")
        assert (done.returncode, "let it go on there" in done.stderr) == (4, True)
        remote.send(b"c")
        wait_for(lambda: state(daemon) == "RUNNING", "it runs")
        daemon.ok("pause", "g")
        assert remote.packet() == b"T02thread:01;", "gdb learns of it"
        assert state(daemon) == "PAUSED"
        entry = remote.ask(b"p8")
        daemon.ok("reset", "g")
        assert state(daemon) == "PAUSED"
        assert remote.ask(b"p8") != entry
        assert remote.ask(b"Z1,%x,1" % int.from_bytes(bytes.fromhex(remote.ask(b"p8").decode()), "little")) == b"OK"
        remote.send(b"s")
        assert remote.packet() == b"T05thread:01;"
        remote.send(b"c")
        wait_for(lambda: state(daemon) == "RUNNING", "it runs")
        daemon.ok("reset", "g")
        assert remote.packet().startswith(b"T05"), "the breakpoint at its entry outlives the reset"
        daemon.ok("kill", "g")
        assert remote.packet() == b"X09"
    assert daemon.show("g")["reason"] == "KILLED"


def test_stop_ends_a_guest_that_the_debugger_holds(daemon: RealDaemon, client: Client) -> None:
    start(daemon, "spin.elf", paused=False)
    with client.debug("guests/g"):
        daemon.ok("stop", "g")
    assert state(daemon) == "STOPPED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_daemon_may_come_back_under_a_debugger(own_daemon: RealDaemon, number: signal.Signals) -> None:
    start(own_daemon, "spin.elf", paused=False)
    bridge = own_daemon.spawn("gdb", "--stdio", "g")
    bridge.type("$?#3f")
    bridge.wait_out("$T05")
    own_daemon.restart(number)
    assert bridge.end() != 0
    wait_for(lambda: state(own_daemon) == "RUNNING" and not conditions(own_daemon), "the guest goes on")
    gdb(own_daemon)


# ---- other front ends


def test_gdb_over_a_pipe(daemon: RealDaemon) -> None:
    start(daemon, "hello.elf")
    hvctl = BIN / "hvctl"
    words = [
        "gdb",
        "-nx",
        "-batch",
        kernel("hello.elf"),
        "-ex",
        f"target remote | {hvctl} gdb --stdio g",
        "-ex",
        "info registers eip",
    ]
    done = subprocess.run(
        words, env=daemon.environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert re.search(r"eip +0x[0-9a-f]+ +0x[0-9a-f]+ <_start>", done.stdout), done.stderr


def test_a_front_end_over_tcp_and_again(daemon: RealDaemon) -> None:
    start(daemon, "spin.elf", paused=False)
    server = daemon.spawn("gdb", "--port", "0", "g")
    text = server.wait_err("Ctrl-C ends")
    host, port = re.search(r"target remote ([\d.]+):(\d+)", text).groups()  # type: ignore[union-attr]
    assert host == "127.0.0.1"
    for _ in range(2):
        with socket.create_connection((host, int(port)), timeout=60) as front:
            front.sendall(b"$qAttached#8f")
            assert front.recv(1) == b"+"
        wait_for(lambda: not conditions(daemon), "it has left")
    assert server.interrupt() == 130


async def test_the_sdk_for_asyncio(daemon: RealDaemon, tmp_path: Path) -> None:
    start(daemon, "spin.elf", "--symbols", kernel("spin.elf"))
    async with AsyncClient(daemon.endpoint) as client:
        async with client.debug("guests/g", architecture="i386:x86-64") as session:
            assert session.architecture == "i386:x86-64"
            await client.download_file(session.symbols, tmp_path / "symbols")
            await session.write(b"$?#3f")
            data = b""
            async for piece in session:
                data += piece
                if b"$T05thread:01;#" in data:
                    break
        assert same_content(tmp_path / "symbols", Path(kernel("spin.elf")))
        with pytest.raises(HvctlError) as absent:
            await client.download_file("sha256:" + "0" * 64, tmp_path / "absent")
        assert absent.value.reason == "BLOB_NOT_FOUND"
    wait_for(lambda: not conditions(daemon), "it has left")


def test_a_slow_reader_is_not_buffered_without_end(daemon: RealDaemon, client: Client) -> None:
    """Who asks and does not read: what waits for it is bounded, and its answers come when it does."""
    start(daemon, "spin.elf")
    with client.debug("guests/g") as session:
        remote = Remote(session)
        for _ in range(300):
            remote.send(b"m0,7000")
        for _ in range(300):
            assert len(remote.packet()) == 2 * 0x7000
        assert remote.ask(b"qC") == b"QC1"
