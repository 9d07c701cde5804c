"""A network namespace of a test's own, with a way out that leads nowhere: whatever a test does to a network happens in it,
and nothing of it is left afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

UPLINK = "uplink0"
# Until a process that was told to end is called left over, on a busy machine.
SECONDS = 60.0


class NamespaceUnavailable(Exception):
    """There can be none here; the text is a reason to skip."""


class Namespace:
    """programs: what must be there besides iproute2. Raises NamespaceUnavailable."""

    def __init__(self, *programs: str) -> None:
        if os.geteuid() != 0:
            raise NamespaceUnavailable("networks need root")
        if not Path("/dev/net/tun").exists():
            raise NamespaceUnavailable("there is no /dev/net/tun")
        for program in ("ip", *programs):
            if shutil.which(program) is None:
                raise NamespaceUnavailable(f"{program} is missing: sh deploy/packages.sh")
        self.name = f"hvd-test-{secrets.token_hex(4)}"
        self.before: tuple[list[str], str] = ([], "")

    def __enter__(self) -> Self:
        done = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NamespaceUnavailable(f"a network namespace cannot be had: {done.stderr.strip()}")
        self.run("ip", "link", "set", "lo", "up")
        # passt wants a default route, and a bridge is a kind of interface that every kernel with bridges has.
        self.run("ip", "link", "add", UPLINK, "type", "bridge")
        self.run("ip", "address", "add", "192.0.2.7/24", "dev", UPLINK)
        self.run("ip", "link", "set", UPLINK, "up")
        self.run("ip", "route", "add", "default", "via", "192.0.2.1")
        self.before = self.state()
        return self

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command that is to run here."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *words: str, check: bool = True) -> str:
        """Its output. Raises RuntimeError when it fails and is not expected to."""
        done = subprocess.run([*self.prefix, *words], capture_output=True, text=True, check=False)
        if done.returncode and check:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.prefix, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def links(self) -> list[str]:
        return [line.split()[1].rstrip(":").partition("@")[0] for line in self.run("ip", "-o", "link").splitlines()]

    def state(self) -> tuple[list[str], str]:
        """What a daemon could leave behind: interfaces and filter rules."""
        return self.links(), self.run("nft", "list", "ruleset", check=False)

    def processes(self) -> dict[int, str]:
        """Pid -> name, of the processes in it."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True).stdout
        found = {}
        for word in pids.split():
            try:
                found[int(word)] = Path(f"/proc/{word}/comm").read_text().strip()
            except OSError:
                continue  # it has ended
        return found

    def check_clean(self) -> None:
        """Nothing is left of what ran here."""
        end = time.monotonic() + SECONDS
        while left := self.processes():
            assert time.monotonic() < end, f"processes are left: {left}"
            time.sleep(0.05)
        assert self.state() == self.before

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
