"""Files that are loaded into a guest: read piecewise, straight into guest RAM, so that a huge file costs nothing until
it is used."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

from hvd.board.memory import GuestMemory
from hvd.errors import HvdError
from hvd.jail.inputs import open_input


class Copies:
    """What of files shall go to memory, and has not yet: most of what loading takes, and nothing else waits for it. The files are open until then."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._waiting: list[tuple[ImageFile, int, int, GuestMemory, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

    def open(self, source: Path | bytes, what: str = "the kernel") -> ImageFile:
        """As ImageFile, but that its copy() is for run(). Raises OSError."""
        return self._files.enter_context(ImageFile(source, what, self))

    def add(self, image: ImageFile, offset: int, length: int, memory: GuestMemory, address: int) -> None:
        self._waiting.append((image, offset, length, memory, address))

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def run(self) -> None:
        """Raises what ImageFile.copy_now() raises."""
        for image, offset, length, memory, address in self._waiting:
            image.copy_now(offset, length, memory, address)


class ImageFile:
    """A kernel or initrd: a file, or bytes. Not mapped, since a file that somebody truncates would kill the reader
    with SIGBUS."""

    def __init__(self, source: Path | bytes, what: str = "the kernel", copies: Copies | None = None) -> None:
        """what: how messages name it. copies: who makes its copies; None = copy() does. Raises OSError when the file cannot be opened."""
        self.what = what
        self._copies = copies
        self._file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else os.fdopen(open_input(source), "rb", buffering=0)
        self.size = self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def need(self, end: int) -> None:
        """Raises HvdError IMAGE_TRUNCATED unless the file has that many bytes."""
        if self.size < end:
            raise HvdError("IMAGE_TRUNCATED", what=self.what, length=self.size, needed=end)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises HvdError IMAGE_TRUNCATED."""
        self.need(offset + length)
        data = bytearray(length)
        self._fill(memoryview(data), offset)
        return bytes(data)

    def head(self, length: int) -> bytes:
        """The first bytes: fewer when the file is shorter."""
        return self.read(0, min(length, self.size))

    def copy(self, offset: int, length: int, memory: GuestMemory, address: int) -> None:
        """Bytes of the file to guest-physical memory, where nothing else is put. Raises HvdError IMAGE_TRUNCATED, ADDRESS_OUTSIDE."""
        self.need(offset + length)
        memory.file_offset(address, length)
        if self._copies is None:
            self.copy_now(offset, length, memory, address)
        else:
            self._copies.add(self, offset, length, memory, address)

    def copy_now(self, offset: int, length: int, memory: GuestMemory, address: int) -> None:
        """Raises HvdError IMAGE_TRUNCATED, ADDRESS_OUTSIDE; OSError."""
        if isinstance(self._file, io.BytesIO):
            memory.write(address, self.read(offset, length))
            return
        done = memory.store_file(address, self._file.fileno(), offset, length)
        if done < length:
            raise self._shrank(offset + done, offset + length)

    def _fill(self, target: memoryview, offset: int) -> None:
        self._file.seek(offset)
        done = 0
        while done < len(target):
            # readinto is of FileIO and BytesIO alike, though BinaryIO does not declare it.
            count: int = self._file.readinto(target[done:])  # type: ignore[attr-defined]
            if not count:
                raise self._shrank(offset + done, offset + len(target))
            done += count

    def _shrank(self, length: int, needed: int) -> HvdError:
        """Since it was opened."""
        return HvdError("IMAGE_TRUNCATED", what=self.what, length=length, needed=needed)
