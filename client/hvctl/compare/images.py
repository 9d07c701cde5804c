"""What the work needs in the daemon's store: made for one comparison, and deleted after it; the small Linux stays."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from hvapi.v1 import image_pb2

from hvctl import rootfs
from hvctl.compare.places import Root
from hvctl.sdk import Client
from hvctl.sdk.blobs import MOST_DISK_BYTES
from hvctl.sdk.errors import HvctlError

# Guest programs, as `make guests` makes them: of the sources that this package is part of.
GUESTS: Final = Path(__file__).resolve().parents[3] / "build" / "guests"
FOLDERS: Final = ("bin", "dev", "etc", "proc", "sys", "tmp")
# Room for what the disk workload writes.
SPARE_BYTES: Final = 64 << 20
# Where the program is in a root file system that is somebody else's.
INJECTED: Final = ".hvd-compare-ops"
# Backend -> the recipe of its Linux, where it is another one than the others'.
RECIPES: Final = {"paravirt": "linux-pv"}
USUAL_RECIPE: Final = "linux"
ARCH: Final = "i386"


def guest_file(directory: Path, *names: str) -> Path:
    """The first of these that is there. Raises HvctlError."""
    for name in names:
        if (directory / name).exists():
            return directory / name
    raise HvctlError.local("GUEST_PROGRAM_MISSING", program=names[0], folder=directory)


@contextlib.contextmanager
def work_root(client: Client, name: str, program: Path, scratch: Path) -> Iterator[Root]:
    """A root file system of nothing but the program."""
    folder = scratch / "root"
    for each in FOLDERS:
        (folder / each).mkdir(parents=True)
    shutil.copy2(program, folder / "bin" / program.name)
    folder.chmod(0o755)
    archive = scratch / "root.tar"
    with archive.open("wb") as file:
        rootfs.pack(str(folder), file)
    with _images(client, name, archive, str(folder), scratch, f"/bin/{program.name}") as root:
        yield root


@contextlib.contextmanager
def user_root(client: Client, name: str, image: str, program: Path, scratch: Path) -> Iterator[Root]:
    """The root file system of an image, with the program in it. Raises HvctlError: the image has layers, or is of another kind."""
    found = client.get_image(name=image)
    if found.kind != "rootfs" or not found.rootfs:
        what = "its root file system is in layers" if found.layers else f"it is of kind {found.kind}"
        raise HvctlError.local(
            "FILE_KIND_UNKNOWN", path=image, problem=f"{what}; needed is a root file system imported of a folder or a tar file"
        )
    archive = scratch / "root.tar"
    client.download_file(found.rootfs, archive)
    with tarfile.open(archive, "a") as file:
        info = file.gettarinfo(str(program), f"./{INJECTED}")
        info.uid = info.gid = 0
        info.mode = 0o755
        with program.open("rb") as content:
            file.addfile(info, content)
    with _images(client, name, archive, str(archive), scratch, f"/{INJECTED}") as root:
        yield root


@contextlib.contextmanager
def _images(client: Client, name: str, archive: Path, source: str, scratch: Path, program: str) -> Iterator[Root]:
    disk = scratch / "disk"
    rootfs.make_disk(source, disk, 0)
    label = {"hvctl": "compare"}
    with contextlib.ExitStack() as made:
        for identifier, image in (
            (f"{name}-root", image_pb2.Image(kind="rootfs", rootfs=client.upload_file(archive, most=MOST_DISK_BYTES), arch=ARCH, labels=label)),
            (f"{name}-disk", image_pb2.Image(kind="disk", disk=client.upload_file(disk, most=MOST_DISK_BYTES), arch=ARCH, labels=label)),
        ):
            created = client.create_image(image_id=identifier, image=image)
            made.callback(client.delete_image, name=created.name, allow_missing=True)
        yield Root(None, f"{name}-root", f"{name}-disk", disk, program)


def linux_image(client: Client, backend: str, say: Callable[[str], None]) -> str:
    """The image of the small Linux for a backend's guests, built if there is none (some minutes, the first time). Raises HvctlError."""
    recipe = RECIPES.get(backend, USUAL_RECIPE)
    identifier = f"{recipe}-{ARCH}"
    names = {image.name for image in client.list_images(page_size=1000).images}
    for name in (f"images/{identifier}", f"images/{recipe}"):
        if name in names and client.get_image(name=name).arch == ARCH:
            return name
    say(f"building the small Linux ({recipe}, {ARCH}): some minutes the first time")
    built = ""
    with client.build_image(recipe=recipe, image_id=identifier, arch=ARCH) as frames:
        for frame in frames:
            if frame.WhichOneof("frame") == "image":
                built = frame.image.name
    return built


def linux_files(client: Client, image: str, scratch: Path) -> tuple[Path, Path, str]:
    """Kernel, initial RAM disk and command line of an image, as files."""
    found = client.get_image(name=image)
    kernel, initrd = scratch / "kernel", scratch / "initrd"
    client.download_file(found.kernel, kernel)
    client.download_file(found.initrd, initrd)
    return kernel, initrd, found.append
