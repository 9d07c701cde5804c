"""Reading from a registry: the OCI distribution protocol (v2), anonymously. Calls block: they run in worker threads, and close()
from another thread ends them.

HTTP is spoken to loopback addresses and where the client says so; elsewhere HTTPS. What HTTPS answers is not followed to HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Final

from hvd.errors import HvdError
from hvd.images import manifest
from hvd.images.manifest import INDEXES, MANIFESTS, MOST_DOCUMENT_BYTES
from hvd.images.reference import Reference, is_loopback

# Seconds without a byte, or for a whole answer's head and small documents.
SILENCE: Final = 30.0
# A layer may take long, but after so many seconds it comes at this rate at least.
PATIENCE, LEAST_BYTES_PER_SECOND = 60.0, 1024
MOST_REDIRECTS: Final = 5
_MOST_TOKEN_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 18
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"]*)"')
_TOKEN = re.compile(r"[!-~]+")


class Registry:
    """One pull from one repository; one call at a time."""

    def __init__(
        self, reference: Reference, insecure: bool, silence: float = SILENCE, patience: float = PATIENCE
    ) -> None:
        self.reference = reference
        self._insecure = insecure
        self._silence, self._patience = silence, patience
        scheme = "http" if self._may_be_plain(reference.host) else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.repository}"
        self._token = ""
        self._lock = threading.Lock()
        # Of the present answer. Kept apart from its connection, which forgets it while the answer is read.
        self._socket: socket.socket | None = None
        self._stalled = self._closed = False

    def manifest(self, which: str) -> tuple[bytes, str, str]:
        """which: tag or digest. Content, media type, digest. Raises HvdError MANIFEST_NOT_FOUND and REGISTRY_*."""
        with self._answered(f"{self._base}/manifests/{which}", ", ".join((*MANIFESTS, *INDEXES))) as response:
            what = f"the manifest {which}"
            self._check(response, what)
            content = self._whole(response, MOST_DOCUMENT_BYTES, what)
            found = f"sha256:{hashlib.sha256(content).hexdigest()}"
            announced = which if which.startswith("sha256:") else response.headers.get("Docker-Content-Digest", found)
            if announced.startswith("sha256:") and announced != found:
                raise self._content(what, f"it has digest {found}, announced was {announced[:100]}")
            return content, response.headers.get_content_type(), found

    def blob(self, digest: str) -> Iterator[bytes]:
        """In pieces. Raises HvdError REGISTRY_*. Neither length nor digest are checked here."""
        with self._answered(f"{self._base}/blobs/{digest}", "*/*") as response:
            self._check(response, f"blob {digest}")
            begin, received = time.monotonic(), 0
            while piece := self._read(response, _CHUNK_BYTES):
                received += len(piece)
                seconds = time.monotonic() - begin
                if seconds > self._patience and received < seconds * LEAST_BYTES_PER_SECOND:
                    raise self._silent(f"{received} bytes in {seconds:.0f} s")
                yield piece

    def close(self) -> None:
        """The present call, and each later one, ends with an error."""
        with self._lock:
            self._closed = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _answered(self, url: str, accept: str) -> Iterator[http.client.HTTPResponse]:
        """The last answer, behind redirects and with a token."""
        for _ in range(MOST_REDIRECTS + 2):
            response, connection = self._get(url, accept)
            try:
                if response.status in _REDIRECTS:
                    url = self._target(url, response.headers.get("Location", ""))
                elif response.status == 401 and not self._token and url.startswith(self._base):
                    challenge = response.headers.get("WWW-Authenticate", "")
                    connection.close()
                    self._token = self._authenticate(challenge)
                else:
                    yield response
                    return
            finally:
                connection.close()
        raise self._answer(f"more than {MOST_REDIRECTS} redirects")

    def _get(self, url: str, accept: str) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        parts = urllib.parse.urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        headers = {"Accept": accept, "User-Agent": "hvd", "Connection": "close"}
        if self._token and url.startswith(self._base):  # not to where it redirects
            headers["Authorization"] = f"Bearer {self._token}"
        with self._explained():
            connection = kind(parts.netloc, timeout=self._silence)
            try:
                connection.connect()
                with self._lock:
                    if self._closed:
                        raise OSError("the pull was ended")
                    self._socket = connection.sock
                with self._in_time():
                    connection.request(
                        "GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers
                    )
                    return connection.getresponse(), connection
            except BaseException:
                connection.close()
                raise

    def _read(self, response: http.client.HTTPResponse, most: int) -> bytes:
        with self._explained():
            return response.read1(most)

    def _whole(self, response: http.client.HTTPResponse, most: int, what: str) -> bytes:
        content = b""
        with self._in_time():
            while piece := self._read(response, _CHUNK_BYTES):
                content += piece
                if len(content) > most:
                    raise self._content(what, f"it has more than {most} bytes")
        if response.length:
            raise self._content(what, f"{response.length} bytes of it are missing")
        return content

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Whatever dribbles byte by byte is ended all the same."""

        def expire() -> None:
            with self._lock:
                self._stalled = True
                self._shut()

        timer = threading.Timer(self._silence, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        if self._stalled:  # the end that was made may look like one of the registry's own
            raise self._silent(f"no whole answer within {self._silence:g} s")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise self._silent(f"nothing for {self._silence:g} s") from error
        except (ssl.CertificateError, ssl.SSLError) as error:
            raise self._unreachable(f"TLS: {error.reason or error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._stalled:
                raise self._silent(f"no whole answer within {self._silence:g} s") from error
            if isinstance(error, http.client.HTTPException | ValueError) and not isinstance(error, ConnectionError):
                raise self._answer(f"no HTTP ({type(error).__name__} {str(error)[:100]!r})") from error
            raise self._unreachable(
                error.strerror if isinstance(error, OSError) and error.strerror else error
            ) from error

    def _check(self, response: http.client.HTTPResponse, what: str) -> None:
        if response.status == 200:
            return
        if response.status == 404:
            raise HvdError("MANIFEST_NOT_FOUND", registry=self.reference.registry, what=f"{what} of {self.reference}")
        if response.status in (401, 403):
            raise self._denied(f"status {response.status}")
        raise self._answer(f"status {response.status} for {what}")

    def _authenticate(self, challenge: str) -> str:
        """A token for anybody ("Token Authentication Specification" of the distribution project)."""
        scheme, _, rest = challenge.partition(" ")
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        if scheme.lower() != "bearer" or "realm" not in parameters:
            raise self._denied(f"it wants {scheme[:40] or 'a login'}, not a token")
        query = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        query.setdefault("scope", f"repository:{self.reference.repository}:pull")
        realm = self._target(self._base, parameters["realm"])
        joint = "&" if "?" in realm else "?"
        response, connection = self._get(f"{realm}{joint}{urllib.parse.urlencode(query)}", "application/json")
        try:
            if response.status != 200:
                raise self._denied(f"no token for anybody: status {response.status}")
            content = self._whole(response, _MOST_TOKEN_BYTES, "a token")
        finally:
            connection.close()
        try:
            answer = manifest.document(content, "a token")
            token = answer.get("token") or answer.get("access_token")
        except HvdError:
            token = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._answer("no token where it sent for one")
        return token

    def _target(self, base: str, location: str) -> str:
        """Where an answer points to. Raises HvdError REGISTRY_ANSWER when that is not as safe."""
        try:
            url = urllib.parse.urljoin(base, location)
            parts = urllib.parse.urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise self._answer(f"a redirect to {location[:100]!r}") from None
        if (
            parts.scheme not in ("http", "https")
            or not host
            or not url.isascii()
            or not url.isprintable()
            or " " in url
        ):
            raise self._answer(f"a redirect to {location[:100]!r}")
        if parts.scheme == "http" and (base.startswith("https:") or not self._may_be_plain(parts.netloc)):
            raise self._answer(f"a redirect to plain HTTP ({host[:100]})")
        return url

    def _may_be_plain(self, netloc: str) -> bool:
        return self._insecure or is_loopback(urllib.parse.urlsplit(f"//{netloc}").hostname or "")

    def _answer(self, problem: str) -> HvdError:
        return HvdError("REGISTRY_ANSWER", registry=self.reference.registry, problem=problem)

    def _content(self, what: str, problem: str) -> HvdError:
        return HvdError("REGISTRY_CONTENT", registry=self.reference.registry, what=what, problem=problem)

    def _denied(self, problem: str) -> HvdError:
        return HvdError(
            "REGISTRY_DENIED", registry=self.reference.registry, repository=self.reference.repository, problem=problem
        )

    def _silent(self, problem: str) -> HvdError:
        return HvdError("REGISTRY_STALLED", registry=self.reference.registry, problem=problem)

    def _unreachable(self, problem: object) -> HvdError:
        return HvdError("REGISTRY_UNREACHABLE", registry=self.reference.registry, problem=problem)
