"""The small Linux: Debian's kernel source with the project's configuration, and an initramfs of busybox.

The result is cached by everything it is made of. An interrupted build goes on where it was: make finds what it had
compiled.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hvd.errors import HvdError
from hvd.images import symbols
from hvd.images.debian import Package, PackageSource
from hvd.images.initramfs import busybox_initramfs
from hvd.images.lock import locked
from hvd.images.process import CommandError, check_tools, output_of, run_logged
from hvd.images.recipes.recipe import Built, Progress, Recipe

# Part of the cache's key: raise it when this module makes something else of the same inputs.
_VERSION = 1
_SOURCE = "linux-source-[0-9]+[.][0-9.]+"
_SOURCES = Path(__file__).resolve().parents[3] / "guests" / "linux"

_TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "strip": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "tar": "tar",
    "xz": "xz-utils",
    "/usr/include/asm-generic/types.h": "linux-libc-dev",
    "/usr/include/stdio.h": "libc6-dev",
}
# The x86_64 kernel is post-processed by its objtool.
_TOOLS_64 = {**_TOOLS, "/usr/include/gelf.h": "libelf-dev"}


@dataclass(frozen=True, slots=True)
class _Architecture:
    debian: str
    tools: Mapping[str, str]
    # Lines that make prints for a whole build, for the progress; it need not be exact.
    lines: int


_ARCHITECTURES = {
    "i386": _Architecture("i386", _TOOLS, 1340),
    "x86_64": _Architecture("amd64", _TOOLS_64, 1380),
}

# Without these the guest would not come up at all; other options may vanish from newer kernels.
_ESSENTIAL = frozenset(
    f"CONFIG_{name}"
    for name in (
        *(
            "PVH",
            "BLK_DEV_INITRD",
            "BINFMT_ELF",
            "BINFMT_SCRIPT",
            "PRINTK",
            "TTY",
            "PROC_FS",
            "SYSFS",
            "TMPFS",
            "DEVTMPFS",
        ),
        *("SERIAL_8250", "SERIAL_8250_CONSOLE", "MULTIUSER", "FUTEX", "POSIX_TIMERS"),
    )
)

# The same source and configuration give the same kernel, on whichever machine and day.
_BUILD_ENVIRONMENT = {
    "KBUILD_BUILD_USER": "hvd",
    "KBUILD_BUILD_HOST": "hvd",
    "KBUILD_BUILD_VERSION": "1",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
}


class Tool:
    """What stands between the compiler and the assembler of a kernel's build. This one: nothing."""

    name = ""  # behind "linux" in names
    key: tuple[str, ...] = ()  # all that the kernel depends on besides source and configuration
    options: tuple[str, ...] = ()  # of make
    environment: Mapping[str, str] = {}
    description = ""

    async def check(self, kernel: Path, result: Path) -> None:
        """Of the kernel that was linked, before it is stripped; may put files beside it. Raises CommandError: it is not good."""


class LinuxRecipe(Recipe):
    name = "linux"
    description = "a small Linux with busybox: boots to a shell in 11 to 30 million instructions"
    # i386 first: every VM backend runs it.
    images: Mapping[str, str] = {"i386": "linux", "x86_64": "linux64"}

    def tool(self) -> Tool:
        """Raises HvdError TOOL_MISSING."""
        return Tool()

    async def build(self, arch: str, cache_dir: Path, force: bool, progress: Progress) -> Built:
        progress("fetch", -1, "asking apt for the packages")
        if not (_SOURCES / "common.config").exists():
            raise HvdError(
                "TOOL_MISSING", tools=str(_SOURCES), remedy="install hvd from its source tree, by `make setup`"
            )
        about = _ARCHITECTURES[arch]
        try:
            native = PackageSource(cache_dir, await _native_architecture())
            # The version that the distribution's own kernel has; it may offer newer ones besides.
            source = await native.find(await native.dependency("linux-source", _SOURCE))
            packages = native if about.debian == native.architecture else PackageSource(cache_dir, about.debian)
            busybox = await packages.find("busybox-static")
        except CommandError as error:
            raise HvdError("BUILD_FAILED", recipe=self.name, step="fetch", problem=error, log="the daemon's") from error
        build = _Build(arch, cache_dir, source, busybox, progress, self.tool())
        async with build.locked():
            if force:
                await _remove(build.result)
                build.initrd.unlink(missing_ok=True)
            await build.run(native, packages, about.tools)
        return build.built()


class _Build:
    """One build in the cache: work is where it goes on, result where it ends."""

    def __init__(
        self, arch: str, cache_dir: Path, source: Package, busybox: Package, progress: Progress, tool: Tool
    ) -> None:
        self.arch = arch
        self.tool = tool
        self.source = source
        self.busybox = busybox
        self.progress = progress
        self.step = "fetch"
        self.fragments = [(_SOURCES / name).read_text() for name in ("common.config", f"{arch}.config")]
        self.init = (_SOURCES / "init").read_bytes()
        self.name = f"linux{tool.name}-{arch}-{_key(source.sha256, *map(_options, self.fragments), *tool.key)}"
        initrd = f"initrd-{arch}-{_key(busybox.sha256, self.init.hex())}.cpio"
        self.cache_dir = cache_dir
        self.result = cache_dir / "images" / self.name
        self.kernel = self.result / "vmlinux"
        self.symbols = self.result / "symbols.elf"
        self.initrd = cache_dir / "images" / initrd
        self.work = cache_dir / "work" / self.name
        self.log = cache_dir / "logs" / f"{self.name}.log"

    def built(self) -> Built:
        return Built(
            kernel=self.kernel,
            initrd=self.initrd,
            # Reset goes through the keyboard controller: the kernel would find that out by itself, after trying others.
            append="console=ttyS0 reboot=k tsc=reliable",
            memory_bytes=64 << 20,
            description=f"Linux {self.source.version} with busybox {self.busybox.version}, {self.arch}"
            f"{self.tool.description}",
            symbols=self.symbols,
        )

    def locked(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Alone with this build, whichever daemon wants it too."""
        for each in (self.result.parent, self.work.parent, self.log.parent):
            each.mkdir(parents=True, exist_ok=True)
        return locked(
            self.work.parent / f"{self.name}.lock",
            lambda: self.progress("fetch", -1, "another build of the same is under way: waiting for it"),
        )

    async def run(self, native: PackageSource, packages: PackageSource, tools: Mapping[str, str]) -> None:
        """Make what the cache lacks. The kernel takes minutes, the initramfs a moment: each is kept for itself."""
        try:
            if not self.kernel.exists():
                check_tools(tools)
                self.log.unlink(missing_ok=True)
                await self._fetch(native)
                await self._configure()
                await self._compile()
                await self._pack()
            if not self.initrd.exists():
                await self._pack_initramfs(packages)
            if not self.symbols.exists():
                check_tools(symbols.TOOLS)
                self._tell("pack", -1, "putting the kernel's symbols together")
                await symbols.put_symbols(self.kernel, self.result / "System.map", self.symbols)
            self._tell("pack", 1, f"kept in {self.result}")
        except (CommandError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HvdError("DISK_FULL", directory=self.cache_dir, what=self.name) from error
            raise HvdError("BUILD_FAILED", recipe=f"linux{self.tool.name}", step=self.step, problem=error, log=self.log) from error

    def _tell(self, step: str, fraction: float, message: str) -> None:
        self.step = step
        self.progress(step, fraction, message)

    async def _fetch(self, native: PackageSource) -> None:
        complete = self.work / "source.complete"
        if complete.exists():
            return
        self._tell("fetch", -1, f"downloading {self.source.name} {self.source.version} (some 140 MB)")
        await _remove(self.work)
        package, source = self.work / "package", self.work / "source"
        source.mkdir(parents=True)
        await native.unpack(self.source, package)
        # Debian: usr/src/linux-source-6.1.tar.xz; Ubuntu: one directory deeper, with links to it.
        archives = [path for path in package.glob("usr/src/**/linux-source-*.tar.*") if not path.is_symlink()]
        if len(archives) != 1:
            raise CommandError(f"{self.source.name} holds {len(archives)} source archives, expected one")
        self._tell("fetch", -1, f"unpacking {archives[0].name}")
        await self._logged("tar", "-xf", str(archives[0]), "--strip-components=1", "-C", str(source))
        await _remove(package)
        complete.touch()

    async def _configure(self) -> None:
        self._tell("configure", -1, f"configuring for {self.arch}")
        out = self.work / "out"
        out.mkdir(exist_ok=True)
        await self._make("tinyconfig")
        configuration = out / ".config"
        # The last word on an option counts.
        configuration.write_text(configuration.read_text() + "\n" + "\n".join(self.fragments))
        await self._make("olddefconfig")
        missing = missing_options(self.fragments, configuration.read_text())
        if fatal := sorted(missing & _ESSENTIAL):
            raise CommandError(f"this kernel source does not take {', '.join(fatal)}")
        if missing:
            self._tell("configure", 1, f"this kernel source has no {', '.join(sorted(missing))}")

    async def _compile(self) -> None:
        jobs, expected, lines = len(os.sched_getaffinity(0)), _ARCHITECTURES[self.arch].lines, 0

        def on_line(line: str) -> None:
            nonlocal lines
            if re.match(r"\s+[A-Z]{2}", line):
                lines += 1
                self._tell("compile", min(lines / expected, 0.99), line.strip())

        self._tell("compile", 0, f"compiling with {jobs} jobs (some minutes)")
        await self._make("vmlinux", f"-j{jobs}", on_line=on_line)

    async def _pack(self) -> None:
        incoming = self.work / "result"
        await _remove(incoming)
        incoming.mkdir()
        self._tell("pack", -1, "checking the kernel")
        await self.tool.check(self.work / "out" / "vmlinux", incoming)
        self._tell("pack", -1, "stripping the kernel")
        await self._logged("strip", "-s", "-o", str(incoming / "vmlinux"), str(self.work / "out" / "vmlinux"))
        # For people and debuggers that look into the guest's kernel.
        shutil.copy(self.work / "out" / "System.map", incoming)
        shutil.copy(self.work / "out" / ".config", incoming / "config")
        await _remove(self.result)
        incoming.rename(self.result)
        # Some 1.5 GB.
        await _remove(self.work)

    async def _pack_initramfs(self, packages: PackageSource) -> None:
        self._tell("pack", -1, f"packing an initramfs with busybox {self.busybox.version}")
        with tempfile.TemporaryDirectory(dir=self.initrd.parent) as unpacked:
            await packages.unpack(self.busybox, Path(unpacked))
            programs = _busybox_programs(Path(unpacked))
            if len(programs) != 1:
                raise CommandError(f"{self.busybox.name} holds {len(programs)} busybox programs, expected one")
            whole = Path(unpacked) / "initrd.cpio"
            whole.write_bytes(busybox_initramfs(programs[0].read_bytes(), self.init))
            whole.rename(self.initrd)

    async def _make(self, target: str, *options: str, on_line: Callable[[str], None] = lambda line: None) -> None:
        out = f"O={self.work / 'out'}"
        await self._logged("make", f"ARCH={self.arch}", out, *self.tool.options, *options, target, on_line=on_line)

    async def _logged(self, *command: str, on_line: Callable[[str], None] = lambda line: None) -> None:
        source = self.work / "source"
        environment = {**_BUILD_ENVIRONMENT, **self.tool.environment}
        await run_logged(*command, log=self.log, environment=environment, directory=source, on_line=on_line)


def missing_options(fragments: list[str], configuration: str) -> set[str]:
    """Options that a fragment sets and the finished configuration has not, or not so."""
    wanted = dict(line.split("=", 1) for text in fragments for line in text.splitlines() if line.startswith("CONFIG_"))
    found = dict(line.split("=", 1) for line in configuration.splitlines() if line.startswith("CONFIG_"))
    return {name for name, value in wanted.items() if found.get(name) != value}


def _busybox_programs(unpacked: Path) -> list[Path]:
    return [path for path in unpacked.glob("**/bin/busybox") if not path.is_symlink()]


def _options(fragment: str) -> str:
    """The fragment without its comments: what they say changes nothing."""
    return "\n".join(line for line in fragment.splitlines() if line.startswith(("CONFIG_", "# CONFIG_")))


def _key(*inputs: str) -> str:
    """Names a thing in the cache by all that it is made of."""
    return hashlib.sha256(json.dumps([_VERSION, *inputs]).encode()).hexdigest()[:16]


async def _native_architecture() -> str:
    check_tools({"dpkg": "dpkg"})
    return (await output_of("dpkg", "--print-architecture")).strip()


async def _remove(directory: Path) -> None:
    """Out of the way first: a build that is cancelled leaves the worker thread removing while the next one begins."""
    doomed = directory.with_name(f"{directory.name}.removed-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        await asyncio.to_thread(directory.rename, doomed)
        await asyncio.to_thread(shutil.rmtree, doomed)
