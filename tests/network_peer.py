"""A TCP peer on the host's side of a network: run as a program within a namespace.

    network_peer.py take ADDRESS PORT         accepts once, reads to the end
    network_peer.py give ADDRESS PORT BYTES   accepts once, sends that many bytes, waits until the other side has closed

Prints "ready" first, and at the end the MD5 of what passed, how many bytes it was and how many nanoseconds it took.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
import time

PIECE = 1 << 20


def main(what: str, address: str, port: str, *size: str) -> None:
    with socket.create_server((address, int(port))) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
    with connection:
        start = time.monotonic_ns()
        pieces = []
        if what == "give":
            left = int(size[0])
            data = random.randbytes(PIECE)
            while left > 0:
                pieces.append(data[:left])
                connection.sendall(pieces[-1])
                left -= len(pieces[-1])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        else:
            while piece := connection.recv(PIECE):
                pieces.append(piece)
        elapsed = time.monotonic_ns() - start
    digest = hashlib.md5()
    for piece in pieces:
        digest.update(piece)
    print(digest.hexdigest(), sum(map(len, pieces)), elapsed, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
