"""The disks of a machine, opened."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd.board.block.counted import CountedImage
from hvd.board.block.image import BlockImage
from hvd.board.block.overlay import Overlay
from hvd.board.block.raw import RawImage
from hvd.board.hot import HotBoard
from hvd.board.spec import DiskSpec
from hvd.errors import HvdError


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk or CD-ROM: what it is and what is on it. machine.disks has them in the order of the configuration."""

    spec: DiskSpec
    image: BlockImage


def open_disks(specs: Sequence[DiskSpec], board: HotBoard) -> tuple[Disk, ...]:
    """All of them or none, counted in the board's page. Raises HvdError DISK_UNUSABLE, DISK_DAMAGED, DISK_IN_USE."""
    disks: list[Disk] = []
    try:
        for slot, spec in enumerate(specs):
            image = CountedImage(_open(spec), board.disk_counters(slot), _noting(board, slot))
            disks.append(Disk(spec, image))
    except BaseException:
        close_disks(disks)
        raise
    return tuple(disks)


def _noting(board: HotBoard, slot: int) -> Callable[[int, int, int, int, int], None]:
    return lambda point, start_ns, offset, length, result: board.note(point, start_ns, slot, offset, length, result)


def close_disks(disks: Sequence[Disk]) -> None:
    """Flush and close them. One that fails is told on stderr (runner.log): its guest, which could be told, has ended."""
    for disk in disks:
        try:
            disk.image.close()
        except OSError as error:
            print(f"{disk.spec.name} could not be flushed at its guest's end: {error}", file=sys.stderr)


def _open(spec: DiskSpec) -> BlockImage:
    base = Path(spec.base) if spec.base else None
    try:
        if spec.overlay:
            return Overlay(Path(spec.overlay), base, spec.size_bytes)
        if base is None:
            raise HvdError("DISK_UNUSABLE", disk=spec.name, problem="it has neither an image nor an overlay")
        return RawImage(base, spec.size_bytes)
    except OSError as error:
        raise HvdError("DISK_UNUSABLE", disk=spec.name, problem=str(error)) from error
