"""A function's configuration space (PCI 3.0, chapter 6): 256 bytes, of which the guest may change what a mask allows. C answers from it
(hvd/board/native/pci.c) and does what a guest writes."""

from __future__ import annotations

from typing import Final

from hvd.board.pci.registers import CONFIG_BYTES, Space

BYTES: Final = CONFIG_BYTES
CAPABILITIES_POINTER: Final = 0x34
STATUS: Final = 0x06
STATUS_CAPABILITIES: Final = 1 << 4
FIRST_CAPABILITY: Final = 0x40


class ConfigSpace:
    """The bytes. Offsets and sizes of accesses come from the guest and may be anything."""

    def __init__(self) -> None:
        self.move(Space())
        self._power_on = bytes(BYTES)
        self._next_capability = FIRST_CAPABILITY
        self._last_pointer = CAPABILITIES_POINTER

    # ---- how it is made

    def define(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        """A register: its value after reset, and which of its bits the guest can write."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
        self._power_on = bytes(self.data)

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"") -> int:
        """Append one to the list (PCI 3.0, 6.7); body is what follows its identifier and link. Returns its offset.
        Raises ValueError when there is no room left: a bug of the function."""
        offset, length = self._next_capability, (2 + len(body) + 3) & ~3
        if offset + length > BYTES:
            raise ValueError(f"no room for capability {identifier:#x}")
        self.data[offset : offset + 2 + len(body)] = bytes((identifier, 0)) + body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.data[self._last_pointer] = offset
        self.data[STATUS] |= STATUS_CAPABILITIES
        self._last_pointer, self._next_capability = offset + 1, offset + length
        self._power_on = bytes(self.data)
        return offset

    def move(self, space: Space) -> None:
        """From now on it lies there."""
        self.space = space
        self.data = memoryview(space.data).cast("B")
        self._writable = memoryview(space.writable).cast("B")

    # ---- what is done with it

    def get(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """By the function itself: any bit."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def ask(self, offsets: range) -> None:
        """Reading these bytes is more than that: the function's read_config() is called."""
        self.space.asks |= _dwords(offsets)

    def tell(self, offsets: range, wanted: bool = True) -> None:
        """Writing these bytes is more than that, or no longer: the function's write_config() is called."""
        if wanted:
            self.space.tells |= _dwords(offsets)
        else:
            self.space.tells &= ~_dwords(offsets)

    def reset(self) -> None:
        self.data[:] = self._power_on

    def save(self) -> str:
        return self.data.hex()

    def restore(self, data: bytes) -> None:
        """Takes over what a guest can write; the rest must be the same. Raises ValueError."""
        for at, (mask, own, other) in enumerate(zip(self._writable, self._power_on, data, strict=True)):
            # The status register is the function's own to change.
            if at != STATUS and (own ^ other) & ~mask:
                raise ValueError(f"another function's configuration space: byte {at:#x} is {other:#x}, not {own:#x}")
            self.data[at] = own & ~mask | other & mask


def _dwords(offsets: range) -> int:
    """A bit for each one that they touch."""
    return sum(1 << dword for dword in {offset // 4 for offset in offsets})
