"""Debuggers that are no debuggers: garbage, malformed packets, readers that do not read; none of it ends a guest or its runner."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from gdb_front import Remote, conditions, start, state
from hvctl.sdk import Client, HvctlError
from real_daemon import RealDaemon, kernel, wait_for


def test_garbage_from_a_debugger_ends_nothing(daemon: RealDaemon, client: Client) -> None:
    start(daemon, "echo.elf", paused=False)
    daemon.wait_logs("g", "echo")
    noise = [b"\0" * 5000, b"$" * 4000, b"#" * 4000, b"$" + b"A" * 300000, b"#00", b"$#00$#zz", b"}}}}", b"$m,#99", b"\x03" * 100000,
             os.urandom(20000), b"-" * 200, b"+" * 200]  # fmt: skip
    with client.debug("guests/g") as session:
        remote = Remote(session)
        for piece in noise:
            session.write(piece)
        # Understood again behind it.
        remote.send(b"qC")
        while remote.packet() != b"QC1":
            pass
    wait_for(lambda: state(daemon) == "RUNNING" and not conditions(daemon), "the guest goes on")


@pytest.mark.parametrize(
    "packet",
    [b"m", b"mzz,4", b"m0,ffffffff", b"mffffffffffffffffff,1", b"M0,4:zz", b"M0,4:00", b"X0,9:a", b"p", b"pff", b"P0", b"P0=zz", b"P0=00",
     b"Gzz", b"G00", b"Z0", b"Z0,zz,1", b"Z2,0,0", b"Z2,0,ffffffff", b"Z2,ffffffffffffffff,8", b"z4,1", b"vCont;x", b"vCont;", b"cxyz",
     b"qXfer:features:read:target.xml:zz,1", b"qRcmd,zz", b"Hg77", b"T99", b"Qqemu.PhyMemMode:x"],
    ids=lambda packet: packet.decode(),
)  # fmt: skip
def test_malformed_packets_are_answered_with_an_error(packet: bytes, debugged: Remote) -> None:
    assert re.fullmatch(rb"E\d\d", debugged.ask(packet))


@pytest.mark.parametrize(
    "packet", [b"", b"!", b"vRun;x", b"qNothing", b"vMustReplyEmpty", b"Z9,0,1", b"r", b"\xff\xfe", b"j" * 60000]
)
def test_unknown_packets_are_answered_with_nothing(packet: bytes, debugged: Remote) -> None:
    assert debugged.ask(packet) == b""


@pytest.fixture(scope="module")
def debugged(shared_daemon: RealDaemon) -> Iterator[Remote]:
    with Client(shared_daemon.endpoint, timeout=60) as client:
        shared_daemon.ok(
            "create", "--name", "odd", "--backend", "emulation", "--kernel", kernel("spin.elf"), "--memory", "16M"
        )
        shared_daemon.ok("start", "odd")
        with client.debug("guests/odd") as session:
            yield Remote(session)


def test_requests_that_are_no_session(daemon: RealDaemon, client: Client) -> None:
    with pytest.raises(HvctlError) as absent:
        client.debug("guests/nobody")
    assert absent.value.reason == "GUEST_NOT_FOUND"
    daemon.ok("create", "--name", "g", "--kernel", kernel("hello.elf"))
    with pytest.raises(HvctlError) as stopped:
        client.debug("guests/g")
    assert stopped.value.reason == "GUEST_WRONG_STATE"
    with pytest.raises(HvctlError) as unknown:
        client.debug("guests/g", architecture="z80")
    assert unknown.value.reason == "FIELD_INVALID"
    done = daemon.hvctl("gdb", "--gdb", "no-such-gdb", "g")
    assert done.returncode == 6 and "apt-get install gdb" in done.stderr
    assert daemon.hvctl("gdb", "--stdio", "--port", "1", "g").returncode == 2
    assert daemon.hvctl("gdb", "--port", "x:y", "g").returncode == 2
    assert daemon.hvctl("gdb", "nobody").returncode == 3
