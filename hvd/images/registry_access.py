"""How registries are reached: whom their certificates are trusted of, which speak plain HTTP, and the logins for them."""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hvd.errors import HvdError
from hvd.images.reference import Reference

_MOST_BYTES: Final = 1 << 20
# What `docker login` writes for docker.io.
_DOCKER_IO: Final = ("https://index.docker.io/v1/", "index.docker.io")


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """The daemon's settings. Read anew for each pull, so that a login or authority that changes needs no restart."""

    ca_files: tuple[Path, ...] = ()
    insecure: frozenset[str] = frozenset()  # "host" or "host:port"
    auth_file: Path | None = None

    def tls(self) -> ssl.SSLContext:
        """Trusts the host's authorities and these. Raises HvdError CONFIG_INVALID."""
        context = ssl.create_default_context()
        for path in self.ca_files:
            try:
                context.load_verify_locations(cafile=path)
            except (OSError, ssl.SSLError) as error:
                problem = getattr(error, "reason", None) or error.strerror or error
                raise _invalid("registry-ca", path, f"is no file of certificates (PEM): {problem}") from None
        return context

    def is_insecure(self, reference: Reference) -> bool:
        """Is plain HTTP spoken there?"""
        return bool(self.insecure & {reference.registry, reference.host})

    def login(self, reference: Reference) -> str:
        """ "Basic ..." for the registry, as HTTP's Authorization has it (RFC 7617); empty = there is none. The file is as
        containers-auth.json(5) has it: {"auths": {"HOST[:PORT]": {"auth": base64 of "user:password"}}}. Raises HvdError
        CONFIG_INVALID."""
        if self.auth_file is None:
            return ""
        try:
            with self.auth_file.open("rb") as file:
                document = json.loads(file.read(_MOST_BYTES))
            entries = document["auths"]
            names = [reference.name, reference.registry, reference.host]
            if reference.registry == "docker.io":
                names.extend(_DOCKER_IO)
            entry = next((entries[name] for name in names if name in entries), None)
            return "" if entry is None else f"Basic {_encoded(entry)}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problem = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {str(error)[:100]}"
            raise _invalid("registry-auth-file", self.auth_file, f"cannot be read: {problem}") from None


def _encoded(entry: Mapping[str, Any]) -> str:
    """Raises ValueError, KeyError, TypeError."""
    if "auth" not in entry:
        return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode("ascii")
    try:
        decoded = base64.b64decode(entry["auth"], validate=True)
    except binascii.Error:
        raise ValueError("an entry's auth is no base64") from None
    if b":" not in decoded:
        raise ValueError("an entry's auth is not user:password")
    return base64.b64encode(decoded).decode("ascii")


def _invalid(setting: str, value: object, problem: str) -> HvdError:
    return HvdError("CONFIG_INVALID", setting=setting, value=value, problem=problem, remedy="correct the file on the daemon's machine")
