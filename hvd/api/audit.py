"""Who did what to which guest: one line for each call that needs more than looking, refused ones too.

It goes to the daemon's log, and to the setting audit-log's file as JSON lines. Who it was: of a unix socket its role, and the processes that
are connected to it (SO_PEERCRED). grpc does not tell which of several connections a call came by; with one connection, or one user, it is
certain (`uid`), otherwise all who could have been are named (`uids`). Over mutual TLS it is the certificate's common name.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.message import Message

from hvd.errors import HvdError

log = structlog.get_logger()

FILE_MODE = 0o600
# Processes that one line names at most.
MOST_PROCESSES = 8
MOST_TARGETS = 8
# Fields of requests that say which resource is meant, and what their values lack to be its name.
_NAMING = {"name": "", "names": "", "guest": "", "guests": "", "snapshot": "", "parent": "", "source": "",
           "guest_id": "guests/", "image_id": "images/", "network_id": "networks/", "volume_id": "volumes/"}  # fmt: skip
_WRAPPERS = frozenset({"setup", "guest", "image", "network", "volume"})
# Only what looks like a name is repeated: a request may hold anything, passwords included.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,3}")
_CREDENTIALS = struct.Struct("3i")


def targets(request: Any) -> list[str]:
    """The resources that a request names."""
    return list(dict.fromkeys(_targets(request)))[:MOST_TARGETS] if isinstance(request, Message) else []


def _targets(message: Message, depth: int = 0) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and field.name in _NAMING:
            values = [value] if isinstance(value, str) else list(value)[:MOST_TARGETS]
            yield from (_NAMING[field.name] + text for text in values if _NAME.fullmatch(text))
        elif field.name in _WRAPPERS and isinstance(value, Message) and depth < 2:
            yield from _targets(value, depth + 1)


class Peers:
    """The processes that are connected to sockets of ours. What a connection is does not change, so that each is asked once."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = frozenset(map(os.path.abspath, paths))
        self._known: dict[int, tuple[int, int] | None] = {}  # inode of a socket -> uid and pid; None = none of ours

    def __call__(self) -> dict[str, Any]:
        """For a line of the log: uid and pid where they are certain, or else all who it may have been."""
        if not self._paths:
            return {}
        found = sorted(self._look())
        uids, pids = sorted({uid for uid, _ in found}), [pid for _, pid in found]
        about: dict[str, Any] = {"uid": uids[0]} if len(uids) == 1 else {"uids": uids}
        return about | ({"pid": pids[0]} if len(pids) == 1 else {"pids": pids[:MOST_PROCESSES]})

    def _look(self) -> set[tuple[int, int]]:
        now: dict[int, tuple[int, int] | None] = {}
        for entry in os.listdir("/proc/self/fd"):
            descriptor = int(entry)
            try:
                about = os.fstat(descriptor)
                if not stat.S_ISSOCK(about.st_mode):
                    continue
                inode = about.st_ino
                now[inode] = self._known[inode] if inode in self._known else self._ask(descriptor)
            except OSError:  # closed meanwhile
                continue
        self._known = now
        return {peer for peer in now.values() if peer is not None}

    def _ask(self, descriptor: int) -> tuple[int, int] | None:
        with socket.socket(fileno=os.dup(descriptor)) as sock:  # a copy: the descriptor itself is grpc's
            if sock.family != socket.AF_UNIX or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return None
            # grpc binds unix:///run to ///run.
            name = sock.getsockname()
            if not isinstance(name, str) or f"/{name.lstrip('/')}" not in self._paths:
                return None
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            return uid, pid


class AuditLog:
    """The file, if there is one. A disk that is full is told once and stops nobody: the line is in the daemon's log, too."""

    def __init__(self, path: Path | None) -> None:
        """Raises HvdError CONFIG_INVALID."""
        self._path, self._file, self._failing = path, -1, False
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
            except OSError as error:
                raise HvdError(
                    "CONFIG_INVALID", setting="audit-log", value=path, problem=error.strerror, remedy="name a file that can be written"
                ) from error

    def write(self, fields: Mapping[str, Any]) -> None:
        """One line: to the log, and to the file."""
        log.info("audit", **fields)
        if self._file < 0:
            return
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **structlog.contextvars.get_contextvars(), **fields}
        try:
            os.write(self._file, json.dumps(line, default=str).encode() + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("audit-log cannot be written", path=str(self._path), error=str(error))
            self._failing = True

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
