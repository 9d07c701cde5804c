"""A cell that is made before its guest is known: a spare runner (hvd.runner.ahead) starts its process, which does all that is the same for each guest
and waits (ahead.c) until it hears whose it is. Then it goes into its runner's jail by itself, as a child of that would be in it from its start."""

from __future__ import annotations

import os
import socket
import struct
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.cell.area import Mode
from hvd.cell.vcpu import CellVcpu
from hvd.trace.points import BackendId

_WORD: Final = struct.Struct("=II")  # struct hv_cell_word, up to its filter
_READ_BYTES: Final = 1 << 16


class CellAhead(CellVcpu):
    """settle() comes before its first run."""

    def __init__(
        self, board: HotBoard, memory: GuestMemory, backend: BackendId, mode: Mode, cpuid: Mapping[tuple[int, int], Sequence[int]]
    ) -> None:  # fmt: skip
        """As CellVcpu. Raises OSError, too."""
        self._word, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            super().__init__(board, memory, backend, mode, cpuid, word=theirs.fileno())
        self._memory = memory
        # Opened now: from its jail the runner looks into no process that has not come from there (ptrace(2), Landlock).
        self._maps = os.open(f"/proc/{_pid_of(self.process)}/maps", os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._maps)

    def settle(self, user: int, calls: bytes, network: int, mounts: int) -> None:
        self.tell_taken(self._memory)  # a guest with another kernel has had it cleared
        word = _WORD.pack(user, len(calls) // 8) + calls
        with self._word:
            files = [os.open(str(path), os.O_RDWR | os.O_CLOEXEC) for path in (self._board.counters_path, self._board.trace_path)]
            try:
                socket.send_fds(self._word, [word], [*files, network, mounts], socket.MSG_NOSIGNAL)
            finally:
                for descriptor in files:
                    os.close(descriptor)

    def mappings(self) -> str:
        found = b""
        while piece := os.pread(self._maps, _READ_BYTES, len(found)):
            found += piece
        return found.decode("utf-8", "replace")

    def close(self) -> None:
        self._word.close()
        super().close()


def _pid_of(pidfd: int) -> int:
    """As /proc has it, which may be of another PID namespace than this process."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
