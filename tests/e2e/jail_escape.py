"""Goes into a runner's jail and tries to get out or to see more: `jail_escape.py DIRECTORY SECRET-FILE VICTIM-PID SOCKET`, as root.

Prints JSON: attempt -> "" when it was refused, else what it got.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvd.jail.enter import CELL, Jail, enter

LIBC = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: Any) -> Callable[[], Any]:
    """Raises OSError when it fails, whichever way."""

    def call() -> Any:
        result = LIBC.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    return call


def leave_by_chroot() -> str:
    """The old way: a directory that stays open while the root moves below it, then up from there."""
    os.mkdir("cage")
    above = os.open(".", os.O_RDONLY)
    os.chroot("cage")
    os.fchdir(above)
    for _ in range(30):
        os.chdir("..")
    os.chroot(".")
    return Path("/etc/passwd").read_text()


def main(directory: str, secret: str, victim: str, host_socket: str) -> None:
    os.chdir(directory)
    outside = os.open("/", os.O_PATH)  # what a careless runner might leave open is closed: see hvd.runner.__main__.detach
    os.close(outside)
    enter(Jail(1_900_000_000), CELL)
    pid = int(victim)
    attempts: dict[str, Callable[[], Any]] = {
        "read a file of the host": lambda: Path(secret).read_text(),
        "read /etc/passwd": lambda: Path("/etc/passwd").read_text(),
        "list the host's root": lambda: [name for name in os.listdir("/") if name in ("etc", "home", "usr", "dev", "sys", "run", "boot")],
        "the host's root by /proc": lambda: os.listdir(f"/proc/{pid}/root"),
        "see another process": lambda: Path(f"/proc/{pid}/cmdline").read_text(),
        "see init": lambda: Path("/proc/1/status").read_text(),
        "signal another process": lambda: os.kill(pid, 0),
        "connect to the daemon": lambda: socket.socket(socket.AF_UNIX).connect(host_socket),
        "a TCP socket": lambda: socket.socket(socket.AF_INET),
        "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "become root": lambda: os.setuid(0),
        "more capabilities": lambda: os.setgid(0),
        "a user namespace": system_call(272, 0x10000000),
        "clone with a namespace": system_call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
        "clone3": system_call(435, 0, 0),
        "another's namespace": system_call(308, 0, 0),
        "mount": system_call(165, b"none", b"/proc", b"tmpfs", 0, None),
        "unmount": system_call(166, b"/proc", 2),
        "open_tree": system_call(428, -100, b"/", 1),
        "pivot_root": system_call(155, b".", b"."),
        "ptrace": system_call(101, 16, pid, 0, 0),
        "process_vm_readv": system_call(310, pid, 0, 0, 0, 0, 0),
        "pidfd_getfd": system_call(438, 0, 0, 0),
        "I/O ports": system_call(172, 3),
        "bpf": system_call(321, 0, 0, 0),
        "a key": system_call(248, b"user", b"a", b"b", 1, -2),
        "io_uring": system_call(425, 8, 0),
        "userfaultfd": system_call(323, 0),
        "open by handle": system_call(304, -100, 0, 0),
        "the kernel's log": system_call(103, 3, 0, 0),
        "the clock": system_call(227, 0, ctypes.byref((ctypes.c_long * 2)(0, 0))),
        "a kernel module": system_call(313, 0, b"", 0),
        "x32": system_call(0x4000_0000 | 39),
        "a symbolic link": lambda: os.symlink("/etc/shadow", "link"),
        "a hard link": lambda: os.link("own", "link"),
        "a device": lambda: os.mknod("device", 0o20600, os.makedev(1, 1)),
        "write to a library": lambda: Path(os.__file__).write_text(""),
        "write to the root": lambda: os.mkdir("/new"),
        "a core file": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
        "more descriptors": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16)),
        "a program with more rights": lambda: os.posix_spawn("/usr/bin/su", ["su"], {}),
        "leave by chroot": leave_by_chroot,  # the last: afterwards the root is another
    }
    found: dict[str, str] = {}
    Path("own").write_text("what is the guest's own can be written")
    own = Path("own").read_text()
    for name, attempt in attempts.items():
        try:
            found[name] = str(attempt() or "")[:200] if name == "list the host's root" else str(attempt())[:200] or "done"
        except (OSError, ValueError):  # ValueError: what resource makes of EPERM
            found[name] = ""
    found["own"] = own
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
