"""Kernels that know of hvd: the ELF note by which they say so (docs/paravirtualisation.md, "Discovery"), or the table of sites that hvpvcc
has given them (docs/hvpvcc.md)."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hvd.errors import HvdError
from hvd.hvpvcc import elf as linked
from hvd.hvpvcc import sites
from hvd.jail.inputs import open_input

if TYPE_CHECKING:
    from hvd.board.loaders.elf import Elf
    from hvd.board.loaders.image import ImageFile
    from hvd.board.memory import GuestMemory

OWNER: Final = b"HVD"
NOTE: Final = 1
VERSION: Final = 1
NEUTRAL: Final = 1  # flag: the sites are native instructions still
_FORMAT: Final = "<6I"
PAGE: Final = 4096
_UPPER: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Paravirt:
    """The note of a kernel. Addresses are as it was linked to; physical ones where it is loaded."""

    page: int  # the hypercall page
    page_bytes: int
    page_physical: int
    sites: int
    sites_bytes: int
    flags: int
    user_limit: int = 0  # programs have no pages from there on; 0 = not known
    finished: bool = False  # by hvpvcc: it runs nowhere else
    kernel: Path | bytes | None = None  # hvpvcc's, which is neutral: to be replaced when it has been loaded


def user_limit(elf: Elf) -> int:
    """Of a kernel in the upper part of the address space: where physical memory begins for it; 0 for others."""
    offsets = {segment.virtual - segment.physical for segment in elf.segments}
    start = min(offsets)
    return start if start >= _UPPER and start % PAGE == 0 and all(segment.virtual >= start for segment in elf.segments) else 0


def note_of(elf: Elf, image: ImageFile) -> Paravirt | None:
    """None: it has none. Raises HvdError IMAGE_FORMAT when it is of another version, IMAGE_LAYOUT when its page is none."""
    for owner, kind, value in elf.notes(image):
        if owner != OWNER or kind != NOTE:
            continue
        if len(value) < struct.calcsize(_FORMAT):
            raise HvdError("IMAGE_FORMAT", what=image.what, problem=f"its HVD note has {len(value)} bytes")
        version, page, page_bytes, sites, sites_bytes, flags = struct.unpack_from(_FORMAT, value)
        if version != VERSION:
            raise HvdError("IMAGE_FORMAT", what=image.what, problem=f"its HVD note is of version {version}, known is {VERSION}")
        physical = next(
            (s.physical + page - s.virtual for s in elf.segments if s.virtual <= page and page + PAGE <= s.virtual + s.memory_size), None
        )
        if physical is None or page % PAGE or page_bytes < PAGE:
            raise HvdError("IMAGE_LAYOUT", what=image.what, problem=f"its hypercall page {page:#x} is no page of it")
        return Paravirt(page, page_bytes, physical, sites, sites_bytes, flags, user_limit(elf))
    return _with_sites(elf, image)


class _FileBytes:
    """hvd.hvpvcc.elf.Content"""

    def __init__(self, image: ImageFile) -> None:
        self._image = image

    def __len__(self) -> int:
        return self._image.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._image.size)
        return self._image.read(start, max(0, stop - start))


def _with_sites(elf: Elf, image: ImageFile) -> Paravirt | None:
    if elf.bits != 32:
        return None
    try:
        file = linked.Elf(_FileBytes(image))
        area = sites.find_area(file)
        if area is None:
            return None
        flags, physical = 0 if area.finished else NEUTRAL, file.physical(area.address)
        return Paravirt(area.address, area.pages * PAGE, physical, 0, 0, flags, user_limit(elf), area.finished)
    except linked.FormatError as error:
        raise HvdError("IMAGE_FORMAT", what=image.what, problem=f"its table of sites: {error}") from error


def _content(kernel: Path) -> bytes:
    """A runner is locked in when it loads its kernel: it has the file open."""
    with open(open_input(kernel), "rb") as file:
        return file.read()


def _placed(file: linked.Elf, found: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Where they lie in guest-physical memory."""
    start = end = offset = 0  # of the segment that the last one was in
    for address, code in found:
        if not start <= address < end:
            segment = file.segment(address)
            start, end, offset = segment.virtual, segment.virtual + segment.file_size, segment.physical - segment.virtual
        yield address + offset, code


def patches(kernel: Path | bytes) -> list[tuple[int, bytes]]:
    """What makes a neutral kernel of hvpvcc's paravirtual: physical addresses and bytes. Raises HvdError IMAGE_FORMAT; OSError."""
    from hvd.hvpvcc.finish import finish  # only here: it needs the decoder

    with _faults_told():
        file = linked.Elf(kernel if isinstance(kernel, bytes) else _content(kernel))
        finished = finish(file)
        return list(_placed(file, finished.patches)) if finished else []


def replace_sites(memory: GuestMemory, kernel: Path | bytes) -> None:
    """Of a neutral kernel that was just loaded: patches(), applied. Raises HvdError IMAGE_FORMAT, ADDRESS_OUTSIDE; OSError."""
    from hvd.hvpvcc.quick import patch  # only here, too

    content = kernel if isinstance(kernel, bytes) else _content(kernel)
    with _faults_told():
        if patch(memory, linked.Elf(content)):
            return
    for address, code in patches(content):
        memory.write(address, code)


@contextlib.contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except linked.FormatError as error:
        raise HvdError("IMAGE_FORMAT", what="the kernel", problem=f"its table of sites: {error}") from error
