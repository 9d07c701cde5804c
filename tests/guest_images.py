"""Real guests for the end-to-end tests and the benchmark: Debian's own kernels, the project's small Linux, initramfs images.

Fetched by apt into the daemon's cache ($HVD_CACHE_DIR, otherwise its default), once; `python -m tests.guest_images`
fetches all and says where they lie. Without a network GuestUnavailable says what was missing: a reason to skip.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvctl import rootfs
from hvctl.sdk.errors import HvctlError

from hvd.config import default_cache_dir
from hvd.errors import HvdError
from hvd.images import recipes
from hvd.images.debian import Package, PackageSource
from hvd.images.initramfs import busybox_initramfs
from hvd.images.kernel_modules import load_order
from hvd.images.process import CommandError

INIT = Path(__file__).resolve().parents[1] / "guests" / "linux" / "init"
# The shell's prompt in these guests: what a test waits for.
PROMPT = b"guest # "


class GuestUnavailable(Exception):
    """This guest cannot be had here and now; the text is a reason to skip."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    kernel: Path
    initrd: Path
    append: str = "console=ttyS0"


# name -> architecture, the package that stands for the newest kernel, what that kernel's own package is called
DEBIAN_KERNELS = {
    "debian-cloud": ("amd64", "linux-image-cloud-amd64", r"linux-image-[0-9][\w.+~-]*-cloud-amd64"),
    "debian-amd64": ("amd64", "linux-image-amd64", r"linux-image-[0-9][\d.-]*-amd64"),
    "debian-686": ("i386", "linux-image-686", r"linux-image-[0-9][\w.+~-]*-686"),
    "debian-686-pae": ("i386", "linux-image-686-pae", r"linux-image-[0-9][\w.+~-]*-686-pae"),
}
# Of Debian's kernels, for what the board has on its PCI bus, and file systems on it.
DISK_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_rng", "virtio_console")
# Besides what every Debian has: a way to restart that needs no running init.
ROOT_PACKAGES = ("busybox-static",)
ROOT_BYTES = 1 << 30
PROGRAMS_BYTES = 256 << 20
# name -> the recipe and its architecture
SMALL_LINUX = {"linux-i386": ("linux", "i386"), "linux-x86_64": ("linux", "x86_64"), "linux-pv": ("linux-pv", "i386")}


def guest_image(name: str, modules: Sequence[str] = (), programs: Sequence[Path] = ()) -> GuestImage:
    """One of DEBIAN_KERNELS, with modules of its own to load and more programs for /bin, or SMALL_LINUX (which takes
    some minutes to build the first time) as it is. Raises GuestUnavailable."""
    return _guest_image(name, tuple(modules), tuple(programs))


@functools.cache  # apt needs seconds to say which version is the newest
def _guest_image(name: str, modules: tuple[str, ...], programs: tuple[Path, ...]) -> GuestImage:
    cache = Path(os.environ.get("HVD_CACHE_DIR") or default_cache_dir())
    try:
        if name in SMALL_LINUX:
            return asyncio.run(_small_linux(cache, *SMALL_LINUX[name]))
        return asyncio.run(_debian(cache, name, modules, programs))
    except (HvdError, CommandError) as error:
        raise GuestUnavailable(f"{name}: {error}") from error


def is_built(name: str) -> bool:
    """Whether the cache has a kernel of this one of SMALL_LINUX (perhaps of an older configuration): no minutes of building."""
    cache = Path(os.environ.get("HVD_CACHE_DIR") or default_cache_dir())
    return any((cache / "images").glob(f"{'-'.join(SMALL_LINUX[name])}-*/vmlinux"))


def debian_root(suite: str = "bookworm") -> Path:
    """A raw image with ext4 and the smallest Debian that mmdebstrap makes, for the kernel "debian-cloud". As root only; it takes a
    minute the first time. Raises GuestUnavailable."""
    if os.geteuid():
        raise GuestUnavailable("debian-root: mmdebstrap and the owners of its files need root here")
    if shutil.which("mmdebstrap") is None:
        raise GuestUnavailable("debian-root: mmdebstrap is not installed")
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(ROOT_PACKAGES)}", "--format=tar", suite]
    cache = Path(os.environ.get("HVD_CACHE_DIR") or default_cache_dir())
    key = hashlib.sha256("\0".join([*command, str(ROOT_BYTES)]).encode()).hexdigest()[:16]
    image = cache / "test-guests" / f"debian-root-{key}" / "root.ext4"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=image.parent) as directory:
            archive, made = Path(directory) / "root.tar", Path(directory) / "root.ext4"
            done = subprocess.run([*command, str(archive)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise GuestUnavailable(f"debian-root: mmdebstrap failed: {done.stderr[-500:]}")
            rootfs.make_disk(str(archive), made, ROOT_BYTES)
            made.rename(image)
    return image


# A compiler, an interpreter and what makes file systems, with the libraries that they need.
PROGRAMS = (
    "libc6", "libcrypt1", "perl-base", "tcc", "libc6-dev", "linux-libc-dev", "libcrypt-dev", "e2fsprogs", "libext2fs2", "libcom-err2", "libblkid1",
    "libuuid1", "libss2",
)  # fmt: skip


def debian_programs(architecture: str, *files: Path) -> Path:
    """A raw image with ext4: PROGRAMS as their packages bring them, and these files in its root. Raises GuestUnavailable."""
    cache = Path(os.environ.get("HVD_CACHE_DIR") or default_cache_dir())
    try:
        return asyncio.run(_debian_programs(cache, architecture, files))
    except (HvdError, CommandError, HvctlError) as error:
        raise GuestUnavailable(f"programs of Debian: {error}") from error


async def _debian_programs(cache: Path, architecture: str, files: Sequence[Path]) -> Path:
    source = PackageSource(cache, architecture)
    packages = [await source.find(name) for name in PROGRAMS]
    key = hashlib.sha256(repr((packages, [file.read_bytes() for file in files])).encode()).hexdigest()[:16]
    image = cache / "test-guests" / f"debian-programs-{key}" / "programs.ext4"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=image.parent) as directory:
            tree, made = Path(directory) / "tree", Path(directory) / "programs.ext4"
            for package in packages:
                await source.unpack(package, tree)
            for name in ("dev", "proc", "tmp", "mnt"):
                (tree / name).mkdir(exist_ok=True)
            for file in files:
                shutil.copy(file, tree / file.name)
            rootfs.make_disk(str(tree), made, PROGRAMS_BYTES)
            made.rename(image)
    return image


@functools.cache
def memtest86(name: str) -> Path:
    """The image of Debian's memtest86+ for BIOS machines: "x64" or "ia32". Raises GuestUnavailable."""
    cache = Path(os.environ.get("HVD_CACHE_DIR") or default_cache_dir())
    try:
        return asyncio.run(_memtest86(cache, name))
    except (HvdError, CommandError) as error:
        raise GuestUnavailable(f"memtest86+: {error}") from error


async def _memtest86(cache: Path, name: str) -> Path:
    source = PackageSource(cache, "amd64")
    package = await source.find("memtest86+")
    image = cache / "test-guests" / f"memtest86-{package.sha256[:16]}" / f"{name}.bin"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        await _take(source, package, f"boot/*{name}*.bin", image)
    return image


async def _small_linux(cache: Path, recipe: str, arch: str) -> GuestImage:
    built = await recipes.find(recipe).build(arch, cache, force=False, progress=lambda step, fraction, message: None)
    assert built.kernel and built.initrd
    return GuestImage(built.kernel, built.initrd, built.append)


async def _debian(cache: Path, name: str, modules: tuple[str, ...], programs: tuple[Path, ...]) -> GuestImage:
    architecture, meta, pattern = DEBIAN_KERNELS[name]
    source = PackageSource(cache, architecture)
    kernel = await source.find(await source.dependency(meta, pattern))
    busybox = await source.find("busybox-static")
    init = INIT.read_bytes()
    directory = cache / "test-guests" / f"{name}-{kernel.sha256[:16]}"
    contents = [(path.name, path.read_bytes()) for path in programs]
    more = repr((modules, contents)) if modules or programs else ""
    suffix = f"-{hashlib.sha256(more.encode()).hexdigest()[:8]}" if more else ""
    image = GuestImage(directory / "vmlinuz", directory / f"initrd{suffix}.cpio")
    directory.mkdir(parents=True, exist_ok=True)
    if not image.kernel.exists():
        await _take(source, kernel, "boot/vmlinuz-*", image.kernel)
    program = directory / f"busybox-{busybox.sha256[:16]}"
    if not program.exists():
        await _take(source, busybox, "**/bin/busybox", program)
    made = busybox_initramfs(
        program.read_bytes(), init, await _modules(source, kernel, directory, modules), contents
    )
    if not image.initrd.exists() or image.initrd.read_bytes() != made:
        _replace(image.initrd, made)
    return image


async def _modules(source: PackageSource, kernel: Package, directory: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """The names' modules and what they need. Unpacking the package takes a while: its modules are kept."""
    if not names:
        return []
    kept = directory / "modules"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=directory) as unpacked:
            await source.unpack(kernel, Path(unpacked))
            _keep_tree(Path(unpacked) / "lib" / "modules", kept)
    return load_order(kept, names)


async def _take(source: PackageSource, package: Package, pattern: str, target: Path) -> None:
    """One file out of a package."""
    with tempfile.TemporaryDirectory(dir=target.parent) as unpacked:
        await source.unpack(package, Path(unpacked))
        _keep(Path(unpacked), pattern, target)


def _keep_tree(tree: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another process was faster
        tree.rename(target)


def _keep(unpacked: Path, pattern: str, target: Path) -> None:
    (found,) = (path for path in unpacked.glob(pattern) if not path.is_symlink())
    _replace(target, found.read_bytes())


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.rename(target)


if __name__ == "__main__":
    for name in sys.argv[1:] or [*DEBIAN_KERNELS, *SMALL_LINUX]:
        try:
            image = guest_image(name)
        except GuestUnavailable as error:
            sys.exit(str(error))
        print(f"{name}: {image.kernel} {image.initrd} {image.append}")
