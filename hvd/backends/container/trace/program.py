"""The two programs that trace containers, one at the entry of system calls and one at their end: one pair for all containers.

    wanted   array: number of a system call -> does anybody want it; asked first, so that calls which nobody wants cost least
    guests   hash: id of a control group (version 2) -> pid namespace, slot, and which calls are wanted; whoever is not in it, and a call
             that is not wanted, is left alone
    about    array: key of a system call -> where its paths stand in struct pt_regs, and more (_word)
    calls    hash: thread -> its call that has not ended (struct EVENT)
    scratch  per CPU: where such a call is put together, since the stack is too small for it
    lost     array: slot -> records of calls that could not be told, and how many calls could not even be counted; its last: of all slots
    missed   hash: slot, key -> calls that could not be told, counted as the counters page has them (_MISSED)
    ring     the calls that ended
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack

from hvapi.record import PAYLOAD_BYTES

from hvd.backends.container.trace import bpf
from hvd.backends.container.trace.bpf import Assembler, Map, RingBuffer
from hvd.backends.container.trace.points import BY_KEY, COMPATIBLE, KEYS, UNNAMED
from hvd.trace.counters import BUCKET_NS, BUCKETS, POINT_WORDS

SLOTS = 1024
TEXT_BYTES = 256  # of a path, its NUL included; longer ones are cut
ADDRESS_BYTES = 112  # of a socket; longer ones are cut
RING_BYTES = 8 << 20
PENDING = 16384
MISSED = 65536  # different calls of all containers together
# time_ns, duration_ns, number, slot, pid, tgid (of the container), ip, result, registers, bytes of the first and of the second text
# (and 1; 0 = none), key, records beyond the first that its arguments need.
EVENT = struct.Struct("<QQIIIIQQ11QIIII")
TEXT = EVENT.size
_TIME, _DURATION, _NUMBER, _SLOT, _PID, _IP, _RESULT, _REGISTERS, _LENGTHS, _KEY, _PIECES = 0, 8, 16, 20, 24, 32, 40, 48, 136, 144, 148
EVENT_BYTES = TEXT + 2 * TEXT_BYTES
# Offsets in struct pt_regs of x86-64 (arch/x86/include/asm/ptrace.h): bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di stand in a row.
_PT_BP, _PT_IP, _PT_BYTES = 32, 128, 11 * 8
# By an argument's position: di, si, dx, r10, r8, r9; of 32-bit programs bx, cx, dx, si, di, bp.
_ARGUMENTS = (112, 104, 96, 56, 72, 64)
_ARGUMENTS_32 = (40, 88, 96, 104, 112, 32)
# The same as places in the registers of EVENT.
PLACES, PLACES_32 = (tuple((offset - _PT_BP) // 8 for offset in offsets) for offsets in (_ARGUMENTS, _ARGUMENTS_32))
_GUEST = struct.Struct(f"<QQQ{KEYS // 8}s")  # device and inode of the pid namespace, slot, wanted calls
_GUEST_WANTED = 24
_LOST = struct.Struct("<QQ")
# As a point in the counters page: count, sum and longest of the times, histogram.
_MISSED = struct.Struct(f"<{POINT_WORDS + BUCKETS}Q")
_MISSED_SLOT = KEYS.bit_length() - 1  # bits of a key; above them is the slot
# struct thread_info, which begins struct task_struct (arch/x86/include/asm/thread_info.h): status, and its bit for a 32-bit call.
_TS_COMPAT = 2
_STATUS_OFFSETS = ((5, 11), 16, 8)  # from this version on, and before

# enum bpf_func_id
_LOOKUP, _UPDATE, _DELETE, _KTIME, _PID_TGID, _TASK, _READ_USER, _READ_KERNEL, _READ_USER_STRING = 1, 2, 3, 5, 14, 35, 112, 113, 114
_NS_PID_TGID, _ANCESTOR_CGROUP, _RING_OUTPUT = 120, 123, 130
_STACK = 10
# Bits of _word.
_ADDRESS, _ADDRESS_LENGTH, _NEVER_RETURNS, _MORE = 16, 24, 32, 33


def _word(key: int) -> int:
    """Offsets of the registers with the first and the second path, with a socket's address and its length, and two flags."""
    call = BY_KEY[key]
    offsets = _ARGUMENTS_32 if key & COMPATIBLE else _ARGUMENTS
    word = call.endless << _NEVER_RETURNS | call.pieces << _MORE
    for index, position in enumerate(call.paths):
        word |= offsets[position] << 8 * index
    if call.address is not None:
        word |= offsets[call.address] << _ADDRESS | offsets[call.address + 1] << _ADDRESS_LENGTH
    return word


def _status_offset(release: str) -> int:
    since, offset, before = _STATUS_OFFSETS
    found = re.match(r"(\d+)\.(\d+)", release)
    return before if found and (int(found[1]), int(found[2])) < since else offset


class Programs:
    """Loaded and attached until close(). Raises OSError when the kernel does not allow it."""

    def __init__(self, level: int) -> None:
        """level: depth of the containers' control groups, 1 = below the root."""
        with ExitStack() as stack:
            def make(*words: int) -> Map:
                new = Map(*words)
                stack.callback(new.close)
                return new

            self._wanted: dict[int, bytes] = {}  # of each control group
            self._anybody = [False] * COMPATIBLE
            self.wanted = make(bpf.ARRAY, 4, 4, COMPATIBLE)
            self.guests = make(bpf.HASH, 8, _GUEST.size, SLOTS)
            self.about = make(bpf.ARRAY, 4, 8, KEYS)
            self.calls = make(bpf.HASH, 4, EVENT_BYTES, PENDING, bpf.NO_PREALLOC)
            self.scratch = make(bpf.PERCPU_ARRAY, 4, EVENT_BYTES, 1)
            self.lost = make(bpf.ARRAY, 4, _LOST.size, SLOTS + 1)
            self.missed = make(bpf.HASH, 4, _MISSED.size, MISSED, bpf.NO_PREALLOC)
            self.ring = RingBuffer(RING_BYTES)
            stack.callback(self.ring.close)
            for key in BY_KEY:
                self.about.put(struct.pack("<I", key), struct.pack("<Q", _word(key)))
            for tracepoint, code in (("sys_exit", self._leave()), ("sys_enter", self._enter(level))):
                program = bpf.load(code)
                stack.callback(os.close, program)
                stack.callback(os.close, bpf.attach(tracepoint, program))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def follow(self, group: int, slot: int, namespace: os.stat_result, wanted: bytes) -> None:
        """Trace what is in this control group (and below), or choose its calls anew. namespace: /proc/PID/ns/pid, whose numbers are told;
        wanted: points.chosen()."""
        device = os.major(namespace.st_dev) << 20 | os.minor(namespace.st_dev)  # as the kernel has it, not as stat does
        self._wanted[group] = wanted
        self._tell_wanted()
        self.guests.put(struct.pack("<Q", group), _GUEST.pack(device, namespace.st_ino, slot, wanted))

    def leave(self, group: int) -> None:
        self.guests.remove(struct.pack("<Q", group))
        self._wanted.pop(group, None)
        self._tell_wanted()

    def _tell_wanted(self) -> None:
        union = 0
        for wanted in self._wanted.values():
            union |= int.from_bytes(wanted, "little")
        union |= union >> COMPATIBLE
        for number, known in enumerate(self._anybody):
            if (now := bool(union >> number & 1)) != known:
                self.wanted.put(struct.pack("<I", number), struct.pack("<I", now))
                self._anybody[number] = now

    def losses(self, slot: int = SLOTS) -> tuple[int, int]:
        """Since the programs are loaded: records of this slot's calls (absent = of all) that were not told, and calls among them that were
        not counted either."""
        records, calls = _LOST.unpack(self.lost.get(struct.pack("<I", slot)) or bytes(_LOST.size))
        return records, calls

    def counts(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Slot and key of calls that were not told, and the words of the counters page for them, since they were forgotten."""
        for name in self.missed.names():
            if (value := self.missed.get(name)) is not None:
                (word,) = struct.unpack("<I", name)
                yield word >> _MISSED_SLOT, word & (KEYS - 1), _MISSED.unpack(value)

    def forget_counts(self, slot: int) -> None:
        for name in self.missed.names():
            if int.from_bytes(name, "little") >> _MISSED_SLOT == slot:
                self.missed.remove(name)

    def events(self) -> Iterator[bytes]:
        """Those that are there when this is called."""
        return self.ring.read()

    def _enter(self, level: int) -> bytes:
        """raw_tp sys_enter(struct pt_regs *, long number)."""
        a = Assembler()
        a.move(6, 1)
        a.load(9, 6, 8)
        a.low_half(9)
        a.if_greater(9, UNNAMED, "unnamed")
        a.jump("named")
        a.label("unnamed")
        a.set(9, UNNAMED)
        a.label("named")
        a.store32(_STACK, -16, 9)
        _find(a, self.wanted, -16, "exit")
        a.load32(1, 0, 0)
        a.if_equal(1, 0, "exit")
        a.set(1, level)
        a.call(_ANCESTOR_CGROUP)
        a.store(_STACK, -8, 0)
        _find(a, self.guests, -8, "exit")
        a.move(7, 0)
        self._choose(a)
        a.store_value32(_STACK, -12, 0)
        _find(a, self.scratch, -12, "exit")
        a.move(8, 0)
        a.call(_KTIME)
        a.store(8, _TIME, 0)
        a.store_value(8, _DURATION, 0)
        a.store_value(8, _RESULT, 0)
        a.store_value(8, _LENGTHS, 0)
        a.store32(8, _KEY, 9)
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
        _read_kernel(a, _REGISTERS, _PT_BYTES, _PT_BP)
        _read_kernel(a, _IP, 8, _PT_IP)
        self._about(a, "exit")
        a.load(9, 0, 0)
        a.move(1, 9)
        a.shift_right(1, _MORE)
        a.store32(8, _PIECES, 1)
        _read_texts(a)
        a.shift_right(9, _NEVER_RETURNS)
        a.mask(9, 1)
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
        self._about(a, "known")
        a.load(9, 0, 0)
        _read_texts(a)
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

    def _choose(self, a: Assembler) -> None:
        """r9 = the key of this call, of which it has the number; whoever does not want it leaves. r7: the guest."""
        a.call(_TASK)
        a.move(3, 0)
        a.add(3, _status_offset(os.uname().release))
        _stack_address(a, 1, -16)
        a.set(2, 4)
        a.call(_READ_KERNEL)
        a.load32(1, _STACK, -16)
        a.mask(1, _TS_COMPAT)
        a.shift_left(1, COMPATIBLE.bit_length() - _TS_COMPAT.bit_length())
        a.or_register(9, 1)
        a.move(1, 9)
        a.shift_right(1, 6)
        a.shift_left(1, 3)
        a.mask(1, KEYS // 8 - 8)
        a.add_register(1, 7)
        a.load(1, 1, _GUEST_WANTED)
        a.move(2, 9)
        a.mask(2, 63)
        a.shift_right_by(1, 2)
        a.mask(1, 1)
        a.if_equal(1, 0, "exit")

    def _about(self, a: Assembler, otherwise: str) -> None:
        """r0 = the word of this call."""
        a.load32(1, 8, _KEY)
        a.store32(_STACK, -12, 1)
        _find(a, self.about, -12, otherwise)

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
        a.store_value32(_STACK, -12, SLOTS)
        _find(a, self.lost, -12, done)
        a.set(1, 1)
        a.atomic_add(0, 0, 1)
        a.load32(1, 8, _SLOT)
        a.store32(_STACK, -12, 1)
        _find(a, self.lost, -12, done)
        # As many records as RecordWriter would have made of it: texts in pieces of 40 bytes.
        a.load32(1, 8, _PIECES)
        a.add(1, 1)
        for index in (0, 1):
            a.load32(2, 8, _LENGTHS + 4 * index)
            a.if_equal(2, 0, f"no text {index}")
            a.add(2, PAYLOAD_BYTES - 2)
            a.divide(2, PAYLOAD_BYTES)
            a.if_not_equal(2, 0, f"text {index}")
            a.set(2, 1)
            a.label(f"text {index}")
            a.add_register(1, 2)
            a.label(f"no text {index}")
        a.atomic_add(0, 0, 1)
        a.move(7, 0)
        self._count(a, done)

    def _count(self, a: Assembler, done: str) -> None:
        """The call at r8 will be told by nobody, so it is counted here. r7: its slot's value of lost."""
        a.load32(1, 8, _SLOT)
        a.shift_left(1, _MISSED_SLOT)
        a.load32(2, 8, _KEY)
        a.or_register(1, 2)
        a.store32(_STACK, -12, 1)
        self._find_count(a)
        zeroes = -32 - _MISSED.size
        for offset in range(zeroes, -32, 8):
            a.store_value(_STACK, offset, 0)
        a.map(1, self.missed.fd)
        _stack_address(a, 2, -12)
        _stack_address(a, 3, zeroes)
        a.set(4, bpf.NO_EXIST)  # another CPU may be at it, too
        a.call(_UPDATE)
        self._find_count(a)
        a.set(1, 1)
        a.atomic_add(7, 8, 1)
        a.jump(done)
        a.label("counted")
        a.set(2, 1)
        a.atomic_add(0, 0, 2)
        a.load(1, 8, _DURATION)
        a.if_equal(1, 0, done)  # it is not timed
        a.atomic_add(0, 8, 1)
        a.load(3, 0, 16)
        a.if_not_above(1, 3, "not the longest")
        a.store(0, 16, 1)
        a.label("not the longest")
        for index, bound in enumerate(BUCKET_NS):
            a.if_greater(1, bound, f"longer {index}")
            a.atomic_add(0, 8 * (POINT_WORDS + index), 2)
            a.jump(done)
            a.label(f"longer {index}")
        a.atomic_add(0, 8 * (POINT_WORDS + len(BUCKET_NS)), 2)

    def _find_count(self, a: Assembler) -> None:
        a.map(1, self.missed.fd)
        _stack_address(a, 2, -12)
        a.call(_LOOKUP)
        a.if_not_equal(0, 0, "counted")


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


def _read_texts(a: Assembler) -> None:
    """The paths that r9 tells of, or the socket's address."""
    for index in (0, 1):
        skip = f"path {index}"
        _pointer(a, 8 * index, skip)
        a.move(1, 8)
        a.add(1, TEXT + index * TEXT_BYTES)
        a.set(2, TEXT_BYTES)
        a.call(_READ_USER_STRING)
        a.if_positive(0, f"{skip} is there")
        a.set(0, 0)
        a.label(f"{skip} is there")
        a.store32(8, _LENGTHS + 4 * index, 0)
        a.label(skip)
    _pointer(a, _ADDRESS_LENGTH, "no address")
    a.low_half(3)
    a.move(7, 3)
    a.if_greater(7, ADDRESS_BYTES, "long address")
    a.jump("address")
    a.label("long address")
    a.set(7, ADDRESS_BYTES)
    a.label("address")
    a.if_equal(7, 0, "no address")
    _pointer(a, _ADDRESS, "no address")
    a.move(1, 8)
    a.add(1, TEXT)
    a.move(2, 7)
    a.call(_READ_USER)
    a.if_not_equal(0, 0, "no address")
    a.add(7, 1)
    a.store32(8, _LENGTHS, 7)
    a.label("no address")


def _pointer(a: Assembler, shift: int, otherwise: str) -> None:
    """r3 = the register of whose offset r9 tells in the byte from this bit on."""
    a.move(1, 9)
    a.shift_right(1, shift)
    a.mask(1, 0xFF)
    a.if_equal(1, 0, otherwise)
    a.load(3, 6, 0)
    a.add_register(3, 1)
    _stack_address(a, 1, -24)
    a.set(2, 8)
    a.call(_READ_KERNEL)
    a.load(3, _STACK, -24)
    a.load32(1, 8, _KEY)
    a.mask(1, COMPATIBLE)
    a.if_equal(1, 0, f"wide {otherwise} {shift}")
    a.low_half(3)
    a.label(f"wide {otherwise} {shift}")
