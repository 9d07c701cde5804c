"""What a disk and a CD-ROM have in common: the command block registers and the transfer of blocks through the data port.

ATA/ATAPI-6 (T13/1410D), clause 7 (registers) and 9.5, 9.6 (PIO data-in and data-out protocols). A drive does what it is
told within the access that tells it: BSY is never seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from hvd.board.data_window import WINDOW_BYTES, DataWindow
from hvd.board.saved import data, flag, number

# Registers of the command block, by offset to its first port; two of them are others for reading than for writing.
DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)
FEATURE, COMMAND = ERROR, STATUS

READY, SEEK_DONE, REQUEST, FAILED = 0x40, 0x10, 0x08, 0x01
ABORTED, NOT_FOUND, UNCORRECTABLE, WRITE_PROTECTED = 0x04, 0x10, 0x40, 0x40
DEVICE_LBA, DEVICE_SELECT, DEVICE_HEAD, DEVICE_OBSOLETE = 0x40, 0x10, 0x0F, 0xA0
# What the error register says after a reset: the self test found nothing.
PASSED: Final = 0x01


class Drive(ABC):
    """One drive. Its channel calls it; it calls back when INTRQ may have changed."""

    kind: ClassVar[str]
    # What COUNT, LOW, MID and HIGH say after a reset, by which software knows what it is (clause 9.12).
    signature: ClassVar[bytes]
    # Status after a reset, and the bits that stay on while it idles.
    reset_status: ClassVar[int]
    idle_status: ClassVar[int]

    def __init__(self, window: DataWindow, data_port: int) -> None:
        self._window = window
        self._data_port = data_port
        self._selected = False
        self._block = 0  # bytes of the block that is being transferred; 0 = none
        self._out = False  # by the guest
        self.on_interrupt: Callable[[], None] = lambda: None
        self.interrupt = False  # INTRQ, before the channel's gate
        self.feature = 0
        self.registers = bytearray(8)
        self.previous = bytearray(8)  # before the last write: the high half of what 48-bit commands take
        self.reset()

    # ---- for the channel

    def reset(self) -> None:
        """Power-on, the reset line, SRST: all settings are gone, too."""
        self._end_block()
        self.interrupt = False
        self.reset_settings()
        self.sign()

    def sign(self) -> None:
        """Show the signature."""
        self.registers[:] = bytes((0, PASSED, *self.signature, 0, self.reset_status))
        self.previous[:] = bytes(8)

    def diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC: passed. An interrupt is its channel's business."""
        self._end_block()
        self.interrupt = False
        self.sign()

    def select(self, selected: bool) -> None:
        """Only the selected drive answers at the data port."""
        if selected != self._selected:
            self._selected = selected
            if self._block and selected:
                self._window.open(self._data_port, self._out, self._block, self._window.position)
            else:
                self._window.close()

    def write_register(self, offset: int, value: int) -> None:
        """FEATURE to DEVICE."""
        if offset == FEATURE:
            self.feature = value
        else:
            self.previous[offset] = self.registers[offset]
            self.registers[offset] = value

    def read_data(self, size: int) -> int:
        """The data port, when the window does not serve it: the last access of a block, or there is none."""
        if not self._block or self._out:
            return 0
        position = self._window.position
        end = min(position + size, self._block)
        piece = bytes(self._window.data[position:end])
        self._window.position = end
        if end == self._block:
            self._end_block()
            self.block_read()
        return int.from_bytes(piece, "little")

    def write_data(self, size: int, value: int) -> None:
        if not self._block or not self._out:
            return
        position = self._window.position
        end = min(position + size, self._block)
        self._window.data[position:end] = value.to_bytes(size, "little")[: end - position]
        self._window.position = end
        if end == self._block:
            self._end_block()
            self.block_written(end)

    def run(self, code: int) -> None:
        """The command register was written. An earlier command that was not finished is dropped."""
        self._end_block()
        self.interrupt = False
        self.registers[ERROR] = 0
        self.registers[STATUS] = self.idle_status
        self.command(code)

    # ---- for drives

    def begin_block(self, length: int, out: bool) -> None:
        """window.data[:length] is for the guest, or out: from it."""
        if not 0 < length <= WINDOW_BYTES:
            raise ValueError(f"a block of {length} bytes")
        self._block, self._out = length, out
        self._window.open(self._data_port, out, length)
        if not self._selected:
            self._window.close()
        self.registers[STATUS] = self.idle_status | REQUEST

    def _end_block(self) -> None:
        self._block = 0
        self._window.close()
        self.registers[STATUS] &= ~REQUEST

    @property
    def data(self) -> memoryview:
        """The block's bytes."""
        return self._window.data

    def done(self) -> None:
        """The command succeeded."""
        self._end_block()
        self.registers[STATUS] = self.idle_status
        self.raise_interrupt()

    def fail(self, error: int) -> None:
        """The command failed; error: what the error register says."""
        self._end_block()
        self.registers[STATUS] = self.idle_status | FAILED
        self.registers[ERROR] = error
        self.raise_interrupt()

    def abort(self) -> None:
        """The command is not known, or its parameters make no sense."""
        self.fail(ABORTED)

    def raise_interrupt(self) -> None:
        self.interrupt = True
        self.on_interrupt()

    @abstractmethod
    def command(self, code: int) -> None:
        """Do it: done(), fail() or begin_block()."""

    @abstractmethod
    def block_read(self) -> None:
        """The guest has read the block."""

    @abstractmethod
    def block_written(self, length: int) -> None:
        """The guest has filled data[:length]."""

    @abstractmethod
    def reset_settings(self) -> None:
        """What commands have set is as after power-on; a transfer is forgotten."""

    # ---- state

    def save(self) -> dict[str, Any]:
        """The channel's `select` is saved by the channel."""
        return {
            "kind": self.kind,
            "registers": self.registers.hex(),
            "previous": self.previous.hex(),
            "feature": self.feature,
            "interrupt": self.interrupt,
            "block": bytes(self._window.data[: self._block]).hex(),
            "position": self._window.position if self._block else 0,
            "out": self._out,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """While it is not selected. Raises ValueError, KeyError, TypeError."""
        if state["kind"] != self.kind:
            raise ValueError(f"a {self.kind} gets the state of something else")
        registers, previous = data(state, "registers", bytes(8)), data(state, "previous", bytes(8))
        block, feature = data(state, "block", b"", WINDOW_BYTES), number(state, "feature", 0xFF)
        position = number(state, "position", max(len(block) - 1, 0))
        interrupt, out = flag(state, "interrupt"), flag(state, "out")
        self._end_block()
        self.registers[:], self.previous[:], self.feature = registers, previous, feature
        self.interrupt, self._out = interrupt, out
        self._window.data[: len(block)] = block
        self._window.position = position
        self._block = len(block)
