"""Names of images in registries: "debian", "quay.io/org/name:tag", "127.0.0.1:5000/busybox@sha256:..."."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from hvd.errors import HvdError

_DEFAULT_REGISTRY: Final = "docker.io"
# Where docker.io serves the protocol.
_HOSTS: Final = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_MOST_LENGTH: Final = 512
_REGISTRY = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:(?P<port>[0-9]{1,5}))?")
# OCI distribution specification, "Pulling manifests".
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    registry: str  # "docker.io", "127.0.0.1:5000"
    repository: str  # "library/debian"
    tag: str  # "" when there is a digest only
    digest: str  # "" or "sha256:..."

    @property
    def host(self) -> str:
        """Host and port that are spoken to."""
        return _HOSTS.get(self.registry, self.registry)

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def image_id(self) -> str:
        """A name of an image of the daemon's own."""
        tag = "" if self.tag in ("", "latest") else f"-{self.tag}"
        return re.sub(r"[^a-z0-9]+", "-", f"{self.repository.rsplit('/', 1)[-1]}{tag}".lower())[:63].strip("-")

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Raises HvdError REFERENCE_INVALID."""
    if len(text) > _MOST_LENGTH:
        raise _invalid(text, f"it has more than {_MOST_LENGTH} characters")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(text, "behind @ stands no sha256 digest")
    registry, slash, rest = name.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, rest = _DEFAULT_REGISTRY, name
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(text, "behind : stands no tag")
    if registry in _HOSTS and "/" not in repository:
        repository = f"library/{repository}"
    host = _REGISTRY.fullmatch(registry)
    if not host or not 0 < int(host["port"] or 443) < 65536:
        raise _invalid(text, f"'{registry[:80]}' is no host")
    if not _REPOSITORY.fullmatch(repository):
        raise _invalid(text, f"'{repository[:80]}' is no repository")
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def is_loopback(host: str) -> bool:
    """host: without a port."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _invalid(text: str, problem: str) -> HvdError:
    return HvdError("REFERENCE_INVALID", reference=text[:100], problem=problem)
