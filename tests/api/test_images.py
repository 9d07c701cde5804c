"""ImageService over a real gRPC server: blobs, the catalog, builds."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hvapi.v1 import image_pb2, image_pb2_grpc
from oci import layer

from hvd.api.image_service import ImageService
from hvd.api.interceptors import CallInterceptor, Streams
from hvd.api.roles import Role
from hvd.errors import HvdError
from hvd.images import recipes
from hvd.images.blobs import BlobStore
from hvd.images.builder import ImageBuilder
from hvd.images.catalog import ImageCatalog
from hvd.images.layers import LayerStore
from hvd.images.recipes.recipe import Built, Progress, Recipe

KERNEL, INITRD = b"kernel" * 100_000, b"initrd" * 1000


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def reason_of(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None and status.details[0].Unpack(info), error
    return info.reason


@dataclass
class Daemon:
    """As much of a daemon as images need."""

    stub: image_pb2_grpc.ImageServiceAsyncStub
    blobs: BlobStore
    catalog: ImageCatalog
    builder: ImageBuilder
    users: dict[str, list[str]] = field(default_factory=dict)

    async def upload(self, content: bytes, digest: str = "", size: int = -1, chunk: int = 1 << 20) -> bool:
        async def frames() -> AsyncIterator[image_pb2.UploadBlobRequest]:
            info = image_pb2.BlobInfo(
                digest=digest or digest_of(content), size_bytes=len(content) if size < 0 else size
            )
            yield image_pb2.UploadBlobRequest(info=info)
            for start in range(0, len(content), chunk):
                yield image_pb2.UploadBlobRequest(chunk=content[start : start + chunk])

        return (await self.stub.UploadBlob(frames(), timeout=60)).existed

    async def image(self, identifier: str = "mine", request_id: str = "", **fields: object) -> image_pb2.Image:
        image = image_pb2.Image(**{"kind": "kernel", "kernel": digest_of(KERNEL), **fields})  # type: ignore[arg-type]
        request = image_pb2.CreateImageRequest(image_id=identifier, image=image, request_id=request_id)
        return await self.stub.CreateImage(request, timeout=60)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    users: dict[str, list[str]] = {}
    blobs = BlobStore(tmp_path / "blobs")
    catalog = ImageCatalog(tmp_path / "images.db", blobs, lambda name: users.get(name, []))
    builder = ImageBuilder(tmp_path / "cache", blobs, catalog)
    server = grpc.aio.server(interceptors=[CallInterceptor(Role.ADMIN, Streams())])
    service = ImageService(catalog, blobs, builder, LayerStore(tmp_path / "layers"))
    image_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Daemon(image_pb2_grpc.ImageServiceStub(channel), blobs, catalog, builder, users)
    await server.stop(None)
    await builder.close()
    catalog.close()


def files_in(store: BlobStore) -> list[Path]:
    return [path for path in store.directory.rglob("*") if path.is_file()]


class TestBlobs:
    async def test_upload_once(self, daemon: Daemon) -> None:
        assert await daemon.upload(KERNEL, chunk=100_000) is False
        assert daemon.blobs.path(digest_of(KERNEL)).read_bytes() == KERNEL
        assert await daemon.upload(KERNEL) is True
        asked = [digest_of(b"unknown"), digest_of(KERNEL)]
        found = await daemon.stub.FindBlobs(image_pb2.FindBlobsRequest(digests=asked), timeout=60)
        assert list(found.digests) == [digest_of(KERNEL)]

    async def test_the_same_at_the_same_time(self, daemon: Daemon) -> None:
        await asyncio.gather(*(daemon.upload(KERNEL, chunk=50_000) for _ in range(5)))
        assert files_in(daemon.blobs) == [daemon.blobs.path(digest_of(KERNEL))]

    @pytest.mark.parametrize(
        ("digest", "size", "reason"),
        [
            (digest_of(b"other"), -1, "DIGEST_MISMATCH"),
            ("", 1, "BLOB_SIZE"),
            ("", len(KERNEL) + 1, "BLOB_SIZE"),
            ("sha256:zz", -1, "DIGEST_INVALID"),
            ("", 1 << 60, "DISK_FULL"),
        ],
    )
    async def test_refused(self, daemon: Daemon, digest: str, size: int, reason: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.upload(KERNEL, digest, size)
        assert reason_of(raised.value) == reason
        assert files_in(daemon.blobs) == []

    @pytest.mark.parametrize(
        "frames",
        [
            [],
            [image_pb2.UploadBlobRequest(chunk=b"x")],
            [image_pb2.UploadBlobRequest(info=image_pb2.BlobInfo(digest=digest_of(b"x"), size_bytes=1))] * 2,
            [
                image_pb2.UploadBlobRequest(info=image_pb2.BlobInfo(digest=digest_of(b"x"), size_bytes=3 << 20)),
                image_pb2.UploadBlobRequest(chunk=bytes((1 << 20) + 1)),
            ],
        ],
    )
    async def test_frames_out_of_order(self, daemon: Daemon, frames: list[image_pb2.UploadBlobRequest]) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.stub.UploadBlob(iter(frames), timeout=60)
        assert reason_of(raised.value) == "REQUEST_INVALID"
        assert files_in(daemon.blobs) == []

    async def test_a_client_that_goes_in_the_middle_leaves_nothing(self, daemon: Daemon) -> None:
        call = daemon.stub.UploadBlob(timeout=60)
        info = image_pb2.BlobInfo(digest=digest_of(KERNEL), size_bytes=len(KERNEL))
        await call.write(image_pb2.UploadBlobRequest(info=info))
        await call.write(image_pb2.UploadBlobRequest(chunk=KERNEL[:1000]))
        await until(lambda: sum(path.stat().st_size for path in files_in(daemon.blobs)) == 1000)
        call.cancel()
        await until(lambda: not files_in(daemon.blobs))


    async def test_zeroes_are_holes(self, daemon: Daemon) -> None:
        size = (8 << 20) + 100
        content = bytes(3 << 20) + b"x" * 5000 + bytes(size - (3 << 20) - 5000)
        zeroes = size - 5000

        async def frames() -> AsyncIterator[image_pb2.UploadBlobRequest]:
            info = image_pb2.BlobInfo(digest=digest_of(content), size_bytes=size, zero_bytes=zeroes)
            yield image_pb2.UploadBlobRequest(info=info)
            yield image_pb2.UploadBlobRequest(zeroes=3 << 20)
            yield image_pb2.UploadBlobRequest(chunk=b"x" * 5000)
            yield image_pb2.UploadBlobRequest(zeroes=size - (3 << 20) - 5000)

        await daemon.stub.UploadBlob(frames(), timeout=60)
        path = daemon.blobs.path(digest_of(content))
        assert path.read_bytes() == content
        assert path.stat().st_blocks * 512 < 1 << 20

    @pytest.mark.parametrize(
        ("size", "zero_bytes", "zeroes", "reason"),
        [
            (1 << 50, 1 << 50, 0, "BLOB_TOO_LARGE"),
            (100, 101, 0, "BLOB_SIZE"),
            (100, -1, 0, "BLOB_SIZE"),
            (100, 100, 101, "BLOB_SIZE"),
            (100, 100, 99, "BLOB_SIZE"),
            (8 << 40, 8 << 40, (1 << 30) + 1, "REQUEST_INVALID"),
        ],
    )
    async def test_zeroes_that_are_refused(
        self, daemon: Daemon, size: int, zero_bytes: int, zeroes: int, reason: str
    ) -> None:
        info = image_pb2.BlobInfo(digest=digest_of(bytes(100)), size_bytes=size, zero_bytes=zero_bytes)
        frames = [image_pb2.UploadBlobRequest(info=info), image_pb2.UploadBlobRequest(zeroes=zeroes)]
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.stub.UploadBlob(iter(frames), timeout=60)
        assert reason_of(raised.value) == reason
        assert files_in(daemon.blobs) == []


DISK, ISO = (
    bytes(offset) + magic + bytes(40_000 - offset)
    for offset, magic in ((510, b"\x55\xaa"), (32769, b"CD001"))
)
TAR = layer(("etc", None), ("etc/hostname", b"box\n"))


class TestKinds:
    async def test_every_kind(self, daemon: Daemon) -> None:
        for content in (KERNEL, INITRD, DISK, ISO, TAR):
            await daemon.upload(content)
        for kind, fields in {
            "kernel": {"kernel": KERNEL, "symbols": INITRD},
            "initrd": {"kernel": b"", "initrd": INITRD},
            "disk": {"kernel": KERNEL, "disk": DISK},
            "cdrom": {"kernel": b"", "disk": ISO},
            "rootfs": {"kernel": b"", "rootfs": TAR},
        }.items():
            digests = {field: digest_of(content) if content else "" for field, content in fields.items()}
            made = await daemon.image(kind, kind=kind, **digests)
            assert made.size_bytes == sum(map(len, fields.values()))
        everything = {digest_of(content) for content in (KERNEL, INITRD, DISK, ISO, TAR)}
        assert daemon.catalog.references() == everything
        assert daemon.blobs.collect(daemon.catalog.references, age=-1) == []
        await daemon.stub.DeleteImage(image_pb2.DeleteImageRequest(name="disk"), timeout=60)
        # The kernel is that of another image, too.
        assert daemon.blobs.collect(daemon.catalog.references, age=-1) == [digest_of(DISK)]

    @pytest.mark.parametrize(
        ("kind", "content", "reason"),
        [
            ("disk", b"", "IMAGE_EMPTY"),
            ("disk", b"QFI\xfb", "IMAGE_NOT_RAW"),
            ("cdrom", b"conectix", "IMAGE_NOT_RAW"),
            ("cdrom", DISK, "IMAGE_CONTENT"),
            ("rootfs", DISK, "IMAGE_CONTENT"),
            ("rootfs", b"", "IMAGE_EMPTY"),
        ],
    )
    async def test_files_of_another_kind(self, daemon: Daemon, kind: str, content: bytes, reason: str) -> None:
        await daemon.upload(content)
        field = "rootfs" if kind == "rootfs" else "disk"
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.image(kind=kind, kernel="", **{field: digest_of(content)})
        assert reason_of(raised.value) == reason

    @pytest.mark.parametrize("kind", ["initrd", "disk", "cdrom", "rootfs", "linux"])
    async def test_without_its_file(self, daemon: Daemon, kind: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.image(kind=kind, kernel="")
        assert reason_of(raised.value) == "FIELD_INVALID"

    async def test_who_uses_it(self, daemon: Daemon) -> None:
        await daemon.upload(KERNEL)
        daemon.users["images/mine"] = ["guests/b", "guests/a"]
        assert not (await daemon.image(used_by=["guests/forged"])).used_by
        got = await daemon.stub.GetImage(image_pb2.GetImageRequest(name="mine"), timeout=60)
        listed = await daemon.stub.ListImages(image_pb2.ListImagesRequest(), timeout=60)
        assert list(got.used_by) == list(listed.images[0].used_by) == ["guests/a", "guests/b"]


class TestCatalog:
    @pytest.fixture(autouse=True)
    async def uploaded(self, daemon: Daemon) -> None:
        await daemon.upload(KERNEL)
        await daemon.upload(INITRD)

    async def test_create_get_delete(self, daemon: Daemon) -> None:
        made = await daemon.image(
            initrd=digest_of(INITRD), append="a=b", arch="i386", labels={"k": "v"}, description="d", uid="ignored"
        )
        assert (made.name, made.append, made.labels["k"]) == ("images/mine", "a=b", "v")
        assert made.size_bytes == len(KERNEL) + len(INITRD)
        assert uuid.UUID(made.uid) and made.create_time.seconds > 0
        for name in ("images/mine", "mine"):
            assert await daemon.stub.GetImage(image_pb2.GetImageRequest(name=name), timeout=60) == made
        await daemon.stub.DeleteImage(image_pb2.DeleteImageRequest(name="images/mine"), timeout=60)
        for call in (
            daemon.stub.GetImage(image_pb2.GetImageRequest(name="images/mine"), timeout=60),
            daemon.stub.DeleteImage(image_pb2.DeleteImageRequest(name="images/mine"), timeout=60),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                await call
            assert reason_of(raised.value) == "IMAGE_NOT_FOUND"
        await daemon.stub.DeleteImage(image_pb2.DeleteImageRequest(name="mine", allow_missing=True), timeout=60)

    async def test_survives_the_daemon(self, daemon: Daemon) -> None:
        made = await daemon.image()
        again = ImageCatalog(daemon.catalog.path, daemon.blobs)
        assert again.get("mine") == made
        assert again.references() == {digest_of(KERNEL)}
        again.close()

    @pytest.mark.parametrize("identifier", ["", "-a", "a-", "A", "a/b", "a" * 64, "ä", "a\n", ".."])
    async def test_names(self, daemon: Daemon, identifier: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.image(identifier)
        assert reason_of(raised.value) == "NAME_INVALID"

    async def test_longest_and_shortest_name(self, daemon: Daemon) -> None:
        assert (await daemon.image("a" * 63)).name == "images/" + "a" * 63
        assert (await daemon.image("0")).name == "images/0"

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"kind": "floppy"}, "FIELD_INVALID"),
            ({"kind": ""}, "FIELD_INVALID"),
            ({"arch": "vax"}, "FIELD_INVALID"),
            ({"memory_bytes": -4096}, "FIELD_INVALID"),
            ({"memory_bytes": 4097}, "FIELD_INVALID"),
            ({"kernel": ""}, "FIELD_INVALID"),
            ({"kernel": "x"}, "DIGEST_INVALID"),
            ({"initrd": digest_of(b"not uploaded")}, "BLOB_NOT_FOUND"),
        ],
    )
    async def test_bad_images(self, daemon: Daemon, fields: dict[str, object], reason: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.image(**fields)
        assert reason_of(raised.value) == reason
        assert daemon.catalog.list() == []

    async def test_request_id(self, daemon: Daemon) -> None:
        request_id = str(uuid.uuid4())
        first = await daemon.image(request_id=request_id)
        assert await daemon.image(request_id=request_id) == first
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.image(request_id=request_id, append="different")
        assert reason_of(raised.value) == "REQUEST_ID_REUSED"
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.image(request_id=str(uuid.uuid4()))
        assert reason_of(raised.value) == "NAME_TAKEN"

    async def test_in_use(self, daemon: Daemon) -> None:
        await daemon.image()
        daemon.users["images/mine"] = ["guests/b", "guests/a"]
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.stub.DeleteImage(image_pb2.DeleteImageRequest(name="mine"), timeout=60)
        assert reason_of(raised.value) == "IMAGE_IN_USE"
        assert "guests/a, guests/b" in raised.value.details()

    async def test_pages(self, daemon: Daemon) -> None:
        for number in (3, 1, 2):
            await daemon.image(f"image-{number}")
        seen, token = [], ""
        while True:
            request = image_pb2.ListImagesRequest(page_size=2, page_token=token)
            page = await daemon.stub.ListImages(request, timeout=60)
            seen.append([image.name for image in page.images])
            token = page.next_page_token
            if not token:
                break
        assert seen == [["images/image-1", "images/image-2"], ["images/image-3"]]

    @pytest.mark.parametrize(
        ("request_fields", "reason"),
        [({"page_token": "not ours!"}, "PAGE_TOKEN_INVALID"), ({"page_size": -1}, "FIELD_INVALID")],
    )
    async def test_bad_pages(self, daemon: Daemon, request_fields: dict[str, object], reason: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await daemon.stub.ListImages(image_pb2.ListImagesRequest(**request_fields), timeout=60)  # type: ignore[arg-type]
        assert reason_of(raised.value) == reason


def test_a_catalog_of_garbage(tmp_path: Path) -> None:
    (tmp_path / "images.db").write_bytes(b"this is no database " * 1000)
    with pytest.raises(HvdError) as raised:
        ImageCatalog(tmp_path / "images.db", BlobStore(tmp_path / "blobs"))
    assert raised.value.reason == "STORE_DAMAGED"


def test_a_catalog_of_the_future(tmp_path: Path) -> None:
    ImageCatalog(tmp_path / "images.db", BlobStore(tmp_path / "blobs")).close()
    with sqlite3.connect(tmp_path / "images.db") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(HvdError) as raised:
        ImageCatalog(tmp_path / "images.db", BlobStore(tmp_path / "blobs"))
    assert raised.value.reason == "STORE_VERSION"


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class FakeRecipe(Recipe):
    """Builds on command."""

    name = "fake"
    description = "for tests"
    images = {"i386": "fake", "x86_64": "fake64"}

    def __init__(self) -> None:
        self.builds = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()
        self.problem: HvdError | None = None
        self.content = KERNEL

    async def build(self, arch: str, cache_dir: Path, force: bool, progress: Progress) -> Built:
        self.builds += 1
        progress("compile", 0.5, f"compiling for {arch}")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.problem:
            raise self.problem
        return self.built(cache_dir)

    def built(self, cache_dir: Path) -> Built:
        cache_dir.mkdir(exist_ok=True)
        (cache_dir / "kernel").write_bytes(self.content)
        (cache_dir / "initrd").write_bytes(INITRD)
        return Built(cache_dir / "kernel", cache_dir / "initrd", "console=ttyS0", 64 << 20, "built")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRecipe]:
    fake = FakeRecipe()
    monkeypatch.setitem(recipes.RECIPES, "fake", fake)
    yield fake


class TestBuild:
    def build(self, daemon: Daemon, **fields: object):  # type: ignore[no-untyped-def]
        request = image_pb2.BuildImageRequest(**{"recipe": "fake", **fields})  # type: ignore[arg-type]
        return daemon.stub.BuildImage(request, timeout=30)

    async def test_progress_then_image(self, daemon: Daemon, recipe: FakeRecipe) -> None:
        call = self.build(daemon)
        first = await anext(aiter(call))
        assert (first.progress.step, first.progress.fraction) == ("compile", 0.5)
        recipe.go_on.set()
        frames = [frame async for frame in call]
        image = frames[-1].image
        assert (image.name, image.arch, image.kernel) == ("images/fake", "i386", digest_of(KERNEL))
        assert image.append == "console=ttyS0" and image.size_bytes == len(KERNEL) + len(INITRD)
        assert daemon.catalog.get("fake") == image
        # Built again it is the same image; of other content it replaces that.
        assert (await last(self.build(daemon))).image == image
        recipe.content = KERNEL + b"2"
        replaced = (await last(self.build(daemon))).image
        assert replaced.kernel == digest_of(KERNEL + b"2") and replaced.uid != image.uid
        recipe.content = KERNEL
        daemon.users["images/fake"] = ["guests/a"]
        with pytest.raises(grpc.RpcError) as raised:
            await last(self.build(daemon))
        assert reason_of(raised.value) == "IMAGE_IN_USE"

    async def test_other_architecture_and_name(self, daemon: Daemon, recipe: FakeRecipe) -> None:
        recipe.go_on.set()
        assert (await last(self.build(daemon, arch="x86_64"))).image.name == "images/fake64"
        assert (await last(self.build(daemon, image_id="other"))).image.name == "images/other"

    async def test_an_image_that_somebody_made_is_not_replaced(self, daemon: Daemon, recipe: FakeRecipe) -> None:
        recipe.go_on.set()
        await daemon.upload(KERNEL)
        await daemon.image("fake")
        with pytest.raises(grpc.RpcError) as raised:
            await last(self.build(daemon))
        assert reason_of(raised.value) == "NAME_TAKEN"

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"recipe": "soup"}, "RECIPE_UNKNOWN"),
            ({"arch": "vax"}, "FIELD_INVALID"),
            ({"image_id": "A"}, "NAME_INVALID"),
        ],
    )
    async def test_refused(self, daemon: Daemon, recipe: FakeRecipe, fields: dict[str, object], reason: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await last(self.build(daemon, **fields))
        assert reason_of(raised.value) == reason
        assert recipe.builds == 0

    async def test_two_who_ask_share_a_build(self, daemon: Daemon, recipe: FakeRecipe) -> None:
        one, two = self.build(daemon), self.build(daemon)
        await anext(aiter(one))
        await anext(aiter(two))
        assert recipe.builds == 1
        one.cancel()
        recipe.go_on.set()
        assert (await last(two)).image.name == "images/fake"
        assert recipe.cancelled == 0

    async def test_the_build_ends_with_its_last_reader(self, daemon: Daemon, recipe: FakeRecipe) -> None:
        call = self.build(daemon)
        await anext(aiter(call))
        call.cancel()
        await until(lambda: recipe.cancelled == 1)
        recipe.go_on.set()
        assert (await last(self.build(daemon))).image.name == "images/fake"

    async def test_a_build_that_fails(self, daemon: Daemon, recipe: FakeRecipe) -> None:
        recipe.problem = HvdError("BUILD_FAILED", recipe="fake", step="compile", problem="no", log="/log")
        recipe.go_on.set()
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as raised:
                await last(self.build(daemon))
            assert reason_of(raised.value) == "BUILD_FAILED"


async def last(call):  # type: ignore[no-untyped-def]
    frames = [frame async for frame in call]
    return frames[-1]
