"""The transport of virtio devices: virtio over PCI, modern only (VIRTIO 1.2, 4.1).

BAR 1 is the table of MSI-X. BAR 4 holds a page for each of the structures that vendor capabilities point to:
common configuration, ISR status, the device's own configuration, notifications. The registers of the first two are in C
(hvd/board/native/virtio.c), which also negotiates and enables queues for a driver that keeps to the rules. What it did is found
here when it matters (_settle). It leaves to Python the reset of a device that was used, and queues that it does not find sound.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from hvd.board import saved
from hvd.board.bus import floating
from hvd.board.pci.function import Bar, Identity, PciFunction
from hvd.board.pci.msix import BAR_BYTES, Msix
from hvd.board.pci.registers import QUEUES
from hvd.board.virtio.device import (
    DRIVER_OK,
    FEATURES_OK,
    NEEDS_RESET,
    RING_EVENT_IDX,
    RING_INDIRECT_DESC,
    VERSION_1,
    VirtioDevice,
)
from hvd.board.virtio.queue import Queue, QueueError
from hvd.trace.points import BY_NAME

if TYPE_CHECKING:
    from hvd.board.machine import Machine
    from hvd.board.pci.bus import PciBus

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

# virtio_pci_common_cfg, 4.1.4.3: its length, and where the two registers are that are written here.
COMMON_BYTES: Final = 60
STATUS, QUEUE_ENABLE = 0x14, 0x1C
NO_VECTOR: Final = 0xFFFF
ISR_QUEUE, ISR_CONFIG = 1, 2
NOTIFY_POINT: Final = BY_NAME["virtio-notify"].id
FAULT_POINT: Final = BY_NAME["virtio-fault"].id


class VirtioPci(PciFunction):
    """One device on the bus."""

    def __init__(self, machine: Machine, device: VirtioDevice) -> None:
        identity = Identity(
            VENDOR, FIRST_DEVICE + device.device_id, device.class_code, 1, VENDOR, FIRST_DEVICE + device.device_id
        )
        super().__init__(device.name, identity, bars=(TABLE_BAR, BAR), interrupt_pin=1)
        if len(device.queue_sizes) > QUEUES:
            raise ValueError(f"{device.name} has more than {QUEUES} queues")
        self.device = device
        self._machine = machine
        self._queues = [Queue(machine.memory, self._memory_changed, size) for size in device.queue_sizes]
        self._msix = Msix(self, TABLE_BAR, 1 + len(self._queues), machine.msi)
        self._structures()
        device.queues = self._queues
        device.run_queue = self._run_queue
        device.config_changed = self._config_changed
        self._virtio = device.registers = virtio = self.config.space.virtio
        virtio.offered = device.features | VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX
        virtio.ram_end = machine.memory.low_ram_end
        virtio.bar, virtio.queues, virtio.vectors = BAR.index, len(self._queues), self._msix.vectors
        virtio.msix = self._msix.control + 1
        for index, purpose in device.purposes.items():
            virtio.queue[index].purpose = purpose
        self._taken = 0  # features that the queues know of
        self._reported = False

    def attach(self, bus: PciBus) -> None:
        super().attach(bus)
        self._virtio = self.device.registers = self.config.space.virtio
        for queue, registers in zip(self._queues, self._virtio.queue, strict=False):
            queue.move(registers)
        self._reset_device()

    def _structures(self) -> None:
        lengths = {
            COMMON: COMMON_BYTES,
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
        access = self.config.add_capability(VENDOR_CAPABILITY, form, writable)
        self._access, self._window = access, range(access + 16, access + 20)
        self.config.ask(self._window)
        self.config.tell(self._window)

    def _memory_changed(self, ranges: list[int]) -> None:
        self._machine.vcpu.memory_changed_at(ranges)

    # ---- configuration space

    def read_config(self, offset: int, size: int) -> int:
        if offset in self._window:
            return self._through_config(offset, size, None)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        super().write_config(offset, size, value)
        if offset in self._window:
            self._through_config(offset, size, value)
        self._msix.deliver()

    def _through_config(self, offset: int, size: int, value: int | None) -> int:
        """pci_cfg_data: an access to a structure, of the length that the capability's register says."""
        _, bar, _, _, at, length = struct.unpack_from("<BBBHII", self.config.data, self._access + 3)
        if offset != self._window.start or length not in (1, 2, 4) or size < length or at % length:
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
        value = self._registers.read_virtio(self.config.space, bar, offset, size)
        return _part(self.device.config, offset % PAGE, size) if value is None else value

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == TABLE_BAR.index:
            self._msix.write(offset, size, value)
            return
        if self._registers.write_virtio(self.config.space, bar, offset, size, value):
            return
        page, offset = offset // PAGE, offset % PAGE
        if page == PAGES[NOTIFY]:
            index, rest = divmod(offset, NOTIFY_MULTIPLIER)
            if not rest and index < len(self._queues):
                self._notified(index)
        elif page == PAGES[COMMON] and offset == STATUS:
            self._reset_device()  # what else the driver tells by it is in C
        elif page == PAGES[COMMON] and offset == QUEUE_ENABLE:
            self._settle()
            self._enable(self._virtio.queue_select)
        elif page == PAGES[DEVICE] and offset + size <= len(self.device.config):
            self.device.write_config(offset, value.to_bytes(size, "little"))

    # ---- common configuration

    def _settle(self) -> None:
        """What was negotiated and enabled without Python, before it matters."""
        accepted = self.device.negotiated
        if accepted != self._taken:
            self._taken = accepted
            for queue in self._queues:
                queue.set_features(bool(accepted & RING_INDIRECT_DESC), bool(accepted & RING_EVENT_IDX))
        for index, queue in enumerate(self._queues):
            if queue.registers.enabled and not queue.enabled:
                self._enable(index)

    def _enable(self, index: int) -> None:
        """A queue that is there and not enabled."""
        try:
            self._queues[index].enable([other for other in self._queues if other.enabled])
        except QueueError as error:
            self._broken(index, error)

    # ---- queues and interrupts

    def _notified(self, index: int) -> None:
        """By the driver: a crossing of its own kind."""
        before = self._queues[index].pushed
        self._run_queue(index)
        done = (self._queues[index].pushed - before) & 0xFFFF
        self._machine.record_as(NOTIFY_POINT, self.slot, self.device.device_id, index, done)

    def _run_queue(self, index: int) -> None:
        """A queue was notified, by the driver or the host."""
        self._settle()
        if not self.device.ready or not self.may_master or not self._queues[index].enabled:
            return
        try:
            self.device.handle_queue(index)
        except QueueError as error:
            self._queues[index].finish()
            self._broken(index, error)
            return
        for queue in self._queues:
            if queue.finish():
                self._interrupt(ISR_QUEUE, queue.registers.vector)

    def _broken(self, index: int, error: QueueError) -> None:
        """2.1.2: the driver has to reset the device, which does nothing until then."""
        self._machine.board.cross(FAULT_POINT, 0, 0, 0, self.slot, self.device.device_id, index)
        self._virtio.status |= NEEDS_RESET
        if not self._reported:
            self._reported = True
            text = f"{self.name} at {self.place}: queue {index}: {error}; the device does nothing until its driver resets it"
            self._machine.log(text.encode())
        if self._virtio.status & DRIVER_OK:
            self._config_changed()

    def _config_changed(self) -> None:
        self._virtio.generation = (self._virtio.generation + 1) & 0xFF
        if self._virtio.status & DRIVER_OK:
            self._interrupt(ISR_CONFIG, self._virtio.config_vector)

    def _interrupt(self, cause: int, vector: int) -> None:
        if self._msix.enabled:
            if vector != NO_VECTOR:
                self._msix.fire(vector)
            return
        self._virtio.isr |= cause
        self.set_intx(True)

    # ---- life

    def _reset_device(self) -> None:
        """4.1.4.3.1: everything but the function's PCI side."""
        virtio = self._virtio
        virtio.status = virtio.isr = virtio.generation = 0
        virtio.feature_select = virtio.driver_select = virtio.queue_select = 0
        virtio.accepted = 0
        virtio.config_vector = NO_VECTOR
        for queue in self._queues:
            queue.reset()
            queue.registers.vector = NO_VECTOR
        self._taken = 0
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
        self._settle()
        virtio = self._virtio
        return super().save() | {
            "device": self.name, "msix": self._msix.save(), "status": virtio.status, "isr": virtio.isr,
            "generation": virtio.generation, "selectors": [virtio.feature_select, virtio.driver_select, virtio.queue_select],
            "accepted": virtio.accepted, "config_vector": virtio.config_vector,
            "vectors": [queue.registers.vector for queue in self._queues],
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
        virtio = self._virtio
        virtio.accepted = saved.number(state, "accepted", (1 << 64) - 1)
        virtio.feature_select, virtio.driver_select, virtio.queue_select = saved.numbers(state, "selectors", 3, 0xFFFF_FFFF)
        virtio.config_vector = self._vector(saved.number(state, "config_vector", 0xFFFF, NO_VECTOR))
        vectors = saved.numbers(state, "vectors", len(self._queues), 0xFFFF, NO_VECTOR)
        for queue, vector in zip(self._queues, vectors, strict=True):
            queue.registers.vector = self._vector(vector)
        virtio.isr, virtio.generation = saved.number(state, "isr", 3), saved.number(state, "generation", 0xFF)
        virtio.status = saved.number(state, "status", 0xFF)
        if virtio.status & FEATURES_OK:
            if virtio.accepted & ~virtio.offered:
                raise ValueError(f"features {virtio.accepted:#x} of the snapshot's {self.name} are not all offered here")
            self._settle()
        self.device.restore(saved.part(state, "own"))

    def _vector(self, vector: int) -> int:
        return vector if vector < self._msix.vectors else NO_VECTOR


def _part(data: bytes, offset: int, size: int) -> int:
    """What lies beyond the end reads as zeros."""
    return int.from_bytes(data[offset : offset + size], "little")

