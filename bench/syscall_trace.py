"""What tracing costs a container for each of its system calls, beside strace -f of the same program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from hvapi.v1 import trace_pb2

from bench.figure import Figure, compared, in_turns
from bench.lab import Daemon, Lab, Unavailable
from bench.trace import Received

BUSYBOX: Final = Path("/bin/busybox")
COPIES: Final = 400_000  # each one read(2) and one write(2)
STRACE_COPIES: Final = 20_000
NAME: Final = "traced"
OTHER: Final = "other"
CHOSEN: Final = "unlinkat"
_TIMES = re.compile(r"(real|user|sys)\s+(\d+)m\s*([0-9.]+)s")  # of time(1), to hundredths


def measure(lab: Lab) -> list[Figure]:
    if not BUSYBOX.exists() or shutil.which("strace") is None:
        raise Unavailable("busybox-static and strace are needed")
    lab.say("tracing of system calls")
    less = 10 if lab.quick else 1
    root = lab.new_directory("root")
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir()
    shutil.copy2(BUSYBOX, root / "bin" / "busybox")
    for applet in ("sh", "dd", "time", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    root.chmod(0o755)
    lost: list[float] = []
    processor: dict[str, list[float]] = {way: [] for way in ("untraced", "traced", "by files", "not chosen")}
    with lab.daemon() as daemon, lab.daemon(options=["--container-tracer", "tracefs"]) as by_files:
        for each in (daemon, by_files):
            for directory in (each.runtime_dir.parent, each.runtime_dir.parent.parent):
                directory.chmod(0o711)  # a container's users must find its root
            each.run_hvctl("image", "import", "box", str(root))
        daemon.run_hvctl("run", "-d", "--name", OTHER, "--image", "box", "--", "sleep", "100000")
        copies, slow = COPIES // less, STRACE_COPIES // less
        ways = {
            "untraced": lambda: _untraced(daemon, copies, processor["untraced"]),
            "traced": lambda: _traced(daemon, copies, lost, processor["traced"]),
            "by files": lambda: _traced(by_files, copies, [], processor["by files"]),
            "not chosen": lambda: _traced(daemon, copies, [], processor["not chosen"], (CHOSEN,)),
            "beside": lambda: _beside(daemon, copies),
            "alone": lambda: _host([], copies),
            "strace": lambda: _host(["strace", "-f", "-o", "/dev/null"], slow),
            "strace of few": lambda: _host(["strace", "-f", "--seccomp-bpf", "-e", f"trace={CHOSEN}", "-o", "/dev/null"], copies),
        }
        samples = in_turns(ways, lab.runs(5))
    counted = {way: values[-lab.runs(5) :] for way, values in processor.items()}

    def added(way: str, without: str = "untraced") -> list[float]:
        return [max(1e-10, a - b) for a, b in zip(samples[way], samples[without], strict=True)]

    share = sorted(lost)[len(lost) // 2]
    note = f"one byte copied at a time as fast as it goes; {share:.0%} of the records lost, and reported so"
    strace = "strace -f"
    untraced = "the same container untraced"
    return [
        compared("tracing: added to each system call", "s", added("traced"), added("strace", "alone"), strace, note=note),
        compared("- by trace files", "s", added("by files"), added("strace", "alone"), strace),
        *(
            compared(f"{name}, the container's processor time", "s", counted[way], counted["untraced"], untraced)
            for way, name in (("traced", "system call, traced"), ("by files", "- by trace files"), ("not chosen", "- not chosen"))
        ),
        compared("system call of a container, traced", "s", samples["traced"], samples["untraced"], untraced),
        compared("- by trace files", "s", samples["by files"], samples["untraced"], untraced),
        compared(f"- only {CHOSEN} chosen, of which it makes none", "s", samples["not chosen"], samples["untraced"], untraced),
        compared("- not traced, while another container is", "s", samples["beside"], samples["untraced"], untraced),
        compared(
            f"system call of the same program under strace -f --seccomp-bpf -e {CHOSEN}", "s", samples["strace of few"], samples["alone"],
            "without a container",
        ),
        compared("- under strace -f", "s", samples["strace"], samples["alone"], "without a container"),
    ]  # fmt: skip


def _command(copies: int) -> list[str]:
    return ["/bin/busybox", "time", "/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={copies}"]


def _per_call(output: str, copies: int, processor: list[float] | None = None) -> float:
    """Seconds that passed; processor: told those of the program's own processor time."""
    found = {name: 60 * int(minutes) + float(seconds) for name, minutes, seconds in _TIMES.findall(output)}
    if len(found) != 3:
        raise Unavailable(f"time said {output[-300:]!r}")
    if processor is not None:
        processor.append((found["user"] + found["sys"]) / (2 * copies))
    return found["real"] / (2 * copies)


def _host(prefix: list[str], copies: int) -> float:
    done = subprocess.run([*prefix, *_command(copies)], capture_output=True, text=True, check=True, timeout=300)
    return _per_call(done.stderr, copies)


def _hvctl(daemon: Daemon, *words: str) -> str:
    done = subprocess.run(
        daemon.hvctl(*words), env=daemon.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


def _untraced(daemon: Daemon, copies: int, processor: list[float] | None = None) -> float:
    script = f"{' '.join(_command(copies))} 2>&1"
    return _per_call(_hvctl(daemon, "run", "--rm", "--image", "box", "--", "sh", "-c", script), copies, processor)


def _traced(daemon: Daemon, copies: int, lost: list[float], processor: list[float] | None = None, reasons: tuple[str, ...] = ()) -> float:
    _hvctl(daemon, "create", "--name", NAME, "--image", "box", "--", "sh", "-c", f"{' '.join(_command(copies))} 2>&1")
    received = Received()
    with daemon.client() as client:
        request = trace_pb2.StreamTraceRequest(names=[f"guests/{NAME}"], reasons=reasons)
        received.take(client, request, lambda: client.start_guest(name=f"guests/{NAME}"))
        client.wait_guest(name=f"guests/{NAME}", timeout=300)
    output = _hvctl(daemon, "logs", NAME)
    _hvctl(daemon, "delete", "--force", NAME)
    lost.append(received.lost / max(1, received.lost + received.records))
    return _per_call(output, copies, processor)


def _beside(daemon: Daemon, copies: int) -> float:
    """Untraced, while the other one is traced."""
    with daemon.client() as client, client.stream_trace(trace_pb2.StreamTraceRequest(names=[f"guests/{OTHER}"])) as blocks:
        next(blocks)
        return _untraced(daemon, copies)
