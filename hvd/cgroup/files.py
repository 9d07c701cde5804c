"""The files of control groups, read: what is not there is empty or zero, since which files there are depends on the kernel."""

from __future__ import annotations

from pathlib import Path


def text(directory: Path | None, name: str) -> str:
    """Empty when it cannot be read."""
    if directory is None:
        return ""
    try:
        return (directory / name).read_text("ascii")
    except OSError:
        return ""


def table(directory: Path | None, name: str) -> dict[str, int]:
    """Of a file of lines "name number"."""
    rows = [line.split() for line in text(directory, name).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def number(directory: Path | None, name: str) -> int:
    """0 for "max", too."""
    found = text(directory, name).strip()
    return int(found) if found.isdigit() else 0
