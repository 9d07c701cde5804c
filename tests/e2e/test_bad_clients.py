"""Clients that vanish, do not read, speak nonsense or come in hordes: the daemon keeps nothing of them and serves the others."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hvapi.v1 import guest_pb2, guest_pb2_grpc
from hvctl.sdk import Client, HvctlError
from real_daemon import BIN, RealDaemon, kernel, wait_for
from stream_client import CALLS

# What `list` may take on a busy host while others do their worst.
PROMPT_SECONDS = 20.0
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled(daemon: RealDaemon, runner: int, before: tuple[int, int]) -> None:
    """Nothing more is open than before."""
    wait_for(
        lambda: descriptors(daemon.pid) <= before[0] and descriptors(runner) <= before[1],
        f"descriptors of daemon and runner are back at {before}: "
        f"{os.listdir(f'/proc/{daemon.pid}/fd')}, {os.listdir(f'/proc/{runner}/fd')}",
    )


class Streamer:
    """stream_client.py as a process."""

    def __init__(self, daemon: RealDaemon, call: str, guest: str, *deaf: str) -> None:
        script = Path(__file__).with_name("stream_client.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), daemon.endpoint, call, f"guests/{guest}", *deaf],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_ready(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line == b"ready\n", line + self.process.stdout.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def flood(daemon: RealDaemon) -> str:
    """A guest that fills every stream: console, log, trace."""
    name = daemon.run("flood.elf", "--memory", "64M")
    with Client(daemon.endpoint) as client:
        client.get_memory_map(name=f"guests/{name}")  # the control connection is there from the beginning
    return name


def prompt_list(daemon: RealDaemon) -> None:
    with Client(daemon.endpoint) as client:
        client.get_info()
        began = time.monotonic()
        assert client.list_guests().guests
        assert time.monotonic() - began < PROMPT_SECONDS


@pytest.mark.parametrize("reading", ["reading", "deaf"])
@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"BuildImage"}))
def test_clients_killed_in_the_middle(daemon: RealDaemon, flood: str, call: str, reading: str) -> None:
    runner = daemon.runner(flood)
    # A connection that an earlier call left open is closed by its own rules; it must not be counted as freed by this one.
    before = stable_descriptors(daemon, runner)
    clients = [Streamer(daemon, call, flood, *(["deaf"] if reading == "deaf" else [])) for _ in range(2)]
    try:
        for client in clients:
            client.wait_ready()
        prompt_list(daemon)
        wait_for(lambda: descriptors(daemon.pid) > before[0], "they are connected")  # who waits for a guest says "ready" before that
    finally:
        for client in clients:
            client.kill()
    settled(daemon, runner, before)
    assert not list((daemon.state_dir / "blobs" / "incoming").iterdir()), "uploads that were cut off"
    assert daemon.runner(flood) == runner
    assert "internal error" not in daemon.log()


def stable_descriptors(daemon: RealDaemon, runner: int) -> tuple[int, int]:
    """Once hvctl's own connections are gone."""
    last = (0, 0)

    def same() -> bool:
        nonlocal last
        now = (descriptors(daemon.pid), descriptors(runner))
        still, last = now == last, now
        if not still:
            time.sleep(0.5)
        return still

    wait_for(same, "descriptors do not change")
    return last


def test_a_build_whose_client_is_killed(daemon: RealDaemon, flood: str) -> None:
    runner = daemon.runner(flood)
    before = stable_descriptors(daemon, runner)
    client = Streamer(daemon, "BuildImage", flood)
    assert client.process.stdout
    client.process.stdout.readline()  # begun, or refused for what this machine lacks
    client.kill()
    settled(daemon, runner, before)

    def children() -> list[str]:
        return Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()

    wait_for(lambda: children() in ([], [str(runner)]), f"tools of the build are gone: {children()}")
    prompt_list(daemon)


def test_deaf_viewers_slow_down_nobody(daemon: RealDaemon, flood: str) -> None:
    """Console, trace and watch, all at once, of a guest that floods them; the daemon's memory stays where it is."""
    calls = ["AttachConsole", "StreamTrace", "WatchGuests", "GetLogs"] * 2
    clients = [Streamer(daemon, call, flood, "deaf") for call in calls]
    try:
        for client in clients:
            client.wait_ready()
        before = resident_bytes(daemon.pid)
        seen = daemon.ok("logs", "--tail", "1", flood).stdout
        with Client(daemon.endpoint) as client:
            for turn in range(300):
                client.update_guest(
                    guest={"name": f"guests/{flood}", "labels": {"turn": str(turn)}}, update_mask={"paths": ["labels"]}
                )
        prompt_list(daemon)
        wait_for(lambda: daemon.ok("logs", "--tail", "1", flood).stdout != seen, "the guest goes on")
        with Client(daemon.endpoint) as client, client.console(f"guests/{flood}", read_only=True) as console:
            shown = b""
            for piece in console:
                if b"quick brown fox" in (shown := shown + piece):
                    break
        assert resident_bytes(daemon.pid) - before < 64 << 20
    finally:
        for client in clients:
            client.kill()


def test_more_viewers_than_ever_of_a_guest_that_does_not_read(daemon: RealDaemon) -> None:
    """What they typed waits for the guest; those who left take no place from those who come."""
    name = daemon.run("ticker.elf")
    with Client(daemon.endpoint) as client, client.console(f"guests/{name}") as typist:
        ticks = iter(typist)
        next(ticks)
        for _ in range(10):
            typist.write(b"x" * 32768)
            next(ticks)
        for _ in range(70):
            with client.console(f"guests/{name}") as console:
                assert next(console.frames()).WhichOneof("frame") == "attached"
                console.write(b"y")
        with client.console(f"guests/{name}", read_only=True) as console:
            assert next(iter(console)), "the next tick is seen"
    daemon.ok("kill", name)


# --- bytes that are no gRPC ---


@pytest.fixture
def raw(daemon: RealDaemon) -> Iterator[list[socket.socket]]:
    sockets: list[socket.socket] = []
    yield sockets
    for each in sockets:
        each.close()


def connect(daemon: RealDaemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(daemon.endpoint.removeprefix("unix://"))
    return connection


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_no_grpc(daemon: RealDaemon, raw: list[socket.socket], seed: int) -> None:
    chance = random.Random(seed)
    before = stable_descriptors(daemon, daemon.pid)
    for prefix in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HTTP2, HTTP2 + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"):
        for length in (1, 100, 100_000):
            connection = connect(daemon)
            raw.append(connection)
            try:
                connection.sendall(prefix + chance.randbytes(length))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass  # it hung up on us, as it should
            connection.close()
    daemon.ok("list")
    wait_for(lambda: descriptors(daemon.pid) <= before[0], "the connections are closed")


def test_protobufs_that_are_none(daemon: RealDaemon) -> None:
    """Damaged messages, also as the first of a stream, and methods that nobody knows."""
    guests = ("CreateGuest", "GetGuest", "ListGuests", "WatchGuests", "UpdateGuest", "AttachConsole")
    methods = [*(f"/hvd.v1.GuestService/{name}" for name in guests), "/hvd.v1.ImageService/UploadBlob"]
    chance = random.Random(1)
    with grpc.insecure_channel(daemon.endpoint) as channel:
        for method in methods:
            call = channel.unary_unary(method)
            for length in (1, 3, 50):
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"\x0a\xff" + chance.randbytes(length), timeout=60)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
        for name in ("NoSuchMethod", "../GetGuest", "x" * 4000):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/hvd.v1.GuestService/{name}")(b"", timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    daemon.ok("list")


def test_unknown_fields_and_enums(daemon: RealDaemon) -> None:
    """Fields of a later API are ignored, values of a later enum are refused by name."""
    with Client(daemon.endpoint) as client:
        digest = client.upload_file(kernel("hello.elf"))
        stub = guest_pb2_grpc.GuestServiceStub(client.channel)
        request = guest_pb2.CreateGuestRequest(guest_id="later", guest={"machine": {"kernel": digest}})
        # Field 9999, a string.
        extended = guest_pb2.CreateGuestRequest.FromString(request.SerializeToString() + b"\xfa\xf0\x04\x05later")
        assert stub.CreateGuest(extended, timeout=60).name == "guests/later"
        bad = [
            {"guest": {"machine": {"kernel": digest}, "on_reset": 77}},
            {"guest": {"machine": {"kernel": digest}, "restart_policy": {"mode": 77}}},
            {"guest": {"machine": {"kernel": digest}, "restart_policy": {"max_retries": -1}}},
            {"guest": {"machine": {"kernel": digest, "cpus": -1}}},
            {"guest": {"machine": {"kernel": digest, "cpus": 1 << 30}}},
            {"guest": {"machine": {"kernel": digest, "flat_load_address": (1 << 64) - 1}}},
            {"guest": {"machine": {"kernel": digest}, "labels": {"a" * 10000: "b"}}},
            {"guest": {"machine": {"kernel": digest, "append": "x" * (1 << 20)}}},
            {"guest": {"machine": {"kernel": digest, "args": ["x"] * 100_000}}},
            {"guest": {"machine": {"kernel": "sha256:../../../etc/passwd"}}},
            {"guest": {"machine": {"kernel": digest}, "engine": "x" * 10000}},
            {"guest": {"machine": {"kernel": digest}, "backend": "../../x"}},
            {"guest": {"image": "../../etc"}},
            {"guest": {"machine": {"kernel": digest}}, "request_id": "no uuid"},
        ]
        for fields in bad:
            with pytest.raises(HvctlError) as caught:
                pytest.fail(f"{fields} made {client.create_guest(**fields)}")
            assert caught.value.code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"), (fields, caught.value)
            assert caught.value.reason not in ("INTERNAL", "NOT_EXPLAINED"), caught.value
            assert caught.value.help, caught.value
            assert len(caught.value.message) < 1000
        with pytest.raises(HvctlError) as caught:
            client.wait_guest(name="guests/later", states=[77])
        assert caught.value.reason == "FIELD_INVALID"
    assert list(daemon.listed()) == ["later"]


def test_huge_messages(daemon: RealDaemon) -> None:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    before = resident_bytes(daemon.pid)
    with grpc.insecure_channel(daemon.endpoint, options) as channel:
        stub = guest_pb2_grpc.GuestServiceStub(channel)
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetGuest(guest_pb2.GetGuestRequest(name="x" * (64 << 20)), timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert resident_bytes(daemon.pid) - before < 64 << 20
    daemon.ok("list")


def test_a_thousand_connections(daemon: RealDaemon, raw: list[socket.socket]) -> None:
    """Half of them say nothing, half speak HTTP/2 and then nothing."""
    before = stable_descriptors(daemon, daemon.pid)
    for number in range(1000):
        connection = connect(daemon)
        raw.append(connection)
        if number % 2:
            connection.sendall(HTTP2 + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    name = daemon.run("hello.elf")
    assert daemon.wait(name)["exit_code"] == 0
    for connection in raw:
        connection.close()
    wait_for(lambda: descriptors(daemon.pid) <= before[0], "their descriptors are closed")


# --- a hvctl whose daemon is none ---


def run_hvctl(endpoint: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(BIN / "hvctl"), "--endpoint", endpoint, *words], capture_output=True, timeout=60, check=False
    )


def test_a_socket_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "hang"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        done = run_hvctl(f"unix://{path}", "list", "--timeout", "2")
    assert done.returncode == 124, done
    assert b"next step" in done.stderr


def test_a_socket_that_speaks_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        serving = subprocess.Popen(
            [sys.executable, "-c", "import socket,sys\n"
             "s=socket.socket(fileno=int(sys.argv[1]))\n"
             "while 1:\n c,_=s.accept(); c.recv(100); c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'); c.close()",
             str(listener.fileno())], pass_fds=[listener.fileno()],
        )  # fmt: skip
        try:
            done = run_hvctl(f"unix://{path}", "list", "--timeout", "10")
        finally:
            serving.kill()
            serving.wait()
    assert done.returncode in (5, 124), done
    assert b"Traceback" not in done.stderr
    assert b"next step" in done.stderr


def test_a_daemon_that_stands_still(own_daemon: RealDaemon) -> None:
    name = own_daemon.run("ticker.elf")
    os.kill(own_daemon.pid, signal.SIGSTOP)
    try:
        done = own_daemon.hvctl("list", "--timeout", "2")
    finally:
        os.kill(own_daemon.pid, signal.SIGCONT)
    assert done.returncode == 124
    assert own_daemon.show(name)["state"] == "RUNNING"
