"""Runners and whoever is connected to them: hostile, slow and dead ones, on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from pathlib import Path

import pytest
from hvapi.runner.v1 import control_pb2
from runner_rig import SECONDS, Launch

from hvd.errors import HvdError
from hvd.runner import client
from hvd.runner.protocol import ControlClient, frame, socket_path


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",  # 4 GiB
        (2 << 20 | 1).to_bytes(4, "little"),
        b"\x05\x00\x00\x00\xff\xff\xff\xff\xff",  # garbage
        b"\x10\x00\x00\x00half",
        b"GET / HTTP/1.1\r\n\r\n",
        random.Random(1).randbytes(100_000),
    ],
)
async def test_malformed_frames(launch: Launch, tmp_path: Path, data: bytes) -> None:
    instance = await launch("spin")
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, socket_path(tmp_path, "control") as path:
            sock.settimeout(SECONDS)
            sock.connect(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
    assert (await instance.status()).state == "RUNNING"


async def test_a_call_that_the_runner_does_not_know(launch: Launch, tmp_path: Path) -> None:
    await launch("spin")
    with ControlClient(tmp_path) as control:
        with pytest.raises(HvdError) as error:
            control.call()
        assert error.value.reason == "REQUEST_INVALID"
        assert control.call(get_status=control_pb2.GetStatus()).state == "RUNNING"


async def test_requests_in_a_row_are_answered_in_order(launch: Launch, tmp_path: Path) -> None:
    await launch("spin")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, socket_path(tmp_path, "control") as path:
        sock.settimeout(SECONDS)
        sock.connect(path)
        calls = [{"read_memory": control_pb2.ReadMemory(length=1 << 16)}, {"get_status": control_pb2.GetStatus()}] * 100
        requests = [control_pb2.RunnerRequest(id=n, **call) for n, call in enumerate(calls)]  # type: ignore[arg-type]
        sock.sendall(b"".join(frame(request) for request in requests))
        stream = sock.makefile("rb")
        for n in range(len(calls)):
            length = int.from_bytes(stream.read(4), "little")
            assert control_pb2.RunnerResponse.FromString(stream.read(length)).id == n


async def test_a_crowd_of_connections(launch: Launch, tmp_path: Path) -> None:
    instance = await launch("spin")
    with contextlib.ExitStack() as stack:
        for name, kind in (("control", socket.SOCK_STREAM), ("attach", socket.SOCK_SEQPACKET)):
            for _ in range(100):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                with socket_path(tmp_path, name) as path:
                    await asyncio.to_thread(sock.connect, path)
    assert (await instance.status()).state == "RUNNING"


async def test_a_runner_that_does_not_answer(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(client, "KILL_SECONDS", 0.5)
    instance = await launch("spin")
    os.kill(instance.pid, signal.SIGSTOP)
    with pytest.raises(HvdError) as error:
        await instance.status()
    assert error.value.reason == "RUNNER_TIMEOUT"
    await instance.kill()
    status = await instance.status()
    assert (status.state, status.reason) == ("STOPPED", "KILLED")


async def test_a_runner_that_was_slow_is_used_again(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CALL_SECONDS", 0.3)
    instance = await launch("spin")
    os.kill(instance.pid, signal.SIGSTOP)
    with pytest.raises(HvdError):
        await instance.status()
    os.kill(instance.pid, signal.SIGCONT)
    monkeypatch.setattr(client, "CALL_SECONDS", SECONDS)
    assert (await instance.status()).state == "RUNNING"
