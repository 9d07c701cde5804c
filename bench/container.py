"""A container's whole life (create, start, wait for its end, delete) beside the bare runtime's and podman's, and what a network adds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from hvapi.v1 import system_pb2
from hvctl.sdk import Client

from bench import container_crowd
from bench.bare_runtime import COMMAND
from bench.figure import Figure, compared, in_turns
from bench.lab import Daemon, Lab, Unavailable
from bench.roots import busybox_image
from hvd.backends.container.runtime import RUNTIMES
from hvd.cgroup.hierarchy import hierarchy
from tests.network_namespace import Namespace, NamespaceUnavailable

RUNS: Final = 40
LIFE: Final = "container: create + start + wait + delete"
NETWORK: Final = "lan"
PODMAN_GROUP: Final = "hvd-bench"
_LINE_SECONDS: Final = 60.0


def measure(lab: Lab) -> Iterator[Figure]:
    with lab.daemon() as daemon, daemon.client() as client:
        layer = busybox_image(lab, daemon)
        found = {engine.name: engine.available for engine in _engines(client)}
        if not found.get("runc"):
            raise Unavailable("containers do not run here: hvctl backends says why")
        for engine in RUNTIMES:
            if found.get(engine):
                yield _beside_bare(lab, client, engine, layer)
        yield from container_crowd.measure(lab, daemon, client)
        yield from _bridge(lab)
        yield from _beside_podman(lab, daemon, layer)


def _engines(client: Client) -> Sequence[system_pb2.Engine]:
    return next((each.engines for each in client.list_backends().backends if each.name == "backends/container"), ())


def life(client: Client, engine: str, **container: Any) -> float:
    """Seconds of the four calls by the SDK. Raises Unavailable when it does not end well."""
    began = time.perf_counter()
    guest = client.create_guest(
        guest={"image": "images/box", "engine": engine, "container": {"command": COMMAND, **container}}
    )
    client.start_guest(name=guest.name)
    ended = client.wait_guest(name=guest.name, timeout=_LINE_SECONDS)
    client.delete_guest(name=guest.name)
    seconds = time.perf_counter() - began
    if ended.exit_code or ended.reason != "EXITED":
        raise Unavailable(f"{COMMAND} ended with {ended.exit_code}: {ended.status_message}")
    return seconds


def _beside_bare(lab: Lab, client: Client, engine: str, layer: Path) -> Figure:
    lab.say(f"{LIFE}, {engine}")
    with _bare(lab, engine, layer) as peer:
        ways = {"hvd": lambda: life(client, engine), "bare": lambda: _turn(peer)}
        samples = in_turns(ways, lab.runs(RUNS), warm_up=2)
    return compared(
        f"{LIFE}, {engine}", "s", samples["hvd"], samples["bare"], f"bare {engine}, the same bundle", target="<= 1.5",
        note="/bin/true of busybox, no network; a user namespace, seccomp, id-mapped overlay on both sides",
    )  # fmt: skip


@contextlib.contextmanager
def _bare(lab: Lab, engine: str, layer: Path) -> Iterator[subprocess.Popen[str]]:
    directory = lab.new_directory("bare")
    for path in (directory, directory.parent):
        path.chmod(0o711)
    words = [sys.executable, "-m", "bench.bare_runtime", engine, str(directory), str(layer)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()  # it ends


def _turn(peer: subprocess.Popen[str]) -> float:
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write("run\n")
    peer.stdin.flush()
    answer = peer.stdout.readline()
    if not answer:
        raise Unavailable("the bare runtime does not run here")
    return float(answer)


def _beside_podman(lab: Lab, daemon: Daemon, layer: Path) -> Iterator[Figure]:
    """Both as a user types it: one command, one process of the client."""
    if shutil.which("podman") is None:
        raise Unavailable("podman is missing: apt install podman")
    lab.say("hvctl run beside podman run")
    where = lab.new_directory("podman")
    podman = [
        "podman", "--root", str(where / "storage"), "--runroot", str(where / "run"), "--tmpdir", str(where / "tmp"),
        "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--events-backend", "none",
    ]  # fmt: skip
    try:
        archive = where / "box.tar"
        subprocess.run(["tar", "-C", str(layer), "-cf", str(archive), "."], check=True)
        _quietly([*podman, "import", str(archive), "localhost/box:1"])
        run = [
            *podman, "run", "--rm", "--cgroup-parent", f"/{PODMAN_GROUP}", "--network", "none",
            "--uidmap", "0:100000:65536", "--log-driver", "k8s-file",
            # Its own default is above what a daemon without CAP_SYS_RESOURCE may give.
            "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "localhost/box:1", *COMMAND,
        ]  # fmt: skip
        own = daemon.hvctl("run", "--rm", "--image", "box", "--engine", "runc", "--", *COMMAND)
        ways = {"hvd": lambda: _quietly(own, daemon.environment), "podman": lambda: _quietly(run)}
        samples = in_turns(ways, lab.runs(15))
    finally:
        subprocess.run([*podman, "system", "reset", "--force"], capture_output=True, check=False, timeout=120)
        _remove_groups(PODMAN_GROUP)
    version = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    note = "hvctl is Python, podman Go; with a user namespace, no network, runc and conmon on both sides"
    yield compared(
        "hvctl run --rm /bin/true", "s", samples["hvd"], samples["podman"], f"podman {version} run --rm", note=note
    )


def _remove_groups(name: str) -> None:
    """podman leaves them; its monitors end a moment after their containers."""
    found = hierarchy()
    places = [place / name for place in {*found.version_1.values(), *found.named, *([found.unified] if found.unified else [])}]
    deadline = time.monotonic() + 5
    while any(place.exists() for place in places) and time.monotonic() < deadline:
        for place in places:
            for path, _, _ in os.walk(place, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        time.sleep(0.05)


def _quietly(words: list[str], environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        words, env=environment or os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise Unavailable(f"{words[0]}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - began


def _bridge(lab: Lab) -> Iterator[Figure]:
    """The same life with a cable on a bridge, in a network namespace of its own."""
    lab.say("a container on a bridge")
    try:
        with Namespace("nft") as namespace:
            # Not `ip netns exec`, which mounts another /sys, without control groups.
            prefix = ("nsenter", f"--net=/run/netns/{namespace.name}")
            with lab.daemon(prefix) as daemon, daemon.client() as client:
                busybox_image(lab, daemon)
                daemon.run_hvctl("network", "create", NETWORK, "--subnet", "10.77.0.0/24")
                card = [{"network": NETWORK}]
                ways = {
                    "with": lambda: life(client, "runc", network_interfaces=card),
                    "without": lambda: life(client, "runc"),
                }
                samples = in_turns(ways, lab.runs(RUNS // 2))
                daemon.run_hvctl("network", "delete", NETWORK)
    except NamespaceUnavailable as error:
        raise Unavailable(str(error)) from error
    yield compared(
        f"{LIFE}, on a bridge", "s", samples["with"], samples["without"], "the same without a network",
        note="veth, address, route, packet filter",
    )  # fmt: skip
