"""The peer of hvd's containers: the OCI runtime by itself, create + start + wait + delete of the bundle that hvd makes.

    python -m bench.bare_runtime ENGINE DIRECTORY LAYER     then "run" lines on stdin; a line of seconds for each on stdout

A process of its own, because it has to be the reaper of what the runtime leaves (prctl(2), PR_SET_CHILD_SUBREAPER) to
learn its exit code; nothing else happens in it. The root is an id-mapped overlay, mounted and unmounted for each run, as hvd does it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from hvd.backends.container import bundle, rootfs
from hvd.backends.container.runtime import Runtime
from hvd.backends.container_spec import ContainerSpec, LimitsSpec, SecuritySpec
from hvd.cgroup.hierarchy import PARENT

COMMAND: Final = ("/bin/true",)
_PR_SET_CHILD_SUBREAPER: Final = 36


def spec(layer: Path, state_dir: Path) -> ContainerSpec:
    """What hvd makes of a guest that says no more than its image and command."""
    return ContainerSpec(
        layers=(layer,), state_dir=state_dir, command=COMMAND, environment={"PATH": "/bin"}, working_directory="/", user="0",
        hostname="box", tty=False, stdin=False, mounts=(), read_only_root=False, stop_signal="SIGTERM",
        limits=LimitsSpec(), security=SecuritySpec(), init=False,
    )  # fmt: skip


def run(runtime: Runtime, directory: Path, layer: Path, mapping: int, name: str) -> float:
    """Seconds from the mount of its root to the last of it."""
    container = spec(layer, directory / "state")
    began = time.perf_counter()
    root = rootfs.mount(container.layers, container.state_dir, mapping)
    config = bundle.config(container, name, root, f"/{PARENT}/{name}")
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    pid_file = directory / "pid"
    _call(runtime, "create", "--bundle", str(directory), "--pid-file", str(pid_file), name)
    init = int(pid_file.read_text("ascii"))
    _call(runtime, "start", name)
    _, status = os.waitpid(init, 0)
    _call(runtime, "delete", name)
    rootfs.remove(container.state_dir)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{COMMAND} ended with status {status}")
    return seconds


def _call(runtime: Runtime, *words: str) -> None:
    subprocess.run(
        [str(runtime.path), *runtime.global_arguments, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
    )  # fmt: skip


def main() -> None:
    engine, directory, layer = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    runtime, mapping = Runtime(engine, directory / "runtime"), rootfs.user_namespace()
    for number, _ in enumerate(sys.stdin):
        print(run(runtime, directory, layer, mapping, f"bench-{os.getpid()}-{number}"), flush=True)


if __name__ == "__main__":
    main()
