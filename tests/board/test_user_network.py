"""The stream to passt, with the test at its other end; and descriptors watched for the vcpu."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from hvd.board.net import user
from hvd.board.net.port import HEADER_BYTES, MOST_FRAME_BYTES, PortGone, Sent
from hvd.board.net.user import READ_BYTES, UserNetwork
from hvd.runner.watch import Watches

BUFFER = bytearray(HEADER_BYTES + MOST_FRAME_BYTES)


@pytest.fixture
def ends() -> Iterator[tuple[UserNetwork, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    network = UserNetwork(ours)
    yield network, theirs
    network.close()
    theirs.close()


def received(network: UserNetwork) -> list[bytes]:
    found = []
    while length := network.receive(memoryview(BUFFER)):
        assert BUFFER[:HEADER_BYTES] == bytes(HEADER_BYTES)
        found.append(bytes(BUFFER[HEADER_BYTES:length]))
    return found


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def test_frames_come_whole_however_the_stream_is_cut(ends: tuple[UserNetwork, socket.socket]) -> None:
    network, peer = ends
    frames = [bytes([number]) * (60 + 977 * number) for number in range(20)]
    stream = framed(*frames)
    found = []
    for start in range(0, len(stream), 1234):
        peer.sendall(stream[start : start + 1234])
        found += received(network)
    assert found == frames


def test_many_frames_at_once(ends: tuple[UserNetwork, socket.socket]) -> None:
    network, peer = ends
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    frames = [bytes([number]) * 65534 for number in range(3 * READ_BYTES // 65538)]
    found: list[bytes] = []
    rest = framed(*frames)
    peer.setblocking(False)
    while len(found) < len(frames):
        if rest:
            rest = rest[peer.send(rest) :]
        found += received(network)
    assert found == frames


@pytest.mark.parametrize("length", [MOST_FRAME_BYTES + 1, 0xFFFF_FFFF])
def test_a_stream_out_of_step(ends: tuple[UserNetwork, socket.socket], length: int) -> None:
    network, peer = ends
    peer.sendall(struct.pack("!I", length) + bytes(100))
    with pytest.raises(PortGone, match=f"frame of {length} bytes"):
        network.receive(memoryview(BUFFER))


def test_the_other_end_goes(ends: tuple[UserNetwork, socket.socket]) -> None:
    network, peer = ends
    peer.sendall(framed(b"x" * 60) + b"\0\0\0")
    peer.close()
    assert network.receive(memoryview(BUFFER)) == HEADER_BYTES + 60
    with pytest.raises(PortGone, match="has closed its socket"):
        network.receive(memoryview(BUFFER))
    with pytest.raises(PortGone):
        network.send(bytes(HEADER_BYTES), [memoryview(bytes(60))])


def test_how_the_process_ended_is_told_though_its_socket_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user, "ENDING_SECONDS", 20)
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    with theirs:
        program = "exec 3>&-; read line <&4; kill -9 $$"
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3), (os.POSIX_SPAWN_DUP2, read, 4)]
        pid = os.posix_spawnp("sh", ["sh", "-c", program], os.environ, file_actions=actions)
    os.close(read)
    network = UserNetwork(ours, pid)
    assert select.select([ours], [], [], 20)[0]
    os.write(write, b"now\n")
    with pytest.raises(PortGone, match="ended by signal 9"):
        network.receive(memoryview(BUFFER))
    os.close(write)
    network.close()


def test_sending_until_the_stream_is_full(ends: tuple[UserNetwork, socket.socket]) -> None:
    network, peer = ends
    sent = 0
    while (result := network.send(bytes(HEADER_BYTES), [memoryview(bytes([sent & 0xFF]) * 3000), memoryview(b"end")])) is Sent.DONE:
        sent += 1
    assert result is Sent.LATER and sent > 2
    stream = bytearray()
    peer.setblocking(False)
    again = 0
    while len(stream) < (sent + 1) * 3007:
        with pytest.raises(BlockingIOError):
            while True:
                stream += peer.recv(1 << 20)
        if not again and network.send(bytes(HEADER_BYTES), [memoryview(bytes([sent & 0xFF]) * 3000), memoryview(b"end")]) is Sent.DONE:
            again = 1
        elif again:
            network._flush()
    assert bytes(stream) == framed(*(bytes([number & 0xFF]) * 3000 + b"end" for number in range(sent + 1)))


def test_how_its_process_ended() -> None:
    ours, theirs = socket.socketpair()
    pid = os.posix_spawnp("sh", ["sh", "-c", "exit 3"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    theirs.close()
    network = UserNetwork(ours, pid)
    with pytest.raises(PortGone, match="it ended with status 3"):
        network.receive(memoryview(BUFFER))
    network.close()


def test_its_process_ends_with_it() -> None:
    ours, theirs = socket.socketpair()
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    UserNetwork(ours, pid).close()
    theirs.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- watches ---


def test_a_watch_calls_once_each_time_it_is_armed() -> None:
    called: list[str] = []
    watches = Watches(lambda function, done: (function(), done(None, None)))  # type: ignore[func-returns-value]
    ours, theirs = socket.socketpair()
    watch = watches.watch(ours.fileno(), lambda: called.append("ready"))
    theirs.send(b"x")
    watches.serve()
    assert called == []
    watch.arm(readable=True, writable=False)
    for _ in range(3):
        watches.serve()
    assert called == ["ready"]
    watch.arm(readable=False, writable=False)
    watches.serve()
    assert called == ["ready"]
    watch.arm(readable=False, writable=True)
    watches.serve()
    assert called == ["ready"] * 2
    watches.wake()
    assert called == ["ready"] * 3
    theirs.close()
    for _ in range(3):
        watches.serve()
    assert len(called) == 3, "a hang-up comes with the next arming"
    watch.close()
    watch.close()
    watch.arm(readable=True, writable=True)
    watches.serve()
    watches.wake()
    assert len(called) == 3
    ours.close()
