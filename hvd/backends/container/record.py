"""container.json of a container's guest directory: what a daemon that comes later must know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hvd.runner import directory as names
from hvd.runner.directory import LEAST_LOG_FILES, MOST_LOG_FILES

CONTAINER = "container.json"


@dataclass(frozen=True, slots=True)
class Record:
    """container.json of the guest directory: what a daemon that comes later must know."""

    uid: str
    engine: str
    state_dir: str
    stop_signal: str
    tty: bool
    init: int
    monitor: int
    # A client can end its standard input. Older daemons did not say so.
    stdin_ends: bool = False
    log_files: int = 2
    # It was to be created and no more: one that is not held, and has not begun, is half made. Older daemons did not say so.
    held: bool = True

    def write(self, directory: Path) -> None:
        names.write_json(str(directory / CONTAINER), {field: getattr(self, field) for field in self.__slots__})

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """None when there is none, or none that makes sense."""
        document = names.read_json(str(directory / CONTAINER))
        kinds = {
            "uid": str,
            "engine": str,
            "state_dir": str,
            "stop_signal": str,
            "tty": bool,
            "init": int,
            "monitor": int,
        }
        if document is None or any(not isinstance(document.get(field), kind) for field, kind in kinds.items()):
            return None
        return cls(
            **{field: document[field] for field in kinds},
            stdin_ends=document.get("stdin_ends") is True,
            log_files=_files(document.get("log_files")),
            held=document.get("held") is not False,
        )


def _files(value: object) -> int:
    return value if isinstance(value, int) and LEAST_LOG_FILES <= value <= MOST_LOG_FILES else LEAST_LOG_FILES
