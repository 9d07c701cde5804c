"""The smallest root for containers: Debian's busybox-static, its applets as links, two users."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hvd.errors import HvdError
from hvd.images.debian import PackageSource
from hvd.images.process import CommandError, output_of
from hvd.images.recipes.recipe import Built, Progress, Recipe

# Part of the cache's key: raise it when this module makes something else of the same inputs.
_VERSION: Final = 1
_FOLDERS: Final = {
    **dict.fromkeys(("bin", "dev", "etc", "proc", "sys", "srv", "usr", "usr/bin", "var", "var/log"), 0o755),
    "root": 0o700,
    "tmp": 0o1777,
}
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


class BusyboxRecipe(Recipe):
    name = "busybox"
    description = "a root for containers with nothing but busybox, 2 MB"
    images: Mapping[str, str] = {"x86_64": "busybox"}

    async def build(self, arch: str, cache_dir: Path, force: bool, progress: Progress) -> Built:
        progress("fetch", -1, "asking apt for busybox-static")
        source = PackageSource(cache_dir, "amd64")
        package = await source.find("busybox-static")
        key = hashlib.sha256(json.dumps([_VERSION, package.sha256, _FOLDERS, _FILES]).encode()).hexdigest()[:16]
        result = cache_dir / "images" / f"busybox-{key}.tar"
        result.parent.mkdir(parents=True, exist_ok=True)
        if force or not result.exists():
            try:
                with tempfile.TemporaryDirectory(dir=result.parent, prefix="busybox-work-") as directory:
                    work = Path(directory)
                    await source.unpack(package, work / "package")
                    (program,) = await asyncio.to_thread(_programs, work / "package")
                    applets = (await output_of(str(program), "--list")).split()
                    made = work / "made.tar"
                    await asyncio.to_thread(_pack, made, program.read_bytes(), applets)
                    made.rename(result)
            except (CommandError, OSError, ValueError) as error:
                log = "the daemon's log"
                raise HvdError("BUILD_FAILED", recipe=self.name, step="pack", problem=error, log=log) from error
        progress("pack", 1, f"kept in {result}")
        return Built(rootfs=result, command=("sh",), description=f"busybox-static {package.version}")


def _programs(package: Path) -> list[Path]:
    return [path for path in package.glob("**/bin/busybox") if not path.is_symlink()]


def _pack(archive: Path, program: bytes, applets: list[str]) -> None:
    """The same bytes for the same inputs."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as made:

        def add(name: str, mode: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"", target: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.mode, member.type, member.size, member.linkname = mode, kind, len(content), target
            made.addfile(member, io.BytesIO(content))

        for name, mode in sorted(_FOLDERS.items()):
            add(name, mode, tarfile.DIRTYPE)
        for name, text in sorted(_FILES.items()):
            add(name, 0o644, content=text.encode())
        add("bin/busybox", 0o755, content=program)
        for applet in sorted(set(applets) - {"busybox"}):
            add(f"bin/{applet}", 0o777, tarfile.SYMTYPE, target="busybox")
