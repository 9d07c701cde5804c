"""Files out of the packages of the Debian or Ubuntu that this host runs: fetched by apt, verified by apt, unpacked,
never installed.

Nothing of the host changes, and no root is needed. For an architecture that the host's dpkg does not know, apt is
given a state of its own (package lists, no installed packages) with the host's sources and keys.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvd.errors import HvdError
from hvd.images.lock import locked
from hvd.images.process import CommandError, check_tools, output_of

# Package lists of our own are fetched again when they are older than this, in seconds.
_LISTS_AGE = 24 * 3600.0
_PACKAGE_TOOLS = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "dpkg": "dpkg"}


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one package, as apt's signed lists describe it."""

    name: str
    version: str
    architecture: str
    sha256: str


class PackageSource:
    """Packages of one architecture ("amd64", "i386"), kept in cache_dir by their SHA-256."""

    def __init__(self, cache_dir: Path, architecture: str) -> None:
        self.architecture = architecture
        self._downloads = cache_dir / "packages"
        self._private_state = cache_dir / f"apt-{architecture}"
        self._updated = self._private_state / "updated"
        self._environment: Mapping[str, str] | None = None

    async def find(self, name: str) -> Package:
        """The version that apt would install. Raises HvdError PACKAGE_NOT_FOUND, TOOL_MISSING."""
        shown = await self._apt("apt-cache", "show", "--no-all-versions", f"{name}:{self.architecture}", check=False)
        if not shown.strip():  # a package for all architectures has no variant for one
            shown = await self._apt("apt-cache", "show", "--no-all-versions", name, check=False)
        for stanza in shown.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
            if "SHA256" in fields:  # else it is installed, but no archive has it
                return Package(fields["Package"], fields["Version"], fields["Architecture"], fields["SHA256"])
        raise self._not_found(name)

    async def dependency(self, name: str, pattern: str) -> str:
        """The package that a meta package stands for: its first dependency whose name matches. Raises HvdError
        PACKAGE_NOT_FOUND."""
        shown = await self._apt("apt-cache", "depends", name, check=False)
        for line in shown.splitlines():
            if match := re.fullmatch(rf"\s*\|?Depends: ({pattern})(:\w+)?", line):
                return match[1]
        raise self._not_found(f"{name} (its {pattern})")

    async def fetch(self, package: Package) -> Path:
        """The package's file, downloaded unless it is kept. Raises HvdError PACKAGE_FETCH_FAILED."""
        kept = self._downloads / f"{package.sha256}.deb"
        if kept.exists():
            return kept
        incoming = self._downloads / f"incoming-{os.getpid()}-{package.sha256[:16]}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        try:
            # apt verifies the digest against its signed lists.
            name = package.name if package.architecture == "all" else f"{package.name}:{package.architecture}"
            options = ("-q", "-o", "APT::Sandbox::User=")
            try:
                await self._apt("apt-get", *options, "download", f"{name}={package.version}", directory=incoming)
                (file,) = incoming.glob("*.deb")
            except (CommandError, ValueError) as error:
                self._distrust_lists()
                raise HvdError("PACKAGE_FETCH_FAILED", package=name, version=package.version, problem=error) from error
            file.rename(kept)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return kept

    async def unpack(self, package: Package, directory: Path) -> None:
        """Fetch it and put its files below the directory."""
        archive = await self.fetch(package)
        await output_of("dpkg-deb", "-x", str(archive), str(directory))

    async def _apt(self, *command: str, check: bool = True, directory: Path | None = None) -> str:
        check_tools(_PACKAGE_TOOLS)
        if self._environment is None:
            self._environment = await self._prepare()
        return await output_of(*command, environment=self._environment, check=check, directory=directory)

    async def _prepare(self) -> Mapping[str, str]:
        """The variables that make apt speak of this architecture."""
        native = await output_of("dpkg", "--print-architecture")
        foreign = await output_of("dpkg", "--print-foreign-architectures")
        if self.architecture in (*native.split(), *foreign.split()):
            return {}
        state = self._private_state
        for each in ("lists/partial", "archives/partial", "none"):
            (state / each).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        # Only how to reach the archives is taken over: the host's hooks would act on the host.
        dumped = await output_of("apt-config", "dump")
        acquire = [line for line in dumped.splitlines() if line.startswith("Acquire::")]
        configuration = state / "apt.conf"
        configuration.write_text(
            "\n".join(
                [
                    *acquire,
                    f'Dir::State "{state}";',
                    f'Dir::State::lists "{state}/lists";',
                    f'Dir::State::status "{state}/status";',
                    f'Dir::Cache "{state}";',
                    'Dir::Cache::srcpkgcache "";',
                    f'Dir::Etc::Parts "{state}/none";',
                    'Dir::Etc::Main "/dev/null";',
                    f'APT::Architecture "{self.architecture}";',
                    f'APT::Architectures {{ "{self.architecture}"; }};',
                    'APT::Sandbox::User "";',
                    'Acquire::Languages "none";',
                    "",
                ]
            )
        )
        environment = {"APT_CONFIG": str(configuration)}
        async with locked(state / "update.lock"):
            if _age(self._updated) > _LISTS_AGE:
                # Some archive of several often fails; what matters is whether the package is found afterwards.
                await output_of("apt-get", "-q", "update", environment=environment, check=False, seconds=300)
                self._updated.touch()
        return environment

    def _not_found(self, package: str) -> HvdError:
        self._distrust_lists()
        return HvdError("PACKAGE_NOT_FOUND", package=package, architecture=self.architecture)

    def _distrust_lists(self) -> None:
        """The next attempt asks the archive for new ones; the host's own lists are the administrator's."""
        self._updated.unlink(missing_ok=True)
        self._environment = None


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf
