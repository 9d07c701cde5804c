"""Where the daemon listens, how to open a channel to it, and what to say when it does not answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from hvctl.sdk.errors import HvctlError

if TYPE_CHECKING:
    import grpc

SYSTEM_SOCKET = "/run/hvd/hvd.sock"
# sun_path of unix(7) is 108 bytes with its terminating NUL.
LONGEST_SOCKET_PATH = 107
TLS_VARIABLES = ("HVD_TLS_CA", "HVD_TLS_CERT", "HVD_TLS_KEY")


def default_endpoint(environment: Mapping[str, str] | None = None) -> str:
    """HVD_ENDPOINT; else the system's socket for root or when it exists; else the user's own, below XDG_RUNTIME_DIR."""
    environment = os.environ if environment is None else environment
    if given := environment.get("HVD_ENDPOINT"):
        return given
    if os.geteuid() == 0 or os.path.exists(SYSTEM_SOCKET):
        return f"unix://{SYSTEM_SOCKET}"
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return f"unix://{runtime}/hvd/hvd.sock"


class TlsFiles(NamedTuple):
    """PEM files, in TLS_VARIABLES' order; what is absent is taken from the environment."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class Endpoint:
    """`unix:///path`, `unix:path` or `host:port`. Raises HvctlError ENDPOINT_INVALID for anything else.

    host:port is mutual TLS with the PEM files of tls, or else those that HVD_TLS_CA, HVD_TLS_CERT and HVD_TLS_KEY name.
    """

    def __init__(self, address: str, tls: TlsFiles | None = None) -> None:
        self.address, self.tls = address, tls or TlsFiles()
        self.path = ""  # of a unix socket
        self._directory = -1
        if self.address.startswith("unix:"):
            self.path = self.address.removeprefix("unix:")
            if self.path.startswith("//"):
                self.path = self.path.removeprefix("//")
                if not self.path.startswith("/"):  # unix://relative would be an authority
                    raise HvctlError.local("ENDPOINT_INVALID", endpoint=self.address)
            if not self.path:
                raise HvctlError.local("ENDPOINT_INVALID", endpoint=self.address)
            return
        host, colon, port = self.address.rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536) or "/" in host:
            raise HvctlError.local("ENDPOINT_INVALID", endpoint=self.address)

    def target(self) -> str:
        """The name gRPC connects to. A path too long for sun_path is reached through its directory, which stays open
        until close."""
        if not self.path:
            return f"dns:///{self.address}"
        path = os.path.abspath(self.path)
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            if self._directory < 0:
                try:
                    self._directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                except OSError as error:
                    raise self._unreachable(error.strerror or str(error)) from error
            path = f"/proc/self/fd/{self._directory}/{os.path.basename(path)}"
        return f"unix:{path}"

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for a unix socket, whose file mode decides. Raises HvctlError TLS_FILES_MISSING or FILE_UNREADABLE."""
        if self.path:
            return None
        import grpc

        paths = []
        for given, variable in zip(self.tls, TLS_VARIABLES, strict=True):
            path = given or os.environ.get(variable)
            if not path:
                raise HvctlError.local("TLS_FILES_MISSING", endpoint=self.address, missing=variable)
            paths.append(path)
        ca, certificate, key = map(_read, paths)
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def diagnose(self, details: str) -> HvctlError:
        """Why nobody answered: looks at the socket as the caller would."""
        if not self.path:
            return self._unreachable(
                details or "no connection", f"is hvd listening on {self.address}, and do the certificates fit?"
            )
        try:
            os.stat(self.path)
        except FileNotFoundError:
            return self._unreachable(
                "there is no such socket", "start the daemon with `hvd`, or name its socket with --endpoint"
            )
        except PermissionError:
            return HvctlError.local("SOCKET_FORBIDDEN", path=self.path)
        except OSError as error:
            return self._unreachable(error.strerror or str(error))
        import socket

        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.target().removeprefix("unix:"))
            except PermissionError:
                return HvctlError.local("SOCKET_FORBIDDEN", path=self.path)
            except ConnectionRefusedError:
                return self._unreachable(
                    "nobody listens on that socket", "the daemon is gone: start it again with `hvd`"
                )
            except OSError as error:
                return self._unreachable(error.strerror or str(error))
        return self._unreachable(
            details or "it broke the connection off", "repeat; if it stays so, see the daemon's log"
        )

    def _unreachable(self, problem: str, remedy: str = "name the daemon's socket with --endpoint") -> HvctlError:
        return HvctlError.local("DAEMON_UNREACHABLE", endpoint=self.address, problem=problem, remedy=remedy)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HvctlError.local("FILE_UNREADABLE", path=path, problem=error.strerror or error) from error
