"""Images for containers made in memory, a registry that serves them as asked (and wrongly as asked), and Debian's docker-registry."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.free_port import free_port

# Where deploy/packages.sh unpacks what must not be installed, because it would start a service.
TOOLS = Path(__file__).resolve().parents[1] / "build" / "tools" / "usr" / "bin"
OCI = "application/vnd.oci.image."
# (name, content): bytes = a file, None = a folder, str = a symbolic link to it
Entry = tuple[str, bytes | str | None]


def layer(*entries: Entry, owner: int = 0) -> bytes:
    """A tar."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.uid = member.gid = owner
            member.mode = 0o755
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            made.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return archive.getvalue()


def tree(root: Path) -> bytes:
    """A tar of a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        made.add(root, ".")
    return archive.getvalue()


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True).stdout


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, "+gzip": lambda content: gzip.compress(content, mtime=0), "+zstd": zstd}


class OciImage:
    """layers: (tar, "" or "+gzip" or "+zstd"), the lowest first; config: the configuration's "config"."""

    def __init__(self, *layers: tuple[bytes, str], config: dict[str, Any] | None = None, arch: str = "amd64", index: bool = False) -> None:
        self.blobs: dict[str, bytes] = {}
        entries = [self._add(PACKED[how](content), f"{OCI}layer.v1.tar{how}") for content, how in layers]
        self.layers = [entry["digest"] for entry in entries]
        self.plain = dict(zip(self.layers, (content for content, _ in layers), strict=True))  # unpacked
        document = {"os": "linux", "architecture": arch, "config": config or {}, "rootfs": {"type": "layers", "diff_ids": []}}
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}manifest.v1+json",
            "config": self._add(json.dumps(document).encode(), f"{OCI}config.v1+json"),
            "layers": entries,
        }
        self.index = index
        self.others = True  # in the index, of other machines
        self.arch = arch

    def _add(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(content)
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def documents(self) -> list[tuple[str, bytes]]:
        """(media type, content) of the manifest and, last, of what the tag names."""
        own = json.dumps(self.manifest).encode()
        made = [(f"{OCI}manifest.v1+json", own)]
        if self.index:
            other = {"mediaType": f"{OCI}manifest.v1+json", "digest": digest_of(b"other"), "size": 5}
            entries = [
                *([{**other, "platform": {"os": "linux", "architecture": "s390x"}}] if self.others else []),
                {**other, "digest": digest_of(own), "size": len(own), "platform": {"os": "linux", "architecture": self.arch}},
            ]
            media_type = f"{OCI}index.v1+json"
            made.append((media_type, json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()))
        return made

    def layout(self, folder: Path) -> Path:
        """As an OCI image layout (image-layout.md)."""
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for content in (*self.blobs.values(), *(content for _, content in self.documents())):
            (blobs / digest_of(content).removeprefix("sha256:")).write_bytes(content)
        media_type, content = self.documents()[-1]
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        entry = {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return folder


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class FakeRegistry:
    """Serves one image as "box:1". answers: path (or its beginning) -> what is done instead; requests: the paths asked for."""

    def __init__(self, image: OciImage, tls: ssl.SSLContext | None = None) -> None:
        self.image = image
        self.basic = ""  # the "user:password" that it wants: itself, or, with a token, for that
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.token = ""  # what it wants to see
        self.ended = threading.Event()  # what stalls, stalls until then
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.requests.append((self.path, self.headers.get("Authorization")))
                with contextlib.suppress(ConnectionError):
                    registry.serve(self)

            def log_message(self, *words: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # of clients that do not trust it
        self.scheme = "https" if tls else "http"
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.reference = f"{self.host}/box:1"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        for path, answer in self.answers.items():
            if request.path.startswith(path):
                return answer(request)
        kind, _, which = request.path.removeprefix("/v2/box/").partition("/")
        given, login = request.headers.get("Authorization"), f"Basic {base64.b64encode(self.basic.encode()).decode()}"
        if request.path.startswith("/v2/") and self.token and given != f"Bearer {self.token}":
            challenge = f'Bearer realm="{self.scheme}://{self.host}/token",service="me",scope="repository:box:pull"'
            return send(request, b"", status=401, headers={"WWW-Authenticate": challenge})
        if self.basic and given != login and (request.path.startswith("/token?") or not self.token):
            return send(request, b"", status=401, headers={"WWW-Authenticate": 'Basic realm="me"'})
        if request.path.startswith("/token?"):
            return send(request, json.dumps({"token": self.token}).encode())
        if kind == "manifests":
            documents = self.image.documents()
            for media_type, content in documents:
                if which == digest_of(content) or (which == "1" and content == documents[-1][1]):
                    return send(request, content, media_type)
        if kind == "blobs" and which in self.image.blobs:
            return send(request, self.image.blobs[which])
        send(request, b"{}", status=404)

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def send(
    request: BaseHTTPRequestHandler, content: bytes, media_type: str = "application/octet-stream", status: int = 200,
    headers: dict[str, str] | None = None, length: int | None = None,
) -> None:  # fmt: skip
    request.send_response(status)
    for name, value in {"Content-Type": media_type, "Content-Length": str(len(content) if length is None else length), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Of a private authority, for 127.0.0.1; made by openssl."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Raises FileNotFoundError without openssl."""

        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

        fresh = ("-newkey", "rsa:2048", "-nodes")
        openssl("req", "-x509", *fresh, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=private", "-days", "2")
        openssl("req", *fresh, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=registry")
        (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
        openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", "names", "-out", "server.pem")  # fmt: skip
        return cls(directory / "ca.pem", directory / "server.pem", directory / "server.key")

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def auth_file(path: Path, **logins: str) -> Path:
    """registry -> "user:password"."""
    entries = {registry: {"auth": base64.b64encode(login.encode()).decode()} for registry, login in logins.items()}
    path.write_text(json.dumps({"auths": entries}))
    return path


# "user:pass:word", as htpasswd has it (bcrypt).
LOGIN, HTPASSWD = "user:pass:word", "user:$2b$04$ilYFOBU0B/kfIfhZNNXXYOIEYOfPCVJo4qFmdvsyUWsilR5yW9NlW"


@contextlib.contextmanager
def docker_registry(directory: Path, certificates: Certificates | None = None, login: bool = False) -> Iterator[str]:
    """Debian's; its "host:port". Raises FileNotFoundError when it is not installed."""
    program = shutil.which("docker-registry") or shutil.which("docker-registry", path=str(TOOLS))
    if program is None:
        raise FileNotFoundError("docker-registry")
    port = free_port()
    config = directory / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'"
        + (f", tls: {{certificate: {certificates.certificate}, key: {certificates.key}}}" if certificates else "")
        + "}\n"
        + (f"auth: {{htpasswd: {{realm: me, path: {directory / 'htpasswd'}}}}}\n" if login else "")
    )
    (directory / "htpasswd").write_text(HTPASSWD + "\n")
    with subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def push(registry: str, repository: str, tag: str, image: OciImage, ca: Path | None = None, login: str = "") -> None:
    """By the distribution protocol, "Pushing Blobs" and "Pushing Manifests". ca: of one that speaks HTTPS."""
    scheme = "https" if ca else "http"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}

    def call(method: str, url: str, body: bytes = b"", media_type: str = "application/octet-stream") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(registry, timeout=60)
        if ca:
            connection = http.client.HTTPSConnection(registry, timeout=60, context=ssl.create_default_context(cafile=ca))
        connection.request(method, url.removeprefix(f"{scheme}://{registry}"), body, {"Content-Type": media_type, **headers})
        response = connection.getresponse()
        text = response.read()
        assert response.status < 300, (method, url, response.status, text)
        return response

    for digest, content in image.blobs.items():
        where = call("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
        call("PUT", f"{where}{'&' if '?' in where else '?'}digest={digest}", content)
    documents = image.documents()
    for media_type, content in documents:
        call("PUT", f"/v2/{repository}/manifests/{digest_of(content)}", content, media_type)
    call("PUT", f"/v2/{repository}/manifests/{tag}", documents[-1][1], documents[-1][0])
