"""Kernels into guest memory. One module per format; LOADERS is the order in which they are tried.

A format's parse() reads the file's header only and answers a Kernel, None ("not mine") or HvdError ("mine, but
broken").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from hvd.board.loaders import bzimage, elf, flat, multiboot, pvh
from hvd.board.loaders.flat import DEFAULT_LOAD_ADDRESS
from hvd.board.loaders.image import Copies, ImageFile
from hvd.board.loaders.kernel import Kernel, Loaded
from hvd.board.memory import GuestMemory
from hvd.board.paravirt import NEUTRAL
from hvd.board.tables import put_tables
from hvd.errors import HvdError

__all__ = ["DEFAULT_LOAD_ADDRESS", "LOADERS", "Copies", "Kernel", "Loaded", "begin", "identify", "load"]

LOADERS: Final[tuple[Callable[[ImageFile], Kernel | None], ...]] = (bzimage.parse, pvh.parse, multiboot.parse)


def _recognise(image: ImageFile, flat_load_address: int) -> Kernel:
    if flat_load_address:
        return flat.parse(image, flat_load_address)
    for parse in LOADERS:
        kernel = parse(image)
        if kernel is not None:
            return kernel
    if image.head(4) == elf.MAGIC:
        problem = "it is an ELF file without a PVH note or a Multiboot 1 header"
    elif image.size == 0:
        problem = "it is empty"
    else:
        problem = "it has no header that is known; a flat binary needs a load address (--flat)"
    raise HvdError("IMAGE_FORMAT", what=image.what, problem=problem)


def identify(kernel: Path | bytes, flat_load_address: int = 0) -> Kernel:
    """What a kernel is, from its header alone; for checks before a start (Kernel.check_fits). Its file is closed:
    load() is not for it.

    Raises HvdError IMAGE_FORMAT, IMAGE_TRUNCATED, IMAGE_LAYOUT, FIELD_INVALID; OSError when it cannot be read.
    """
    with ImageFile(kernel) as image:
        return _recognise(image, flat_load_address)


def load(
    memory: GuestMemory,
    kernel: Path | bytes,
    initrd: Path | bytes | None = None,
    command_line: str = "",
    flat_load_address: int = 0,
) -> Loaded:
    """Put a kernel into memory that is zero (new, or after GuestMemory.clear_all()).

    flat_load_address: 0 = recognise the format; else the file is a flat binary, whatever it looks like.
    Raises what identify() raises, and HvdError IMAGE_TOO_LARGE.
    """
    with Copies() as copies:
        loaded = begin(copies, memory, kernel, initrd, command_line, flat_load_address)
        copies.run()
        return loaded


def begin(
    copies: Copies, memory: GuestMemory, kernel: Path | bytes, initrd: Path | bytes | None, command_line: str, flat_load_address: int
) -> Loaded:
    """load(), but for what is in the copies then. Raises what load() raises."""
    image = copies.open(kernel)
    extra = None if initrd is None else copies.open(initrd, "the initrd")
    recognised = _recognise(image, flat_load_address)
    recognised.check_fits(memory.low_ram_end)
    rsdp = put_tables(memory)
    entry = recognised.load(memory, extra, command_line, rsdp)
    paravirt = recognised.paravirt
    if paravirt is not None and paravirt.flags & NEUTRAL:
        paravirt = replace(paravirt, kernel=kernel)
    return Loaded(entry, recognised.format, recognised.description, paravirt)
