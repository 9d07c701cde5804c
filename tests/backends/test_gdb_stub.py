"""The GDB stub on a machine of the test's own: every packet, sensible or not, gets its answer, and the guest survives."""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from xml.etree import ElementTree

import pytest
from harness import kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd.backends.emulation.backend import BACKEND
from hvd.backends.emulation.vcpu import create
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.debug import registers
from hvd.debug.stub import Stub
from hvd.errors import HvdError
from hvd.trace.points import BackendId

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")
SECONDS = 60
STARTS = [
    b"?", b"g", b"G", b"p", b"P", b"m", b"M", b"X", b"c", b"C", b"s", b"S", b"Z0,", b"Z1,", b"Z2,", b"Z3,", b"Z4,", b"z0,", b"z2,", b"H", b"T", b"!",
    b"q", b"Q", b"v", b"qRcmd,", b"qSupported:", b"qXfer:features:read:", b"vCont;", b"vCont?", b"Qqemu.PhyMemMode:", b"qC", b"qThreadExtraInfo,",
]  # fmt: skip


class Session:
    def __init__(self, image: Path, architecture: str = "", engine: str = "") -> None:
        self.board = HotBoard(BackendId.EMULATION)
        self.memory = GuestMemory(16 << 20)
        self.machine = Machine(
            MachineSpec(image.stem, "emulation", engine, 16 << 20, str(image)), self.board, self.memory, create
        )
        self.packets: SimpleQueue[bytes] = SimpleQueue()
        self.killed = 0
        self.stub = Stub(self.machine, architecture, self.packets.put, self._kill)
        self.thread = threading.Thread(target=self.machine.run)
        self.thread.start()

    def _kill(self) -> None:
        self.killed += 1

    def call(self, function: Callable[[], Any]) -> Any:
        """In the vcpu thread."""
        answer: SimpleQueue[tuple[Any, HvdError | None]] = SimpleQueue()
        self.machine.call(function, lambda result, error: answer.put((result, error)))
        result, error = answer.get(timeout=SECONDS)
        if error is not None:
            raise error
        return result

    def ask(self, packet: bytes) -> bytes:
        self.call(lambda: self.stub.handle(packet))
        return self.packets.get(timeout=SECONDS)

    def close(self) -> None:
        self.machine.call(self.machine.kill, lambda result, error: None)
        self.thread.join(SECONDS)
        self.memory.close()
        self.board.close()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session(kernel("spin.elf"))
    session.call(session.stub.attach)
    # A guest that goes on wherever RIP was set to may well end itself: that is no fault of the stub's.
    session.stub.debugger.go = lambda step: None  # type: ignore[method-assign]
    yield session
    session.close()


@pytest.fixture
def fresh() -> Iterator[Session]:
    session = Session(kernel("spin.elf"))
    yield session
    session.close()


_ARGUMENTS = st.text("0123456789abcdef,;:=", max_size=40).map(str.encode)
_PACKETS = st.binary(max_size=80) | st.builds(lambda start, rest: start + rest, st.sampled_from(STARTS), _ARGUMENTS)


@given(_PACKETS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_packet_raises_or_hangs_the_guest(session: Session, packet: bytes) -> None:
    if packet[:1] in (b"D", b"k"):  # these end the session: below
        return
    session.call(lambda: session.stub.handle(packet))
    while not session.packets.empty():
        session.packets.get()
    assert session.machine.end is None


@pytest.mark.parametrize("architecture", registers.ARCHITECTURES)
def test_the_description_names_what_g_sends(architecture: str) -> None:
    session = Session(kernel("spin.elf"), architecture)
    try:
        session.call(session.stub.attach)
        xml = b""
        while (piece := session.ask(b"qXfer:features:read:target.xml:%x,200" % len(xml)))[:1] == b"m":
            xml += piece[1:]
        root = ElementTree.fromstring(re.sub(rb"<!DOCTYPE[^>]*>", b"", xml + piece[1:]))
        described = root.findall("feature/reg")
        assert [reg.get("name") for reg in described] == [
            register.name for register in registers.registers(architecture)
        ]
        assert len(session.ask(b"g")) == 2 * sum(int(reg.get("bitsize", "")) // 8 for reg in described)
        values = {reg.get("name"): session.ask(b"p%x" % number) for number, reg in enumerate(described)}
        assert b"".join(values.values()) == session.ask(b"g")
        pc = values["rip" if architecture == registers.X86_64 else "eip"]
        assert 0x100000 <= int.from_bytes(bytes.fromhex(pc.decode()), "little") < 0x110000
        assert session.ask(b"p%x" % len(described)).startswith(b"E")
    finally:
        session.close()


def test_registers_are_written_one_by_one_and_all_together(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    table = [register.name for register in registers.registers("i386")]
    for name, value in (
        ("ecx", struct.pack("<I", 0xDEADBEEF)),
        ("st3", bytes(range(10))),
        ("xmm5", bytes(range(16))),
        ("ftag", b"\xff\xff\0\0"),
    ):
        assert fresh.ask(b"P%x=%s" % (table.index(name), value.hex().encode())) == b"OK"
        assert bytes.fromhex(fresh.ask(b"p%x" % table.index(name)).decode())[:2] == value[:2]
    before = fresh.ask(b"g")
    assert fresh.ask(b"G" + before) == b"OK"
    assert fresh.ask(b"g") == before
    # Read-only ones accept what they hold.
    cr0 = table.index("cr0")
    held = fresh.ask(b"p%x" % cr0)
    assert fresh.ask(b"P%x=%s" % (cr0, held)) == b"OK"
    assert fresh.ask(b"P%x=%s" % (cr0, b"00" * 8)).startswith(b"E")


def test_memory_in_pieces(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    assert fresh.ask(b"X8000,4:a}\x03#") == b"OK"
    assert fresh.ask(b"m8000,4") == b"617d0323"
    assert fresh.ask(b"M8000,3:616263") == b"OK"
    assert fresh.ask(b"m8000,3") == b"616263"
    # Up to the end of RAM, and not beyond.
    assert fresh.ask(b"mffffff,4") == b"00"
    assert fresh.ask(b"m1000000,1") == b"E14"
    assert fresh.ask(b"Mffffff,2:0000") == b"E14"


def test_breakpoints_of_two_sorts_at_one_place_are_two(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    fresh.ask(b"qSupported:swbreak+;hwbreak+")
    assert fresh.ask(b"Z0,8000,1") == fresh.ask(b"Z1,8000,1") == b"OK"
    assert fresh.ask(b"z0,8000,1") == b"OK"
    assert fresh.stub.debugger.breakpoints == {0x8000}
    assert fresh.ask(b"z1,8000,1") == b"OK"
    assert not fresh.stub.debugger.breakpoints


def test_the_guests_clock_stands_while_the_debugger_holds_it(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    assert fresh.machine.state == "PAUSED"
    before = fresh.call(fresh.board.now)
    assert fresh.call(fresh.board.now) == before
    assert fresh.ask(b"s").startswith(b"T05")
    assert fresh.machine.state == "PAUSED", "a step is no news"
    after = fresh.call(fresh.board.now)
    assert after > before
    assert fresh.call(fresh.board.now) == after


def test_too_many_breakpoints_are_refused(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    answers = {fresh.ask(b"Z2,%x,4" % (0x8000 + 8 * n)) for n in range(80)}
    assert answers == {b"OK", b"E28"}


def test_detaching_takes_the_breakpoints_along(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    rip = fresh.call(lambda: fresh.machine.vcpu.registers()["rip"])
    assert fresh.ask(b"Z0,%x,1" % rip) == b"OK"
    assert fresh.ask(b"D") == b"OK"
    assert fresh.call(lambda: fresh.machine.state) == "RUNNING"
    assert fresh.stub.over and fresh.machine.debugger is None
    # Whatever comes later moves nothing.
    fresh.call(lambda: fresh.stub.handle(b"c"))
    assert fresh.packets.empty()


def test_kill_asks_for_the_end(fresh: Session) -> None:
    fresh.call(fresh.stub.attach)
    fresh.call(lambda: fresh.stub.handle(b"k"))
    assert fresh.killed == 1 and fresh.packets.empty()
    assert fresh.ask(b"vKill;1") == b"OK"


def test_an_engine_without_debugging_says_so() -> None:
    session = Session(kernel("spin.elf"), engine="public")
    try:
        with pytest.raises(HvdError) as refused:
            session.call(session.stub.attach)
        assert refused.value.reason == "CAPABILITY_MISSING"
        assert session.machine.debugger is None
    finally:
        session.close()
