"""What another user of the host can do with everything that a daemon leaves on its disks while guests of several kinds run: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import RealDaemon, kernel

from hvd.backends.container.backend import BACKEND

NOBODY = 65534
# As that user: the paths below that it can list, read, write or connect to. It becomes so by itself, since this Python may be the owner's only.
LOOK = """
import json, os, socket, stat, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1])); os.chdir("/")
found = {}
def walk(path):
    about = os.lstat(path)
    can = [name for name, how in (("read", os.R_OK), ("write", os.W_OK)) if not stat.S_ISLNK(about.st_mode) and os.access(path, how)]
    if stat.S_ISSOCK(about.st_mode):
        with socket.socket(socket.AF_UNIX) as peer:
            can = [] if peer.connect_ex(path) == 13 else ["connect"]
    if can:
        found[path] = can
    if stat.S_ISDIR(about.st_mode):
        for name in os.listdir(path) if "read" in can else sys.argv[3:]:
            try:
                walk(os.path.join(path, name))
            except OSError:
                pass
walk(sys.argv[2])
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_of_the_host_finds_nothing(daemon: RealDaemon, tmp_path: Path) -> None:
    daemon.run("echo.elf", name="vm")
    daemon.ok("snapshot", "vm", "point")
    here = {found["name"] for found in daemon.ok("backends", "-o", "json").json["backends"] if found["available"]}
    for name, image in (("trap", "echo.elf"), ("rewriting", "echo.elf"), ("paravirt", "echo.hvpv.elf")):
        if f"backends/{name}" in here:
            daemon.ok("run", "-d", "--name", name, "--backend", name, "--kernel", kernel(image), "--memory", "8M")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    daemon.ok("image", "import", "disk", str(disk), "--kind", "disk")
    daemon.ok("run", "-d", "--name", "with-disk", "--backend", "emulation", "--kernel", kernel("echo.elf"), "--memory", "8M", "--disk", "disk")
    daemon.ok("volume", "create", "volume")
    if BACKEND.probe().available:
        daemon.ok("image", "import", "box", str(busybox_root(tmp_path / "root")))
        daemon.ok("run", "-d", "--name", "c", "--image", "box", "-v", "volume:/data", "--", "sh", "-c", "echo up; exec sleep 1000")
        daemon.wait_logs("c", "up")
    # Even one who knows all names, but for a guest's uid.
    names = {path.name for path in daemon.directory.rglob("*") if len(path.relative_to(daemon.directory).parts) < 4}
    names -= {guest["uid"] for guest in daemon.listed().values()}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOOK, str(NOBODY), str(daemon.directory), *sorted(names)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    found.pop(str(daemon.log_file), None)  # the test's own
    layers = str(daemon.state_dir / "layers" / "sha256")
    assert not [path for path in found if not path.startswith(layers)], found
    assert not any("write" in can for can in found.values()), found
