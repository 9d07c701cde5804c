"""virtio-net (VIRTIO 1.2, 5.1): one pair of queues, mergeable receive buffers, link status, MTU; checksum and
segmentation offloads where the port has them. Left out: control queue (filters, promiscuity: the card takes every
frame that comes), multiqueue, RSS, guest announcements.

The guest's receive buffers and the host's own queue (a tap has room for 500 frames or so, a stream what its socket
holds) are the only ones: a frame is read from the host when the guest has a buffer for it. A flood from outside ends
in the host's queue, a flood from the guest costs its own vcpu's time.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

from hvd.board.net.port import (
    ETHERNET_HEADER_BYTES,
    HEADER_BYTES,
    MOST_FRAME_BYTES,
    NobodyWatches,
    Port,
    PortGone,
    Sent,
    Unplugged,
    Watcher,
)
from hvd.board.virtio.device import VirtioDevice
from hvd.board.virtio.queue import Chain
from hvd.trace.counters import NIC_FIELDS
from hvd.trace.points import BY_NAME

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE: Final = 256
# Frames taken from the host in one go, so that the guest gets to run in a flood.
BURST: Final = 64

# 5.1.3
CSUM, GUEST_CSUM = 1 << 0, 1 << 1
MTU, MAC = 1 << 3, 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
HOST_TSO4, HOST_TSO6, HOST_ECN = 1 << 11, 1 << 12, 1 << 13
MERGEABLE, STATUS = 1 << 15, 1 << 16
OFFLOADS: Final = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN

LINK_UP: Final = 1
CONFIG: Final = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu
BUFFERS: Final = struct.Struct("<H")
BUFFERS_OFFSET: Final = 10  # of num_buffers in the header
NO_OFFLOADS: Final = bytes(HEADER_BYTES)


_WORD: Final = {name: number for number, name in enumerate(NIC_FIELDS)}
_RECEIVED_BYTES, _RECEIVED = _WORD["received_bytes"], _WORD["received_packets"]
_TRANSMITTED_BYTES, _TRANSMITTED = _WORD["transmitted_bytes"], _WORD["transmitted_packets"]
_RECEIVE_POINT, _TRANSMIT_POINT = BY_NAME["nic-receive"].id, BY_NAME["nic-transmit"].id
_NOT_RECEIVED, _NOT_TRANSMITTED = _WORD["received_dropped"], _WORD["transmitted_dropped"]


class Net(VirtioDevice):
    """label: "net0". log: a line for people. is_paused: the guest stands still, and nothing may reach its memory."""

    name: ClassVar[str] = "virtio-net"
    device_id: ClassVar[int] = 1
    class_code: ClassVar[int] = 0x02_00_00
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(
        self,
        label: str,
        mac: str,
        port: Port,
        *,
        watcher: Watcher | None = None,
        log: Callable[[bytes], None] = lambda line: None,
        is_paused: Callable[[], bool] = lambda: False,
        counters: ctypes.Array[ctypes.c_uint64] | None = None,
        note: Callable[[int, int, int], None] = lambda point, start_ns, length: None,
    ) -> None:
        """counters: HotBoard.nic_counters(). note: told of each frame the trace point, since when it was worked on, and its length."""
        self.label = label
        self.counters = counters if counters is not None else (ctypes.c_uint64 * len(NIC_FIELDS))()
        self._note = note
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._port = port
        self._log, self._is_paused = log, is_paused
        self._up = not isinstance(port, Unplugged)
        self.features = MAC | MTU | MERGEABLE | STATUS | (OFFLOADS if port.offloads else 0)
        self._buffer = memoryview(bytearray(HEADER_BYTES + MOST_FRAME_BYTES))
        self._length = 0  # of a frame in the buffer that the guest has no room for yet
        self._offloads = 0  # features that the port was told of
        self._stuck = False  # frames of the guest wait until the port takes them
        self._full = False  # a frame for the guest waits until it gives buffers
        self._more = False  # the port may have more frames than were taken in one go
        self._watch = (watcher or NobodyWatches()).watch(port.fileno(), self._port_ready) if self._up else None

    @property
    def config(self) -> bytes:
        return CONFIG.pack(self._mac, LINK_UP if self._up else 0, 1, self._port.mtu)

    def handle_queue(self, index: int) -> None:
        if index == TRANSMIT:
            self._transmit()
        try:
            # What answers what was just sent is often there already, and looking costs less than being woken for it.
            self._receive()
        except PortGone as error:
            self._pull(error)
        self._arm()

    def _port_ready(self) -> None:
        """In the vcpu thread: the port has something, or takes something again."""
        if not self._is_paused():  # otherwise it is called again when the guest goes on
            self.run_queue(TRANSMIT if self._stuck else RECEIVE)

    # ---- to the guest

    def _receive(self) -> None:
        """Until the host has no more, the guest no buffer, or it was enough for one go. Raises PortGone."""
        if not self._up or not self.queues[RECEIVE].enabled:
            return
        self._full = self._more = False
        self._agree()
        for _ in range(BURST):
            if not self._length:
                self._length = self._port.receive(self._buffer)
                if not self._length:
                    return
            if not self._deliver():
                self._full = True  # its driver notifies when there are buffers
                return
        self._more = True

    def _deliver(self) -> bool:
        """The frame in the buffer; False = the guest has no room for it."""
        queue, length, start = self.queues[RECEIVE], self._length, time.monotonic_ns()
        frame_bytes = length - HEADER_BYTES
        if frame_bytes < ETHERNET_HEADER_BYTES:
            self._length = 0
            self.counters[_NOT_RECEIVED] += 1
            return True
        chains: list[Chain] = []
        capacity = 0
        mergeable = self.negotiated & MERGEABLE
        while capacity < length:
            chain = queue.pop()
            if chain is None:
                queue.unpop(len(chains))
                return False
            chains.append(chain)
            room = chain.capacity
            capacity += room
            if room < HEADER_BYTES or (not mergeable and capacity < length):
                # 5.1.6.3.1: a driver has to give buffers that are large enough. The frame is lost, they go back.
                for given in chains:
                    queue.push(given, 0)
                self._length = 0
                self.counters[_NOT_RECEIVED] += 1
                return True
        BUFFERS.pack_into(self._buffer, BUFFERS_OFFSET, len(chains))
        written = 0
        for chain in chains:
            size = chain.write(self._buffer[written:length])
            queue.push(chain, size)
            written += size
        self._length = 0
        self.counters[_RECEIVED] += 1
        self.counters[_RECEIVED_BYTES] += frame_bytes
        self._note(_RECEIVE_POINT, start, frame_bytes)
        return True

    # ---- from the guest

    def _transmit(self) -> None:
        queue = self.queues[TRANSMIT]
        self._stuck = False
        while (chain := queue.pop()) is not None:
            sent = self._send(chain)
            if sent is Sent.LATER:
                queue.unpop(1)
                self._stuck = True
                return
            queue.push(chain, 0)
            if sent is Sent.DROPPED:
                self.counters[_NOT_TRANSMITTED] += 1

    def _send(self, chain: Chain) -> Sent:
        header, frame = split(chain.readable)
        length = sum(map(len, frame))
        if not self._up or len(header) < HEADER_BYTES or not ETHERNET_HEADER_BYTES <= length <= MOST_FRAME_BYTES:
            return Sent.DROPPED
        start = time.monotonic_ns()
        try:
            sent = self._port.send(header if self.negotiated & CSUM else NO_OFFLOADS, frame)
        except PortGone as error:
            self._pull(error)
            return Sent.DROPPED
        if sent is Sent.DONE:
            self.counters[_TRANSMITTED] += 1
            self.counters[_TRANSMITTED_BYTES] += length
            self._note(_TRANSMIT_POINT, start, length)
        return sent

    # ---- the port

    def _agree(self) -> None:
        """The port gives no more work to the guest than its driver accepted. Raises PortGone."""
        accepted = self.negotiated & OFFLOADS
        if accepted != self._offloads:
            self._port.set_offloads(
                bool(accepted & GUEST_CSUM),
                bool(accepted & GUEST_TSO4),
                bool(accepted & GUEST_TSO6),
                bool(accepted & GUEST_ECN),
            )
            self._offloads = accepted

    def _arm(self) -> None:
        if self._watch is not None:
            # What a port has read ahead does not make it readable: it is writable then, which calls just as well.
            self._watch.arm(readable=not self._full, writable=self._stuck or self._more)

    def _pull(self, error: PortGone) -> None:
        """The link is down from now on; the guest goes on and hears of it."""
        if not self._up:
            return
        self._up = False
        self._length = 0
        self._unwatch()
        self._log(f"network card {self.label}: {error}; its link is down until the guest is started again".encode())
        self.config_changed()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    # ---- life

    def reset(self) -> None:
        self._length = 0
        self._stuck = self._full = self._more = False

    def close(self) -> None:
        self._unwatch()
        self._port.close()

    def restore(self, state: dict[str, Any]) -> None:
        """Frames under way are lost, as may happen on any network. The MAC is the machine's own: a clone has another,
        which its driver learns when it begins anew."""
        self.reset()
        self._arm()


def split(parts: list[memoryview]) -> tuple[bytes, list[memoryview]]:
    """Header (shorter than HEADER_BYTES when there is no more) and frame of what the driver sent; it may lay them out
    as it likes (2.7.4)."""
    if parts and len(parts[0]) == HEADER_BYTES:
        return bytes(parts[0]), parts[1:]
    header = b""
    frame: list[memoryview] = []
    for part in parts:
        missing = HEADER_BYTES - len(header)
        if missing:
            header += bytes(part[:missing])
            part = part[missing:]
        if len(part):
            frame.append(part)
    return header, frame
