"""What a recipe is: the way in which the daemon builds one image by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hvd.errors import HvdError


class Progress(Protocol):
    """Told by a recipe as it goes on. fraction of the step: 0 to 1, negative = not known."""

    def __call__(self, step: str, fraction: float, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Built:
    """What a recipe made; the files lie in the cache."""

    # Of a machine.
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    memory_bytes: int = 0
    description: str = ""
    symbols: Path | None = None  # ELF, for a debugger
    disk: Path | None = None  # raw, the guests' first
    # Of a container.
    rootfs: Path | None = None  # tar
    command: tuple[str, ...] = ()


class Recipe(ABC):
    """One way to build images. A module of this package holds one, and __init__.py's table lists it."""

    name: str
    description: str
    # Architecture -> id of the image when the client gives none; the first is the default.
    images: Mapping[str, str]

    def with_options(self, options: Mapping[str, str]) -> Recipe:
        """The recipe that makes what the options ask for. Raises HvdError FIELD_INVALID."""
        for name, value in options.items():
            raise HvdError(
                "FIELD_INVALID",
                field=f"options.{name[:100]}",
                value=value[:100],
                problem=f"recipe {self.name} has no such option",
                remedy="leave it out",
            )
        return self

    @abstractmethod
    async def build(self, arch: str, cache_dir: Path, force: bool, progress: Progress) -> Built:
        """Build, or answer from the cache unless force. May be cancelled at any time and repeated; what it had done
        is kept where that saves time. Raises HvdError BUILD_FAILED, TOOL_MISSING, PACKAGE_NOT_FOUND,
        PACKAGE_FETCH_FAILED, DISK_FULL."""
