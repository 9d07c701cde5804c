"""Files and directories that are nobody else's, from the moment they are born; older ones are made so."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FILE_MODE = 0o600


def private_file(path: Path) -> Path:
    """A file that a library is going to open: SQLite would make it readable to all, and what it writes beside it has its mode. What is wrong
    with the path whoever opens it tells."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            if os.fstat(descriptor).st_mode & 0o777 & ~FILE_MODE:
                os.fchmod(descriptor, FILE_MODE)
        finally:
            os.close(descriptor)
    return path


def private_directory(path: Path, mode: int = 0o700) -> None:
    """mode: 0o711 lets others through who know what is in it: users of containers, to their roots. Raises OSError."""
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o777 & ~mode:
        path.chmod(mode)
