"""The own Linux by hvpvcc (docs/hvpvcc.md): paravirtual under paravirt, with almost no traps; an ordinary kernel elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from guest_shell import quiet_shell
from real_daemon import RealDaemon
from test_linux import BUILD_SECONDS, _own, needs_backend, own, work

from tests.guest_images import GuestUnavailable, guest_image

__all__ = ["own"]  # the fixture

linux_pv = pytest.mark.parametrize("own", [_own("linux-pv", "i386")], indirect=True)


@pytest.mark.slow
@linux_pv
def test_linux_pv_under_paravirt(daemon: RealDaemon, own: str) -> None:
    """It works, and what its kernel does all the time crosses nothing: interrupt flag, flags, control registers, selectors."""
    needs_backend(daemon, "paravirt")
    process = daemon.spawn("run", "--name", "a", "--backend", "paravirt", "--image", own)
    shell = quiet_shell(process)
    assert re.fullmatch("i[3456]86", shell("uname -m"))
    work(shell)
    summary = daemon.ok("trace", "summary", "a").stdout
    for never in ("privileged.pushf", "privileged.popf", "privileged.store-selector", "translation."):
        assert never not in summary, summary
    found = {words[1]: int(words[2]) for line in summary.splitlines()[1:] if len(words := line.split()) > 2}
    # CLI and STI that reach the monitor: an interrupt waited.
    assert found.get("privileged.cli", 0) < 100
    assert found.get("privileged.sti", 0) < found["interrupt"] + 100
    # Behind its text are what it needed for the boot alone, and what lies there by now: no code.
    symbols = (guest_image("linux-pv").kernel.parent / "System.map").read_text()
    end = int(next(line for line in symbols.splitlines() if line.endswith(" _etext")).split()[0], 16)
    found_there = [line for line in daemon.ok("census", "a").stdout.splitlines()[1:] if int(line.split()[0], 16) < end]
    assert not found_there
    shell.type("reboot -f\n")
    assert process.end() == 0
    assert daemon.listed()["a"]["reason"] == "RESET"


@pytest.mark.slow
@linux_pv
@pytest.mark.parametrize("backend", ["emulation", "rewriting"])
def test_linux_pv_elsewhere(daemon: RealDaemon, own: str, backend: str) -> None:
    """The same image, which nobody replaces: an ordinary kernel."""
    needs_backend(daemon, backend)
    process = daemon.spawn("run", "--name", "a", "--backend", backend, "--image", own)
    shell = quiet_shell(process)
    work(shell)
    shell.type("reboot -f\n")
    assert process.end() == 0
    assert daemon.listed()["a"]["reason"] == "RESET"


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS)
@pytest.mark.skipif(shutil.which("qemu-system-i386") is None, reason="qemu-system-i386 is not installed")
def test_linux_pv_in_qemu() -> None:
    try:
        image = guest_image("linux-pv")
    except GuestUnavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(
        ["qemu-system-i386", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
         "-kernel", image.kernel, "-initrd", image.initrd, "-append", f"{image.append} hvd.reboot"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "Run /init as init process" in done.stdout and "reboot: Restarting system" in done.stdout, done.stdout[-2000:] + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS)
def test_the_report_of_the_build() -> None:
    """Beside the kernel in the cache: nothing was missed but what the kernel copies elsewhere before it runs."""
    try:
        kernel = guest_image("linux-pv").kernel
    except GuestUnavailable as error:
        pytest.skip(str(error))
    report = json.loads((kernel.parent / "hvpvcc.json").read_text())
    assert report["good"] and report["missed"] == [] and report["wrong"] == []
    assert {found["section"] for found in report["allowed"]} == {".altinstr_replacement"}
    assert len(report["sites"]) > 3000 and {"cli", "sti", "pushf", "popf", "iret"} <= {site["kind"] for site in report["sites"]}
    assert (kernel.parent / "hvpvcc.txt").read_text().startswith(report["kernel"])
