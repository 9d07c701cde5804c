"""Debian on a disk: its stock kernel, an initramfs with those of its modules that the board needs, and ext4 with what
mmdebstrap makes.

Everything comes from the archives that apt knows. The root file system is of the day on which it was built: --force
makes it anew.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hvd.errors import HvdError
from hvd.images.debian import Package, PackageSource
from hvd.images.initramfs import busybox_initramfs
from hvd.images.kernel_modules import load_order
from hvd.images.lock import locked
from hvd.images.process import CommandError, check_tools, run_logged
from hvd.images.recipes.debian_root import SUITES, DebianRootRecipe
from hvd.images.recipes.recipe import Built, Progress, Recipe

# Part of the cache's key: raise it when this module makes something else of the same inputs.
_VERSION: Final = 1
SUITE: Final = "bookworm"
_INIT: Final = Path(__file__).resolve().parents[3] / "guests" / "linux" / "init"
_KERNEL: Final = ("linux-image-cloud-amd64", r"linux-image-[0-9][\w.+~-]*-cloud-amd64")
# The disk, what else is on the board's PCI bus, and the power button with the way in which systemd-logind hears of it.
_MODULES: Final = (
    "virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_rng", "virtio_console", "virtio_net", "button", "evdev",
)  # fmt: skip
_PACKAGES: Final = ("systemd-sysv", "udev", "dbus", "iproute2")
_TOOLS: Final = {"mmdebstrap": "mmdebstrap", "/usr/sbin/mkfs.ext4": "e2fsprogs", "dpkg-deb": "dpkg"}
_DISK_BYTES: Final = 2 << 30
# Run by mmdebstrap in the finished root, which is $1.
_HOOKS: Final = (
    'chroot "$1" passwd --delete root',
    'echo debian >"$1/etc/hostname"',
    'echo "/dev/vda / ext4 defaults 0 1" >"$1/etc/fstab"',
    r'printf "[Match]\nType=ether\n[Network]\nDHCP=yes\n" >"$1/etc/systemd/network/ether.network"',
    'chroot "$1" systemctl enable systemd-networkd',
)


class DebianRecipe(Recipe):
    name = "debian"
    description = "Debian with systemd on a disk of 2 GiB, started by its stock cloud kernel; root has no password"
    images: Mapping[str, str] = {"x86_64": "debian"}

    def with_options(self, options: Mapping[str, str]) -> Recipe:
        """With a suite: a root for containers."""
        if "suite" not in options:
            return super().with_options(options)
        if options["suite"] not in SUITES:
            raise HvdError(
                "FIELD_INVALID",
                field="options.suite",
                value=options["suite"][:100],
                problem="is not known",
                remedy=f"there are: {', '.join(SUITES)}",
            )
        made = DebianRootRecipe(options["suite"])
        return made.with_options({name: value for name, value in options.items() if name != "suite"})

    async def build(self, arch: str, cache_dir: Path, force: bool, progress: Progress) -> Built:
        if os.geteuid():
            raise HvdError("ROOT_NEEDED", what=f"building '{self.name}'", problem="files of a root file system have owners")
        check_tools(_TOOLS)
        progress("fetch", -1, "asking apt for the packages")
        log = cache_dir / "logs" / "debian.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = PackageSource(cache_dir, "amd64")
            kernel = await source.find(await source.dependency(*_KERNEL))
            busybox = await source.find("busybox-static")
            key = _key(kernel.sha256, busybox.sha256, _INIT.read_text(), SUITE, *_MODULES, *_PACKAGES, *_HOOKS)
            result = cache_dir / "images" / f"debian-{key}"
            result.parent.mkdir(parents=True, exist_ok=True)
            waiting = "another build of the same is under way: waiting for it"
            async with locked(result.with_suffix(".lock"), lambda: progress("fetch", -1, waiting)):
                if force:
                    await asyncio.to_thread(shutil.rmtree, result, ignore_errors=True)
                if not result.exists():
                    await _make(result, source, kernel, busybox, log, progress)
        except (CommandError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HvdError("DISK_FULL", directory=cache_dir, what="debian") from error
            raise HvdError("BUILD_FAILED", recipe=self.name, step="pack", problem=error, log=log) from error
        progress("pack", 1, f"kept in {result}")
        return Built(
            kernel=result / "vmlinuz",
            initrd=result / "initrd.cpio",
            append="console=ttyS0 root=/dev/vda rw",
            memory_bytes=256 << 20,
            description=f"Debian {SUITE}, {kernel.name} {kernel.version}",
            disk=result / "root.ext4",
        )


async def _make(
    result: Path, source: PackageSource, kernel: Package, busybox: Package, log: Path, progress: Progress
) -> None:
    with tempfile.TemporaryDirectory(dir=result.parent, prefix="debian-work-") as directory:
        work, made = Path(directory), Path(directory) / "made"
        made.mkdir()
        progress("fetch", -1, f"downloading {kernel.name} {kernel.version} (some 30 MB)")
        await source.unpack(kernel, work / "kernel")
        await source.unpack(busybox, work / "busybox")
        shutil.copy(_only(work / "kernel", "boot/vmlinuz-*"), made / "vmlinuz")
        modules = await asyncio.to_thread(load_order, work / "kernel" / "lib" / "modules", _MODULES)
        program = _only(work / "busybox", "**/bin/busybox").read_bytes()
        (made / "initrd.cpio").write_bytes(busybox_initramfs(program, _INIT.read_bytes(), modules))
        root = work / "root"
        hooks = [f"--customize-hook={hook}" for hook in _HOOKS]

        def on_line(line: str) -> None:
            progress("fetch", -1, line[:100])

        await run_logged(
            "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(_PACKAGES)}", *hooks, "--format=directory",
            SUITE, str(root),
            log=log, environment={}, directory=work, on_line=on_line,
        )  # fmt: skip
        progress("pack", -1, "making an ext4 file system")
        with (made / "root.ext4").open("wb") as disk:
            disk.truncate(_DISK_BYTES)
        await run_logged(
            "/usr/sbin/mkfs.ext4", "-q", "-F", "-b", "4096", "-d", str(root), str(made / "root.ext4"),
            log=log, environment={}, directory=work, on_line=on_line,
        )  # fmt: skip
        made.rename(result)


def _only(unpacked: Path, pattern: str) -> Path:
    """Raises CommandError unless there is exactly one."""
    found = [path for path in unpacked.glob(pattern) if not path.is_symlink()]
    if len(found) != 1:
        raise CommandError(f"the package holds {len(found)} files {pattern}, expected one")
    return found[0]


def _key(*inputs: str) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *inputs]).encode()).hexdigest()[:16]
