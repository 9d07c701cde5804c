"""What tracing costs a container for each of its system calls, beside strace -f of the same program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from hvapi.v1 import trace_pb2

from bench.figure import Figure, alone, compared, in_turns
from bench.lab import Daemon, Lab, Unavailable
from bench.trace import Received

BUSYBOX: Final = Path("/bin/busybox")
COPIES: Final = 400_000  # each one read(2) and one write(2)
STRACE_COPIES: Final = 20_000
NAME: Final = "traced"
_REAL = re.compile(r"real\s+(\d+)m\s*([0-9.]+)s")  # of time(1), to hundredths


def measure(lab: Lab) -> list[Figure]:
    if not BUSYBOX.exists() or shutil.which("strace") is None:
        raise Unavailable("busybox-static and strace are needed")
    lab.say("tracing of system calls")
    less = 10 if lab.quick else 1
    root = lab.new_directory("root")
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir()
    shutil.copy2(BUSYBOX, root / "bin" / "busybox")
    for applet in ("sh", "dd", "time"):
        (root / "bin" / applet).symlink_to("busybox")
    root.chmod(0o755)
    lost: list[float] = []
    with lab.daemon() as daemon:
        for directory in (daemon.runtime_dir.parent, daemon.runtime_dir.parent.parent):
            directory.chmod(0o711)  # a container's users must find its root
        daemon.run_hvctl("image", "import", "box", str(root))
        ways = {
            "untraced": lambda: _untraced(daemon, COPIES // less),
            "traced": lambda: _traced(daemon, COPIES // less, lost),
            "alone": lambda: _host([], COPIES // less),
            "strace": lambda: _host(["strace", "-f", "-o", "/dev/null"], STRACE_COPIES // less),
        }
        samples = in_turns(ways, lab.runs(5))
    own = [max(1e-12, a - b) for a, b in zip(samples["traced"], samples["untraced"], strict=True)]
    beside = [a - b for a, b in zip(samples["strace"], samples["alone"], strict=True)]
    share = sorted(lost)[len(lost) // 2]
    note = f"one byte copied at a time as fast as it goes; {share:.0%} lost, and reported so"
    return [
        compared("tracing: added to each system call", "s", own, beside, "strace -f", note=note),
        compared("system call of a container, traced", "s", samples["traced"], samples["untraced"], "the same container untraced"),
        alone("system call of the same program without a container", "s", samples["alone"]),
    ]


def _command(copies: int) -> list[str]:
    return ["/bin/busybox", "time", "/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={copies}"]


def _per_call(output: str, copies: int) -> float:
    found = _REAL.search(output)
    if found is None:
        raise Unavailable(f"time said {output[-300:]!r}")
    return (60 * int(found[1]) + float(found[2])) / (2 * copies)


def _host(prefix: list[str], copies: int) -> float:
    done = subprocess.run([*prefix, *_command(copies)], capture_output=True, text=True, check=True, timeout=300)
    return _per_call(done.stderr, copies)


def _hvctl(daemon: Daemon, *words: str) -> str:
    done = subprocess.run(
        daemon.hvctl(*words), env=daemon.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


def _untraced(daemon: Daemon, copies: int) -> float:
    script = f"{' '.join(_command(copies))} 2>&1"
    return _per_call(_hvctl(daemon, "run", "--rm", "--image", "box", "--", "sh", "-c", script), copies)


def _traced(daemon: Daemon, copies: int, lost: list[float]) -> float:
    _hvctl(daemon, "create", "--name", NAME, "--image", "box", "--", "sh", "-c", f"{' '.join(_command(copies))} 2>&1")
    received = Received()
    with daemon.client() as client:
        request = trace_pb2.StreamTraceRequest(names=[f"guests/{NAME}"])
        received.take(client, request, lambda: client.start_guest(name=f"guests/{NAME}"))
        client.wait_guest(name=f"guests/{NAME}", timeout=300)
    output = _hvctl(daemon, "logs", NAME)
    _hvctl(daemon, "delete", "--force", NAME)
    lost.append(received.lost / max(1, received.lost + received.records))
    return _per_call(output, copies)
