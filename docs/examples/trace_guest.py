#!/usr/bin/env python3
"""Starts a guest, shows every crossing between it and the hypervisor while it runs, and stops and deletes it.

    trace_guest.py ENDPOINT KERNEL [SECONDS]

ENDPOINT is unix:///path/to/hvd.sock or host:port, KERNEL any kernel that the daemon can load, SECONDS how long to look
(default 5). The guest is loaded and held before its first instruction, so that the trace begins with it.
"""

from __future__ import annotations

import sys
from collections import Counter

from hvctl.sdk import Client, HvctlError, TraceDecoder


def main(endpoint: str, kernel: str, seconds: float = 5.0) -> int:
    with Client(endpoint) as client:
        guest = client.run_guest(kernel=kernel, memory_bytes=64 << 20, paused=True)
        print(f"{guest.name} on {guest.backend}: {guest.backend_reason}")
        try:
            count = trace(client, guest.name, seconds)
            guest = client.stop_guest(name=guest.name)
            print(f"{guest.name} ended: {guest.reason}, exit code {guest.exit_code}")
        finally:
            client.delete_guest(name=guest.name, force=True)
    for name, number in count.most_common():
        print(f"{number:8} {name}")
    return 0 if count else 1


def trace(client: Client, name: str, seconds: float) -> Counter[str]:
    """Prints the events of so many seconds, or until the guest ends, and counts them by trace point."""
    count: Counter[str] = Counter()
    decoder = TraceDecoder()
    with client.stream_trace(names=[name], timeout=seconds) as stream:
        try:
            for block in stream:
                if block.HasField("header"):  # recording is on: nothing will be missed
                    client.resume_guest(name=name)
                for event in decoder.decode(block):
                    print(event)
                    count[event.name] += event.lost or 1
        except HvctlError as error:
            if error.reason != "TIMED_OUT":  # the deadline is how this look is meant to end
                raise
    return count


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], *(float(word) for word in sys.argv[3:])))
    except HvctlError as error:
        sys.exit(f"trace_guest.py: {error}")
