"""What a virtio device is beside its transport: subclass VirtioDevice, one file a device, and a line in devices.py.

    class Rng(VirtioDevice):
        name = "virtio-rng"
        device_id = 4
        queue_sizes = (64,)

        def handle_queue(self, index: int) -> None:
            while (chain := self.queues[index].pop()) is not None:
                self.queues[index].push(chain, chain.write(os.urandom(chain.capacity)))

That is all of it: the transport looks after features, interrupts, resets and drivers that break the rules.
Everything is called in the vcpu thread. Another thread which has something for the guest (a packet, a typed byte) calls
`machine.call(device.host_event, ...)`, or whatever brings it into the vcpu thread and then to `run_queue`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from hvd.board.pci.registers import Purpose, VirtioRegisters
    from hvd.board.virtio.queue import Queue

# VIRTIO 1.2, 6. Offered by the transport for every device.
RING_INDIRECT_DESC: Final = 1 << 28
RING_EVENT_IDX: Final = 1 << 29
VERSION_1: Final = 1 << 32
# Of the status, 2.1.
DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 4, 8, 64, 128


class VirtioDevice:
    """Base of all devices."""

    name: ClassVar[str]
    device_id: ClassVar[int]  # VIRTIO 1.2, 5
    class_code: ClassVar[int] = 0xFF_00_00  # of PCI: what lspci calls it
    queue_sizes: Sequence[int] = ()  # descriptors of each queue, powers of two
    features: int = 0  # of this kind of device: bits 0-23 and 50 up
    purposes: ClassVar[Mapping[int, Purpose]] = {}  # of queues that C knows more of

    # Set by the transport.
    queues: Sequence[Queue] = ()
    registers: VirtioRegisters  # what the driver wrote
    run_queue: Callable[[int], None]  # handle_queue(index) with all that belongs to it; no effect unless ready
    config_changed: Callable[[], None]  # the device's configuration changed: the driver is interrupted

    @property
    def negotiated(self) -> int:
        """Features that the driver accepted; 0 before FEATURES_OK."""
        return self.registers.accepted if self.registers.status & FEATURES_OK else 0

    @property
    def ready(self) -> bool:
        """DRIVER_OK is set and the driver has broken no rule."""
        return bool(self.registers.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) == FEATURES_OK | DRIVER_OK)

    @property
    def config(self) -> bytes:
        """The device-specific configuration as the driver reads it now, little-endian. Its length never changes."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote it: 1, 2, 4 or 8 bytes within its length."""

    def handle_queue(self, index: int) -> None:
        """The driver notified a queue, or the host has something for it: pop and push until pop() gives None.
        May raise QueueError for a request whose form breaks the device's rules; OSError is the device's own to
        handle."""

    def reset(self) -> None:
        """By the driver or the reset line. The queues are reset already."""

    def close(self) -> None:
        """The machine has ended."""

    def save(self) -> dict[str, Any]:
        """Beside its queues."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, TypeError (hvd.board.saved)."""
