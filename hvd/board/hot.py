"""HotBoard: the board's hot devices (native/, libhv.so) and the virtual clock, for Python.

A vcpu in C takes `HotBoard.address` and calls the devices without Python; a vcpu in Python calls the methods.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvapi.record import RECORD, RECORD_BYTES, Record

from hvd.board.data_window import DataWindow
from hvd.board.device_registers import AcpiRegisters, CmosRegisters, KeyboardRegisters, VgaRegisters
from hvd.board.libhv import fields, library
from hvd.board.pci.registers import PciRegisters
from hvd.board.shared_file import SharedFile
from hvd.trace.counters import COUNTERS_BYTES, DISK_WORDS, DISKS, DISKS_OFFSET, NIC_WORDS, NICS, NICS_OFFSET
from hvd.trace.points import BackendId
from hvd.trace.ring import ENABLED_OFFSET

NEVER = (1 << 64) - 1
# Memory-mapped registers of the board that C alone answers: name -> guest-physical addresses (native/board.h).
MMIO = {"ioapic": range(0xFEC0_0000, 0xFEC0_1000), "local-apic": range(0xFEE0_0000, 0xFEE0_1000)}
TAP_RECORDS = 64
TRACE_RECORDS = 1 << 15  # 2 MiB, sparse until somebody traces


class PortResult(enum.IntEnum):
    """enum hv_port_result."""

    DONE = 0
    LEAVE = 1  # a Python device claims the port
    WAIT = 2  # the console is full: drain it, do the access again


class MmioResult(enum.IntEnum):
    """enum hv_mmio_result."""

    LEAVE = 0  # nothing of the C board is there, or it is more than that
    DONE = 1
    NOTIFIED = 2  # done: a virtio device was notified and has nothing to do (PciRegisters.notification)


_u8, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64


class Tap(ctypes.Structure):
    """struct hv_tap (native/crossing.h)."""

    _fields_ = (("head", _u64), ("records", (ctypes.c_char * RECORD_BYTES) * TAP_RECORDS))


class HotBoard:
    """struct hv_board: clock, interrupt controllers, timer, COM1 with the console's rings, the counting of crossings.

    Everything belongs to the vcpu's thread except now(), and console_take, console_put and console_sleep, which belong
    to one other thread.
    counters, trace: files to create or reuse (hvd/runner/directory.py); None counts for nobody.
    Raises HvdError NATIVE_MISSING, and OSError when a file cannot be made.
    """

    def __init__(
        self,
        backend: BackendId,
        *,
        out_event: int = -1,
        counters: Path | None = None,
        trace: Path | None = None,
        trace_records: int = TRACE_RECORDS,
    ) -> None:
        self._lib = library()
        self._backend = int(backend)
        self._memory = ctypes.create_string_buffer(self._lib.hv_board_size() + 63)
        start = ctypes.addressof(self._memory)
        self.address = (start + 63) & ~63  # struct hv_board *, for C
        # For another process that shares them (hvd.cell.process).
        self.out_event = out_event
        self._lib.hv_board_init(self.address, out_event, None, 0, None, 0, self._backend)
        self._console: int = self._lib.hv_board_console(self.address)
        self._console_lock = threading.Lock()  # held by the other thread while it uses the console's rings
        self._crossings: int = self._lib.hv_board_crossings(self.address)
        self.share(counters, trace, trace_records)
        self._clock: int = self._lib.hv_board_clock(self.address)
        self._value = ctypes.c_uint64()
        self._tap: Tap | None = None
        self._value_address = ctypes.addressof(self._value)
        self._take = ctypes.create_string_buffer(1 << 16)

    def share(self, counters: Path | None, trace: Path | None, trace_records: int = TRACE_RECORDS) -> None:
        """Count there from now on: before the first crossing and the devices that count for themselves (disk_counters). Raises OSError."""
        self.counters_path = counters
        self.trace_path = trace
        self._counters = SharedFile(counters, COUNTERS_BYTES, COUNTERS_BYTES)
        self._trace = SharedFile(trace, RECORD_BYTES * (1 + trace_records), RECORD_BYTES)
        files = (self._counters.address, self._counters.size, self._trace.address, self._trace.size)
        self._lib.hv_crossings_init(self._crossings, *files, self._backend)
        # The ring's word of kinds that somebody wants.
        self._enabled = ctypes.c_uint32.from_address(self._trace.address + ENABLED_OFFSET) if self._trace.address else ctypes.c_uint32(0)

    @property
    def is_shared(self) -> bool:
        return self.counters_path is not None

    def close(self) -> None:
        """Unmap the files. Nothing else may be called afterwards."""
        self._enabled = ctypes.c_uint32(0)
        self._counters.close()
        self._trace.close()

    def claim(self, ports: range) -> None:
        """Accesses to these ports leave the vcpu as LEAVE. The hot devices' own ports stay with them."""
        self._lib.hv_board_claim(self.address, ports.start, len(ports))

    def window(self, index: int) -> DataWindow:
        """One of the WINDOWS data windows. Raises IndexError."""
        address = self._lib.hv_board_window(self.address, index)
        if not address:
            raise IndexError(index)
        return DataWindow(address, self._memory)

    def pci(self) -> PciRegisters:
        return PciRegisters(self._lib, self.address, self._memory)

    def cmos(self) -> CmosRegisters:
        """What C answers of the CMOS clock (native/cmos.c)."""
        registers = CmosRegisters.from_address(self._lib.hv_board_cmos(self.address))
        registers.keep = self._memory
        return registers

    def read_cmos(self, port: int) -> int | None:
        """One byte; None: it is for Python to answer."""
        answered = self._lib.hv_cmos_in(self.address, port, 1, self._value_address)
        return self._value.value & 0xFF if answered else None

    def cmos_register(self, index: int) -> int | None:
        """The same of any register, whatever the index is."""
        answered = self._lib.hv_cmos_register(self.address, index, self._value_address)
        return self._value.value & 0xFF if answered else None

    def write_cmos(self, port: int, value: int) -> bool:
        return bool(self._lib.hv_cmos_out(self.address, port, 1, value))

    def vga(self) -> VgaRegisters:
        """The VGA's registers (native/vga.c)."""
        registers = VgaRegisters.from_address(self._lib.hv_board_vga(self.address))
        registers.keep = self._memory
        return registers

    def read_vga(self, port: int, size: int) -> int:
        """0 where it has no port."""
        self._value.value = 0
        self._lib.hv_vga_in(self.address, port, size, self._value_address)
        return self._value.value

    def write_vga(self, port: int, size: int, value: int) -> None:
        self._lib.hv_vga_out(self.address, port, size, value)

    def keyboard(self) -> KeyboardRegisters:
        """The keyboard's and its controller's (native/keyboard.c)."""
        registers = KeyboardRegisters.from_address(self._lib.hv_board_keyboard(self.address))
        registers.keep = self._memory
        return registers

    def reset_keyboard(self) -> None:
        self._lib.hv_keyboard_reset(self.address)

    def read_keyboard(self, port: int) -> int:
        return int(self._lib.hv_keyboard_read(self.address, port))

    def write_keyboard(self, port: int, value: int) -> bool:
        """True: it pulls the reset line."""
        return bool(self._lib.hv_keyboard_write(self.address, port, value))

    def press(self, codes: bytes) -> bool:
        """Keys, as bytes of set 2. False, and nothing of it: there is no room for all, or the keyboard does not scan."""
        return bool(self._lib.hv_keyboard_press(self.address, codes, len(codes)))

    def acpi(self) -> AcpiRegisters:
        """ACPI's fixed hardware (native/acpi.c)."""
        registers = AcpiRegisters.from_address(self._lib.hv_board_acpi(self.address))
        registers.keep = self._memory
        return registers

    def read_acpi(self, port: int) -> int:
        """One byte."""
        return int(self._lib.hv_acpi_read(self.address, port))

    def write_acpi(self, port: int, value: int) -> bool:
        """One byte; drive_acpi() after the last. True: it switches the machine off."""
        return bool(self._lib.hv_acpi_write(self.address, port, value))

    def drive_acpi(self) -> None:
        """The SCI, by status and enable."""
        self._lib.hv_acpi_drive(self.address)

    def reset(self) -> None:
        """The reset line: devices, not the clock nor the console's rings."""
        self._lib.hv_board_reset(self.address)

    # Snapshots (docs/snapshots.md)

    def save(self) -> dict[str, Any]:
        """Clock, devices and what was typed but not read yet, by the names of fields()."""
        get = self._lib.hv_board_get_field
        state: dict[str, Any] = {"clock_ns": self.now(), "console_in": self._typed().hex()}
        for index, field in enumerate(fields()):
            values = [get(self.address, index, element) for element in range(field.count)]
            state[field.name] = values if field.count > 1 else values[0]
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """What save() gave, for a board that was just made; perhaps that of an older one: what is missing is as after a
        reset. The clock stands afterwards. Raises ValueError, TypeError; the board is safe then, too, but of no use."""
        state = dict(state)
        typed = bytes.fromhex(state.pop("console_in", ""))
        if not self._lib.hv_clock_set(self._clock, _natural(state.pop("clock_ns", 0), "clock_ns")):
            raise ValueError("clock_ns is out of range")
        for index, field in enumerate(fields()):
            if field.name not in state:
                continue
            value = state.pop(field.name)
            values = value if field.count > 1 else [value]
            if not isinstance(values, list) or len(values) != field.count:
                raise ValueError(f"{field.name} has not {field.count} elements")
            for element, one in enumerate(values):
                if not self._lib.hv_board_set_field(self.address, index, element, _natural(one, field.name)):
                    raise ValueError(f"{field.name} = {one} is not within {field.least} and {field.most}")
        if state:
            raise ValueError(f"the board has no {', '.join(sorted(state))[:200]}")
        self._lib.hv_board_restored(self.address)
        self.console_put(typed)

    def _typed(self) -> bytes:
        length: int = self._lib.hv_console_unread(self._console, self._take, len(self._take))
        return ctypes.string_at(self._take, length)

    # Ports: size is 1, 2 or 4 bytes.

    def port_in(self, port: int, size: int) -> tuple[PortResult, int]:
        """The value is meaningful with DONE only."""
        result = self._lib.hv_board_port_in(self.address, port, size, self._value_address)
        return PortResult(result), self._value.value & 0xFFFF_FFFF

    def port_out(self, port: int, size: int, value: int) -> PortResult:
        return PortResult(self._lib.hv_board_port_out(self.address, port, size, value))

    # Memory-mapped registers that C answers: size is 1, 2, 4 or 8 bytes.

    def mmio_read(self, address: int, size: int) -> int | None:
        """None: nothing of the C board is there."""
        if not self._lib.hv_board_mmio_read(self.address, address, size, self._value_address):
            return None
        return self._value.value

    def mmio_write(self, address: int, size: int, value: int) -> MmioResult:
        return MmioResult(self._lib.hv_board_mmio_write(self.address, address, size, value))

    def read_msr(self, number: int) -> int | None:
        """IA32_APIC_BASE, IA32_TSC_DEADLINE; None: not one of the board's."""
        return self._value.value if self._lib.hv_board_read_msr(self.address, number, self._value_address) else None

    def write_msr(self, number: int, value: int) -> bool:
        """False: not one of the board's."""
        return bool(self._lib.hv_board_write_msr(self.address, number, value))

    @property
    def cr8(self) -> int:
        """The task priority's class, which is CR8."""
        return int(self._lib.hv_board_cr8(self.address))

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._lib.hv_board_set_cr8(self.address, value)

    # Interrupts and time

    def set_irq(self, gsi: int, level: bool) -> None:
        """Assert or drop the line of a global system interrupt, 0-23: 0-15 reach the 8259 pair and the IOAPIC, 16-23
        the IOAPIC alone. A device holds its line until the guest has served it."""
        self._lib.hv_board_set_irq(self.address, gsi, level)

    def msi(self, address: int, data: int) -> None:
        """A message-signalled interrupt: a device writes 32 bits of data to an address of the local APICs."""
        self._lib.hv_board_msi(self.address, address, data)

    def pending(self) -> bool:
        """Does an interrupt controller ask for the CPU?"""
        return self.peek() is not None

    def peek(self) -> int | None:
        """The vector that acknowledge() would give."""
        vector: int = self._lib.hv_board_peek(self.address)
        return None if vector < 0 else vector

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: its vector, 0-255."""
        return int(self._lib.hv_board_acknowledge(self.address))

    def advance(self) -> bool:
        """Run due timers, move typed bytes to the UART, refresh the interrupt lines. Returns pending()."""
        return bool(self._lib.hv_board_advance(self.address))

    def deadline(self) -> int | None:
        """CLOCK_MONOTONIC nanoseconds at which advance() has the next timer to run; None while there is none."""
        deadline: int = self._lib.hv_board_deadline(self.address)
        return None if deadline == NEVER else deadline

    def start_clock(self) -> None:
        self._lib.hv_clock_start(self._clock)

    def stop_clock(self) -> None:
        """The guest is paused: its time stands."""
        self._lib.hv_clock_stop(self._clock)

    def now(self) -> int:
        """Nanoseconds that the guest has lived, without the time it was paused."""
        return int(self._lib.hv_clock_now(self._clock))

    # Crossings

    def host_ns(self) -> int:
        """CLOCK_MONOTONIC, for cross()."""
        return int(self._lib.hv_host_ns())

    def cross(
        self, point: int, start_ns: int, rip: int, flags: int = 0, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0
    ) -> None:
        """Count a finished crossing, and record it if somebody listens. start_ns: host_ns() at entry, 0 = untimed."""
        self._lib.hv_cross(self._crossings, point, start_ns, rip, flags, a0, a1, a2, a3)

    def note(self, point: int, start_ns: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0) -> None:
        """Work of a device, done since start_ns: recorded if somebody listens, and not counted as a crossing."""
        if self._enabled.value:
            self._lib.hv_note(self._crossings, point, start_ns, a0, a1, a2, a3)

    def tap(self, on: bool) -> None:
        """Keep the last TAP_RECORDS crossings for tapped(), or no longer."""
        self._tap = Tap() if on else None
        self._lib.hv_crossings_tap(self._crossings, ctypes.addressof(self._tap) if self._tap is not None else None)

    def tapped(self) -> tuple[list[Record], int]:
        """The crossings since the last call, oldest first, and how many before them are lost."""
        if self._tap is None:
            return [], 0
        head, self._tap.head = self._tap.head, 0
        kept = min(head, TAP_RECORDS)
        raw = (self._tap.records[n % TAP_RECORDS].raw for n in range(head - kept, head))
        return [Record._make(RECORD.unpack(record)) for record in raw], head - kept

    def account(self, *, run_ns: int = 0, halted_ns: int = 0) -> None:
        """Time that a vcpu in Python just spent; the first call tells when the first instruction ran."""
        self._lib.hv_board_account(self.address, run_ns, halted_ns)

    def disk_counters(self, slot: int) -> ctypes.Array[ctypes.c_uint64]:
        """The words of struct hv_disk_counter, to be added to (hvd.trace.counters.DISK_FIELDS), until close()."""
        return self._device_counters(DISKS_OFFSET, DISK_WORDS, DISKS, slot)

    def nic_counters(self, slot: int) -> ctypes.Array[ctypes.c_uint64]:
        """The words of struct hv_nic_counter, to be added to (hvd.trace.counters.NIC_FIELDS), until close()."""
        return self._device_counters(NICS_OFFSET, NIC_WORDS, NICS, slot)

    def _device_counters(self, offset: int, words: int, slots: int, slot: int) -> ctypes.Array[ctypes.c_uint64]:
        if not 0 <= slot < slots:
            raise ValueError(f"there are {slots} slots, not number {slot}")
        page: int = self._lib.hv_board_counters(self.address)
        counters = (ctypes.c_uint64 * words).from_address(page + offset + slot * words * 8)
        counters[0] = 1
        return counters

    # The console, for the virtio console in the vcpu's thread

    def use_console(self, address: int | None) -> None:
        """Its rings are those at `address` (struct hv_console, initialised) from now on, which stay there until close();
        None: the board's own. What was typed and not read, or written and not taken yet, goes along."""
        with self._console_lock:
            self._lib.hv_board_use_console(self.address, address)
            self._console = self._lib.hv_board_console(self.address)

    def console_write(self, data: bytes) -> int:
        """Output beside COM1's; what is typed from now on is for the virtio console. Returns how many bytes found room."""
        return int(self._lib.hv_board_console_write(self.address, data, len(data)))

    def console_waiting(self) -> int:
        """Bytes that were typed for the virtio console."""
        return int(self._lib.hv_board_console_waiting(self.address))

    def console_read(self, most: int) -> bytes:
        """Take them."""
        buffer = ctypes.create_string_buffer(most)
        length: int = self._lib.hv_board_console_read(self.address, buffer, most)
        return ctypes.string_at(buffer, length)

    @property
    def typed_to_virtio(self) -> bool:
        """Whose is what is typed: the virtio console's, or COM1's? Whichever wrote last."""
        return bool(self._lib.hv_board_typed_to_virtio(self.address))

    @typed_to_virtio.setter
    def typed_to_virtio(self, virtio: bool) -> None:
        self._lib.hv_board_type_to_virtio(self.address, virtio)

    # The console, from the runner's main thread

    def console_take(self) -> bytes:
        """What the guest wrote, up to 64 KiB; empty when there is nothing."""
        with self._console_lock:
            length: int = self._lib.hv_console_take(self._console, self._take, len(self._take))
        return ctypes.string_at(self._take, length)

    def console_put(self, data: bytes) -> int:
        """Type. Returns how many bytes found room; kick the vcpu afterwards."""
        with self._console_lock:
            return int(self._lib.hv_console_put(self._console, data, len(data)))

    def console_sleep(self) -> bool:
        """Ask for a write to out_event at the next output. False: there is output already, take it first."""
        with self._console_lock:
            return bool(self._lib.hv_console_sleep(self._console))

    def console_doze(self) -> None:
        """Ask for a write to out_event, once, when the guest waits after it has written; until console_sleep()."""
        with self._console_lock:
            self._lib.hv_console_doze(self._console)

    def console_rest(self) -> None:
        """The vcpu's thread: the guest is about to wait."""
        self._lib.hv_console_rest(self._console, self.out_event)


def _natural(value: Any, name: str) -> int:
    """A whole number of at most 64 bits, as C takes it. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is no number")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name} = {value} is out of range")
    return value
