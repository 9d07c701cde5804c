"""The process that copies into a container (hvctl cp), told to end at the worst moment."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# Told to end just before the named function of os is called for the first time, or just after.
ENDED = """
import os, signal, sys
from hvd.backends.container.files import helper
from hvd.backends.container.files.taking import Taker
name, when, target = sys.argv[1:]
real = getattr(os, name)
def interrupted(*arguments, **options):
    setattr(os, name, real)
    if when == "before":
        signal.raise_signal(signal.SIGTERM)
    try:
        return real(*arguments, **options)
    finally:
        if when == "after":
            signal.raise_signal(signal.SIGTERM)
setattr(os, name, interrupted)
helper.take(Taker(target, True, False), sys.stdin.buffer)
"""


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 100_000
        tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("cut", "name"),
    # A file that is cut short comes to no rename.
    [(False, "open"), (False, "chown"), (False, "rename"), (False, "unlink"), (True, "open"), (True, "unlink")],
)
def test_nothing_half_done_is_left(tmp_path: Path, cut: bool, name: str, when: str) -> None:
    """Also when it is told while it puts away what an archive cut short left half done."""
    content = archive()[:50_000] if cut else archive()
    ended = subprocess.run(
        [sys.executable, "-c", ENDED, name, when, str(tmp_path)], input=content, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert [entry.name for entry in tmp_path.iterdir()] in ([], ["file"])
    if (tmp_path / "file").exists():
        assert (tmp_path / "file").stat().st_size == 100_000
