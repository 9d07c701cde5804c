"""Reading from a registry: the OCI distribution protocol (v2), for anybody or with a login. Calls block: they run in worker
threads, and close() from another thread ends them.

HTTPS is spoken; plain HTTP where the settings or the client say so, and to loopback addresses that know no TLS. What HTTPS
answers is not followed to HTTP. A login goes over HTTPS, to a loopback address, or to where the settings allow plain HTTP.
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
from hvd.images.registry_access import RegistryAccess

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
        self,
        reference: Reference,
        insecure: bool,
        access: RegistryAccess | None = None,
        silence: float = SILENCE,
        patience: float = PATIENCE,
    ) -> None:
        """insecure: the client says that plain HTTP is right."""
        self.reference = reference
        self._access = access or RegistryAccess()
        self._trusted = self._access.is_insecure(reference)  # with plain HTTP
        self._insecure = insecure or self._trusted
        self._silence, self._patience = silence, patience
        self._tls: ssl.SSLContext | None = None
        self._base = ""  # known with the first call
        self._authorization = ""
        self._lock = threading.Lock()
        # Of the present answer. Kept apart from its connection, which forgets it while the answer is read.
        self._socket: socket.socket | None = None
        self._stalled = self._closed = False

    def manifest(self, which: str) -> tuple[bytes, str, str]:
        """which: tag or digest. Content, media type, digest. Raises HvdError MANIFEST_NOT_FOUND and REGISTRY_*."""
        with self._answered(f"manifests/{which}", ", ".join((*MANIFESTS, *INDEXES))) as response:
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
        with self._answered(f"blobs/{digest}", "*/*") as response:
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
    def _answered(self, path: str, accept: str) -> Iterator[http.client.HTTPResponse]:
        """The last answer, behind redirects and with a token. path: below the repository."""
        if not self._base:
            self._base = f"{self._scheme()}://{self.reference.host}/v2/{self.reference.repository}"
        url, asked = f"{self._base}/{path}", False
        for _ in range(MOST_REDIRECTS + 2):
            response, connection = self._get(url, accept, self._authorization if url.startswith(self._base) else "")
            try:
                if response.status in _REDIRECTS:
                    url = self._target(url, response.headers.get("Location", ""))
                elif response.status == 401 and not asked and url.startswith(self._base):
                    # Once for each answer: tokens expire, and a long pull outlasts them.
                    asked = True
                    challenge = response.headers.get("WWW-Authenticate", "")
                    connection.close()
                    self._authorization = self._authenticate(challenge)
                else:
                    yield response
                    return
            finally:
                connection.close()
        raise self._answer(f"more than {MOST_REDIRECTS} redirects")

    def _scheme(self) -> str:
        """A registry on this machine often knows no TLS: it is asked."""
        host = self.reference.host
        if self._insecure:
            return "http"
        if not self._may_be_plain(host):
            return "https"
        connection = http.client.HTTPSConnection(host, timeout=self._silence, context=self._context())
        try:
            with self._explained():
                try:
                    connection.connect()
                except ssl.SSLCertVerificationError:
                    return "https"  # and what is wrong with it is told by the call to come
                except (ssl.SSLError, ConnectionResetError):
                    return "http"
        finally:
            connection.close()
        return "https"

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._access.tls()
        return self._tls

    def _get(
        self, url: str, accept: str, authorization: str = ""
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        parts = urllib.parse.urlsplit(url)
        headers = {"Accept": accept, "User-Agent": "hvd", "Connection": "close"}
        if authorization:
            headers["Authorization"] = authorization
        connection: http.client.HTTPConnection
        context = self._context() if parts.scheme == "https" else None
        with self._explained():
            if context is not None:
                connection = http.client.HTTPSConnection(parts.netloc, timeout=self._silence, context=context)
            else:
                connection = http.client.HTTPConnection(parts.netloc, timeout=self._silence)
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
        """What Authorization has to say: the login itself (RFC 7617), or a token, for the login or for anybody ("Token
        Authentication Specification" of the distribution project)."""
        scheme, _, rest = challenge.partition(" ")
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        login = self._access.login(self.reference)
        if scheme.lower() == "basic":
            if not login:
                raise self._denied("it wants a login")
            return self._over(self._base, login)
        if scheme.lower() != "bearer" or "realm" not in parameters:
            raise self._denied(f"it wants {scheme[:40] or 'a login'}, not a login or token")
        query = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        query.setdefault("scope", f"repository:{self.reference.repository}:pull")
        realm = self._target(self._base, parameters["realm"])
        joint = "&" if "?" in realm else "?"
        where = f"{realm}{joint}{urllib.parse.urlencode(query)}"
        response, connection = self._get(where, "application/json", self._over(realm, login) if login else "")
        try:
            if response.status != 200:
                raise self._denied(f"no token for {'this login' if login else 'anybody'}: status {response.status}")
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
        return f"Bearer {token}"

    def _over(self, url: str, login: str) -> str:
        """The login, where it may be said. Raises HvdError REGISTRY_DENIED."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "https" or is_loopback(parts.hostname or "") or self._trusted:
            return login
        raise self._denied("it wants the login over plain HTTP, which only the setting insecure-registries allows")

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
