"""What people type for sizes, durations, addresses and labels, and the numbers that become of it."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# Compiled when one is asked for: few commands ask for more than one.
_SIZE = r"(?i)(\d+)\s*([kmgt]?)(?:i?b)?"
_DURATION_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)"
_SHORT_UNITS = {"": 1, "ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}
_SHORT = r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|)"
_MAX_INT64 = (1 << 63) - 1
_MAX_UINT64 = (1 << 64) - 1


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Bytes: 4096, 64K, 64M, 1G, 1GiB (powers of 1024), 0x1000; at least 1."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip()
        match = re.fullmatch(_SIZE, text)
        size = int(match[1]) * _SIZE_UNITS[match[2].lower()] if match else _integer(text)
        if size < 0:
            self.fail(f"'{value}' is no size; write bytes, or 64M, 1G", param, ctx)
        if not 0 < size <= _MAX_INT64:
            self.fail(f"'{value}' is out of range; it is at least 1 and less than 8E bytes", param, ctx)
        return size


class File(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A file; whoever reads it says when it is missing. As click.Path, which looks its messages up in translations before it has any to tell."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if os.path.isdir(value) or (os.path.exists(value) and not os.access(value, os.R_OK)):
            click.Path(dir_okay=False).convert(value, param, ctx)  # says what is wrong with it
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return click.Path(dir_okay=False).shell_complete(ctx, param, incomplete)


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A duration: 5, 2.5, 5s, 500ms, 2m, 1h, 1d."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(_DURATION, str(value).strip())
        if match is None:
            self.fail(f"'{value}' is no duration; write seconds, or 500ms, 2m, 1h", param, ctx)
        return float(match[1]) * _DURATION_UNITS[match[2]]


class Nanoseconds(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A short time: 800ns, 10us, 1.5ms, 2s, or nanoseconds; at most 4.29 s."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(_SHORT, str(value).strip())
        time = round(float(match[1]) * _SHORT_UNITS[match[2]]) if match else -1
        if not 0 <= time < 1 << 32:
            self.fail(f"'{value}' is no such time; write 800ns, 10us, 1ms, at most 4.29s", param, ctx)
        return time


class Address(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """An address: 0x100000 or decimal, below 2**64."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        address = _integer(str(value).strip())
        if not 0 <= address <= _MAX_UINT64:
            self.fail(f"'{value}' is no address; write 0x... or a decimal number below 2**64", param, ctx)
        return address


class Label(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """KEY=VALUE."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"'{value}' is no label; write KEY=VALUE", param, ctx)
        return key, text


class Card(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A network card: NETWORK[,mac=AA:BB:CC:DD:EE:FF][,ip=A.B.C.D]; NETWORK is user, none or a network's name."""

    name = "NETWORK"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        network, *more = str(value).split(",")
        card = {"network": network}
        for word in more:
            key, equals, text = word.partition("=")
            field = {"mac": "mac_address", "ip": "ip_address"}.get(key)
            if field is None or not (equals and text) or field in card:
                self.fail(
                    f"'{value}' is no network card; write NETWORK[,mac=AA:BB:CC:DD:EE:FF][,ip=A.B.C.D]", param, ctx
                )
            card[field] = text
        if not network:
            self.fail(f"'{value}' names no network; write user, none or a network's name", param, ctx)
        return card


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A time: 2026-11-23T12:00:00Z (local time without a zone), or so long ago: 5m, 30s."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        if match := re.fullmatch(_DURATION, text):
            return datetime.now(UTC) - timedelta(seconds=float(match[1]) * _DURATION_UNITS[match[2]])
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"'{value}' is no time; write 2026-11-23T12:00:00Z, or 5m for five minutes ago", param, ctx)
        return moment.astimezone(UTC)


class HostPort(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """HOST:PORT or PORT, which is on this machine's loopback; port 0 = any."""

    name = "host:port"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            self.fail(f"'{value}' is no address: write HOST:PORT or PORT", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)


class Restart(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """never, always, on-failure or on-failure:N; becomes (mode of the API, most retries)."""

    name = "policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(never|always|on-failure)(?::(\d{1,9}))?", str(value))
        if match is None or (match[2] and match[1] != "on-failure"):
            self.fail(f"'{value}' is no restart policy; write never, always, on-failure or on-failure:N", param, ctx)
        return match[1].upper().replace("-", "_"), int(match[2] or 0)


class DiskValue(NamedTuple):
    """What a --disk says; an empty bus and a size of 0 leave the choice to the daemon."""

    image: str
    read_only: bool
    bus: str
    cdrom: bool
    size_bytes: int


class Disk(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """IMAGE[,ro][,bus=virtio|ide][,cdrom][,size=10G]; without an image, size=10G, a blank disk."""

    name = "disk"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiskValue:
        if isinstance(value, DiskValue):
            return value
        words = [word.strip() for word in str(value).split(",")]
        image = "" if "=" in words[0] else words.pop(0)
        flags, options = set(), dict[str, str]()
        for word in words:
            key, equals, text = word.partition("=")
            if (not equals and word in ("ro", "cdrom")) or (key in ("bus", "size") and text):
                flags.add(key)
                options[key] = text
            else:
                self.fail(f"'{word}' in '{value}' is not known; write IMAGE,ro,bus=ide,cdrom,size=10G", param, ctx)
        if options.get("bus", "ide") not in ("ide", "virtio"):
            self.fail(f"there is no bus '{options['bus']}'; there are ide and virtio", param, ctx)
        size = SIZE.convert(options["size"], param, ctx) if "size" in options else 0
        if not image and not size:
            self.fail(f"'{value}' names no image; write IMAGE, or size=10G for a blank disk", param, ctx)
        return DiskValue(image, "ro" in flags, options.get("bus", ""), "cdrom" in flags, size)


def _integer(text: str) -> int:
    """Decimal or 0x; -1 when it is neither."""
    try:
        return int(text, 16) if text[:2].lower() == "0x" else int(text)
    except ValueError:
        return -1


SIZE, SECONDS, ADDRESS, LABEL, CARD, MOMENT, RESTART = (
    Size(),
    Seconds(),
    Address(),
    Label(),
    Card(),
    Moment(),
    Restart(),
)
DISK = Disk()
FILE = File()
NANOSECONDS = Nanoseconds()
HOST_PORT = HostPort()


def size_text(size: int) -> str:
    """67108864 -> "64M"; exact, or with one digit after the point."""
    for unit in ("T", "G", "M", "K"):
        step = _SIZE_UNITS[unit.lower()]
        if size >= step:
            return f"{size // step}{unit}" if size % step == 0 else f"{size / step:.1f}{unit}"
    return str(size)


def age_text(seconds: float) -> str:
    """3725 -> "1h2m"; the two largest units."""
    left = max(0, int(seconds))
    words: list[str] = []
    for unit, step in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= step or (unit == "s" and not words):
            words.append(f"{left // step}{unit}")
            left %= step
        elif words:
            break
    return "".join(words[:2])
