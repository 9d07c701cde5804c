"""Where system calls are learnt from: by eBPF (ebpf.py) or by the kernel's trace files (tracefs.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hvd.trace.writer import RecordWriter


class Source(Protocol):
    """Made and closed by whoever begins and ends traces; everything else but follow() is for the thread that reads. follow() may be called
    at any time by another."""

    name: str
    # It knows threads, not containers: what starts a program in a container from outside is to be told of before it forks.
    by_thread: bool

    def descriptors(self) -> list[int]:
        """Readable when there is something to read, or there may be. May change with follow() and leave()."""

    def follow(self, uid: str, init: int, wanted: bytes) -> None:
        """Trace this container, or choose its calls anew. wanted: points.chosen(). Raises OSError, HvdError TRACE_UNAVAILABLE."""

    def follow_process(self, uid: str, pid: int) -> None:
        """What this process of the host starts in the container belongs to it. It has started nothing yet."""

    def found_program(self, uid: str, pid: int, program: int) -> None:
        """What the process of follow_process() has started, as the host numbers it; 0 = nothing, or nobody knows. It may have ended."""

    def leave(self, uid: str) -> None:
        """Learn no more of it; what was learnt so far is still to be read."""

    def forget(self, uid: str) -> None:
        """It was read."""

    def read(self, writers: dict[str, RecordWriter], most: int, losses: Callable[[str], None]) -> bool:
        """Records of up to about so many calls to their writers. Is there more? Whoever finds a call in the counters finds there, too, what
        was lost before it: losses(uid) is called before calls are told, when some may have been lost that losses() has and the counters have
        not."""

    def losses(self, uid: str) -> tuple[int, int]:
        """Since follow(): records of this container that could not be told, and calls among them that the counters do not have either."""

    def close(self) -> None: ...
