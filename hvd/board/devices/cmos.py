"""The CMOS clock: Motorola MC146818A (data sheet ADI-1022) with the PC/AT's memory behind it, ports 0x70 (index) and
0x71 (data).

The time of day is the guest's virtual clock on top of the host's wall time at the start; it stands while the guest is
paused. The flags of register C are right for a guest that polls them; interrupt 8 is not raised.

The index and all reading but that of register C are in C (hvd/board/native/cmos.c), out of memory that this device owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hvd.board import saved

if TYPE_CHECKING:
    from hvd.board.machine import Machine

INDEX, DATA = 0x70, 0x71
SECOND = 1_000_000_000

# Clock registers (data sheet, figure 3).
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
CENTURY = 0x32  # the PC/AT's extension
A, B, C, D = 10, 11, 12, 13

A_UPDATE_IN_PROGRESS = 0x80
A_RATE = 0x0F
A_DIVIDER_RUNS = 0x20  # 32.768 kHz crystal
B_SET = 0x80
B_INTERRUPTS = 0x70
B_BINARY = 0x04
B_24_HOURS = 0x02
C_REQUEST, C_PERIODIC, C_UPDATED = 0x80, 0x40, 0x10

# Register of the clock -> least and greatest value, decimal.
LIMITS = {
    SECONDS: (0, 59),
    MINUTES: (0, 59),
    HOURS: (0, 23),
    DAY: (1, 31),
    MONTH: (1, 12),
    YEAR: (0, 99),
    CENTURY: (0, 99),
}

# Times of day that a guest can have set (0000-01-01 to 9999-12-31 and the virtual clock): what a snapshot may hold.
EARLIEST_NS, LATEST_NS = -62_167_219_200 * SECOND - (1 << 62), 253_402_300_800 * SECOND + (1 << 62)

KIB, MIB = 1 << 10, 1 << 20
BASE_MEMORY_KIB = 640


def days_since_1970(year: int, month: int, day: int) -> int:
    """Proleptic Gregorian; a day beyond the month's end counts on into the next month."""
    year -= month <= 2  # the year begins in March, so that the leap day is its last
    era_year = year % 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return (year // 400) * 146_097 + era_year * 365 + era_year // 4 - era_year // 100 + day_of_year - 719_468


class Cmos:
    """Clock and 114 bytes of memory."""

    name: ClassVar[str] = "cmos"
    widest: ClassVar[int] = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # Time of day in ns since 1970 at virtual time 0; the guest sets its clock by changing it.
        self._registers = machine.board.cmos()
        self._memory = memoryview(self._registers.memory).cast("B")
        self._frozen_ns: int | None = None  # time of day while register B's SET is on
        self._memory[A] = A_DIVIDER_RUNS | 0x06  # 1024 Hz
        self._memory[B] = B_24_HOURS
        self._fill_memory_size(machine.memory_bytes)
        self._registers.index, self._registers.there = D, True
        self.begin()

    def begin(self) -> None:
        """At the machine's time of day."""
        self._set_epoch(self._machine.start_wall_ns)
        self._flags_ns = self._now_ns()  # up to here the flags of register C were read

    def _set_epoch(self, epoch_ns: int, frozen_ns: int | None = None) -> None:
        self._epoch_ns, self._frozen_ns = epoch_ns, frozen_ns
        registers = self._registers
        registers.base_s, registers.base_ns = divmod(epoch_ns if frozen_ns is None else frozen_ns, SECOND)
        registers.frozen = frozen_ns is not None

    @property
    def ports(self) -> Sequence[range]:
        return (range(INDEX, DATA + 1),)

    def reset(self) -> None:
        """The chip is battery-backed: RESET clears the interrupt enables and the flags, nothing else (data sheet,
        "RESET")."""
        self._memory[B] &= ~(B_INTERRUPTS | 0x08) & 0xFF
        self._flags_ns = self._now_ns()
        self._registers.index = D

    def save(self) -> dict[str, Any]:
        """The guest's time of day goes on from here when it is restored, as after a pause: the host's does not matter."""
        return {
            "memory": self._memory.hex(),
            "index": self._registers.index,
            "epoch_ns": self._epoch_ns,
            "frozen_ns": self._frozen_ns,
            "flags_ns": self._flags_ns,
        }

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(self.save()), self.name)
        self._memory[:] = saved.data(state, "memory", bytes(self._memory))
        self._registers.index = saved.number(state, "index", 0x7F, D)
        self._set_epoch(
            saved.number(state, "epoch_ns", LATEST_NS, self._epoch_ns, least=EARLIEST_NS),
            saved.optional(state, "frozen_ns", LATEST_NS, least=EARLIEST_NS),
        )
        self._flags_ns = saved.number(state, "flags_ns", LATEST_NS, self._now_ns(), least=EARLIEST_NS)

    def read_port(self, port: int, size: int) -> int:
        value = self._machine.board.read_cmos(port)
        return self._take_flags() if value is None else value

    def write_port(self, port: int, size: int, value: int) -> None:
        if not self._machine.board.write_cmos(port, value):
            self._write(self._registers.index, value)

    # ---- registers

    def _write(self, index: int, value: int) -> None:
        if index == A:
            self._memory[A] = value & ~A_UPDATE_IN_PROGRESS & 0xFF
        elif index == B:
            self._write_b(value)
        elif index in LIMITS:
            self._set_time(index, value)
        elif index not in (C, D, WEEKDAY):  # read-only; the day of the week follows from the date
            self._memory[index] = value

    def _write_b(self, value: int) -> None:
        now = self._now_ns()
        was_set, is_set = self._frozen_ns is not None, bool(value & B_SET)
        if is_set and not was_set:
            self._set_epoch(self._epoch_ns, now)
        elif was_set and not is_set:
            frozen = now if self._frozen_ns is None else self._frozen_ns
            self._set_epoch(self._epoch_ns + frozen - now)
        self._memory[B] = value

    # ---- time of day

    def _now_ns(self) -> int:
        return self._epoch_ns + self._machine.clock_ns()

    def _time_of_day_ns(self) -> int:
        return self._now_ns() if self._frozen_ns is None else self._frozen_ns

    def _decode(self, value: int) -> int:
        return value if self._memory[B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _decode_hour(self, value: int) -> int:
        if self._memory[B] & B_24_HOURS:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _encoded_time(self) -> dict[int, int]:
        """The clock's registers as the guest reads them."""
        return {index: self._machine.board.cmos_register(index) or 0 for index in LIMITS}

    def _set_time(self, index: int, value: int) -> None:
        """The real chip keeps what it cannot count; here such a value becomes the nearest one that it can."""
        encoded = self._encoded_time() | {index: value}
        fields = {}
        for register, (least, greatest) in LIMITS.items():
            decoded = self._decode_hour(encoded[HOURS]) if register == HOURS else self._decode(encoded[register])
            fields[register] = min(max(decoded, least), greatest)
        days = days_since_1970(fields[CENTURY] * 100 + fields[YEAR], fields[MONTH], fields[DAY])
        seconds = days * 86_400 + fields[HOURS] * 3600 + fields[MINUTES] * 60 + fields[SECONDS]
        old = self._time_of_day_ns()
        new = seconds * SECOND + old % SECOND
        if self._frozen_ns is None:
            self._set_epoch(self._epoch_ns + new - old)
            self._flags_ns += new - old
        else:
            self._set_epoch(self._epoch_ns, new)

    def _take_flags(self) -> int:
        """Register C: what came due since it was read last; reading clears it."""
        now, since = self._now_ns(), self._flags_ns
        self._flags_ns = now
        flags = 0
        rate = self._memory[A] & A_RATE
        if rate:
            # 1 and 2 give the rates of 8 and 9 (data sheet, table 3).
            period_ns = (SECOND << (rate - 1 if rate > 2 else rate + 6)) // 32_768
            flags |= C_PERIODIC if now // period_ns != since // period_ns else 0
        if self._frozen_ns is None and now // SECOND != since // SECOND:
            flags |= C_UPDATED
        return flags | (C_REQUEST if flags & self._memory[B] & B_INTERRUPTS else 0)

    # ---- the PC/AT's memory

    def _fill_memory_size(self, memory_bytes: int) -> None:
        """As SeaBIOS and QEMU lay it out (QEMU hw/i386/pc.c describes the registers; Ralf Brown's CMOS list)."""

        def store(index: int, value: int, length: int = 2) -> None:
            self._memory[index : index + length] = value.to_bytes(length, "little")

        memory = self._memory
        below_4g = min(memory_bytes, 0xC000_0000)
        extended_kib = min(max(below_4g - MIB, 0) // KIB, 0xFFFF)
        memory[0x14] = 0x02  # equipment: a coprocessor, no floppy
        store(0x15, BASE_MEMORY_KIB)
        store(0x17, extended_kib)
        store(0x30, extended_kib)
        store(0x34, max(below_4g - 16 * MIB, 0) // (64 * KIB))
        store(0x5B, (memory_bytes - below_4g) // (64 * KIB), 3)
        memory[0x2E:0x30] = (sum(memory[0x10:0x2E]) & 0xFFFF).to_bytes(2, "big")
