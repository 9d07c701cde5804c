"""Pulling from a registry that serves well, badly, or not at all. Whatever goes wrong has a reason and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hvapi.v1 import image_pb2
from oci import FakeRegistry, OciImage, digest_of, docker_registry, layer, push, send

from hvd.errors import HvdError
from hvd.images import reference
from hvd.images.blobs import BlobStore
from hvd.images.catalog import ImageCatalog
from hvd.images.layers import LayerStore
from hvd.images.puller import ImagePuller
from hvd.images.registry import Registry
from hvd.images.registry_access import RegistryAccess
from tests.free_port import free_port

CONFIG = {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["true"], "Env": ["A=1", "B=x=y"], "WorkingDir": "/srv", "User": "33", "StopSignal": "2"}


class Puller:
    def __init__(self, directory: Path, **limits: int) -> None:
        self.blobs = BlobStore(directory / "blobs")
        self.layers = LayerStore(directory / "layers", **limits)
        self.catalog = ImageCatalog(directory / "images.sqlite", self.blobs)
        self.silence = 30.0
        self.access = RegistryAccess()
        self.puller = ImagePuller(self.blobs, self.catalog, self.layers, self.access, self._open)
        self.progress: list[image_pb2.BuildProgress] = []

    def _open(self, wanted: reference.Reference, insecure: bool, _: RegistryAccess | None) -> Registry:
        return Registry(wanted, insecure, self.access, self.silence, self.silence)

    async def pull(self, name: str, identifier: str = "", insecure: bool = False) -> image_pb2.Image:
        async with contextlib.aclosing(self.puller.pull(name, identifier, insecure)) as frames:
            async for frame in frames:
                if isinstance(frame, image_pb2.Image):
                    return frame
                self.progress.append(frame)
        raise AssertionError("no image")

    async def refused(self, name: str, **words: bool) -> HvdError:
        with pytest.raises(HvdError) as caught:
            await self.pull(name, **words)
        assert not self.catalog.list()
        return caught.value

    def blob_names(self) -> set[str]:
        assert not list((self.blobs.directory / "incoming").iterdir())
        return {f"sha256:{path.name}" for path in (self.blobs.directory / "sha256").iterdir()}

    def unpacked(self) -> list[str]:
        incoming = self.layers.directory / "incoming"
        assert not incoming.exists() or not list(incoming.iterdir())
        done = self.layers.directory / "sha256"
        return sorted(f"sha256:{path.name}" for path in done.iterdir()) if done.exists() else []


@pytest.fixture
async def puller(tmp_path: Path) -> AsyncIterator[Puller]:
    made = Puller(tmp_path / "daemon")
    yield made
    made.catalog.close()


@pytest.fixture
def image() -> OciImage:
    return OciImage((layer(("a", b"one")), "+gzip"), (layer(("b", b"two" * 1000)), "+zstd"), (layer(("c", b"3")), ""), config=CONFIG, index=True)


@pytest.fixture
def registry(image: OciImage) -> Iterator[FakeRegistry]:
    made = FakeRegistry(image)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "whole", "host", "identifier"),
    [
        ("debian", "docker.io/library/debian:latest", "registry-1.docker.io", "debian"),
        ("debian:12.1", "docker.io/library/debian:12.1", "registry-1.docker.io", "debian-12-1"),
        ("me/tool", "docker.io/me/tool:latest", "registry-1.docker.io", "tool"),
        ("localhost/x", "localhost/x:latest", "localhost", "x"),
        ("127.0.0.1:5000/a/b_c:T", "127.0.0.1:5000/a/b_c:T", "127.0.0.1:5000", "b-c-t"),
        ("[::1]:5000/box:1", "[::1]:5000/box:1", "[::1]:5000", "box-1"),
        ("quay.io/a/b@sha256:" + "0" * 64, "quay.io/a/b@sha256:" + "0" * 64, "quay.io", "b"),
        ("quay.io/a/b:1@sha256:" + "0" * 64, "quay.io/a/b:1@sha256:" + "0" * 64, "quay.io", "b-1"),
    ],
)
def test_references(text: str, whole: str, host: str, identifier: str) -> None:
    parsed = reference.parse(text)
    assert (str(parsed), parsed.host, parsed.image_id) == (whole, host, identifier)


BAD_NAMES = ["", ":", "/", "UPPER", "a b", "a//b", "x:", "x@sha256:12", "-/x.", "host.:/x", "host.com:99999/x", "a:b:c", "http://x.de/y", "x" * 1000]


@pytest.mark.parametrize("text", [*BAD_NAMES, "x/../y", "x.de/a?b", "a\0b", "ä"])
def test_no_references(text: str) -> None:
    with pytest.raises(HvdError) as caught:
        reference.parse(text)
    assert caught.value.reason == "REFERENCE_INVALID"


async def test_all_of_it(puller: Puller, registry: FakeRegistry, image: OciImage) -> None:
    registry.token = "secret"
    made = await puller.pull(registry.reference)
    assert (made.name, made.kind, list(made.layers)) == ("images/box-1", "rootfs", image.layers)
    named = digest_of(image.documents()[-1][1])
    assert made.source == f"{registry.host}/box@{named}"
    config = made.config
    assert (list(config.entrypoint), list(config.command), dict(config.env)) == (["/bin/sh", "-c"], ["true"], {"A": "1", "B": "x=y"})
    assert (config.working_directory, config.user, config.stop_signal) == ("/srv", "33", "SIGINT")
    if os.geteuid() == 0:
        assert [(puller.layers.path(digest) / name).read_bytes()[:1] for digest, name in zip(image.layers, "abc", strict=True)] == [b"o", b"t", b"3"]
    assert puller.progress and all(-1 <= each.fraction <= 1 for each in puller.progress)
    # Once more: nothing is fetched but the manifests, and by digest it is the same.
    registry.requests.clear()
    assert await puller.pull(f"{registry.host}/box@{named}", "box-1") == made
    assert not [path for path, _ in registry.requests if "/blobs/" in path]


async def test_a_name_that_came_from_elsewhere(puller: Puller, registry: FakeRegistry) -> None:
    await puller.pull(registry.reference, "taken")
    registry.requests.clear()
    with pytest.raises(HvdError) as caught:
        await puller.pull(f"{registry.host}/other:1", "taken")
    assert caught.value.reason == "NAME_TAKEN" and not registry.requests


async def test_a_layer_twice_counts_where_it_stands_highest(puller: Puller) -> None:
    one, two = (layer(("a", b"1")), ""), (layer(("b", b"2")), "")
    image = OciImage(one, two, one)
    registry = FakeRegistry(image)
    try:
        assert list((await puller.pull(registry.reference)).layers) == image.layers[1:]
    finally:
        registry.close()


async def test_a_pull_goes_on_where_it_was(puller: Puller, registry: FakeRegistry, image: OciImage) -> None:
    last = f"/v2/box/blobs/{image.layers[-1]}"
    registry.answers[last] = lambda request: send(request, b"", status=500)
    assert (await puller.refused(registry.reference)).reason == "REGISTRY_ANSWER"
    registry.answers.clear()
    registry.requests.clear()
    await puller.pull(registry.reference)
    assert [path for path, _ in registry.requests if "/blobs/" in path] == [last]


Answer = Callable[[BaseHTTPRequestHandler], None]


def stalling(registry: FakeRegistry, head: bool = True) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if head:
            send(request, b"x" * 10, length=1000)
        request.wfile.flush()
        registry.ended.wait(60)

    return answer


def dribbling(registry: FakeRegistry, head: bytes) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(head)
        while not registry.ended.wait(0.05):
            request.wfile.write(b"x")

    return answer


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize("where", ["/v2/box/manifests", "/v2/box/blobs"])
@pytest.mark.parametrize(
    "how",
    [
        lambda registry: stalling(registry),
        lambda registry: stalling(registry, head=False),
        lambda registry: dribbling(registry, b""),
        lambda registry: dribbling(registry, b"HTTP/1.1 200 OK\r\nX-A: "),
        lambda registry: dribbling(registry, ENDLESS),
    ],
    ids=["stalls", "is silent", "dribbles", "dribbles a header", "dribbles content"],
)
async def test_a_registry_that_does_not_go_on(puller: Puller, registry: FakeRegistry, where: str, how: Callable[[FakeRegistry], Answer]) -> None:
    puller.silence = 0.5
    registry.answers[where] = how(registry)
    assert (await puller.refused(registry.reference)).reason == "REGISTRY_STALLED"
    assert not puller.blob_names()


def raw(content: bytes) -> Answer:
    return lambda request: void(request.wfile.write(content))


def void(_: object) -> None: ...


def redirect(where: str) -> Answer:
    return lambda request: send(request, b"", status=307, headers={"Location": where})


NONSENSE: dict[str, tuple[Answer, str]] = {
    "nothing": (raw(b""), "REGISTRY_UNREACHABLE"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH\r\n"), "REGISTRY_ANSWER"),
    "a long header": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), "REGISTRY_ANSWER"),
    "many headers": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"), "REGISTRY_ANSWER"),
    "status 500": (lambda request: send(request, b"", status=500), "REGISTRY_ANSWER"),
    "status 404": (lambda request: send(request, b"", status=404), "MANIFEST_NOT_FOUND"),
    "status 403": (lambda request: send(request, b"", status=403), "REGISTRY_DENIED"),
    "a password": (lambda request: send(request, b"", status=401, headers={"WWW-Authenticate": "Basic realm=x"}), "REGISTRY_DENIED"),
    "no challenge": (lambda request: send(request, b"", status=401), "REGISTRY_DENIED"),
    "a token from a file": (
        lambda request: send(request, b"", status=401, headers={"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'}),
        "REGISTRY_ANSWER",
    ),
    "redirects for ever": (redirect("/v2/box/manifests/1"), "REGISTRY_ANSWER"),
    "redirects to a file": (redirect("file:///etc/passwd"), "REGISTRY_ANSWER"),
    "redirects to HTTP elsewhere": (redirect("http://192.0.2.1/x"), "REGISTRY_ANSWER"),
    "redirects nowhere": (redirect(""), "REGISTRY_ANSWER"),
    "redirects to nonsense": (redirect("http://[::1:::/"), "REGISTRY_ANSWER"),
    "no JSON": (lambda request: send(request, b"<html>"), "MANIFEST_INVALID"),
    "deep JSON": (lambda request: send(request, b"[" * 100_000), "MANIFEST_INVALID"),
    "a list": (lambda request: send(request, b"[]"), "MANIFEST_INVALID"),
    "a large manifest": (lambda request: send(request, b" " * (5 << 20)), "REGISTRY_CONTENT"),
    "half a manifest": (lambda request: send(request, b"{}", length=1000), "REGISTRY_CONTENT"),
    "another digest": (lambda request: send(request, b"{}", headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), "REGISTRY_CONTENT"),
}


@pytest.mark.parametrize("case", NONSENSE)
async def test_nonsense(puller: Puller, registry: FakeRegistry, case: str) -> None:
    answer, reason = NONSENSE[case]
    registry.answers["/v2/box/manifests"] = answer
    error = await puller.refused(registry.reference)
    assert error.reason == reason, error
    assert registry.host in str(error) and not puller.blob_names()


async def test_a_token_that_is_never_enough(puller: Puller, registry: FakeRegistry) -> None:
    registry.token = "right"
    registry.answers["/token"] = lambda request: send(request, b'{"token": "wrong"}')
    assert (await puller.refused(registry.reference)).reason == "REGISTRY_DENIED"
    registry.answers["/token"] = lambda request: send(request, b'{"token": "a\\r\\nX-Injected: 1"}')
    assert (await puller.refused(registry.reference)).reason == "REGISTRY_ANSWER"


async def test_a_token_does_not_go_to_where_a_blob_is(puller: Puller, registry: FakeRegistry, image: OciImage) -> None:
    store = FakeRegistry(image)
    registry.token = "secret"
    registry.answers["/v2/box/blobs/"] = lambda request: send(request, b"", status=307, headers={"Location": f"http://{store.host}{request.path}"})
    try:
        await puller.pull(registry.reference)
        assert len(store.requests) == 4 and not [word for _, word in store.requests if word]
    finally:
        store.close()


LIES: dict[str, Callable[[bytes], Answer]] = {
    "other bytes": lambda content: lambda request: send(request, bytes(len(content))),
    "too few": lambda content: lambda request: send(request, content[:-1]),
    "fewer than it says": lambda content: lambda request: send(request, content[:-1], length=len(content)),
    "too many": lambda content: lambda request: send(request, content + b"x"),
    "endless": lambda content: raw(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1 << 22)),
    "none": lambda content: lambda request: send(request, b""),
}


@pytest.mark.parametrize("case", LIES)
@pytest.mark.parametrize("which", ["config", "layer"])
async def test_a_registry_that_lies(puller: Puller, registry: FakeRegistry, image: OciImage, case: str, which: str) -> None:
    digest = image.manifest["config"]["digest"] if which == "config" else image.layers[0]
    registry.answers[f"/v2/box/blobs/{digest}"] = LIES[case](image.blobs[digest])
    error = await puller.refused(registry.reference)
    assert error.reason == "REGISTRY_CONTENT", error
    assert digest not in puller.blob_names() and not puller.unpacked()


MANIFESTS: dict[str, dict[str, object]] = {
    "version 1": {"schemaVersion": 1},
    "no layers": {"layers": []},
    "no list": {"layers": {"a": 1}},
    "texts as layers": {"layers": ["x"]},
    "no config": {"config": None},
    "a bad digest": {"config": {"digest": "sha256:../../etc/passwd", "size": 1}},
    "a negative size": {"config": {"digest": "sha256:" + "0" * 64, "size": -1}},
    "a huge config": {"config": {"digest": "sha256:" + "0" * 64, "size": 1 << 40}},
    "an encrypted layer": {"layers": [{"digest": "sha256:" + "0" * 64, "size": 1, "mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}]},
}


@pytest.mark.parametrize("case", MANIFESTS)
async def test_bad_manifests(puller: Puller, registry: FakeRegistry, case: str) -> None:
    content = json.dumps({**registry.image.manifest, **MANIFESTS[case]}).encode()
    registry.answers["/v2/box/manifests/"] = lambda request: send(request, content)
    assert (await puller.refused(registry.reference)).reason == "MANIFEST_INVALID"


@pytest.mark.parametrize("config", [{"Cmd": "text"}, {"Env": [1]}, {"User": ["x"]}, {"WorkingDir": "a\0b"}, {"Cmd": ["\ud800"]}])
async def test_bad_configurations(puller: Puller, config: dict[str, object]) -> None:
    registry = FakeRegistry(OciImage((layer(("a", b"")), ""), config=config))
    try:
        assert (await puller.refused(registry.reference)).reason == "MANIFEST_INVALID"
    finally:
        registry.close()


@pytest.mark.parametrize("index", [True, False])
async def test_another_machine(puller: Puller, index: bool) -> None:
    registry = FakeRegistry(OciImage((layer(("a", b"")), ""), arch="arm64", index=index))
    try:
        error = await puller.refused(registry.reference)
        assert error.reason == "PLATFORM_MISSING" and "linux/arm64" in str(error)
    finally:
        registry.close()


async def test_a_layer_larger_than_the_disk(puller: Puller, registry: FakeRegistry) -> None:
    registry.image.manifest["layers"][0]["size"] = 1 << 60
    assert (await puller.refused(registry.reference)).reason == "DISK_FULL"


async def test_nobody_listens(puller: Puller) -> None:
    assert (await puller.refused(f"127.0.0.1:{free_port()}/box:1")).reason == "REGISTRY_UNREACHABLE"
    assert (await puller.refused("no-such-host.invalid/box:1")).reason == "REGISTRY_UNREACHABLE"


async def test_whoever_goes_leaves_nothing(puller: Puller, registry: FakeRegistry, image: OciImage) -> None:
    registry.answers[f"/v2/box/blobs/{image.layers[0]}"] = stalling(registry)
    task = asyncio.create_task(puller.pull(registry.reference))
    while not any(image.layers[0] in path for path, _ in registry.requests):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert puller.blob_names() <= {image.manifest["config"]["digest"]}
    assert not puller.unpacked() and not puller.catalog.list()


@pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")
@pytest.mark.parametrize("how", ["+gzip", "+zstd"])
async def test_bombs(tmp_path: Path, how: str) -> None:
    puller = Puller(tmp_path, most_bytes=10 << 20, most_files=1000)
    bombs = [layer(("large", bytes(64 << 20))), layer(*((f"f{number}", b"") for number in range(5000)))]
    for content in bombs:
        image = OciImage((layer(("fine", b"")), ""), (content, how))
        registry = FakeRegistry(image)
        try:
            error = await puller.refused(registry.reference)
        finally:
            registry.close()
        assert error.reason == "ARCHIVE_TOO_LARGE", error
        assert image.layers[1] not in puller.unpacked()
    puller.catalog.close()


async def test_debians_registry(puller: Puller, tmp_path: Path, image: OciImage) -> None:
    try:
        with docker_registry(tmp_path) as host:
            image.others = False
            push(host, "some/box", "v1", image)
            made = await puller.pull(f"{host}/some/box:v1")
            assert (made.name, list(made.layers)) == ("images/box-v1", image.layers)
            assert (await puller.pull(f"{host}/some/box@{made.source.partition('@')[2]}", "again")).layers == made.layers
            with pytest.raises(HvdError) as caught:
                await puller.pull(f"{host}/some/box:v2")
            assert caught.value.reason == "MANIFEST_NOT_FOUND"
    except FileNotFoundError:
        pytest.skip("docker-registry is not installed")
