"""A root of busybox as an image of the benchmark's daemon."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from bench.lab import Daemon, Lab, Unavailable

BUSYBOX: Final = Path("/bin/busybox")
APPLETS: Final = ("sh", "true", "sleep", "dd", "time", "cat", "ping")


def busybox_image(lab: Lab, daemon: Daemon) -> Path:
    """Imports it as images/box; the same root as a folder. Raises Unavailable."""
    if not BUSYBOX.exists():
        raise Unavailable(f"{BUSYBOX} is missing: apt install busybox-static")
    root = lab.new_directory("root")
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir()
    shutil.copy2(BUSYBOX, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    root.chmod(0o755)
    # A container's users are others on the host: they must find its root.
    for directory in (daemon.runtime_dir.parent, daemon.runtime_dir.parent.parent):
        directory.chmod(0o711)
    daemon.run_hvctl("image", "import", "box", str(root))
    return root
