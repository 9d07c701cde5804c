"""Typing commands at a guest's shell and reading what they print."""

from __future__ import annotations

import pytest
from real_daemon import Process, wait_for

from tests.guest_images import PROMPT

SHELL = PROMPT.decode()
# Of a kernel's boot on a busy machine.
BOOT_SECONDS = 240.0


class Shell:
    """A guest's shell on its console, through `hvctl run` or `hvctl console`."""

    def __init__(self, process: Process, prompt: str = SHELL, seen: int = 0) -> None:
        """seen: characters of the output that are not this shell's, but of an earlier boot."""
        self._process = process
        self._prompt = prompt
        self._seen = seen
        self.boot = self._until(prompt, BOOT_SECONDS)

    def _until(self, text: str, seconds: float) -> str:
        """What came since the last call, to this text."""
        end = wait_for(
            lambda: self._find(text), lambda: f"{text!r}, only {self._process.out[self._seen :][-2000:]!r}", seconds
        )
        came, self._seen = self._process.out[self._seen : end], end
        return came

    def _find(self, text: str) -> int:
        if (place := self._process.out.find(text, self._seen)) >= 0:
            return place + len(text)
        if self._process.popen.poll() is not None:
            pytest.fail(f"the guest ended: {self._process.err} {self._process.out[-2000:]!r}")
        return 0

    def __call__(self, command: str, seconds: float = 120.0) -> str:
        """Type it; what it printed."""
        # The marks stand in two halves in what is typed, so that its echo does not look like them.
        self._process.type(f'echo "=""begin"; {command}; echo "=""end"\n')
        text = self._until("\n=end", seconds).replace("\r", "")
        self._until(self._prompt, seconds)
        return text.partition("\n=begin")[2].removesuffix("=end").strip()

    def type(self, text: str) -> None:
        self._process.type(text)

    def boot_again(self) -> None:
        """Wait for the prompt of the next boot, and keep its kernel quiet."""
        self._until("BusyBox v", BOOT_SECONDS)
        self._until(self._prompt, BOOT_SECONDS)
        self("dmesg -n 1")


def quiet_shell(process: Process) -> Shell:
    """What the kernel has to say, on a loaded machine of time above all, does not come between what commands print."""
    shell = Shell(process)
    shell("dmesg -n 1")
    return shell
