"""Faults for processes of ours, from outside: an error in place of a system call, a wait before it, or the process's death at it.

interpose.c, built when it is needed first, comes into a process by LD_PRELOAD; the table beside it says what happens, and may be changed
at any time. Nothing of the product is another one for it.
"""

from __future__ import annotations

import atexit
import errno
import functools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CALLS = ("", "open", "read", "write", "sync", "truncate", "allocate", "rename", "mkdir", "unlink", "map", "memfd", "socket", "pipe",
         "eventfd", "spawn")  # fmt: skip
FAIL, KILL, TEAR, WAIT = 1, 2, 3, 4
RULES = 16
EVERY = 0xFFFF_FFFF
_HEADER = struct.Struct("<Qq40s")
_RULE = struct.Struct("<IIiIIIIIQ128s16s")
_SEEN, _LAST = 24, 32  # offsets in a rule: seen and done; the number of the last call


@functools.cache
def library() -> Path:
    """Raises pytest.skip.Exception where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("faults are injected by a library that needs gcc")
    source = Path(__file__).with_name("interpose.c")
    directory = tempfile.mkdtemp(prefix="hvd-faults-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Path(directory) / "faults.so"
    options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *options, "-o", str(made), str(source), "-ldl"], check=True)
    return made


class FaultTable:
    """The faults of all processes that have this library of theirs: `environment` puts it into one and its children."""

    def __init__(self, directory: Path) -> None:
        self.library = directory / "faults.so"
        shutil.copy(library(), self.library)
        table = directory / "faults.so.table"
        table.write_bytes(bytes(_HEADER.size + RULES * _RULE.size))
        with table.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library)}

    def set(
        self, call: str, act: int = FAIL, *, error: int = 0, path: str | Path = "", process: str = "", skip: int = 0,
        most: int = EVERY, seconds: float = 0.0, rule: int = 0,
    ) -> None:  # fmt: skip
        """From now on, after `skip` calls that match, `most` times. path and process: parts of what the call is for, and of the name of
        the process. most = 0 only counts."""
        where = _HEADER.size + rule * _RULE.size
        data = _RULE.pack(CALLS.index(call), act, error, int(seconds * 1e6), skip, most, 0, 0, 0, os.fsencode(path), process.encode())
        self._map[where : where + 4] = bytes(4)
        self._map[where + 4 : where + _RULE.size] = data[4:]
        self._map[where : where + 4] = data[:4]

    def clear(self, rule: int | None = None) -> None:
        for number in range(RULES) if rule is None else [rule]:
            where = _HEADER.size + number * _RULE.size
            self._map[where : where + 4] = bytes(4)

    def seen(self, rule: int = 0) -> int:
        """So many calls matched."""
        return int(struct.unpack_from("<I", self._map, _HEADER.size + rule * _RULE.size + _SEEN)[0])

    def done(self, rule: int = 0) -> int:
        """So many faults there were."""
        return int(struct.unpack_from("<I", self._map, _HEADER.size + rule * _RULE.size + _SEEN + 4)[0])

    def last(self, rule: int = 0) -> int:
        """The number of the last call that matched, among those of all rules."""
        return int(struct.unpack_from("<Q", self._map, _HEADER.size + rule * _RULE.size + _LAST)[0])

    def clock(self, seconds: float) -> None:
        """The wall clock jumps so far ahead of the host's."""
        struct.pack_into("<q", self._map, 8, int(seconds * 1e9))

    def boot_id(self, text: str) -> None:
        """The host was started anew, as far as a boot id tells; empty = the host's own again."""
        struct.pack_into("<40s", self._map, 16, text.encode())

    @contextmanager
    def fault(self, call: str, **rule: object) -> Iterator[None]:
        self.set(call, **rule)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.clear(int(rule.get("rule", 0)))  # type: ignore[call-overload]


def error_name(number: int) -> str:
    return errno.errorcode[number]
