"""Every parser that meets foreign bytes, as a table: whatever they are, it answers or says what is wrong with them, and nothing else happens.

Messages of the API: tests/api/test_conformance.py. Sockets of a runner, with the real one behind them: tests/e2e/test_foreign_sockets.py. Devices,
with a guest behind them: tests/board/test_nonsense.py. What runs in C: tests/board/fuzz_*.c, tests/cell/fuzz_*.c.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hvapi import record
from hvapi.runner.v1 import control_pb2
from hvctl import docker_archive, layout
from hvctl.sdk.errors import HvctlError

from hvd.board.block.overlay import Overlay, create_overlay
from hvd.board.loaders import identify, load
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.debug import rsp
from hvd.errors import HvdError
from hvd.guests import logs, records
from hvd.images import manifest, reference, symbol_table
from hvd.network import dhcp
from hvd.runner import protocol
from hvd.runner.directory import EXIT, LOG, PID
from hvd.snapshot.container import Reader, Writer
from hvd.trace.counters import decode_counters
from hvd.trace.ring import RingReader, create_ring
from tests.fuzzing import inputs

GUESTS = Path(__file__).resolve().parents[2] / "build" / "guests"
Parse = Callable[[bytes, Path], Any]


@dataclass(frozen=True)
class Parser:
    """samples: well-formed inputs, made in a directory. parse: with a directory of its own. errors: what it may say instead."""

    parse: Parse
    samples: Callable[[Path], Sequence[bytes]]
    errors: tuple[type[Exception], ...] = (HvdError,)


def in_file(use: Callable[[Path], Any]) -> Parse:
    def parse(data: bytes, directory: Path) -> Any:
        path = directory / "file"
        path.write_bytes(data)
        return use(path)

    return parse


def kernels(directory: Path) -> list[bytes]:
    found = [path for name in ("hello.elf", "long.elf", "pvh.elf", "flat.bin", "hello.pv.elf", "hello.hvpv.elf") if (path := GUESTS / name).exists()]
    if not found:
        pytest.skip("the test kernels are not built: make guests")
    setup = bytearray(4096)  # the head of a bzImage (Documentation/arch/x86/boot.rst)
    setup[0x1F1], setup[0x1FE:0x200], setup[0x202:0x206] = 1, b"\x55\xaa", b"HdrS"
    struct.pack_into("<HxxHHHH", setup, 0x206, 0x20F, 0, 0, 0, 0)
    return [*(path.read_bytes() for path in found), bytes(setup)]


def load_kernel(data: bytes, directory: Path) -> None:
    identify(data)
    with contextlib.closing(GuestMemory(4 << 20)) as memory:
        load(memory, data, None, "quiet")


def snapshots(directory: Path) -> list[bytes]:
    with Writer(directory / "made") as writer:
        writer.add_json("about", {"name": "a"})
        writer.add("memory", bytes(range(256)) * 40)
        writer.finish()
    return [(directory / "made").read_bytes()]


def read_snapshot(path: Path) -> None:
    with Reader(path, "s") as reader:
        reader.verify()
        reader.read_json("about")


def overlays(directory: Path) -> list[bytes]:
    create_overlay(directory / "made", 1 << 20, None)
    overlay = Overlay(directory / "made", None, 1 << 20)
    overlay.write(4096, [memoryview(bytearray(b"x" * 4096))])
    overlay.close()
    return [(directory / "made").read_bytes()]


def read_overlay(path: Path) -> None:
    overlay = Overlay(path, None, 1 << 20)
    try:
        overlay.read(0, [memoryview(bytearray(1 << 16))])
    finally:
        overlay.close()


DIGEST = "sha256:" + "0" * 64
MANIFESTS: tuple[dict[str, Any], ...] = (
    {"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 7},
     "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 9}]},
    {"schemaVersion": 2, "manifests": [{"digest": DIGEST, "size": 3, "platform": {"architecture": "amd64", "os": "linux"}}]},
    {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
     "config": {"Env": ["A=1"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c"], "WorkingDir": "/", "User": "1:2", "ExposedPorts": {"80/tcp": {}}}},
)  # fmt: skip


def read_manifest(data: bytes, directory: Path) -> None:
    read = manifest.document(data, "m")
    for use in (manifest.of_platform, manifest.manifest, manifest.rootfs_config):
        with contextlib.suppress(HvdError):
            use(read, "m")


def archives(directory: Path) -> list[bytes]:
    made = io.BytesIO()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("etc"), None)
    config = json.dumps({"rootfs": {"diff_ids": [DIGEST]}, "config": {}}).encode()
    files = {"manifest.json": json.dumps([{"Config": "c.json", "Layers": ["l.tar"]}]).encode(), "c.json": config, "l.tar": layer.getvalue()}
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return [made.getvalue()]


def read_archive(path: Path) -> None:
    scratch = path.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    if docker_archive.is_archive(str(path)):
        docker_archive.read(str(path), scratch)


def runner_messages(directory: Path) -> list[bytes]:
    status = control_pb2.RunnerResponse(id=1, status=control_pb2.Status(state="RUNNING", log_error="x"))
    error = control_pb2.RunnerResponse(id=2, error=control_pb2.Error(reason="GUEST_NOT_FOUND", metadata={"name": "a"}))
    return [protocol.frame(message) for message in (status, error)]


def read_runner_message(data: bytes, directory: Path) -> None:
    from google.protobuf.message import DecodeError

    length = protocol.frame_length(data[: protocol.LENGTH_BYTES])
    with contextlib.suppress(DecodeError):
        protocol.result_of(control_pb2.RunnerResponse.FromString(data[protocol.LENGTH_BYTES :][:length]))


def trace_blocks(directory: Path) -> list[bytes]:
    return [bytes(range(64)) * 30]


def rings(directory: Path) -> list[bytes]:
    create_ring(directory / "made", 64, 0xFF)
    return [(directory / "made").read_bytes()]


def read_ring(path: Path) -> None:
    ring = RingReader(path, from_start=True)
    try:
        ring.unread()
        for _ in range(5):
            ring.read(100)
    finally:
        ring.close()


NETWORK = dhcp.Subnet(IPv4Network("10.9.0.0/24"), IPv4Address("10.9.0.1"), 1500, True, (IPv4Address("10.9.0.1"),))


def dhcp_packets(directory: Path) -> list[bytes]:
    mac = bytes.fromhex("525400123456")
    fixed = struct.pack("!4BIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 7, 0, 0, bytes(4), bytes(4), bytes(4), bytes(4), mac, b"", b"")
    options = (b"\x35\x01\x01", b"\x35\x01\x03\x32\x04\x0a\x09\x00\x02\x0c\x03abc", b"\x35\x01\x08\x37\x03\x01\x03\x06")
    return [fixed + b"\x63\x82\x53\x63" + option + b"\xff" for option in options]


def gdb_packets(directory: Path) -> list[bytes]:
    return [rsp.frame(packet) for packet in (b"qSupported:xmlRegisters=i386", b"m1000,40", b"X1000,4:\x7d\x03abc", b"vCont;c:1", b"Z0,ffff,1")]


def read_gdb(data: bytes, directory: Path) -> None:
    link = rsp.Link()
    for event in link.feed(data):
        if isinstance(event, bytes):
            rsp.unescape(event)
            for piece in event.split(b","):
                for parse in (rsp.number, rsp.hex_bytes):
                    with contextlib.suppress(ValueError):
                        parse(piece)


def read_guest_directory(data: bytes, directory: Path) -> None:
    for name in (EXIT, PID, "guest.json"):
        (directory / name).write_bytes(data)
    records.read_exit(directory)
    if (process := records.read_process(directory)) is not None:
        records.is_living(process)
    records.read_guest(directory)


def read_log(data: bytes, directory: Path) -> None:
    (directory / LOG).write_bytes(data)
    logs.read_end(directory, 1 << 16, ("stdout", "stderr"))


def oci_layout(data: bytes, directory: Path) -> None:
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_bytes(data)
    layout.read(str(directory), directory)


def symbols(directory: Path) -> list[bytes]:
    kernel = GUESTS / "hello.elf"
    return [b"00100000 T start\n00100010 t inner\n", *([kernel.read_bytes()] if kernel.exists() else [])]


def sources(*texts: object) -> Callable[[Path], Sequence[bytes]]:
    return lambda directory: [text if isinstance(text, bytes) else json.dumps(text).encode() for text in texts]


PARSERS: dict[str, Parser] = {
    "kernels (bzImage, ELF, Multiboot, PVH, flat)": Parser(load_kernel, kernels),
    "symbols (ELF, System.map)": Parser(in_file(symbol_table.read_symbols), symbols),
    "snapshots": Parser(in_file(read_snapshot), snapshots, (HvdError, EOFError)),
    "disk overlays": Parser(in_file(read_overlay), overlays, (HvdError, OSError)),
    "OCI manifests, indexes, configurations": Parser(read_manifest, sources(*MANIFESTS)),
    "OCI layouts": Parser(oci_layout, sources({"schemaVersion": 2, "manifests": [{"digest": DIGEST, "size": 3}]}), (HvctlError,)),
    "docker archives": Parser(in_file(read_archive), archives, (HvctlError,)),
    "references of images": Parser(
        lambda data, _: reference.parse(data.decode("utf-8", "replace")), sources(b"debian:12", b"127.0.0.1:5000/a/b@" + DIGEST.encode())
    ),
    "control protocol, answers of runners": Parser(read_runner_message, runner_messages, (HvdError, protocol.FrameError)),
    "trace blocks": Parser(lambda data, _: list(record.decode(data)), trace_blocks, (struct.error,)),
    "trace rings": Parser(in_file(read_ring), rings),
    "counters pages": Parser(lambda data, _: decode_counters(data), sources(bytes(16384))),
    "guest directories (exit, pid, guest)": Parser(
        read_guest_directory, sources({"state": "STOPPED", "reason": "EXITED", "exit_code": 1, "time_ns": 5, "metadata": {}},
                                      {"pid": 1, "start_time": 5, "boot_id": "x"}, {"name": "guests/a", "uid": "u"})
    ),
    "machine.json": Parser(
        lambda data, _: MachineSpec.of(json.loads(data)), sources({"name": "a", "backend": "b", "engine": "", "memory_bytes": 5, "kernel": "k",
                                                                   "disks": [{"name": "d", "base": "", "overlay": "", "size_bytes": 5}]}),
        (TypeError, ValueError, RecursionError),
    ),
    "console logs": Parser(read_log, sources(b"2026-11-23T12:00:00.000000000+00:00 stdout F text\n2026-11-23T12:00:00.0+00:00 stderr P more\n")),
    "DHCP": Parser(lambda data, _: dhcp.answer(data, NETWORK, lambda mac: None), dhcp_packets, ()),
    "gdb packets": Parser(read_gdb, gdb_packets, (ValueError,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_foreign_bytes(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    parser = PARSERS[name]
    made, used = tmp_path / "made", tmp_path / "used"
    made.mkdir()
    used.mkdir()
    descriptors = len(os.listdir("/proc/self/fd"))
    count = 0
    for data in inputs(parser.samples(made), name):
        count += 1
        try:
            parser.parse(data, used)
        except parser.errors:
            pass
        except Exception as error:
            raise AssertionError(f"{name}: input {count}, {len(data)} bytes, {data[:400].hex()}: {error!r}") from error
    record_property("inputs", count)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
