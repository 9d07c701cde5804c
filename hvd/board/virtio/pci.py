"""The transport of virtio devices: virtio over PCI, modern only (VIRTIO 1.2, 4.1).

BAR 1 is the table of MSI-X. BAR 4 holds a page for each of the structures that vendor capabilities point to:
common configuration, ISR status, the device's own configuration, notifications.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hvd.board import saved
from hvd.board.bus import floating
from hvd.board.pci.function import Bar, Identity, PciFunction
from hvd.board.pci.msix import BAR_BYTES, Msix
from hvd.board.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, VirtioDevice
from hvd.board.virtio.queue import Queue, QueueError
from hvd.trace.points import BY_NAME

if TYPE_CHECKING:
    from hvd.board.machine import Machine

VENDOR: Final = 0x1AF4
FIRST_DEVICE: Final = 0x1040  # + device id
VENDOR_CAPABILITY: Final = 0x09
# Structures: type of the capability (4.1.4), and its page in the BAR.
COMMON, NOTIFY, ISR, DEVICE, CONFIG_ACCESS = 1, 2, 3, 4, 5
PAGE: Final = 0x1000
PAGES: Final = {COMMON: 0, ISR: 1, DEVICE: 2, NOTIFY: 3}
TABLE_BAR: Final = Bar(1, BAR_BYTES)
BAR: Final = Bar(4, PAGE * len(PAGES), wide=True)
NOTIFY_MULTIPLIER: Final = 4

# virtio_pci_common_cfg, 4.1.4.3
COMMON_FORM: Final = struct.Struct("<IIIIHHBBHHHHHQQQHH")
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
NO_VECTOR: Final = 0xFFFF
ISR_QUEUE, ISR_CONFIG = 1, 2
NOTIFY_POINT: Final = BY_NAME["virtio-notify"].id
FAULT_POINT: Final = BY_NAME["virtio-fault"].id


class VirtioPci(PciFunction):
    """One device on the bus."""

    _status: int
    _isr: int
    _generation: int
    _accepted: int  # features, by the driver

    def __init__(self, machine: Machine, device: VirtioDevice) -> None:
        identity = Identity(
            VENDOR, FIRST_DEVICE + device.device_id, device.class_code, 1, VENDOR, FIRST_DEVICE + device.device_id
        )
        super().__init__(device.name, identity, bars=(TABLE_BAR, BAR), interrupt_pin=1)
        self.device = device
        self._machine = machine
        self._queues = [Queue(machine.memory, self._memory_changed, size) for size in device.queue_sizes]
        self._vectors = [NO_VECTOR] * len(self._queues)
        self._msix = Msix(self, TABLE_BAR, 1 + len(self._queues), machine.msi)
        self._structures()
        device.queues = self._queues
        device.run_queue = self._run_queue
        device.config_changed = self._config_changed
        self._offered = device.features | VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX
        self._reported = False
        self._reset_device()

    def _structures(self) -> None:
        lengths = {
            COMMON: COMMON_FORM.size,
            ISR: 1,
            DEVICE: len(self.device.config),
            NOTIFY: NOTIFY_MULTIPLIER * len(self._queues),
        }
        for kind, length in lengths.items():
            if length:
                extra = struct.pack("<I", NOTIFY_MULTIPLIER) if kind == NOTIFY else b""
                form = struct.pack("<BBBBHII", 16 + len(extra), kind, BAR.index, 0, 0, PAGES[kind] * PAGE, length)
                self.config.add_capability(VENDOR_CAPABILITY, form + extra)
        # 4.1.4.9: bar, offset, length and data can be written; access to the BARs without mapping them.
        form = struct.pack("<BBBBHIII", 20, CONFIG_ACCESS, 0, 0, 0, 0, 0, 0)
        writable = struct.pack("<BBBBHIII", 0, 0, 0xFF, 0, 0, 0xFFFF_FFFF, 0xFFFF_FFFF, 0)
        self._access = self.config.add_capability(VENDOR_CAPABILITY, form, writable)

    def _memory_changed(self, ranges: list[int]) -> None:
        self._machine.vcpu.memory_changed_at(ranges)

    # ---- configuration space

    @property
    def config_asks(self) -> range:
        return range(self._access + 16, self._access + 20)

    def read_config(self, offset: int, size: int) -> int:
        if offset in self.config_asks:
            return self._through_config(offset, size, None)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        super().write_config(offset, size, value)
        if offset in self.config_asks:
            self._through_config(offset, size, value)
        self._msix.deliver()

    def _through_config(self, offset: int, size: int, value: int | None) -> int:
        """pci_cfg_data: an access to a structure, of the length that the capability's register says."""
        _, bar, _, _, at, length = struct.unpack_from("<BBBHII", self.config.data, self._access + 3)
        if offset != self._access + 16 or length not in (1, 2, 4) or size < length or at % length:
            return floating(size)
        found = next((each for each in self.bars if each.index == bar and at + length <= each.size), None)
        if found is None:
            return floating(size)
        if value is None:
            return self.read_bar(bar, at, length)
        self.write_bar(bar, at, length, value & floating(length))
        return value

    # ---- the BARs

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        if bar == TABLE_BAR.index:
            return self._msix.read(offset, size)
        page, offset = offset // PAGE, offset % PAGE
        if page == PAGES[COMMON]:
            return _part(self._common(), offset, size)
        if page == PAGES[DEVICE]:
            return _part(self.device.config, offset, size)
        if page == PAGES[ISR] and offset == 0:
            isr, self._isr = self._isr, 0
            self.set_intx(False)
            return isr
        return 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == TABLE_BAR.index:
            self._msix.write(offset, size, value)
            return
        page, offset = offset // PAGE, offset % PAGE
        if page == PAGES[NOTIFY]:
            index, rest = divmod(offset, NOTIFY_MULTIPLIER)
            if not rest and index < len(self._queues):
                self._notified(index)
        elif page == PAGES[COMMON]:
            self._write_common(offset, size, value)
        elif page == PAGES[DEVICE] and offset + size <= len(self.device.config):
            self.device.write_config(offset, value.to_bytes(size, "little"))

    # ---- common configuration

    def _common(self) -> bytes:
        select = self._feature_select
        queue: Queue | None = None
        vector, notify = NO_VECTOR, 0
        if self._queue_select < len(self._queues):
            queue, vector, notify = (
                self._queues[self._queue_select],
                self._vectors[self._queue_select],
                self._queue_select,
            )
        return COMMON_FORM.pack(
            select, self._offered >> 32 * select & 0xFFFF_FFFF if select < 2 else 0,
            self._driver_select, self._accepted >> 32 * self._driver_select & 0xFFFF_FFFF if self._driver_select < 2 else 0,
            self._config_vector, len(self._queues), self._status, self._generation, self._queue_select,
            queue.size if queue else 0, vector, queue.enabled if queue else 0, notify,
            queue.descriptors if queue else 0, queue.driver if queue else 0, queue.device if queue else 0,
            0, 0,
        )  # fmt: skip

    def _write_common(self, offset: int, size: int, value: int) -> None:
        """Registers take accesses of their own width (4.1.3.1), those of 64 bits also their halves. Others are lost."""
        write = _WRITES.get((offset, size))
        if write is not None:
            write(self, value)

    def _write_feature_select(self, value: int) -> None:
        self._feature_select = value

    def _write_driver_select(self, value: int) -> None:
        self._driver_select = value

    def _write_features(self, value: int) -> None:
        if not self._status & FEATURES_OK and self._driver_select < 2:
            shift = 32 * self._driver_select
            self._accepted = self._accepted & ~(0xFFFF_FFFF << shift) | value << shift

    def _write_config_vector(self, value: int) -> None:
        self._config_vector = value if value < self._msix.vectors else NO_VECTOR

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset_device()
            return
        # The driver sets bits; NEEDS_RESET is the device's.
        fresh = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED) & ~self._status
        if fresh & FEATURES_OK and (self._accepted & ~self._offered or not self._accepted & VERSION_1):
            fresh &= ~FEATURES_OK  # 3.1.1, step 5: refused
        self._status |= fresh
        if fresh & FEATURES_OK:
            self._take_features()
        self._find_ready()

    def _find_ready(self) -> None:
        needed = FEATURES_OK | DRIVER_OK
        self.device.ready = self._status & (needed | NEEDS_RESET | FAILED) == needed

    def _take_features(self) -> None:
        self.device.negotiated = self._accepted
        for queue in self._queues:
            queue.set_features(bool(self._accepted & RING_INDIRECT_DESC), bool(self._accepted & RING_EVENT_IDX))

    def _write_queue_select(self, value: int) -> None:
        self._queue_select = value

    def _queue(self) -> Queue | None:
        """The selected one, while it can be configured."""
        if self._queue_select < len(self._queues) and not self._queues[self._queue_select].enabled:
            return self._queues[self._queue_select]
        return None

    def _write_queue_size(self, value: int) -> None:
        if (queue := self._queue()) is not None:
            queue.size = value

    def _write_queue_vector(self, value: int) -> None:
        if self._queue_select < len(self._queues):
            self._vectors[self._queue_select] = value if value < self._msix.vectors else NO_VECTOR

    def _write_queue_enable(self, value: int) -> None:
        if value != 1 or (queue := self._queue()) is None:
            return
        try:
            queue.enable([other for other in self._queues if other.enabled])
        except QueueError as error:
            self._broken(self._queue_select, error)

    def _write_ring(self, name: str, shift: int, bits: int, value: int) -> None:
        if (queue := self._queue()) is not None:
            mask = (1 << bits) - 1 << shift
            setattr(queue, name, getattr(queue, name) & ~mask | value << shift)

    # ---- queues and interrupts

    def _notified(self, index: int) -> None:
        """By the driver: a crossing of its own kind."""
        before = self._queues[index].pushed
        self._run_queue(index)
        done = (self._queues[index].pushed - before) & 0xFFFF
        self._machine.record_as(NOTIFY_POINT, self.slot, self.device.device_id, index, done)

    def _run_queue(self, index: int) -> None:
        """A queue was notified, by the driver or the host."""
        if not self.device.ready or not self.may_master or not self._queues[index].enabled:
            return
        try:
            self.device.handle_queue(index)
        except QueueError as error:
            self._queues[index].finish()
            self._broken(index, error)
            return
        for number, queue in enumerate(self._queues):
            if queue.finish():
                self._interrupt(ISR_QUEUE, self._vectors[number])

    def _broken(self, index: int, error: QueueError) -> None:
        """2.1.2: the driver has to reset the device, which does nothing until then."""
        self._machine.board.cross(FAULT_POINT, 0, 0, 0, self.slot, self.device.device_id, index)
        self.device.ready = False
        self._status |= NEEDS_RESET
        if not self._reported:
            self._reported = True
            text = f"{self.name} at {self.place}: queue {index}: {error}; the device does nothing until its driver resets it"
            self._machine.log(text.encode())
        if self._status & DRIVER_OK:
            self._generation = (self._generation + 1) & 0xFF
            self._interrupt(ISR_CONFIG, self._config_vector)

    def _config_changed(self) -> None:
        self._generation = (self._generation + 1) & 0xFF
        if self._status & DRIVER_OK:
            self._interrupt(ISR_CONFIG, self._config_vector)

    def _interrupt(self, cause: int, vector: int) -> None:
        if self._msix.enabled:
            if vector != NO_VECTOR:
                self._msix.fire(vector)
            return
        self._isr |= cause
        self.set_intx(True)

    # ---- life

    def _reset_device(self) -> None:
        """4.1.4.3.1: everything but the function's PCI side."""
        self._status = self._isr = self._generation = 0
        self._feature_select = self._driver_select = self._queue_select = 0
        self._accepted = 0
        self._config_vector = NO_VECTOR
        self._vectors = [NO_VECTOR] * len(self._queues)
        for queue in self._queues:
            queue.reset()
        self.device.negotiated, self.device.ready = 0, False
        self.device.reset()
        self.set_intx(False)

    def reset(self) -> None:
        self._msix.reset()
        self._reset_device()
        self._reported = False
        super().reset()

    def close(self) -> None:
        self.device.close()

    def save(self) -> dict[str, Any]:
        return super().save() | {
            "device": self.name, "msix": self._msix.save(), "status": self._status, "isr": self._isr,
            "generation": self._generation, "selectors": [self._feature_select, self._driver_select, self._queue_select],
            "accepted": self._accepted, "config_vector": self._config_vector, "vectors": list(self._vectors),
            "queues": [queue.save() for queue in self._queues], "own": self.device.save(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, TypeError."""
        saved.only(state, frozenset(self.save()), self.name)
        queues = state.get("queues")
        if state.get("device") != self.name or not isinstance(queues, list) or len(queues) != len(self._queues):
            raise ValueError(f"what the snapshot has at {self.place} is not this {self.name}")
        self._reset_device()
        super().restore({name: state[name] for name in ("config", "intx") if name in state})
        self._msix.restore(saved.part(state, "msix"))
        for queue, each in zip(self._queues, queues, strict=True):
            queue.restore(saved.part({"queue": each}, "queue"))
        self._accepted = saved.number(state, "accepted", (1 << 64) - 1)
        selectors = saved.numbers(state, "selectors", 3, 0xFFFF_FFFF)
        self._feature_select, self._driver_select, self._queue_select = selectors
        self._write_config_vector(saved.number(state, "config_vector", 0xFFFF, NO_VECTOR))
        for index, vector in enumerate(saved.numbers(state, "vectors", len(self._queues), 0xFFFF, NO_VECTOR)):
            self._vectors[index] = vector if vector < self._msix.vectors else NO_VECTOR
        self._isr, self._generation = saved.number(state, "isr", 3), saved.number(state, "generation", 0xFF)
        self._status = saved.number(state, "status", 0xFF)
        if self._status & FEATURES_OK:
            if self._accepted & ~self._offered:
                raise ValueError(f"features {self._accepted:#x} of the snapshot's {self.name} are not all offered here")
            self._take_features()
        self.device.restore(saved.part(state, "own"))
        self._find_ready()


def _part(data: bytes, offset: int, size: int) -> int:
    """What lies beyond the end reads as zeros."""
    return int.from_bytes(data[offset : offset + size], "little")


def _ring_writes() -> dict[tuple[int, int], Callable[[VirtioPci, int], None]]:
    def write(name: str, shift: int, bits: int) -> Callable[[VirtioPci, int], None]:
        return lambda function, value: function._write_ring(name, shift, bits, value)

    writes: dict[tuple[int, int], Callable[[VirtioPci, int], None]] = {}
    for offset, name in ((0x20, "descriptors"), (0x28, "driver"), (0x30, "device")):
        writes |= {
            (offset, 8): write(name, 0, 64),
            (offset, 4): write(name, 0, 32),
            (offset + 4, 4): write(name, 32, 32),
        }
    return writes


# (offset, size) in the common configuration -> what a write does.
_WRITES: Final[dict[tuple[int, int], Callable[[VirtioPci, int], None]]] = {
    (0x00, 4): VirtioPci._write_feature_select,
    (0x08, 4): VirtioPci._write_driver_select,
    (0x0C, 4): VirtioPci._write_features,
    (0x10, 2): VirtioPci._write_config_vector,
    (0x14, 1): VirtioPci._write_status,
    (0x16, 2): VirtioPci._write_queue_select,
    (0x18, 2): VirtioPci._write_queue_size,
    (0x1A, 2): VirtioPci._write_queue_vector,
    (0x1C, 2): VirtioPci._write_queue_enable,
    **_ring_writes(),
}
