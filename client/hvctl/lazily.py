"""Modules that libraries import and that a command hardly ever uses: loaded when something in them is asked for.

`import grpc` alone imports asyncio and grpc.aio, longer than all the rest of it takes; importing is most of what a verb costs. Only the
command line does this, before it imports anything else (hvctl.__main__): whoever uses the SDK decides for himself. A library that asks for
something at once has it at once, as without this. Two threads must not be the first to ask (Python before 3.11.9 loads such a module without
a lock): none of these is for anything that hvctl does in a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

NAMES = frozenset({
    "asyncio", "grpc.aio", "grpc_status._async",  # of grpc, for asyncio
    "google.protobuf.internal.python_message",  # of protobuf, without its C part
    "pkgutil", "socket",  # of grpc
})  # fmt: skip


class Finder:
    """importlib.abc.MetaPathFinder"""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in NAMES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def install() -> None:
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
