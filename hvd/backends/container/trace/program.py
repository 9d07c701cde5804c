"""The two programs that trace containers, one at the entry of system calls and one at their end: one pair for all containers.

    guests   hash: id of a control group (version 2) -> slot and pid namespace; whoever is not in it is left alone
    wanted   array: number of a system call -> where its paths stand in struct pt_regs
    calls    hash: thread -> its call that has not ended (struct EVENT)
    scratch  per CPU: where such a call is put together, since the stack is too small for it
    lost     array: slot -> calls that could not be told
    ring     the calls that ended
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack

from hvd.backends.container.trace import bpf
from hvd.backends.container.trace.bpf import Assembler, Map, RingBuffer
from hvd.backends.container.trace.syscalls import CALLS, NO_RETURN

SLOTS = 1024
NUMBERS = 512
TEXT_BYTES = 256  # of a path, its NUL included; longer ones are cut
RING_BYTES = 8 << 20
PENDING = 16384
# time_ns, duration_ns, number, slot, pid, tgid (of the container), ip, result, r10, r9, r8, ax, cx, dx, si, di,
# bytes of the first and of the second path (with their NUL; 0 = none), code segment.
EVENT = struct.Struct("<QQIIIIQQ8QIIQ")
TEXT = EVENT.size
_TIME, _DURATION, _NUMBER, _SLOT, _PID, _IP, _RESULT, _REGISTERS, _LENGTHS, _SEGMENT = 0, 8, 16, 20, 24, 32, 40, 48, 112, 120
EVENT_BYTES = TEXT + 2 * TEXT_BYTES
# Offsets in struct pt_regs of x86-64 (arch/x86/include/asm/ptrace.h), by an argument's position.
_ARGUMENTS = (112, 104, 96, 56, 72, 64)
_PT_R10, _PT_IP = 56, 128
USER32_CS = 0x23
_GUEST = struct.Struct("<QQQ")  # device and inode of the pid namespace, slot

# enum bpf_func_id
_LOOKUP, _UPDATE, _DELETE, _KTIME, _PID_TGID, _READ_KERNEL, _READ_USER_STRING = 1, 2, 3, 5, 14, 113, 114
_NS_PID_TGID, _ANCESTOR_CGROUP, _RING_OUTPUT = 120, 123, 130
_NEVER_RETURNS = 1 << 16
_STACK = 10


def _paths_word(number: int) -> int:
    call = CALLS[number]
    word = _NEVER_RETURNS if call.name in NO_RETURN else 0
    for index, position in enumerate(call.paths):
        word |= _ARGUMENTS[position] << 8 * index
    return word


class Programs:
    """Loaded and attached until close(). Raises OSError when the kernel does not allow it."""

    def __init__(self, level: int) -> None:
        """level: depth of the containers' control groups, 1 = below the root."""
        with ExitStack() as stack:
            def make(*words: int) -> Map:
                new = Map(*words)
                stack.callback(new.close)
                return new

            self.guests = make(bpf.HASH, 8, _GUEST.size, SLOTS)
            self.wanted = make(bpf.ARRAY, 4, 4, NUMBERS)
            self.calls = make(bpf.HASH, 4, EVENT_BYTES, PENDING, bpf.NO_PREALLOC)
            self.scratch = make(bpf.PERCPU_ARRAY, 4, EVENT_BYTES, 1)
            self.lost = make(bpf.ARRAY, 4, 8, SLOTS)
            self.ring = RingBuffer(RING_BYTES)
            stack.callback(self.ring.close)
            for number in CALLS:
                self.wanted.put(struct.pack("<I", number), struct.pack("<I", _paths_word(number)))
            for tracepoint, code in (("sys_exit", self._leave()), ("sys_enter", self._enter(level))):
                program = bpf.load(code)
                stack.callback(os.close, program)
                stack.callback(os.close, bpf.attach(tracepoint, program))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def follow(self, group: int, slot: int, namespace: os.stat_result) -> None:
        """Trace what is in this control group (and below); namespace: /proc/PID/ns/pid, whose numbers are told."""
        device = os.major(namespace.st_dev) << 20 | os.minor(namespace.st_dev)  # as the kernel has it, not as stat does
        self.guests.put(struct.pack("<Q", group), _GUEST.pack(device, namespace.st_ino, slot))

    def leave(self, group: int) -> None:
        self.guests.remove(struct.pack("<Q", group))

    def losses(self, slot: int) -> int:
        """Calls of this slot that were not told since the programs are loaded."""
        return int.from_bytes(self.lost.get(struct.pack("<I", slot)) or b"", "little")

    def events(self) -> Iterator[bytes]:
        return self.ring.read()

    def _enter(self, level: int) -> bytes:
        """raw_tp sys_enter(struct pt_regs *, long number)."""
        a = Assembler()
        a.move(6, 1)
        a.set(1, level)
        a.call(_ANCESTOR_CGROUP)
        a.store(_STACK, -8, 0)
        _find(a, self.guests, -8, "exit")
        a.move(7, 0)
        a.store_value32(_STACK, -12, 0)
        _find(a, self.scratch, -12, "exit")
        a.move(8, 0)
        a.call(_KTIME)
        a.store(8, _TIME, 0)
        a.store_value(8, _DURATION, 0)
        a.store_value(8, _RESULT, 0)
        a.store_value(8, _LENGTHS, 0)
        a.load(1, 6, 8)
        a.store32(8, _NUMBER, 1)
        a.load(1, 7, 16)
        a.store32(8, _SLOT, 1)
        # The numbers that the container knows itself by.
        a.load(1, 7, 0)
        a.load(2, 7, 8)
        _stack_address(a, 3, -24)
        a.set(4, 8)
        a.call(_NS_PID_TGID)
        a.if_equal(0, 0, "numbered")
        a.call(_PID_TGID)  # in a namespace of the container's own making
        a.store(_STACK, -24, 0)
        a.label("numbered")
        a.load(1, _STACK, -24)
        a.store(8, _PID, 1)
        _read_kernel(a, _REGISTERS, 64, _PT_R10)
        _read_kernel(a, _IP, 8, _PT_IP)
        _read_kernel(a, _SEGMENT, 8, _PT_IP + 8)
        a.set(9, 0)
        a.load(1, 8, _SEGMENT)
        a.if_equal(1, USER32_CS, "read")  # other numbers, other registers
        self._wanted(a, "read")
        a.load32(9, 0, 0)
        a.label("read")
        _read_paths(a)
        a.shift_right(9, 16)
        a.if_not_equal(9, 0, "tell")
        a.call(_PID_TGID)
        a.store32(_STACK, -12, 0)
        a.map(1, self.calls.fd)
        _stack_address(a, 2, -12)
        a.move(3, 8)
        a.set(4, 0)
        a.call(_UPDATE)
        a.if_equal(0, 0, "exit")
        a.jump("lost")
        a.label("tell")
        self._tell(a)
        a.label("exit")
        a.set(0, 0)
        a.exit()
        return a.code()

    def _leave(self) -> bytes:
        """raw_tp sys_exit(struct pt_regs *, long result)."""
        a = Assembler()
        a.move(6, 1)
        a.call(_PID_TGID)
        a.store32(_STACK, -28, 0)
        _find(a, self.calls, -28, "exit")
        a.move(8, 0)
        a.call(_KTIME)
        a.load(1, 8, _TIME)
        a.subtract_register(0, 1)
        a.store(8, _DURATION, 0)
        a.load(1, 6, 8)
        a.store(8, _RESULT, 1)
        # A path in a page that nobody had touched could not be read before; the kernel has touched it now.
        a.load(1, 8, _LENGTHS)
        a.if_not_equal(1, 0, "known")
        a.load(1, 8, _SEGMENT)
        a.if_equal(1, USER32_CS, "known")
        self._wanted(a, "known")
        a.load32(9, 0, 0)
        _read_paths(a)
        a.label("known")
        self._tell(a, "told")
        a.label("told")
        a.map(1, self.calls.fd)
        _stack_address(a, 2, -28)
        a.call(_DELETE)
        a.label("exit")
        a.set(0, 0)
        a.exit()
        return a.code()

    def _wanted(self, a: Assembler, otherwise: str) -> None:
        """r0 = the word of this call."""
        a.load32(1, 8, _NUMBER)
        a.store32(_STACK, -12, 1)
        _find(a, self.wanted, -12, otherwise)

    def _tell(self, a: Assembler, done: str = "exit") -> None:
        """The event at r8, as much of it as is filled, into the ring."""
        a.set(3, EVENT_BYTES)
        a.load32(1, 8, _LENGTHS + 4)
        a.if_not_equal(1, 0, "output")
        a.load32(3, 8, _LENGTHS)
        a.if_greater(3, TEXT_BYTES, done)
        a.add(3, TEXT)
        a.label("output")
        a.map(1, self.ring.fd)
        a.move(2, 8)
        a.set(4, 0)
        a.call(_RING_OUTPUT)
        a.if_equal(0, 0, done)
        a.label("lost")
        a.load32(1, 8, _SLOT)
        a.store32(_STACK, -12, 1)
        _find(a, self.lost, -12, done)
        a.set(1, 1)
        a.atomic_add(0, 0, 1)


def _stack_address(a: Assembler, register: int, offset: int) -> None:
    a.move(register, _STACK)
    a.add(register, offset)


def _find(a: Assembler, where: Map, key: int, otherwise: str) -> None:
    """r0 = address of the value for the key at this place of the stack."""
    a.map(1, where.fd)
    _stack_address(a, 2, key)
    a.call(_LOOKUP)
    a.if_equal(0, 0, otherwise)


def _read_kernel(a: Assembler, offset: int, size: int, source: int) -> None:
    """From the registers, which r6 leads to, into the event."""
    a.move(1, 8)
    a.add(1, offset)
    a.set(2, size)
    a.load(3, 6, 0)
    a.add(3, source)
    a.call(_READ_KERNEL)


def _read_paths(a: Assembler) -> None:
    """The paths that r9 tells of."""
    for index in (0, 1):
        skip = f"path {index}"
        a.move(1, 9)
        a.shift_right(1, 8 * index)
        a.mask(1, 0xFF)
        a.if_equal(1, 0, skip)
        a.load(3, 6, 0)
        a.add_register(3, 1)
        _stack_address(a, 1, -24)
        a.set(2, 8)
        a.call(_READ_KERNEL)
        a.load(3, _STACK, -24)
        a.move(1, 8)
        a.add(1, TEXT + index * TEXT_BYTES)
        a.set(2, TEXT_BYTES)
        a.call(_READ_USER_STRING)
        a.if_positive(0, f"{skip} is there")
        a.set(0, 0)
        a.label(f"{skip} is there")
        a.store32(8, _LENGTHS + 4 * index, 0)
        a.label(skip)
