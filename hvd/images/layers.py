"""Layers of containers' images, unpacked: `<directory>/sha256/<64 hex digits>/`, shared by all containers and never written."""

from __future__ import annotations

from pathlib import Path

from hvd.errors import HvdError
from hvd.images.blobs import check_digest


class LayerStore:
    """The unpacked layers of one daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, digest: str) -> Path:
        """The layer's root. Raises HvdError DIGEST_INVALID, LAYER_MISSING."""
        path = self.directory / "sha256" / check_digest(digest)
        if not path.is_dir():
            raise HvdError("LAYER_MISSING", digest=digest)
        return path
