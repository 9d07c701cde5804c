"""What is behind the board's disks: images in files, and how a machine opens them. Devices see BlockImage only."""

from __future__ import annotations

from hvd.board.block.disk import Disk, close_disks, open_disks
from hvd.board.block.image import BlockImage

__all__ = ["BlockImage", "Disk", "close_disks", "open_disks"]
