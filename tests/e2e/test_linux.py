"""Real kernels, unmodified: the project's small Linux, Debian's stock kernels, memtest86+; booted, typed at, put to work, ended.

What is fetched or built lies in the daemon's cache; a guest that cannot be had here is a skip that says why.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from guest_shell import BOOT_SECONDS, SHELL, Shell, quiet_shell
from real_daemon import Process, RealDaemon, kernel, wait_for

from tests.guest_images import GuestUnavailable, guest_image, is_built, memtest86

# What `hvctl image build` may take that finds nothing in its cache.
BUILD_SECONDS = 2400.0


def _own(name: str, arch: str) -> object:
    """A parameter: the small Linux. Building it takes minutes, so without one in the cache its tests are slow ones."""
    marks = [pytest.mark.timeout(BUILD_SECONDS)]
    if not is_built(name if name == "linux-pv" else f"linux-{arch}"):
        print(f"{name} is not in the cache: its tests build it, which takes minutes, and are marked slow")
        marks.append(pytest.mark.slow)
    return pytest.param((name, arch), id=name, marks=marks)


own_linux = pytest.mark.parametrize("own", [_own("linux", "i386"), _own("linux64", "x86_64")], indirect=True)


@pytest.fixture
def own(request: pytest.FixtureRequest, shared_daemon: RealDaemon) -> str:
    """The name of the image, built by `hvctl image build linux`."""
    name, arch = request.param
    recipe = "linux-pv" if name == "linux-pv" else "linux"
    images = shared_daemon.ok("image", "list", "-o", "name").stdout.split()
    if f"images/{name}" not in images:
        built = shared_daemon.hvctl("image", "build", recipe, "--arch", arch, timeout=BUILD_SECONDS)
        if built.returncode and any(reason in built.stderr for reason in ("PACKAGE_", "apt ")):
            pytest.skip(built.stderr)
        assert built.returncode == 0, built.stderr
        assert "100%" in built.stderr, "progress is shown"
    return str(name)


def needs_backend(daemon: RealDaemon, name: str) -> None:
    """Skips the test, with the backend's own reason, where it cannot run."""
    for backend in json.loads(daemon.ok("-o", "json", "backends").stdout)["backends"]:
        if backend["name"] == f"backends/{name}" and not backend.get("available"):
            pytest.skip(f"backend {name} does not run here: {backend['reason']}")


def work(shell: Shell) -> None:
    """What shows whether code is stale or state is lost: the same programs again and again, in fresh processes, by pipes."""
    assert shell("echo $((6*7))") == "42"
    known = hashlib.md5(b"hvd was here\n").hexdigest()
    assert shell("echo hvd was here | md5sum") == f"{known}  -"
    loop = 'n=0; for i in $(seq 200); do [ "$(echo hvd was here | md5sum)" = "%s  -" ] && n=$((n+1)); done; echo same $n'
    assert shell(loop % known) == "same 200"
    sums = shell("for i in $(seq 10); do sha256sum /bin/busybox; done | sort | uniq -c")
    assert re.fullmatch(r"10 [0-9a-f]{64}  /bin/busybox", sums), sums
    # The same data through several programs at once, sorted and back.
    assert shell("seq 2000 | sort -r | sort -n | tr '\\n' ' ' | md5sum") == shell("seq 2000 | tr '\\n' ' ' | md5sum")
    assert shell("echo aGVsbG8= | base64 -d | gzip -c | gunzip -c; echo") == "hello"
    # Time goes by: to the uptime's hundredths, which are the guest's own clock.
    slept = shell("read a _ </proc/uptime; sleep 1.5; read b _ </proc/uptime; echo $a $b").split()
    assert 1.4 < float(slept[1]) - float(slept[0]) < 60, slept
    # A child that changes memory it shares with its parent (copy on write), and a fault that is caught.
    assert shell("x=1; (x=2; echo $x); echo $x") == "2\n1"
    assert shell("sh -c 'kill -SEGV $$'; echo status $?").endswith("status 139")


own_linux_i386 = pytest.mark.parametrize("own", [_own("linux", "i386")], indirect=True)


@own_linux_i386
def test_own_linux_rewritten(daemon: RealDaemon, own: str) -> None:
    """Unmodified, and its kernel code translated: the same as under emulation."""
    needs_backend(daemon, "rewriting")
    process = daemon.spawn("run", "--name", "a", "--backend", "rewriting", "--image", own)
    shell = quiet_shell(process)
    assert re.fullmatch("i[3456]86", shell("uname -m"))
    work(shell)
    summary = daemon.ok("trace", "summary", "a").stdout
    assert "translation.block" in summary
    shell.type("reboot -f\n")
    assert process.end() == 0
    assert daemon.listed()["a"]["reason"] == "RESET"


@own_linux
def test_own_linux(daemon: RealDaemon, own: str) -> None:
    process = daemon.spawn("run", "--name", "a", "--backend", "emulation", "--image", own)
    shell = quiet_shell(process)
    machine = {"linux": "i[3456]86", "linux64": "x86_64"}[own]
    assert re.fullmatch(machine, shell("uname -m"))
    work(shell)
    shell.type("reboot -f\n")
    assert process.end() == 0
    found = daemon.listed()["a"]
    assert (found["state"], found["reason"], found["exit_code"]) == ("STOPPED", "RESET", 0)


@own_linux
def test_own_linux_on_a_terminal(daemon: RealDaemon, own: str) -> None:
    """Line editing, ^C and job control need a raw terminal on this side and a controlling one on the guest's."""
    terminal = daemon.terminal("run", "--name", "a", "--image", own)
    terminal.wait_for(SHELL, BOOT_SECONDS)
    terminal.type("dmesg -n 1\n")
    terminal.wait_for(SHELL)
    terminal.type("sh -c 'echo sle\"\"eps; sleep 1000'\n")
    terminal.wait_for("sleeps\r\n")
    terminal.type("\x03")
    terminal.wait_for(SHELL)
    terminal.type("echo $?x\n")
    terminal.wait_for("130x\r\n")
    terminal.type("\x1d")
    assert terminal.end() == 0 and terminal.restored
    viewer = daemon.spawn("console", "a")
    viewer.wait_out("130x")
    daemon.ok("pause", "a")
    daemon.ok("resume", "a")
    viewer.type("echo still $((40+2))\n")
    viewer.wait_out("still 42")
    daemon.ok("reset", "a")
    wait_for(lambda: daemon.ok("logs", "a").stdout.count("BusyBox v") == 2, "a second boot", BOOT_SECONDS)


@own_linux
def test_own_linux_restarts_itself(daemon: RealDaemon, own: str) -> None:
    process = daemon.spawn("run", "--name", "a", "--image", own, "--on-reset", "restart")
    shell = quiet_shell(process)
    pid = daemon.runner("a")
    shell.type("reboot -f\n")
    process_again = wait_for(lambda: process.out.count("BusyBox v") == 2, "a second boot", BOOT_SECONDS)
    assert process_again and daemon.runner("a") == pid
    daemon.ok("kill", "a")
    assert process.end() == 137


@own_linux
@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed: apt-get install gdb")
def test_own_linux_under_gdb_shows_function_names(daemon: RealDaemon, own: str) -> None:
    """The image's own symbols; break in the middle of a system call, look around, let it go on."""
    process = daemon.spawn("run", "--name", "a", "--backend", "emulation", "--image", own)
    shell = quiet_shell(process)
    commands = ["set width 0", "break do_sys_openat2", "continue", "backtrace", "x/s &linux_banner", "finish", "stepi", "delete", "detach"]
    gdb = daemon.spawn("gdb", "a", "--", "-nx", "-batch", *(word for command in commands for word in ("-ex", command)))
    # Attached, and let go on.
    wait_for(lambda: (guest := daemon.show("a"))["state"] == "RUNNING" and guest.get("conditions"), "gdb waits for its breakpoint")
    shell.type("cat /proc/version\n")
    assert gdb.end(BOOT_SECONDS) == 0, gdb.err
    assert re.search(r"Breakpoint 1, 0x[0-9a-f]+ in do_sys_openat2 \(\)", gdb.out), gdb.out
    entry = {"linux": "__ia32_sys_openat", "linux64": "__x64_sys_openat"}[own]
    assert re.search(rf"#1 +0x[0-9a-f]+ in {entry} \(\)", gdb.out), gdb.out
    # What FINISH and STEPI came to, behind the banner.
    assert re.search(rf'"Linux version .*\n0x[0-9a-f]+ in {entry} \(\)\n0x[0-9a-f]+ in {entry} \(\)\n', gdb.out), gdb.out
    process.wait_out("Linux version", BOOT_SECONDS)
    assert shell("echo $((6*7))").endswith("42")


def _debian(daemon: RealDaemon, name: str, backend: str, programs: Sequence[Path]) -> Iterator[tuple[Process, Shell]]:
    try:
        image = guest_image(name, programs=programs)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    # As the issue writes it, with the memory that a guest has by default.
    process = daemon.spawn("run", "--backend", backend, "--name", "a", "--kernel", str(image.kernel),
                           "--initrd", str(image.initrd), "--append", "console=ttyS0")  # fmt: skip
    yield process, quiet_shell(process)


def _check_debian(daemon: RealDaemon, name: str, machine: str, backend: str = "emulation", programs: Sequence[Path] = ()) -> None:
    for process, shell in _debian(daemon, name, backend, programs):
        assert "Linux version" in shell.boot
        assert "isapnp: Scanning" not in shell.boot  # a third of a second of delays: the board has no ISA slots
        assert re.fullmatch(machine, shell("uname -m"))
        work(shell)
        for program in programs:
            assert " ok " in (said := shell(f"/bin/{program.name}")) or said.endswith(": none"), said
        # It may distrust it later, when the host runs something else between two of its readings.
        assert "Switched to clocksource tsc" in shell("dmesg | grep clocksource")
        shell.type("reboot -f\n")
        assert process.end() == 0
        assert daemon.listed()["a"]["reason"] == "RESET"


@pytest.mark.timeout(600)
def test_debians_cloud_kernel(daemon: RealDaemon) -> None:
    _check_debian(daemon, "debian-cloud", "x86_64")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_debians_686_kernel(daemon: RealDaemon) -> None:
    _check_debian(daemon, "debian-686", "i[3456]86")


@pytest.mark.parametrize("name", ["debian-686", pytest.param("debian-686-pae", marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_debians_32_bit_kernels_rewritten(daemon: RealDaemon, name: str) -> None:
    """With their default command line: ACPI, the APICs, alternatives patched at boot, exception tables."""
    needs_backend(daemon, "rewriting")
    avx = Path(kernel("avx"))  # what the kernel knows nothing of, and its programs can use
    sites = Path(kernel("sites"))  # INT 80 in every shape
    watched = Path(kernel("watched"))  # a debugger's use of breakpoint registers
    _check_debian(daemon, name, "i[3456]86", "rewriting", [avx, sites, watched])


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("x64", "emulation", marks=pytest.mark.timeout(300)),
        pytest.param("ia32", "emulation", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param("ia32", "rewriting", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
def test_memtest86(daemon: RealDaemon, name: str, backend: str) -> None:
    """Its screen on the serial line, with tests that go on and find no error."""
    needs_backend(daemon, backend)
    try:
        image = memtest86(name)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    # It redraws every two seconds, and shows a test only that is running then: of 16 MiB, natively, perhaps none.
    memory = "128M" if backend == "rewriting" else "16M"
    process = daemon.spawn("run", "--backend", backend, "--name", "a", "--kernel", str(image), "--memory", memory,
                           "--append", "console=ttyS0,115200")  # fmt: skip
    process.wait_out("[Address test, walking ones, no cache]", BOOT_SECONDS)
    process.wait_out("Testing", BOOT_SECONDS)
    process.wait_out("[Moving inversions", BOOT_SECONDS)  # a later test
    if backend == "rewriting":  # all of them but the last, which waits for minutes
        process.wait_out("[Bit fade test", BOOT_SECONDS)
        assert "Errors: 0" in daemon.ok("screen", "a").stdout
    assert not re.findall(r"Errors: *[1-9]", process.out)
    daemon.ok("kill", "a")
    assert process.end() == 137
