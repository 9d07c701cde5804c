"""`make demo`: a daemon on a private socket, guests of several sorts, what they wrote, how they crossed, what it cost.

Every line that begins with $ is a command that you can type; what follows it is what it printed.
`python -m deploy.demo --picture FILE.svg` draws what the terminal shows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parent.parent
SCRIPTS: Final = Path(sys.executable).parent
GUESTS: Final = Path("build/guests")
PROMPT: Final = b"guest # "
SECONDS: Final = 120.0


class DemoFailed(Exception):
    """Something did not work; the text says what."""


def heading(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


class Demo:
    """A daemon of its own in a directory of its own, and hvctl against it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"HVD_ENDPOINT": f"unix://{directory}/hvd.sock", "NO_COLOR": "1"}
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        print(f"$ hvd --listen unix://{self.directory}/hvd.sock ...   (state and runtime directories beside it)")
        log = open(self.directory / "hvd.log", "wb")  # noqa: SIM115  it lives as long as the daemon
        self.daemon = subprocess.Popen(
            [SCRIPTS / "hvd", "--state-dir", self.directory / "state", "--runtime-dir", self.directory / "run",
             "--listen", self.environment["HVD_ENDPOINT"]],
            stderr=log, stdout=log, cwd=ROOT,
        )  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while self.command("version", "--daemon", check=False, quiet=True) is None:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"the daemon did not start:\n{(self.directory / 'hvd.log').read_text(errors='replace')}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.command("delete", "--force", *self.guests(), check=False, quiet=True)
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(SECONDS)

    def guests(self) -> list[str]:
        return (self.command("list", "-o", "name", check=False, quiet=True) or "").split()

    def command(self, *words: str | Path, check: bool = True, quiet: bool = False, lines: int | None = None) -> str | None:
        """Run hvctl and show it. None = it failed. lines: show only so many, from the end if negative."""
        if not quiet:
            print(f"$ hvctl {' '.join(map(str, words))}", flush=True)
        try:
            done = subprocess.run([SCRIPTS / "hvctl", *words], env=self.environment, cwd=ROOT, capture_output=True, text=True,
                                  errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"hvctl {' '.join(map(str, words))} did not end") from error
        if done.returncode != 0 and check:
            raise DemoFailed(f"hvctl {' '.join(map(str, words))} ended with {done.returncode}: {done.stderr}")
        if not quiet:
            shown = done.stdout.replace("\r", "").splitlines()
            for line in shown if lines is None else shown[:lines] if lines >= 0 else shown[lines:]:
                print(line)
        return done.stdout if done.returncode == 0 else None

    def screen(self, guest: str, text: str, quiet: bool = False) -> None:
        """Show a guest's screen once this text stands on it, without the empty lines at its end."""
        deadline = time.monotonic() + SECONDS
        while text not in (shown := self.command("screen", guest, quiet=True) or ""):
            if time.monotonic() > deadline:
                raise DemoFailed(f"{text!r} does not come to the screen of {guest}:\n{shown}")
            time.sleep(0.1)
        if not quiet:
            print(f"$ hvctl screen {guest}\n{shown.rstrip()}", flush=True)

    def linux(self, name: str, typed: Sequence[str], *words: str | Path) -> None:
        """Boot a Linux, type at its shell, show what it wrote since the kernel handed over."""
        print(f"$ hvctl run --name {name} {' '.join(map(str, words))}", flush=True)
        began = time.monotonic()
        process = subprocess.Popen([SCRIPTS / "hvctl", "run", "--name", name, *words], env=self.environment, cwd=ROOT,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            console = _until(process.stdout, PROMPT)
            lines = console.count(b"\n")
            print(f"... {lines} lines of the kernel, a shell after {time.monotonic() - began:.1f} s ...")
            for line in typed:
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
                rest = _until(process.stdout, PROMPT)
                text = (PROMPT + rest.replace(PROMPT, b"")).decode(errors="replace")
                print(text.replace("\r", "").replace("\x1b[6n", "").rstrip("\n"), flush=True)
            process.stdin.close()
            process.wait(SECONDS)
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()


def _until(stream: IO[bytes], marker: bytes) -> bytes:
    """Everything up to the marker or the stream's end."""
    text = b""
    while marker not in text:
        part = os.read(stream.fileno(), 65536)
        if not part:
            break
        text += part
    return text


def debian_kernel() -> tuple[Path, Path] | str:
    """Debian's stock cloud kernel and an initramfs of busybox, fetched by apt once; or why not."""
    from tests.guest_images import GuestUnavailable, guest_image

    try:
        image = guest_image("debian-cloud")
    except GuestUnavailable as error:
        return str(error)
    return image.kernel, image.initrd


def show(demo: Demo) -> None:
    heading("A daemon of our own")
    demo.start()
    demo.command("backends")

    heading("A small kernel that makes every base hypercall, good and bad; each one decoded")
    demo.command("create", "--name", "calls", "--kernel", GUESTS / "hypercalls.elf", "--memory", "16M")
    demo.command("start", "--paused", "calls")
    trace = subprocess.Popen([SCRIPTS / "hvctl", "trace", "-f", "--kind", "hypercall", "calls"], env=demo.environment, cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    print("$ hvctl trace -f --kind hypercall calls &")
    assert trace.stderr is not None
    trace.stderr.readline()  # "tracing calls": from now on
    demo.command("resume", "calls")
    demo.command("wait", "calls")
    _finish_trace(trace)
    demo.command("logs", "calls", lines=-1)

    heading("Guests end in different ways, and the daemon knows how")
    for name in ("halt", "triple", "wild"):
        demo.command("run", "--name", name, "--kernel", GUESTS / f"{name}.elf", "--memory", "16M", check=False)

    heading("Debian's stock kernel, unmodified, with its default command line, under emulation")
    kernel = debian_kernel()
    if isinstance(kernel, str):
        print(f"left out: {kernel}")
    else:
        vmlinuz, initrd = demo.directory / "vmlinuz", demo.directory / "initrd.cpio"
        vmlinuz.symlink_to(kernel[0])
        initrd.symlink_to(kernel[1])
        demo.linux("debian", ("uname -a", "seq 1 5000 | md5sum", "reboot -f"), "--kernel", vmlinuz, "--initrd", initrd,
                   "--append", "console=ttyS0", "--memory", "512M")  # fmt: skip
        demo.command("trace", "summary", "debian")

    heading("A teaching kernel boots from its disk, prints to the screen, is typed at, saved and cloned")
    demo.command("image", "import", "teach", GUESTS / "teach.img")
    demo.command("run", "-d", "--name", "teach", "--boot", "disk", "--disk", "teach,bus=ide", "--memory", "16M")
    demo.screen("teach", "teach>", quiet=True)
    demo.command("type", "teach", "ls", "--key", "enter")
    demo.screen("teach", "shell.c")
    demo.command("snapshot", "teach", "here")
    demo.command("clone", "teach/here", "copy")
    demo.command("type", "copy", "uptime", "--key", "enter")
    demo.screen("copy", "\nup ")

    heading("A container: the same verbs; its crossings are its system calls")
    unavailable = container_problem(demo)
    if unavailable:
        print(f"left out: {unavailable}")
    else:
        demo.command("image", "import", "box", busybox_root(demo.directory / "box"))
        demo.command("run", "-d", "--name", "box", "--image", "box", "--memory", "64M", "--", "sh", "-c",
                     "echo up; while read line; do :; done; exec sleep 1000")  # fmt: skip
        demo.command("exec", "box", "--", "sh", "-c", "id; hostname; ps")
        tracing = subprocess.Popen([SCRIPTS / "hvctl", "trace", "-f", "box", "--count", "400"], env=demo.environment, cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert tracing.stderr is not None
        tracing.stderr.readline()  # "tracing box": from now on
        demo.command("exec", "box", "--", "ls", "/etc")
        print("$ hvctl trace -f box | grep -E 'open|execve|getdents'")
        demo.command("kill", "box")
        _finish_trace(tracing, "open|execve|getdents")

    heading("Many at once: each its own process, its own guest-physical memory")
    demo.command("run", "-d", "--name", "ticker", "--kernel", GUESTS / "ticker.elf", "--memory", "16M")
    demo.command("run", "-d", "--name", "echo", "--kernel", GUESTS / "echo.elf", "--memory", "16M")
    demo.command("run", "-d", "--name", "spin", "--kernel", GUESTS / "spin.elf", "--memory", "16M")
    demo.command("trace", "-f", "ticker", "--count", "6")
    demo.command("pause", "spin")
    demo.command("mem", "translate", "spin", "0x100000")
    demo.command("list")
    print("$ hvctl metrics ticker | grep -E 'exits|hypercalls|cpu'")
    for line in (demo.command("metrics", "ticker", quiet=True) or "").splitlines():
        if re.search("exits|hypercalls|cpu", line) and not line.startswith("#"):
            print(line)


def busybox_root(where: Path) -> Path:
    """A root file system of busybox alone."""
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root"):
        (where / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", where / "bin" / "busybox")
    for applet in ("sh", "ls", "id", "ps", "hostname", "sleep"):
        (where / "bin" / applet).symlink_to("busybox")
    (where / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    return where


def container_problem(demo: Demo) -> str:
    """Why containers cannot be shown; empty = they can."""
    if not os.path.exists("/bin/busybox"):
        return "busybox-static is not installed"
    backends = json.loads(demo.command("backends", "-o", "json", quiet=True) or "{}")["backends"]
    found = next(backend for backend in backends if backend["name"] == "backends/container")
    return "" if found["available"] else f"{found['reason']}; {found['remedy']}"


def _finish_trace(trace: subprocess.Popen[str], pattern: str = "") -> None:
    """It ends with its guest. pattern: of the lines to show."""
    try:
        text, _ = trace.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        trace.kill()
        raise DemoFailed("the trace did not end with its guest") from error
    for line in filter(lambda line: re.search(pattern, line), text.splitlines()):
        print(line if len(line) < 160 else line[:157] + "...")


def draw(text: str, path: Path) -> None:
    """The terminal's contents as an SVG picture."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=118, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for line in text.strip().splitlines():
        style = "bold cyan" if line.startswith("==") else "bold green" if line.startswith(("$", "guest #")) else ""
        console.print(Text(line[:118], style), no_wrap=True)
    svg = console.export_svg(title="make demo")
    # No fonts from elsewhere: a picture must not ask the network.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "monospace")
    path.write_text(svg, encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the terminal's contents")
    picture: Path | None = options.parse_args().picture
    directory = Path(tempfile.mkdtemp(prefix="hvd-demo-"))
    directory.chmod(0o711)  # the users of a container are others on the host, and its root is below
    demo = Demo(directory)
    began = time.monotonic()
    try:
        if picture is None:
            show(demo)
        else:
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                show(demo)
            draw(text.getvalue().replace(str(directory), "/run/hvd-demo"), picture)
    except DemoFailed as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        demo.stop()
        shutil.rmtree(directory, ignore_errors=True)
    heading(f"That was {time.monotonic() - began:.0f} s. Next: README.md, and `.venv/bin/hvd` for a daemon of your own.")


if __name__ == "__main__":
    main()
