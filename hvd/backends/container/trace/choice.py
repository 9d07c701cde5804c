"""Which way of learning system calls is taken: the setting `container_tracer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvd.backends.container.trace import ebpf, tracefs
from hvd.backends.container.trace.source import Source

TRACERS = ("auto", "ebpf", "tracefs", "off")
# In the order in which auto takes them: why it cannot, and how it is made.
_WAYS: dict[str, tuple[Callable[[], str], Callable[[], Source]]] = {
    "ebpf": (ebpf.reason, ebpf.Ebpf),
    "tracefs": (tracefs.reason, tracefs.Tracefs),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What can be used here, best first, and why the others cannot."""

    ways: tuple[str, ...]
    problems: dict[str, str]

    @property
    def reason(self) -> str:
        """Why containers cannot be traced at all; empty = they can."""
        if self.ways:
            return ""
        return "; ".join(f"{way}: {problem}" for way, problem in self.problems.items())

    @property
    def remark(self) -> str:
        """What is worse than it could be; empty = nothing."""
        if not self.ways or self.ways[0] == "ebpf" or "ebpf" not in self.problems:
            return ""
        return f"system calls are traced by trace files, without path names, since {self.problems['ebpf']}"


def choose(setting: str) -> Choice:
    """setting: one of TRACERS. Asks the kernel."""
    if setting == "off":
        return Choice((), {"off": "it is switched off (container-tracer)"})
    problems: dict[str, str] = {}
    ways = []
    for way in _WAYS if setting == "auto" else (setting,):
        problem = _WAYS[way][0]()
        if problem:
            problems[way] = problem
        else:
            ways.append(way)
    return Choice(tuple(ways), problems)


def open_source(way: str) -> Source:
    """Raises OSError."""
    return _WAYS[way][1]()
