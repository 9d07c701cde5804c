"""Whatever comes over a runner's sockets, whoever sent it: the guest goes on, and so does everybody else who talks to the runner."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hvapi.runner.v1 import control_pb2
from real_daemon import RealDaemon

from hvd.debug import rsp
from hvd.runner import protocol
from hvd.runner.directory import ATTACH, CONTROL, DEBUG
from tests.fuzzing import inputs

REQUESTS = (
    control_pb2.RunnerRequest(id=1, get_status=control_pb2.GetStatus()),
    control_pb2.RunnerRequest(id=2, read_memory=control_pb2.ReadMemory(address=0x1000, length=64)),
    control_pb2.RunnerRequest(id=3, type_keys=control_pb2.TypeKeys()),
    control_pb2.RunnerRequest(id=4, get_registers=control_pb2.GetRegisters()),
)
SAMPLES = {
    CONTROL: [protocol.frame(request) for request in REQUESTS],
    ATTACH: [b"typed\n", b"\0\1\2\3"],
    DEBUG: [b'{"architecture": "i386"}\n' + b"".join(map(rsp.frame, (b"qSupported", b"?", b"g", b"m1000,40", b"Z0,100000,1")))],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_foreign_bytes_over_a_socket(daemon: RealDaemon, name: str) -> None:
    guest = daemon.run("spin.elf")
    directory = daemon.runtime_dir / "guests" / daemon.show(guest)["uid"]
    pid, before = daemon.runner(guest), (directory / "runner.log").read_bytes()
    kind = socket.SOCK_SEQPACKET if name == ATTACH else socket.SOCK_STREAM
    for data in inputs(SAMPLES[name], name):
        with socket.socket(socket.AF_UNIX, kind) as peer, protocol.socket_path(directory, name) as path:
            peer.connect(path)
            peer.settimeout(5)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):  # it has heard enough
                peer.sendall(data[:8000])
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 16):
                    pass
    # What a debugger or a typist may do, was done; the runner is the same one, and answers.
    assert daemon.runner(guest) == pid
    with protocol.ControlClient(directory, timeout=60) as control:
        control.call(get_status=control_pb2.GetStatus())
    assert daemon.show(guest)["state"] in ("RUNNING", "PAUSED")
    assert b"Traceback" not in (directory / "runner.log").read_bytes()[len(before) :]
