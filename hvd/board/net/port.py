"""Port: the host's side of a network card, and how it is watched without the vcpu's thread."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final, Protocol

# struct virtio_net_hdr_v1 (VIRTIO 1.2, 5.1.6), which is before every frame on its way to and from the guest.
HEADER_BYTES: Final = 12
ETHERNET_HEADER_BYTES: Final = 14
# With VLAN tag; the largest IP packet; GSO makes frames of up to this size.
MOST_FRAME_BYTES: Final = 18 + 65535


class Sent(enum.Enum):
    """What became of a frame of the guest."""

    DONE = 0
    DROPPED = 1  # it is no frame, or the host has no room for it: gone
    LATER = 2  # not taken: try again when the port is writable


class PortGone(Exception):
    """The cable was pulled at the other end, for good. The text says how."""


class Watch(Protocol):
    """A descriptor that is looked at by another thread, once each time it is armed."""

    def arm(self, readable: bool, writable: bool) -> None:
        """Any thread: call once, in the vcpu thread, when it is what is asked for. Armed anew, the last counts."""

    def close(self) -> None:
        """Before its descriptor is closed. No call comes after this, except one that is on its way already."""


class Watcher(Protocol):
    """Who watches: the runner's main thread."""

    def watch(self, fd: int, ready: Callable[[], None]) -> Watch: ...


class NobodyWatches:
    """For a machine without a runner: what arrives from outside waits for the guest to look."""

    def watch(self, fd: int, ready: Callable[[], None]) -> Watch:
        return _NoWatch()


class _NoWatch:
    def arm(self, readable: bool, writable: bool) -> None:
        pass

    def close(self) -> None:
        pass


class Port(Protocol):
    """Frames in and out. Used in the vcpu thread only; nothing here blocks."""

    # Bytes of the largest IP packet that gets through; what the guest is told.
    mtu: int
    # Frames may carry work for the other side (checksums, segmentation), as their virtio header says; receive()
    # tells of it only as far as set_offloads() allowed.
    offloads: bool

    def fileno(self) -> int:
        """To be watched; -1 = nothing ever arrives."""

    def set_offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """What the guest accepts of frames that it receives; without checksum nothing else. No effect without
        offloads."""

    def receive(self, buffer: memoryview) -> int:
        """The next frame with its header, of HEADER_BYTES + MOST_FRAME_BYTES at most; its length, 0 = there is none
        now. A frame that does not fit is cut off. Raises PortGone."""

    def send(self, header: bytes, frame: Sequence[memoryview]) -> Sent:
        """header: of HEADER_BYTES. frame: at least an Ethernet header. Raises PortGone."""

    def close(self) -> None: ...


class Unplugged:
    """No cable."""

    mtu = 1500
    offloads = False

    def fileno(self) -> int:
        return -1

    def set_offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        pass

    def receive(self, buffer: memoryview) -> int:
        return 0

    def send(self, header: bytes, frame: Sequence[memoryview]) -> Sent:
        return Sent.DROPPED

    def close(self) -> None:
        pass
