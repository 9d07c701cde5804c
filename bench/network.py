"""TCP between a Linux guest and its host, by a tap on a bridge and by passt, beside QEMU's translator with the same kernel
and the same back end. All of it within a network namespace of its own; by the host's clock.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.figure import Figure, alone, compared
from bench.lab import MIB, NATIVE, Daemon, Lab, Unavailable, end, qemu, read_until
from tests.guest_images import PROMPT, GuestImage, GuestUnavailable, guest_image
from tests.network_namespace import Namespace, NamespaceUnavailable

MODULES: Final = ("virtio_pci", "virtio_net")
GUEST_MIB: Final = 128
NAME: Final = "network"
BRIDGE: Final = "hvd-lan"
SUBNET: Final = "10.77.0"
QEMU_TAP: Final = "qemu0"
MAC: Final = "52:54:00:12:34:56"
PEER: Final = str(Path(__file__).resolve().parents[1] / "tests" / "network_peer.py")
PORT: Final = 5001
# Back end -> where the host listens, how the guest calls it.
PLACES: Final = {"tap": (f"{SUBNET}.1", f"{SUBNET}.1"), "passt": ("127.0.0.1", "10.0.2.2")}
# Way -> what the guest's nc runs with the connection as its standard input and output.
WAYS: Final = {"guest to host": "dd if=/dev/zero bs=64k count={pieces}", "host to guest": "dd of=/dev/null bs=64k"}


def measure(lab: Lab) -> Iterator[Figure]:
    try:
        image = guest_image("debian-cloud", MODULES)
        with Namespace("nft", "passt") as namespace:
            yield from _measure(lab, image, namespace)
    except (GuestUnavailable, NamespaceUnavailable) as error:
        raise Unavailable(str(error)) from error


def _measure(lab: Lab, image: GuestImage, namespace: Namespace) -> Iterator[Figure]:
    size = (4 if lab.quick else 32) * MIB
    program = missing = ""
    try:
        program = qemu("x86_64")
    except Unavailable as problem:
        missing = str(problem)
    with lab.daemon(namespace.prefix) as daemon:
        daemon.run_hvctl("network", "create", "lan", "--subnet", f"{SUBNET}.0/24")
        for backend in PLACES:
            own: dict[str, list[float]] = {way: [] for way in WAYS}
            beside: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(lab.runs(5)):
                lab.say(f"TCP by {backend}, turn {turn + 1}")
                with _hvd(daemon, image, backend) as guest:
                    _take(namespace, guest, backend, size, own)
                if program:
                    with _qemu(lab, namespace, program, image, backend) as guest:
                        _take(namespace, guest, backend, size, beside)
            note = f"Debian's cloud kernel, {GUEST_MIB} MiB, {size // MIB} MiB of data, busybox dd"
            for way in WAYS:
                title = f"TCP by {backend}, {way}"
                if not program:
                    yield alone(title, "bytes/s", own[way], note=missing)
                    continue
                peer = f"qemu-system-x86_64 -accel tcg, virtio-net-pci, {backend}"
                yield compared(title, "bytes/s", own[way], beside[way], peer, note=note)
        daemon.run_hvctl("network", "delete", "lan")


def _take(
    namespace: Namespace, guest: subprocess.Popen[bytes], backend: str, size: int, into: dict[str, list[float]]
) -> None:
    """Bytes a second of every way, in a guest whose card has an address."""
    listen, address = PLACES[backend]
    for way, command in WAYS.items():
        what = ("take",) if way == "guest to host" else ("give",)
        peer = namespace.start(sys.executable, PEER, *what, listen, str(PORT), *(() if what == ("take",) else (str(size),)))
        assert peer.stdout is not None
        try:
            peer.stdout.readline()
            _type(guest, f"nc {address} {PORT} -e {command.format(pieces=size >> 16)}; echo 'mea''sured'")
            read_until(guest, b"measured")
            _, passed, elapsed = peer.stdout.read().split()
        finally:
            end(peer)
        if int(passed) != size:
            raise Unavailable(f"{way} by {backend}: {int(passed)} of {size} bytes came through")
        into[way].append(size / (int(elapsed) / 1e9))


def _type(guest: subprocess.Popen[bytes], command: str) -> None:
    assert guest.stdin is not None
    guest.stdin.write(command.encode() + b"\n")
    guest.stdin.flush()


@contextlib.contextmanager
def _guest(command: Sequence[str], environment: dict[str, str] | None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        read_until(process, PROMPT)
        yield process
    finally:
        end(process)


@contextlib.contextmanager
def _hvd(daemon: Daemon, image: GuestImage, backend: str) -> Iterator[subprocess.Popen[bytes]]:
    command = daemon.hvctl(
        "run", *NATIVE, "--name", NAME, "--memory", f"{GUEST_MIB}M", "--kernel", str(image.kernel),
        "--initrd", str(image.initrd), "--append", image.append, "--network", "lan" if backend == "tap" else "user",
    )  # fmt: skip
    try:
        with _guest(command, daemon.environment) as guest:
            yield guest
    finally:
        daemon.run_hvctl("delete", "--force", NAME)


@contextlib.contextmanager
def _qemu(
    lab: Lab, namespace: Namespace, program: str, image: GuestImage, backend: str
) -> Iterator[subprocess.Popen[bytes]]:
    with _qemu_tap(namespace) if backend == "tap" else _qemu_passt(lab, namespace) as options:
        command = [
            *namespace.prefix, program, "-accel", "tcg", "-m", str(GUEST_MIB), "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-kernel", str(image.kernel), "-initrd", str(image.initrd),
            "-append", image.append, "-netdev", options, "-device", f"virtio-net-pci,netdev=card,mac={MAC}",
        ]  # fmt: skip
        with _guest(command, None) as guest:
            if backend == "tap":
                # Its MAC is none that the daemon's DHCP knows.
                _type(guest, f"ip addr add {SUBNET}.250/24 dev eth0; echo 'addr''essed'")
                read_until(guest, b"addressed")
            yield guest


@contextlib.contextmanager
def _qemu_tap(namespace: Namespace) -> Iterator[str]:
    namespace.run("ip", "tuntap", "add", QEMU_TAP, "mode", "tap", "vnet_hdr")
    try:
        namespace.run("ip", "link", "set", QEMU_TAP, "master", BRIDGE, "up")
        yield f"tap,id=card,ifname={QEMU_TAP},script=no,downscript=no"
    finally:
        namespace.run("ip", "link", "delete", QEMU_TAP)


@contextlib.contextmanager
def _qemu_passt(lab: Lab, namespace: Namespace) -> Iterator[str]:
    path = lab.new_directory("passt") / "socket"
    # passt runs as nobody from before it makes its socket.
    for directory in (path.parent, *path.parent.parents):
        if directory.stat().st_uid == os.geteuid() and directory.is_relative_to("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o777 if directory == path.parent else directory.stat().st_mode | 0o711)
    process = subprocess.Popen(
        [*namespace.prefix, "passt", "--foreground", "--quiet", "--ipv4-only", "--socket", str(path), "--mtu", "65520",
         "--address", "10.0.2.15", "--netmask", "255.255.255.0", "--gateway", "10.0.2.2", "--tcp-ports", "none",
         "--udp-ports", "none"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not path.exists():
            if process.poll() is not None:
                raise Unavailable(f"passt ended with status {process.returncode}")
            os.sched_yield()
        yield f"stream,id=card,server=off,addr.type=unix,addr.path={path}"
    finally:
        end(process)
