"""A tap of the host, made by the daemon as a port of a network's bridge (hvd/network/links.py).

Frames pass with their virtio header, so the host does for the guest what the header asks for: checksums and
segmentation out, and in as far as the guest's driver takes them. The host's kernel checks the header.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from typing import Final

from hvd.board.net.port import PortGone, Sent

# linux/if_tun.h
_TUNSETOFFLOAD: Final = 0x400454D0
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8


class Tap:
    """Takes the descriptor over. It is the tap's life."""

    offloads = True

    def __init__(self, fd: int, mtu: int) -> None:
        self._fd = fd
        self.mtu = mtu
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        return self._fd

    def set_offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        flags = 0
        if checksum:
            flags = _TUN_F_CSUM | (_TUN_F_TSO4 if tso4 else 0) | (_TUN_F_TSO6 if tso6 else 0)
            if ecn and (tso4 or tso6):
                flags |= _TUN_F_TSO_ECN
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, flags)
        except OSError as error:
            raise _gone(error) from error

    def receive(self, buffer: memoryview) -> int:
        try:
            return os.readv(self._fd, [buffer])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _gone(error) from error

    def send(self, header: bytes, frame: Sequence[memoryview]) -> Sent:
        try:
            os.writev(self._fd, [header, *frame])
        except OSError as error:
            if error.errno in _GONE:
                raise _gone(error) from error
            # EINVAL: no frame, or a header that lies about it; ENOBUFS, EAGAIN, ENOMEM: the host has no room;
            # EIO: the interface was set down by somebody.
            return Sent.DROPPED
        return Sent.DONE

    def close(self) -> None:
        os.close(self._fd)


# EBADFD: the interface was deleted.
_GONE: Final = frozenset({77, 9, 19})


def _gone(error: OSError) -> PortGone:
    return PortGone(f"the tap is gone: {os.strerror(error.errno or 0)}")
