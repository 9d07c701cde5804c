"""The options of run and create that only containers have, and the messages that come of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from hvctl.values import SIZE

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

_PORT = (
    r"(?:(?P<address>[0-9]+(?:\.[0-9]+)+|\[[0-9a-fA-F:]+\]):)?(?:(?P<host>\d*):)?(?P<port>\d+)(?:/(?P<protocol>tcp|udp))?"
)


class Variable(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """NAME=VALUE, or NAME alone for the value that it has here: other users can read arguments, not an environment."""

    name = "variable"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if key and not equals and key in os.environ:
            return key, os.environ[key]
        if not key or not equals:
            self.fail(f"'{value}' is no variable; write NAME=VALUE, or the NAME of one that is set here", param, ctx)
        return key, text


class Volume(click.ParamType):  # type: ignore[type-arg]
    """SOURCE:TARGET[:ro]; a source that begins with / is a path of the daemon's host, any other a volume's name."""

    name = "volume"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        words = str(value).split(":")
        if len(words) not in (2, 3) or not all(words) or words[2:] not in ([], ["ro"], ["rw"]):
            self.fail(f"'{value}' is no volume; write NAME:/target, /host/path:/target or either with :ro", param, ctx)
        kind = "BIND" if words[0].startswith("/") else "VOLUME"
        return {"kind": kind, "source": words[0], "target": words[1], "read_only": words[2:] == ["ro"]}


class Tmpfs(click.ParamType):  # type: ignore[type-arg]
    """/target[:SIZE]."""

    name = "tmpfs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        target, _, size = str(value).partition(":")
        return {"kind": "TMPFS", "target": target, "size_bytes": SIZE.convert(size, param, ctx) if size else 0}


class Port(click.ParamType):  # type: ignore[type-arg]
    """[[ADDRESS:]HOST:]CONTAINER[/tcp|udp]; without HOST, a free port of the host."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        match = re.fullmatch(_PORT, str(value))
        if match is None or any(int(match[name] or 0) > 65535 for name in ("host", "port")) or int(match["port"]) == 0:
            self.fail(f"'{value}' is no port; write HOST:CONTAINER, 127.0.0.1:8080:80, 53:53/udp", param, ctx)
        return {
            "host_address": (match["address"] or "").strip("[]"),
            "host_port": int(match["host"] or 0),
            "container_port": int(match["port"]),
            "protocol": match["protocol"] or "",
        }


CONTAINER_OPTIONS = [
    click.option("--env", "-e", "environment", type=Variable(), multiple=True, metavar="K[=V]", help="Container: variable; may be repeated."),
    click.option("--workdir", "-w", metavar="DIR", help="Container: working directory."),
    click.option("--user", "-u", metavar="U", help="Container: name, uid or uid:gid."),
    click.option("--hostname", metavar="H", help="Container: default is its name."),
    click.option("--tty", "-t", is_flag=True, help="Container: its console is a terminal."),
    click.option("--stdin", "-i", is_flag=True, help="Container: keep standard input open."),
    click.option("--volume", "-v", "volumes", type=Volume(), multiple=True, metavar="H:G[:ro]",
                 help="Container: volume H, or path H of the host, at G; may be repeated."),
    click.option("--tmpfs", "tmpfs", type=Tmpfs(), multiple=True, metavar="G[:SIZE]", help="Container: memory as a folder; may be repeated."),
    click.option("--publish", "-p", "ports", type=Port(), multiple=True, metavar="H:G", help="Container: port H of the host leads to its port G."),
    click.option("--read-only", is_flag=True, help="Container: its root cannot be written."),
    click.option("--init", is_flag=True, help="Container: a small init runs as process 1."),
    click.option("--stop-signal", metavar="SIG", help="Container: what stop sends first; default SIGTERM."),
    click.option("--pids", type=click.IntRange(min=1), metavar="N", help="Container: most processes and threads."),
    click.option("--disk-read-rate", "read_rate", type=SIZE, metavar="SIZE", help="Container: most bytes read a second."),
    click.option("--disk-write-rate", "write_rate", type=SIZE, metavar="SIZE", help="Container: most bytes written a second."),
    click.option("--cap-add", multiple=True, metavar="CAP", help="Container: capability beyond the default; may be repeated."),
    click.option("--cap-drop", multiple=True, metavar="CAP", help="Container: capability less than the default, or ALL; may be repeated."),
    click.option("--host-userns", is_flag=True, help="Container: its root is the host's root. Not safe."),
    click.option("--no-seccomp", is_flag=True, help="Container: no system call is refused. Not safe."),
    click.option("--new-privileges", is_flag=True, help="Container: programs may gain privileges (setuid)."),
]  # fmt: skip


class LimitSize(click.ParamType):  # type: ignore[type-arg]
    """A size, or "none": 0."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value in ("none", "0") else int(SIZE.convert(value, param, ctx))


class LimitNumber(click.ParamType):  # type: ignore[type-arg]
    """A number above 0, or "none": 0."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.name = "number"
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = 0 if value == "none" else self._kind(value)
        except ValueError:
            number = -1
        if not 0 <= number < 1 << 62:
            self.fail(f"'{value}' is no limit; write a number or none", param, ctx)
        return number


_LIMITS: tuple[tuple[str, str, LimitSize | LimitNumber, str, str], ...] = (
    ("--memory", "memory_bytes", LimitSize(), "SIZE", "most memory"),
    ("--cpus", "cpus", LimitNumber(float), "N", "most CPU time, in CPUs: 0.5, 2"),
    ("--pids", "pids", LimitNumber(int), "N", "most processes and threads"),
    ("--disk-read-rate", "disk_read_bytes_per_second", LimitSize(), "SIZE", "most bytes read a second"),
    ("--disk-write-rate", "disk_write_bytes_per_second", LimitSize(), "SIZE", "most bytes written a second"),
    ("--disk-read-operations", "disk_read_operations_per_second", LimitNumber(int), "N", "most reads a second"),
    ("--disk-write-operations", "disk_write_operations_per_second", LimitNumber(int), "N", "most writes a second"),
)


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options named as the fields of Limits; None = not given, 0 = none any more."""
    for flag, field, kind, metavar, text in reversed(_LIMITS):
        command = click.option(flag, field, type=kind, metavar=metavar, help=f"Container: {text}; none takes it away.")(command)
    return command


def container_of(spec: dict[str, Any]) -> guest_pb2.ContainerConfig | None:
    """None when none of the options was given: then the image decides what the guest is."""
    from hvapi.v1 import guest_pb2

    security = guest_pb2.Security(
        capabilities_add=spec["cap_add"],
        capabilities_drop=spec["cap_drop"],
        host_user_namespace=spec["host_userns"],
        seccomp_unconfined=spec["no_seccomp"],
        new_privileges=spec["new_privileges"],
    )
    container = guest_pb2.ContainerConfig(
        env=dict(spec["environment"]),
        working_directory=spec["workdir"] or "",
        user=spec["user"] or "",
        hostname=spec["hostname"] or "",
        tty=spec["tty"],
        stdin=spec["stdin"],
        mounts=[guest_pb2.Mount(**_mount(value)) for value in (*spec["volumes"], *spec["tmpfs"])],
        read_only_root=spec["read_only"],
        stop_signal=spec["stop_signal"] or "",
        ports=[guest_pb2.PublishedPort(**value) for value in spec["ports"]],
        init=spec["init"],
    )
    if security.ByteSize():
        container.security.CopyFrom(security)
    return container if container.ByteSize() else None


def limits_of(spec: dict[str, Any]) -> guest_pb2.Limits | None:
    """Memory and CPUs go with every guest: they are not among these."""
    from hvapi.v1 import guest_pb2

    limits = guest_pb2.Limits(
        pids=spec["pids"] or 0,
        disk_read_bytes_per_second=spec["read_rate"] or 0,
        disk_write_bytes_per_second=spec["write_rate"] or 0,
    )
    return limits if limits.ByteSize() else None


def _mount(value: dict[str, Any]) -> dict[str, Any]:
    from hvapi.v1 import guest_pb2

    return {**value, "kind": guest_pb2.Mount.Kind.Value(value["kind"])}
