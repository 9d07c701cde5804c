"""What becomes of the disks that a guest is asked for: the files of its overlays, the images it needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2, image_pb2

from hvd.board.spec import DiskSpec, MachineSpec, NetworkSpec
from hvd.errors import HvdError
from hvd.guests import disks, model
from hvd.images.catalog import digests_of

Guest, Disk = guest_pb2.Guest, guest_pb2.Disk


class Store:
    """Images and blobs, for resolve()."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images: dict[str, image_pb2.Image] = {}

    def add(self, name: str, kind: str, size: int, **fields: str) -> None:
        digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        self.path(digest).write_bytes(b"x" * size)
        blob = {"disk": "disk", "cdrom": "disk"}.get(kind, kind)
        image = image_pb2.Image(name=f"images/{name}", kind=kind, **{blob: digest}, **fields)
        image.size_bytes = sum(self.path(each).stat().st_size for each in digests_of(image))
        self.images[image.name] = image

    def get(self, name: str) -> image_pb2.Image:
        if name not in self.images:
            raise HvdError("IMAGE_NOT_FOUND", name=name)
        return self.images[name]

    def path(self, digest: str) -> Path:
        return self.directory / digest.removeprefix("sha256:")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add("kernel", "kernel", 100)
    store.add("disk", "disk", 1000)
    store.add("cd", "cdrom", 3000)
    return store


def resolve(store: Store, guest: guest_pb2.Guest) -> model.LaunchSpec:
    return model.resolve(guest, store, store, store.directory / "disks", 1 << 26, 1 << 20, paused=False)


def test_disks_of_every_sort(store: Store) -> None:
    guest = Guest(
        uid="u",
        image="images/kernel",
        machine={
            "disks": [
                Disk(image="images/disk"),
                Disk(image="images/disk", mode=Disk.READ_ONLY, bus=Disk.IDE),
                Disk(size_bytes=1 << 20),
                Disk(image="images/disk", size_bytes=4096),
                Disk(image="images/cd", cdrom=True),
            ]
        },
    )
    spec = resolve(store, guest)
    own = store.directory / "disks"
    base = str(store.path(store.images["images/disk"].disk))
    cd = str(store.path(store.images["images/cd"].disk))
    assert spec.boot == "kernel"
    assert list(spec.disks) == [
        DiskSpec("disk0", base, str(own / "disk0"), 1024),
        DiskSpec("disk1", base, "", 1024, "ide"),
        DiskSpec("disk2", "", str(own / "disk2"), 1 << 20),
        DiskSpec("disk3", base, str(own / "disk3"), 4096),
        DiskSpec("disk4", cd, "", 4096, "ide", True),
    ]
    assert model.images_of(guest) == {"kernel", "disk", "cd"}
    disks.make_overlays(spec.disks, own)
    assert sorted(path.name for path in own.iterdir()) == ["disk0", "disk2", "disk3"]
    assert 0 < disks.stored_bytes(own) < 1 << 17
    assert disks.stored_bytes(store.directory / "nowhere") == 0


@pytest.mark.parametrize(
    ("guest", "boot"),
    [
        ({"image": "images/kernel"}, "kernel"),
        ({"image": "images/kernel", "machine": {"disks": [{"image": "images/disk"}]}}, "kernel"),
        ({"image": "images/kernel", "machine": {"boot": 2, "disks": [{"image": "images/disk"}]}}, "disk"),
        ({"machine": {"disks": [{"image": "images/disk"}]}}, "disk"),
        ({"machine": {"disks": [{"image": "images/cd", "cdrom": True}, {"image": "images/disk"}]}}, "cdrom"),
        ({"image": "images/disk"}, "disk"),
        ({"image": "images/cd"}, "cdrom"),
        ({"image": "images/disk", "machine": {"boot": 3, "disks": [{"image": "images/cd", "cdrom": True}]}}, "cdrom"),
    ],
)
def test_what_is_booted(store: Store, guest: dict, boot: str) -> None:
    spec = resolve(store, Guest(**guest))
    assert spec.boot == boot
    assert (spec.kernel is None) == (boot != "kernel")


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        ({}, "KERNEL_MISSING"),
        ({"machine": {"boot": 1, "disks": [{"image": "images/disk"}]}}, "KERNEL_MISSING"),
        ({"machine": {"boot": 2}}, "FIELD_INVALID"),
        ({"image": "images/cd", "machine": {"boot": 2}}, "FIELD_INVALID"),
        ({"machine": {"disks": [{"image": "images/cd"}]}}, "IMAGE_KIND"),
        ({"machine": {"disks": [{"image": "images/kernel"}]}}, "IMAGE_KIND"),
        ({"machine": {"disks": [{"image": "images/none"}]}}, "IMAGE_NOT_FOUND"),
        ({"machine": {"disks": [{"image": "images/disk", "size_bytes": 512}]}}, "FIELD_INVALID"),
    ],
)
def test_what_cannot_be(store: Store, guest: dict, reason: str) -> None:
    with pytest.raises(HvdError) as raised:
        resolve(store, Guest(**guest))
    assert raised.value.reason == reason


def test_an_image_that_was_cut(store: Store) -> None:
    guest = Guest(machine={"disks": [{"image": "images/disk", "mode": Disk.READ_ONLY}]})
    path = Path(resolve(store, guest).disks[0].base)
    path.write_bytes(b"x" * 512)
    with pytest.raises(HvdError) as raised:
        resolve(store, guest)
    assert raised.value.reason == "BLOB_DAMAGED"
    assert str(path) in raised.value.message


def test_a_disk_with_its_kernel(store: Store) -> None:
    store.add("both", "disk", 512, kernel=store.images["images/kernel"].kernel, append="root=/dev/vda")
    spec = resolve(store, Guest(image="images/both"))
    assert (spec.boot, len(spec.disks), spec.command_line) == ("kernel", 1, "root=/dev/vda")


def test_overlays_that_cannot_be_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve(store, Guest(machine={"disks": [{"image": "images/disk"}, {"size_bytes": 1 << 20}]}))
    own = store.directory / "disks"
    for number, reason in ((28, "DISK_FULL"), (27, "DISK_UNUSABLE")):
        made: list[Path] = []

        def create(path: Path, size: int, base: Path | None, number: int = number, made: list[Path] = made) -> None:
            if made:
                raise OSError(number, "no")
            made.append(path)
            path.touch()

        with monkeypatch.context() as patch:
            patch.setattr(disks, "create_overlay", create)
            with pytest.raises(HvdError) as raised:
                disks.make_overlays(spec.disks, own)
        assert raised.value.reason == reason
        assert not own.exists()


def test_left_overs(tmp_path: Path) -> None:
    for name in ("known", "strange", "gone.deleted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disk0").touch()
    assert disks.left_over(tmp_path, {"known"}) == [tmp_path / "strange"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known", "strange"]
    assert disks.left_over(tmp_path / "nowhere", set()) == []


def test_what_the_runner_reads_is_what_was_written() -> None:
    spec = MachineSpec(
        "n", "emulation", "native", 1 << 20, "/k",
        disks=(DiskSpec("disk0", "/b", "/o", 512), DiskSpec("disk1", "/b", "", 2048, "ide", True)),
        network_interfaces=(NetworkSpec("net0", "user", "52:54:00:12:34:56"),),
    )  # fmt: skip
    document = spec.document()
    assert MachineSpec.of(document) == spec
    # Of a newer hvd, and of an older one.
    document["new"] = document["disks"][0]["new"] = 1
    assert MachineSpec.of(document) == spec
    del document["disks"], document["network_interfaces"]
    assert MachineSpec.of(document).disks == ()
    for broken in ({}, {**document, "disks": ["x"]}, {**document, "disks": [{"name": "x"}]}):
        with pytest.raises(TypeError):
            MachineSpec.of(broken)
