"""The VGA text screen and the keyboard, seen and typed through `hvctl screen` and `hvctl type`."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from real_daemon import RealDaemon, kernel, wait_for

from tests.guest_images import PROMPT, GuestUnavailable, guest_image, memtest86

BANNER = "╔══ screen ══╗\n████████████████\ntype, Esc ends\n"
FONT = Path("/usr/share/seabios/vgabios.bin")


def screen(daemon: RealDaemon, name: str) -> str:
    return daemon.ok("screen", name).stdout


@pytest.fixture
def guest(daemon: RealDaemon) -> str:
    name = daemon.run("screen.elf")
    daemon.wait_logs(name, "screen: ready")
    return name


def test_what_is_typed_stands_on_the_screen(daemon: RealDaemon, guest: str) -> None:
    assert screen(daemon, guest).startswith(BANNER)
    assert len(screen(daemon, guest).splitlines()) == 25
    done = daemon.ok("type", guest, "Hello, World!", "--key", "enter", "3*(4+5)", "--key", "backspace", "-o", "json")
    assert done.json["events"] == 2 * ((13 + 3) + 1 + (7 + 4) + 1)  # with a Shift for each of HW! and *(+)
    wait_for(lambda: screen(daemon, guest).startswith(f"{BANNER}Hello, World!\n3*(4+5\n"), lambda: screen(daemon, guest))
    found = daemon.ok("screen", guest, "-o", "json").json["screen"]
    assert (found["cursor_row"], found["cursor_column"]) == (4, 6)
    daemon.ok("type", guest, "--key", "esc")
    assert daemon.wait(guest)["exit_code"] == 7
    last = daemon.ok("screen", guest)  # is kept: many a kernel prints its result there and halts
    assert last.stdout.startswith(f"{BANNER}Hello, World!\n3*(4+5\n") and "has ended" in last.stderr
    assert "2a 23 a3 aa 12 92" in daemon.ok("logs", guest).stdout  # Shift, h, e: set 1, translated


def test_more_than_the_keyboard_holds_is_typed_as_the_guest_reads(daemon: RealDaemon, guest: str) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    daemon.ok("type", guest, text)
    last = text[len(text) // 80 * 80 :].strip()
    wait_for(lambda: last in screen(daemon, guest), lambda: screen(daemon, guest))


@pytest.mark.slow  # until it is told that the keyboard is full
def test_a_paused_guest(daemon: RealDaemon, guest: str) -> None:
    """Its screen can be read, a few keys fit its keyboard, and more do not."""
    daemon.ok("pause", guest)
    assert screen(daemon, guest).startswith(BANNER)
    daemon.ok("type", guest, "abc")
    assert screen(daemon, guest).startswith(BANNER + "\n")
    full = daemon.hvctl("type", guest, "defgh", "-o", "json")
    assert full.returncode == 124
    assert '"KEYBOARD_FULL"' in full.stderr and '"events": "4"' in full.stderr
    daemon.ok("resume", guest)
    wait_for(lambda: screen(daemon, guest).startswith(BANNER + "abcde\n"), lambda: screen(daemon, guest))
    daemon.ok("type", guest, "xyz")  # and nothing of what was given up comes later
    wait_for(lambda: screen(daemon, guest).startswith(BANNER + "abcdexyz\n"), lambda: screen(daemon, guest))


def test_watch(daemon: RealDaemon, guest: str) -> None:
    viewer = daemon.spawn("screen", guest, "--watch")
    terminal = daemon.terminal("screen", guest, "--watch")
    viewer.wait_out("type, Esc ends\n")
    terminal.wait_for("type, Esc ends")
    daemon.ok("type", guest, "new text")
    viewer.wait_out("new text\n")
    terminal.wait_for("new text")
    assert viewer.interrupt() == 130
    daemon.ok("type", guest, "--key", "esc")
    assert terminal.end() == 0 and terminal.restored  # with the guest's end


def test_a_picture(daemon: RealDaemon, guest: str, tmp_path: Path) -> None:
    if not FONT.exists():
        pytest.skip("no font: Debian's package seabios is not installed")
    daemon.ok("screen", guest, "--png", str(tmp_path / "a.png"))
    picture = (tmp_path / "a.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (720, 400)


@pytest.mark.parametrize(
    ("words", "problem"),
    [(["ä"], "a US keyboard does not have it"), (["--key", "ctrl-nope"], "there is no key 'nope'")],
)
def test_what_cannot_be_typed(daemon: RealDaemon, guest: str, words: list[str], problem: str) -> None:
    done = daemon.hvctl("type", guest, "abc", *words)
    assert done.returncode == 1 and problem in done.stderr
    assert "1e" not in daemon.ok("logs", guest).stdout  # nothing was typed


def test_a_guest_that_does_not_run(daemon: RealDaemon) -> None:
    daemon.ok("create", "--name", "a", "--kernel", kernel("screen.elf"), "--memory", "8M")
    for words in (("screen", "a"), ("type", "a", "x")):
        done = daemon.hvctl(*words)
        assert done.returncode == 4 and "hvctl start a" in done.stderr
    assert daemon.hvctl("screen", "nobody").returncode == 3



@pytest.mark.parametrize("boot", ["kernel", "disk"])
def test_a_teaching_kernel_without_a_serial_port(daemon: RealDaemon, boot: str) -> None:
    """guests/teach: MP tables, local APIC, IOAPIC keyboard, IDE by PIO; its only output is the screen."""
    if boot == "disk" and not FONT.exists():
        pytest.skip("no firmware: Debian's package seabios is not installed")
    daemon.ok("image", "import", f"teach-{boot}", kernel("teach.img"))
    how = ["--boot", "disk"] if boot == "disk" else ["--kernel", kernel("teach.elf")]
    daemon.ok("run", "-d", "--name", "a", *how, "--memory", "16M", "--disk", f"teach-{boot},bus=ide")

    def shows(text: str) -> None:
        wait_for(lambda: screen(daemon, "a").rstrip().endswith(text), lambda: screen(daemon, "a"))

    shows("MP tables found\ndisk found\nteach>")
    daemon.ok("type", "a", "cat welcome.txt", "--key", "enter")
    shows("It found this file on an IDE disk, one word at a time.\nteach>")
    daemon.ok("type", "a", "halt", "--key", "enter")
    assert daemon.wait("a")["reason"] == "HALTED"
    assert daemon.ok("screen", "a").stdout.rstrip().endswith("teach> halt")
    assert boot == "disk" or daemon.ok("logs", "a").stdout == ""  # SeaBIOS writes to both


@pytest.mark.timeout(300)
def test_debians_kernel_shows_its_console_on_the_screen(daemon: RealDaemon) -> None:
    """Its own drivers for VGA and keyboard, built in; told of the screen by the boot protocol."""
    try:
        image = guest_image("debian-cloud")
    except GuestUnavailable as error:
        pytest.skip(str(error))
    daemon.ok("run", "-d", "--name", "a", "--kernel", str(image.kernel), "--initrd", str(image.initrd), "--memory", "256M",
              "--append", "console=tty0")  # fmt: skip
    # Not "ends with": on a busy host the kernel has something to say about time, whenever it likes.
    wait_for(lambda: PROMPT.decode().strip() in screen(daemon, "a"), lambda: screen(daemon, "a"), 240)
    daemon.ok("type", "a", "echo the kernel says so >/dev/kmsg", "--key", "enter")
    wait_for(lambda: "] the kernel says so" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    daemon.ok("type", "a", "dmesg -n 1", "--key", "enter", "echo hi $((6*7))", "--key", "enter")
    wait_for(lambda: "\nhi 42\nguest #" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    daemon.ok("type", "a", "dmesg | grep -e VGA -e keyboard", "--key", "enter")
    wait_for(lambda: "AT Translated Set 2 keyboard" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    assert "Console: colour VGA+ 80x25" in screen(daemon, "a")
    # Its console scrolls by the start address; what stood there before is above it.
    daemon.ok("type", "a", "seq 100", "--key", "enter")
    wait_for(lambda: "99\n100\nguest #" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    # Ctrl-C, as every terminal has it.
    daemon.ok("type", "a", "sh -c 'echo sle\"\"eps; exec sleep 1000'", "--key", "enter")
    wait_for(lambda: "\nsleeps" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    daemon.ok("type", "a", "--key", "ctrl-c")
    # Without "^C" when the shell has taken the terminal's echo away before the kernel comes to that (drivers/tty/n_tty.c: first the signal).
    wait_for(lambda: re.search(r"sleeps\n(\^C)?\nguest #", screen(daemon, "a")), lambda: screen(daemon, "a"))
    daemon.ok("type", "a", "echo $?", "--key", "enter")
    wait_for(lambda: "\n130\nguest #" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    assert daemon.ok("logs", "a").stdout == ""  # all of it on the screen, none on the serial port


@pytest.mark.timeout(180)
def test_memtest86_on_its_own_screen(daemon: RealDaemon) -> None:
    """It polls the keyboard controller itself, and draws without any driver's help."""
    try:
        image = memtest86("x64")
    except GuestUnavailable as error:
        pytest.skip(str(error))
    daemon.ok("run", "-d", "--name", "a", "--kernel", str(image), "--memory", "16M")
    wait_for(lambda: "Press <F1> to configure" in screen(daemon, "a"), lambda: screen(daemon, "a"), 120)
    assert "Memtest86+ v" in screen(daemon, "a") and "hvd virtual CPU" in screen(daemon, "a")
    daemon.ok("type", "a", "--key", "f1")
    wait_for(lambda: "Settings:" in screen(daemon, "a"), lambda: screen(daemon, "a"))
    daemon.ok("type", "a", "--key", "f10")
    wait_for(lambda: "Settings:" not in screen(daemon, "a"), lambda: screen(daemon, "a"))
    daemon.ok("type", "a", "--key", "esc")
    assert daemon.wait("a")["reason"] == "RESET"
