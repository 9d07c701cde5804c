"""A process that works on a guests' store, step by step, and says which steps were answered: for test_store_crashes.py, which kills it at
each of its system calls on the store's files. It forks for each run, so that it imports once.

On stdin a directory a line; for each, "step" lines and then "end N" (its wait status) on stdout.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from hvapi.v1 import guest_pb2

from hvd.guests.store import Store

Guest = guest_pb2.Guest


def guest(name: str, **fields: object) -> Guest:
    return Guest(name=f"guests/{name}", uid=f"uid-{name}", **fields)  # type: ignore[arg-type]


async def work(directory: Path) -> None:
    def answered(step: str) -> None:
        os.write(1, f"{step}\n".encode())

    store = Store(directory)
    await store.open()
    answered("open")
    await store.create(guest("a"), "", b"")
    answered("create a")
    await store.create(guest("b"), "request-b", b"print")
    answered("create b")
    await store.begin_creation("uid-c")
    answered("begin c")
    await store.create(guest("c"), "", b"")
    answered("create c")
    await store.put([guest("a", state=Guest.RUNNING)])
    answered("put a")
    await store.put([guest("b", labels={"x": "y"})], durable=True)
    answered("update b")
    await store.delete("uid-a")
    answered("delete a")
    await store.finished(["uid-a"])
    answered("finished a")
    # Of several pages; close() then folds the log into the file.
    await store.create(guest("large", status_message="x" * 60_000), "", b"")
    answered("create large")
    await store.close()
    answered("close")


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(work(Path(line.strip())))
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        os.write(1, f"end {status}\n".encode())


if __name__ == "__main__":
    main()
