"""Settings of the daemon: the fields of Config are the one table, from which flags, environment, file keys, help and
docs are made.

A setting `stop_grace` is the flag --stop-grace, the environment variable HVD_STOP_GRACE and the TOML key `stop-grace`.
A flag beats the environment, which beats the file, which beats the default. Lists are repeated flags, TOML arrays, or
joined by commas in the environment.
"""

# _setting() makes dataclass fields: what it is called with are the table's rows, not shared defaults.
# ruff: noqa: RUF009
from __future__ import annotations

import argparse
import grp
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from importlib import metadata
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from hvd.errors import HvdError
from hvd.runner.directory import LEAST_LOG_FILES, MOST_LOG_FILES

ENV_PREFIX = "HVD_"
LOG_LEVELS = ("debug", "info", "warning", "error")
ROLES = ("view", "trace", "operate", "admin")  # hvd.api.roles says what each may do
LOG_FORMATS = ("auto", "console", "json")
MOST_SPARE_RUNNERS = 16
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "64M", "1GiB", "4096". Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("is no size; sizes look like 64M, 1G or 4096")
    return int(match[1]) * _UNITS[match[2].upper()]


def _positive_int(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError("is no whole number above 0")
    return int(text)


def _spare_runners(text: str) -> int:
    if not text.strip().isdecimal() or int(text) > MOST_SPARE_RUNNERS:
        raise ValueError(f"is no whole number from 0 to {MOST_SPARE_RUNNERS}")
    return int(text)


def _log_files(text: str) -> int:
    if not text.strip().isdecimal() or not LEAST_LOG_FILES <= int(text) <= MOST_LOG_FILES:
        raise ValueError(f"is no whole number from {LEAST_LOG_FILES} to {MOST_LOG_FILES}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise ValueError("is no number of seconds between 0 and 86400")
    return value


def _path(text: str) -> Path:
    if not text:
        raise ValueError("is empty")
    return Path(text).expanduser().absolute()


def _listen(text: str) -> str:
    if text.startswith("unix://"):
        if not text.removeprefix("unix://").startswith("/"):
            raise ValueError("needs an absolute path after unix://")
        return text
    return _host_port(text)


def _host_port(text: str) -> str:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("is neither unix:///path nor host:port")
    return text


def _of_role(text: str, what: str) -> tuple[str, str]:
    role, separator, value = text.partition("=")
    if role not in ROLES or not separator or not value:
        raise ValueError(f"is no ROLE={what}; roles are {', '.join(ROLES)}")
    return role, value


def _socket_group(text: str) -> str:
    role, name = _of_role(text, "GROUP")
    try:
        group = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"names no group of this host ({name})") from None
    return f"{role}={group}"


def _socket_mode(text: str) -> str:
    role, mode = _of_role(text, "MODE")
    if not re.fullmatch("0?[0-7]{3}", mode):
        raise ValueError("has no mode like 660")
    return f"{role}={mode}"


def _registry(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.\[\]:-]{1,255}", text):
        raise ValueError("is no HOST or HOST:PORT")
    return text


def _subnet(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"is no IPv4 subnet like 10.77.0.0/16 ({error})") from None


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is none of {', '.join(choices)}")
        return text

    return parse


def _is_root() -> bool:
    return os.geteuid() == 0


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "hvd"


def default_state_dir() -> Path:
    """/var/lib/hvd for root, otherwise $XDG_STATE_HOME/hvd."""
    return Path("/var/lib/hvd") if _is_root() else _xdg("XDG_STATE_HOME", ".local/state")


def default_runtime_dir() -> Path:
    """/run/hvd for root, otherwise $XDG_RUNTIME_DIR/hvd; without one, a directory of this user below the state
    directory.
    """
    if _is_root():
        return Path("/run/hvd")
    # The client looks in /run/user too when the variable is missing, as it is under sudo and cron.
    usual = f"/run/user/{os.geteuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or (usual if os.path.isdir(usual) else "")
    return Path(runtime) / "hvd" if runtime else default_state_dir() / "run"


def default_cache_dir() -> Path:
    """/var/cache/hvd for root, otherwise $XDG_CACHE_HOME/hvd."""
    return Path("/var/cache/hvd") if _is_root() else _xdg("XDG_CACHE_HOME", ".cache")


def _setting(
    parse: Callable[[str], Any], default: Any, help: str, *, shown: str = "", value: str = "", many: bool = False
) -> Any:
    """A row of the table. default: a value, or a function of nothing. shown: the default as the docs say it. value: its
    placeholder.
    """
    about = {"parse": parse, "help": help, "shown": shown, "value": value, "many": many}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings in force."""

    state_dir: Path = _setting(
        _path,
        default_state_dir,
        "what was asked for: guests, images, blobs",
        shown="/var/lib/hvd; not root: $XDG_STATE_HOME/hvd",
        value="DIR",
    )
    runtime_dir: Path = _setting(
        _path,
        default_runtime_dir,
        "what runs: sockets and a directory per guest; lost at reboot",
        shown="/run/hvd; not root: $XDG_RUNTIME_DIR/hvd",
        value="DIR",
    )
    listen: tuple[str, ...] = _setting(
        _listen,
        (),
        "serve the API on unix:///path or, with --tls-*, on host:port (repeatable)",
        shown="the sockets hvd*.sock, one per role, in the runtime directory",
        value="ENDPOINT",
        many=True,
    )
    socket_group: tuple[str, ...] = _setting(
        _socket_group,
        (),
        "group of a role's socket, as ROLE=GROUP: who is in it has the role (repeatable)",
        shown="that of the daemon's process",
        value="ROLE=GROUP",
        many=True,
    )
    socket_mode: tuple[str, ...] = _setting(
        _socket_mode, (), "mode of a role's socket, as ROLE=MODE (repeatable)", shown="660", value="ROLE=MODE", many=True
    )
    call_rate: int = _setting(_positive_int, 2000, "most calls a second by one socket or one certificate", value="N")
    max_calls: int = _setting(_positive_int, 2000, "most calls, streams included, under way for one socket or one certificate", value="N")
    audit_log: Path | None = _setting(
        _path, None, "also write who did what to which guest to this file, as JSON lines", shown="in the log only", value="FILE"
    )
    metrics_listen: str = _setting(
        _host_port, "", "serve Prometheus metrics on http://HOST:PORT/metrics", shown="not served", value="HOST:PORT"
    )
    log_level: str = _setting(
        _choice(*LOG_LEVELS), "info", f"least level that is logged: {', '.join(LOG_LEVELS)}", value="LEVEL"
    )
    log_format: str = _setting(
        _choice(*LOG_FORMATS), "auto", "form of the log on stderr: console, json, auto (json under systemd)", value="FORM"
    )
    stop_grace: float = _setting(
        _seconds, 10.0, "seconds that a guest has to end by itself when it is stopped", value="SECONDS"
    )
    max_guests: int = _setting(_positive_int, 1000, "most guests at a time, running or not", value="N")
    default_memory: int = _setting(
        parse_size, 128 << 20, "guest memory where neither guest nor image say", shown="128M", value="SIZE"
    )
    log_max_bytes: int = _setting(parse_size, 16 << 20, "console log kept of each guest", shown="16M", value="SIZE")
    log_files: int = _setting(_log_files, LEAST_LOG_FILES, "files in which that is kept: the oldest goes when all are full", value="N")
    image_dirs: tuple[Path, ...] = _setting(
        _path,
        (),
        "directories below which clients may name files of the host (repeatable)",
        shown="none",
        value="DIR",
        many=True,
    )
    cache_dir: Path = _setting(
        _path,
        default_cache_dir,
        "downloads and builds, by content; may be deleted at any time",
        shown="/var/cache/hvd; not root: $XDG_CACHE_HOME/hvd",
        value="DIR",
    )
    network_pool: IPv4Network = _setting(
        _subnet, IPv4Network("10.77.0.0/16"), "subnets of networks that name none are taken from here", value="SUBNET"
    )
    container_tracer: str = _setting(
        _choice("auto", "ebpf", "tracefs", "off"),
        "auto",
        "how system calls of containers are learnt: by eBPF, by the kernel's trace files (no path names), the best of them, or not at all",
        value="WAY",
    )
    jail: str = _setting(
        _choice("auto", "off"), "auto", "lock guests' processes in as far as this host lets hvd (docs/security.md), or not at all", value="HOW"
    )
    spare_runners: int = _setting(
        _spare_runners,
        2,
        "processes that each kind of virtual machine in use keeps ready for the next starts, each with the last guest's kernel and initrd in memory",
        value="N",
    )
    tls_cert: Path | None = _setting(_path, None, "the daemon's certificate chain (PEM)", shown="none", value="FILE")
    tls_key: Path | None = _setting(_path, None, "its private key (PEM)", shown="none", value="FILE")
    tls_client_ca: Path | None = _setting(
        _path,
        None,
        "certificate authority of the clients (PEM); their role is the URI hvd:role:ROLE "
        "among a certificate's alternative names, view without one",
        shown="none",
        value="FILE",
    )

    registry_ca: tuple[Path, ...] = _setting(
        _path,
        (),
        "certificate authorities of registries (PEM), besides the host's (repeatable)",
        shown="none",
        value="FILE",
        many=True,
    )
    insecure_registries: tuple[str, ...] = _setting(
        _registry, (), "registries that are spoken to by plain HTTP (repeatable)", shown="none", value="HOST[:PORT]", many=True
    )
    registry_auth_file: Path | None = _setting(
        _path,
        None,
        'logins for registries, as containers-auth.json(5): {"auths": {"HOST[:PORT]": {"auth": "BASE64"}}}',
        shown="none",
        value="FILE",
    )

    @property
    def guests_dir(self) -> Path:
        return self.runtime_dir / "guests"

    @property
    def disks_dir(self) -> Path:
        """What must survive a guest's stop and the host's: a directory per guest with its disks."""
        return self.state_dir / "guests"

    @property
    def layers_dir(self) -> Path:
        """Layers of containers' images, unpacked."""
        return self.state_dir / "layers"

    @property
    def traces_dir(self) -> Path:
        """Trace sessions with their files."""
        return self.state_dir / "traces"

    @property
    def volumes_dir(self) -> Path:
        """Volumes of containers."""
        return self.state_dir / "volumes"

    def check(self) -> None:
        """What one setting's parser cannot see. Raises HvdError CONFIG_INVALID."""
        tcp = [endpoint for endpoint in self.listen if not endpoint.startswith("unix://")]
        missing = [
            f"--{name.replace('_', '-')}"
            for name in ("tls_cert", "tls_key", "tls_client_ca")
            if getattr(self, name) is None
        ]
        if tcp and missing:
            raise HvdError(
                "CONFIG_INVALID",
                setting="listen",
                value=tcp[0],
                remedy=f"give {', '.join(missing)}, or listen on unix:///path",
                problem="TCP is served with mutual TLS only",
            )
        if self.log_max_bytes < 1 << 16:
            raise HvdError(
                "CONFIG_INVALID",
                setting="log-max-bytes",
                value=self.log_max_bytes,
                problem="is too small",
                remedy="the least is 64K",
            )
        if self.default_memory % 4096 or self.default_memory == 0:
            raise HvdError(
                "CONFIG_INVALID",
                setting="default-memory",
                value=self.default_memory,
                problem="is no multiple of 4096 above 0",
                remedy="round it",
            )


def _flag(setting: Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def _key(setting: Field[Any]) -> str:
    return setting.name.replace("_", "-")


def _shown_default(setting: Field[Any]) -> str:
    return str(setting.metadata["shown"] or setting.default)


def _parse(setting: Field[Any], where: str, raw: object) -> Any:
    parse, many = setting.metadata["parse"], setting.metadata["many"]
    values = raw if isinstance(raw, list) else [raw]
    if not many and isinstance(raw, list):
        raise HvdError("CONFIG_INVALID", setting=where, value=raw, problem="is a list", remedy="give one value")
    parsed = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise HvdError(
                "CONFIG_INVALID", setting=where, value=value, problem="is neither text nor number", remedy="give text"
            )
        try:
            parsed.append(parse(str(value)))
        except ValueError as error:
            raise HvdError("CONFIG_INVALID", setting=where, value=value, problem=error,
                           remedy=setting.metadata["help"]) from None  # fmt: skip
    return tuple(parsed) if many else parsed[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hvd",
        allow_abbrev=False,
        description="The hypervisor daemon: runs guests under every kind of virtualisation, behind one gRPC API.",
        epilog="`hvd certs --help`: certificates for TCP. `hvd store --help`: the databases. "
        "Each option is also an environment variable (HVD_STATE_DIR for --state-dir) and a key of the file.",
    )
    parser.add_argument("--version", action="version", version=f"hvd {version()}")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser, told: Callable[[str], bool] = lambda name: True) -> None:
    """All settings as options. told: whether --help has the one of this name."""
    parser.add_argument("--config", metavar="FILE", help="settings file (TOML); also HVD_CONFIG")
    for setting in fields(Config):
        text = f"{setting.metadata['help']} (default: {_shown_default(setting)})".replace("%", "%%")
        parser.add_argument(
            _flag(setting),
            metavar=setting.metadata["value"],
            help=text if told(setting.name) else argparse.SUPPRESS,
            dest=setting.name,
            action="append" if setting.metadata["many"] else "store",
        )


def version() -> str:
    """Of this build."""
    try:
        return metadata.version("hvd")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _read_file(path: Path) -> dict[str, object]:
    known = {_key(setting) for setting in fields(Config)}
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HvdError(
            "CONFIG_INVALID", setting="config", value=path, problem=error, remedy="correct the file"
        ) from None
    for key in settings:
        if key not in known:
            raise HvdError(
                "CONFIG_INVALID",
                setting=f"{path}: {key}",
                value=settings[key],
                problem="there is no such setting",
                remedy=f"there are: {', '.join(sorted(known))}",
            )
    return settings


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """The settings from flags, environment and file. Raises HvdError CONFIG_INVALID; SystemExit for --help and unknown
    flags.
    """
    return of_flags(_parser().parse_args(arguments), environment)


def of_flags(flags: argparse.Namespace, environment: Mapping[str, str]) -> Config:
    """The same of options that add_options() made. Raises HvdError CONFIG_INVALID."""
    file = flags.config or environment.get(f"{ENV_PREFIX}CONFIG")
    from_file = _read_file(Path(file)) if file else {}
    values: dict[str, Any] = {}
    for setting in fields(Config):
        variable = ENV_PREFIX + setting.name.upper()
        if (given := getattr(flags, setting.name)) is not None:
            values[setting.name] = _parse(setting, _flag(setting), given)
        elif environment.get(variable):
            text = environment[variable]
            values[setting.name] = _parse(setting, variable, text.split(",") if setting.metadata["many"] else text)
        elif _key(setting) in from_file:
            values[setting.name] = _parse(setting, f"{file}: {_key(setting)}", from_file[_key(setting)])
    config = Config(**values)
    config.check()
    return config


def markdown_table() -> str:
    """The table for docs/."""
    rows = ["| flag | environment | file key | default | meaning |", "|---|---|---|---|---|",
            f"| `--config FILE` | `{ENV_PREFIX}CONFIG` | | none | settings file (TOML) |"]  # fmt: skip
    for setting in fields(Config):
        cells = (
            f"`{_flag(setting)} {setting.metadata['value']}`",
            f"`{ENV_PREFIX}{setting.name.upper()}`",
            f"`{_key(setting)}`",
            _shown_default(setting),
            setting.metadata["help"],
        )
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
