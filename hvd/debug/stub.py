"""gdb's packets, answered (GDB manual, E.2 "Packets" and following). In the vcpu thread, without I/O.

Unknown packets get the empty answer, malformed ones an error; nothing that a client sends raises.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from hvd.board.end import End
from hvd.board.machine import Machine
from hvd.board.vcpu import Watchpoint
from hvd.debug import monitor, registers
from hvd.debug.debugger import Debugger, Stop, Why
from hvd.debug.rsp import MOST_BYTES, hex_bytes, number
from hvd.errors import HvdError
from hvd.trace.text import crossing_text

OK: Final = b"OK"
# Of O packets; gdb prints them as they come.
_CONSOLE_BYTES: Final = 4096
_SIGINT, _SIGTRAP, _SIGABRT, _SIGKILL = 2, 5, 6, 9
# What a read of memory may ask for: its answer must fit into a packet.
_MOST_READ: Final = (MOST_BYTES - 16) // 2
_SIGNALS: Final = {Why.INTERRUPT: _SIGINT, Why.PAUSED: _SIGINT}
_WATCHES: Final = {(False, True): b"watch", (True, False): b"rwatch", (True, True): b"awatch"}
# Z2-Z4: read, write.
_WATCH_TYPES: Final = {b"2": (False, True), b"3": (True, False), b"4": (True, True)}


class Malformed(Exception):
    """The packet's arguments make no sense."""


class Unsupported(Exception):
    """gdb asks for a variant that is not there, and has another way."""


def error(code: int) -> bytes:
    return b"E%02d" % code


# What QEMU's stub answers for memory that is not there, too.
_NO_MEMORY: Final = error(errno.EFAULT)
_INVALID: Final = error(errno.EINVAL)
_NO_ROOM: Final = error(errno.ENOSPC)


class Stub:
    """One debugging session. send: a packet for gdb. Everything is called in the vcpu thread."""

    def __init__(
        self, machine: Machine, architecture: str, send: Callable[[bytes], None], kill: Callable[[], None]
    ) -> None:
        """architecture: of registers.ARCHITECTURES, or empty for that of the vcpu's present mode. kill: end the guest."""
        self.machine = machine
        self.architecture = architecture
        self.physical = False  # addresses of memory packets
        self.trace = "steps"
        self.acknowledges = True
        self.over = False
        self.debugger = Debugger(machine, self._stopped)
        self._send = send
        self._kill = kill
        self._explains_breakpoints = False
        self._software: set[int] = set()
        self._hardware: set[int] = set()

    def attach(self) -> None:
        """Stops the guest. Raises HvdError DEBUGGER_ATTACHED, CAPABILITY_MISSING."""
        self.debugger.attach()
        if self.architecture not in registers.ARCHITECTURES:
            self.architecture = registers.executing(self.machine.vcpu.registers())

    def detach(self) -> None:
        """The guest goes on without breakpoints, and the session is over."""
        self.over = True
        self.debugger.detach()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.debugger.interrupt()

    def handle(self, packet: bytes) -> None:
        """Answer one packet, now or when the guest stops."""
        try:
            answer = self._answer(packet)
        except Unsupported:
            answer = b""
        except (Malformed, ValueError):
            answer = _INVALID
        except HvdError as problem:
            answer = _NO_MEMORY if problem.reason.startswith("ADDRESS_") else error(errno.EIO)
        if answer is not None:
            self._send(answer)

    def _answer(self, packet: bytes) -> bytes | None:
        for prefix, named in _NAMED:
            if packet.startswith(prefix):
                return named(self, packet[len(prefix) :])
        letter = _LETTERS.get(packet[:1])
        return b"" if letter is None else letter(self, packet[1:])

    # ---- stops

    def _stopped(self, stop: Stop) -> None:
        self._show_crossings()
        self._send(self._stop_reply())

    def _show_crossings(self) -> None:
        records, lost = self.debugger.crossings()
        if self.trace == "off" or (self.trace == "steps" and not self.debugger.stepped):
            return
        lines = [f"hvd: ... {lost} crossings before these\n"] if lost else []
        lines += [f"hvd: {crossing_text(record)}\n" for record in records]
        self._print("".join(lines))

    def _print(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        for at in range(0, len(data), _CONSOLE_BYTES):
            self._send(b"O" + data[at : at + _CONSOLE_BYTES].hex().encode())

    def _stop_reply(self) -> bytes:
        stop = self.debugger.stop
        reply = b"T%02xthread:01;" % _SIGNALS.get(stop.why, _SIGTRAP)
        if stop.why is Why.WATCHPOINT and stop.watchpoint is not None:
            kind = _WATCHES[stop.watchpoint.read, stop.watchpoint.write]
            reply += b"%s:%x;" % (kind, stop.address)
        elif stop.why is Why.BREAKPOINT and self._explains_breakpoints:
            reply += b"swbreak:;" if stop.address in self._software else b"hwbreak:;"
        return reply

    def ended(self, end: End) -> bytes:
        """What gdb is told of the machine's end (any thread)."""
        if end.reason == "KILLED":
            return b"X%02x" % _SIGKILL
        return b"X%02x" % _SIGABRT if end.exit_code is None else b"W%02x" % (end.exit_code & 0xFF)

    # ---- registers

    def _read_registers(self, arguments: bytes) -> bytes:
        state = registers.State(self.machine.vcpu)
        table = registers.registers(self.architecture)
        return b"".join(registers.read(register, state) for register in table).hex().encode()

    def _write_registers(self, arguments: bytes) -> bytes:
        data = hex_bytes(arguments)
        table = registers.registers(self.architecture)
        if len(data) != sum(register.bytes for register in table):
            raise Malformed
        at = 0
        for register in table:
            if register.write is not None:
                self._write(register, data[at : at + register.bytes])
            at += register.bytes
        return OK

    def _register(self, digits: bytes) -> registers.Register:
        table = registers.registers(self.architecture)
        index = number(digits)
        if index >= len(table):
            raise Malformed
        return table[index]

    def _read_register(self, arguments: bytes) -> bytes:
        return registers.read(self._register(arguments), registers.State(self.machine.vcpu)).hex().encode()

    def _write_register(self, arguments: bytes) -> bytes:
        index, separator, value = arguments.partition(b"=")
        register = self._register(index)
        data = hex_bytes(value)
        if not separator or len(data) != register.bytes:
            raise Malformed
        if register.write is None:
            # gdb restores all that it saved around a call of a guest's function.
            return OK if data == registers.read(register, registers.State(self.machine.vcpu)) else error(errno.EACCES)
        self._write(register, data)
        return OK

    def _write(self, register: registers.Register, data: bytes) -> None:
        if register.write is not None:
            register.write(registers.State(self.machine.vcpu), int.from_bytes(data, "little"))

    # ---- memory

    def _read_memory(self, arguments: bytes) -> bytes:
        address, length = _range(arguments)
        if length > _MOST_READ:
            raise Malformed
        if length == 0:
            return b""
        try:
            return self.machine.read_memory(address, length, not self.physical).hex().encode()
        except HvdError:
            # gdb takes less than it asked for: up to the page that is not there.
            within = min(length, 4096 - address % 4096)
            if within == length:
                raise
            return self.machine.read_memory(address, within, not self.physical).hex().encode()

    def _write_memory(self, arguments: bytes, *, binary: bool = False) -> bytes:
        where, separator, data = arguments.partition(b":")
        address, length = _range(where)
        content = data if binary else hex_bytes(data)
        if not separator or len(content) != length:
            raise Malformed
        if content:
            self.machine.write_memory(address, content, not self.physical)
        return OK

    def _write_binary(self, arguments: bytes) -> bytes:
        return self._write_memory(arguments, binary=True)

    # ---- going on

    def _go(self, arguments: bytes, *, step: bool) -> bytes | None:
        if self.debugger.running:
            return error(errno.EBUSY)
        if arguments:
            self.machine.vcpu.set_register("rip", number(arguments))
        self.debugger.go(step)
        return None

    def _continue(self, arguments: bytes) -> bytes | None:
        return self._go(arguments, step=False)

    def _step(self, arguments: bytes) -> bytes | None:
        return self._go(arguments, step=True)

    def _continue_signal(self, arguments: bytes) -> bytes | None:
        """Csig;addr: a guest gets no signals."""
        return self._go(arguments.partition(b";")[2], step=False)

    def _step_signal(self, arguments: bytes) -> bytes | None:
        return self._go(arguments.partition(b";")[2], step=True)

    def _vcont(self, arguments: bytes) -> bytes | None:
        for action in arguments.split(b";"):
            what, _, thread = action.partition(b":")
            if thread not in (b"", b"-1", b"1", b"01", b"p1.1", b"p1.-1", b"0"):
                continue
            if what[:1] in (b"s", b"S", b"c", b"C"):
                return self._go(b"", step=what[:1] in (b"s", b"S"))
            break
        raise Malformed

    def _insert(self, arguments: bytes) -> bytes:
        type_, address, breakpoint_ = _breakpoint(arguments)
        if not self.debugger.insert(breakpoint_):
            return _NO_ROOM
        if type_ in (b"0", b"1"):
            (self._software if type_ == b"0" else self._hardware).add(address)
        return OK

    def _remove(self, arguments: bytes) -> bytes:
        type_, address, breakpoint_ = _breakpoint(arguments)
        if type_ in (b"0", b"1"):
            (self._software if type_ == b"0" else self._hardware).discard(address)
            if address in self._software | self._hardware:
                return OK
        self.debugger.remove(breakpoint_)
        return OK

    # ---- the session

    def _supported(self, arguments: bytes) -> bytes:
        features = arguments.lstrip(b":").split(b";")
        self._explains_breakpoints = b"swbreak+" in features and b"hwbreak+" in features
        return b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+" % MOST_BYTES

    def _no_acknowledgements(self, arguments: bytes) -> bytes:
        self.acknowledges = False
        return OK

    def _target_xml(self, arguments: bytes) -> bytes:
        name, _, where = arguments.partition(b":")
        if name != b"target.xml":
            return b"E00"
        offset, length = _range(where)
        text = registers.target_xml(self.architecture)
        piece = text[offset : offset + min(length, _MOST_READ)]
        return (b"m" if offset + len(piece) < len(text) else b"l") + piece

    def _monitor(self, arguments: bytes) -> bytes:
        text = monitor.execute(self, hex_bytes(arguments).decode("utf-8", "replace"))
        self._print(text)
        return OK

    def _detach(self, arguments: bytes) -> bytes:
        self.detach()
        return OK

    def _kill_guest(self, arguments: bytes) -> None:
        self._kill()

    def _vkill(self, arguments: bytes) -> bytes:
        self._kill()
        return OK

    def _query_physical(self, arguments: bytes) -> bytes:
        return b"1" if self.physical else b"0"

    def _set_physical(self, arguments: bytes) -> bytes:
        self.physical = bool(number(arguments))
        return OK

    def _thread(self, arguments: bytes) -> bytes:
        """Hc, Hg, T: there is thread 1."""
        return OK if arguments.lstrip(b"cg") in (b"", b"0", b"1", b"01", b"-1") else _INVALID


def _range(arguments: bytes) -> tuple[int, int]:
    address, separator, length = arguments.partition(b",")
    if not separator:
        raise Malformed
    return number(address), number(length)


def _breakpoint(arguments: bytes) -> tuple[bytes, int, int | Watchpoint]:
    """type,address,kind: of breakpoints the kind says nothing here, of watchpoints it is the length."""
    type_, _, rest = arguments.partition(b",")
    address, kind = _range(rest.partition(b";")[0])
    if type_ in (b"0", b"1"):
        return type_, address, address
    if type_ not in _WATCH_TYPES:
        raise Unsupported
    read, write = _WATCH_TYPES[type_]
    return type_, address, Watchpoint(address, kind, read, write)


_Handler = Callable[[Stub, bytes], bytes | None]
# Longer names first where one begins with another.
_NAMED: Final[tuple[tuple[bytes, _Handler], ...]] = (
    (b"qSupported", Stub._supported),
    (b"QStartNoAckMode", Stub._no_acknowledgements),
    (b"qXfer:features:read:", Stub._target_xml),
    (b"qRcmd,", Stub._monitor),
    (b"qAttached", lambda stub, arguments: b"1"),
    (b"qOffsets", lambda stub, arguments: b"Text=0;Data=0;Bss=0"),
    (b"qfThreadInfo", lambda stub, arguments: b"m1"),
    (b"qsThreadInfo", lambda stub, arguments: b"l"),
    (b"qThreadExtraInfo,", lambda stub, arguments: b"vcpu 0".hex().encode()),
    (b"qC", lambda stub, arguments: b"QC1" if not arguments else b""),
    (b"qqemu.PhyMemMode", Stub._query_physical),
    (b"Qqemu.PhyMemMode:", Stub._set_physical),
    (b"vCont?", lambda stub, arguments: b"vCont;c;C;s;S"),
    (b"vCont;", Stub._vcont),
    (b"vKill;", Stub._vkill),
)
_LETTERS: Final[dict[bytes, _Handler]] = {
    b"?": lambda stub, arguments: stub._stop_reply(),
    b"g": Stub._read_registers,
    b"G": Stub._write_registers,
    b"p": Stub._read_register,
    b"P": Stub._write_register,
    b"m": Stub._read_memory,
    b"M": Stub._write_memory,
    b"X": Stub._write_binary,
    b"c": Stub._continue,
    b"C": Stub._continue_signal,
    b"s": Stub._step,
    b"S": Stub._step_signal,
    b"Z": Stub._insert,
    b"z": Stub._remove,
    b"D": Stub._detach,
    b"k": Stub._kill_guest,
    b"H": Stub._thread,
    b"T": Stub._thread,
}
