"""Kernels that know of hvd: the ELF note by which they say so (docs/paravirtualisation.md, "Discovery")."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.board.loaders.elf import Elf
    from hvd.board.loaders.image import ImageFile

OWNER: Final = b"HVD"
NOTE: Final = 1
VERSION: Final = 1
NEUTRAL: Final = 1  # flag: the sites are native instructions still
_FORMAT: Final = "<6I"
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Paravirt:
    """The note of a kernel. Addresses are as it was linked to; physical ones where it is loaded."""

    page: int  # the hypercall page
    page_bytes: int
    page_physical: int
    sites: int
    sites_bytes: int
    flags: int


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
        return Paravirt(page, page_bytes, physical, sites, sites_bytes, flags)
    return None
