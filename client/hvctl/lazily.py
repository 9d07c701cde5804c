"""Modules that libraries import and that a command hardly ever uses: loaded when something in them is asked for.

`import grpc` alone imports asyncio and grpc.aio, longer than all the rest of it takes; importing is most of what a verb costs. Only the
command line does this, before it imports anything else (hvctl.__main__): whoever uses the SDK decides for himself. A library that asks for
something at once has it at once, as without this. importlib.util.LazyLoader does the same, but before Python 3.11.9 two threads must not be the
first to ask.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader

NAMES = frozenset({
    "asyncio", "grpc.aio", "grpc_status._async",  # of grpc, for asyncio
    "pkgutil", "socket",  # of grpc
    "traceback",  # of logging, for exceptions
    "calendar",  # of protobuf, for times
    "google.protobuf.descriptor_database", "google.protobuf.text_encoding",  # of protobuf, without its C part
    "google.protobuf.internal.python_edition_defaults", "google.protobuf.internal.python_message",
})  # fmt: skip
# Of click, which asks them one thing each: (inspect) to tidy the help of every option, (platform, for uuid) what system this is.
ANSWERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "inspect": ("cleandoc", lambda text: None if "\n" in text or "\t" in text else text.lstrip()),
    "platform": ("system", lambda: os.uname().sysname),
}


class Finder:
    """importlib.abc.MetaPathFinder"""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in NAMES and name not in ANSWERS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Answering(spec.loader, *ANSWERS[name]) if name in ANSWERS else _Later(spec.loader)  # type: ignore[assignment]
        return spec


class _Unloaded(ModuleType):
    """Becomes a plain module with all that is in it when it is asked for anything; by the import statement it is asked for __spec__."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__spec__", "__class__"):
            return super().__getattribute__(name)
        self.__spec__.loader.load(self)  # type: ignore[union-attr]
        return ModuleType.__getattribute__(self, name)


class _Later:
    """Loads when somebody asks, in any thread. Like _Answering it is an importlib.abc.Loader, but importing that takes longer than what is
    spared here."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = threading.RLock()
        self._begun = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Unloaded

    def load(self, module: ModuleType) -> None:
        """Returns when it is whole; to the module's own code, while it is not."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
            try:
                self._loader.exec_module(module)
            except BaseException:
                self._begun = False  # it is tried again, as after an import that failed
                raise
            module.__class__ = ModuleType


class _Answering:
    """Of a module that answers one question without being loaded; what else is asked for loads it, in any thread."""

    def __init__(self, loader: Loader, question: str, answer: Callable[..., Any]) -> None:
        """answer: None = that needs the module."""
        self._loader, self._question, self._answer = loader, question, answer
        self._lock = threading.RLock()
        self._begun = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        known = module.__dict__

        def load() -> None:
            with self._lock:
                if not self._begun:
                    self._begun = True
                    self._loader.exec_module(module)
                    known.pop("__getattr__", None)

        def find(name: str) -> Any:  # PEP 562
            if name.startswith("__"):
                raise AttributeError(name)
            load()
            try:
                return known[name]
            except KeyError:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None

        def ask(*arguments: Any) -> Any:
            answer = self._answer(*arguments)
            if answer is None:
                load()
                return known[self._question](*arguments)
            return answer

        known.update({self._question: ask, "__getattr__": find})


def install() -> None:
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
