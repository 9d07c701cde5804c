"""Goes into a runner's jail and tries to get out or to see more: `jail_escape.py WALLS DIRECTORY SECRET-FILE VICTIM-PID SOCKET`, as root.
WALLS: all, as of a runner of the daemon; landlock, those that a daemon without privileges has; landlock around a child, as of a
runner whose cell was made before it went in.

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

from hvd.jail import landlock
from hvd.jail.enter import CELL, PERFMON, Jail, enter
from hvd.jail.pids import own_pids
from hvd.jail.user import NEEDED

SYS_ADMIN = NEEDED["sys_admin"]
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


class Counting(ctypes.Structure):
    """struct perf_event_attr: the processor's cycles, those of user programs only (exclude_kernel, exclude_hv)."""

    _fields_ = (("type", ctypes.c_uint32), ("size", ctypes.c_uint32), ("config", ctypes.c_uint64), ("sample", ctypes.c_uint64 * 3),
                ("flags", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 80))  # fmt: skip

    def __init__(self) -> None:
        super().__init__(0, 128, 0, (0, 0, 0), 1 << 5 | 1 << 6)


def other_processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


def ways_through_the_fence(secret: str, pid: int, host_socket: str) -> dict[str, Callable[[], Any]]:
    """What Landlock alone refuses, even to root."""
    return {
        "read a file of the host": lambda: Path(secret).read_text(),
        "read /etc/passwd": lambda: Path("/etc/passwd").read_text(),
        "list the host's root": lambda: os.listdir("/"),
        "truncate": lambda: os.truncate(secret, 0),
        "write": lambda: Path(secret).write_text("x"),
        "delete": lambda: os.unlink(secret),
        "rename": lambda: os.rename(secret, "taken"),
        "a new file": lambda: Path(f"{secret}.new").write_text("x"),
        "a new directory": lambda: os.mkdir(f"{secret}.new"),
        "write to a library": lambda: os.open(os.__file__, os.O_WRONLY),
        "run a program of the host": lambda: os.posix_spawn("/usr/bin/id", ["id"], {}),
        "run one of its own": run_own_program,
        "the environment of another": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        "the memory of another": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
        "a descriptor of another": lambda: os.readlink(f"/proc/{pid}/fd/0"),
        "a file of another": lambda: os.open(f"/proc/{pid}/fd/0", os.O_RDONLY),
        "another's root": lambda: Path(f"/proc/{pid}/root/etc/passwd").read_text(),
        "its own root": lambda: Path("/proc/self/root/etc/passwd").read_text(),
        "up from its directory": lambda: Path("/proc/self/cwd/../secret").read_text(),
        "signal another": lambda: os.kill(pid, 0),
        "an abstract socket": lambda: socket.socket(socket.AF_UNIX).connect("\0" + host_socket),
        "mount": system_call(165, b"none", b"/proc", b"tmpfs", 0, None),
    }


def give_up(capability: int) -> None:
    """Of this process, which is root otherwise."""
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    system_call(125, header, sets)()
    for kind in range(3):
        sets[3 * (capability // 32) + kind] &= ~(1 << capability % 32)
    system_call(126, header, sets)()


def run_own_program() -> int:
    Path("program").write_text("#!/bin/sh\n")
    os.chmod("program", 0o700)
    return os.posix_spawn("./program", ["program"], {})


def lonely_child() -> int:
    """A process that waits, within a Landlock that keeps signals in."""
    landlock.close_signals()
    if child := os.fork():
        return child
    signal.pause()
    os._exit(1)


def main(walls: str, directory: str, secret: str, victim: str, host_socket: str) -> None:
    os.chdir(directory)
    with own_pids(walls == "all"):
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                outside = os.open("/", os.O_PATH)  # what a careless runner might leave open is closed: see hvd.runner.__main__.detach
                os.close(outside)
                cell = lonely_child() if walls.endswith("a child") else None
                if walls != "all":  # which daemons without privileges do not have, and with which one reads everybody's memory
                    give_up(PERFMON)
                    give_up(SYS_ADMIN)
                enter(Jail(1_900_000_000 if walls == "all" else None), CELL, child=cell is not None)
                if cell is not None:  # the only one that it may still signal
                    os.kill(cell, signal.SIGKILL)
                    os.waitpid(cell, 0)
                find_ways_out(walls, secret, int(victim), host_socket)
                sys.stdout.flush()
                os._exit(0)
            except BaseException as error:  # noqa: BLE001  nothing of it may run on as the parent
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def find_ways_out(walls: str, secret: str, pid: int, host_socket: str) -> None:
    attempts: dict[str, Callable[[], Any]] = ways_through_the_fence(secret, pid, host_socket) if walls != "all" else {
        "read a file of the host": lambda: Path(secret).read_text(),
        "read /etc/passwd": lambda: Path("/etc/passwd").read_text(),
        "list the host's root": lambda: [name for name in os.listdir("/") if name in ("etc", "home", "usr", "dev", "sys", "run", "boot")],
        "the host's root by /proc": lambda: os.listdir(f"/proc/{pid}/root"),
        "see another process": lambda: Path(f"/proc/{pid}/cmdline").read_text(),
        "see anybody": other_processes,
        "the host's root by its own": lambda: [name for name in os.listdir("/proc/self/root") if name in ("etc", "home", "usr", "dev", "sys", "run")],
        "the host's root by process 1": lambda: Path("/proc/1/root/etc/passwd").read_text(),
        "up from its directory": lambda: Path("/proc/self/cwd/../secret").read_text(),
        "another's memfd": lambda: os.listdir(f"/proc/{pid}/fd"),
        "the kernel's memory": lambda: os.open("/proc/kcore", os.O_RDONLY),
        "a setting of the kernel": lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
        "sysrq": lambda: os.open("/proc/sysrq-trigger", os.O_WRONLY),
        "signal another process": lambda: os.kill(pid, 0),
        "signal the parent": lambda: os.kill(os.getppid() or pid, 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "signal by descriptor": lambda: os.pidfd_open(pid),
        "a descriptor of another": lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0),
        "connect to the daemon": lambda: socket.socket(socket.AF_UNIX).connect(host_socket),
        "a TCP socket": lambda: socket.socket(socket.AF_INET),
        "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "become root": lambda: os.setuid(0),
        "more capabilities": lambda: os.setgid(0),
        "a user namespace": system_call(272, 0x10000000),
        "a PID namespace": system_call(272, 0x20000000),
        "a mount namespace": system_call(272, 0x20000),
        "count what another does": system_call(298, ctypes.byref(Counting()), pid, -1, -1, 0),
        "count what a processor does": system_call(298, ctypes.byref(Counting()), -1, 0, -1, 0),
        "clone with a namespace": system_call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
        "clone3": system_call(435, 0, 0),
        "another's namespace": system_call(308, 0, 0),
        "mount": system_call(165, b"none", b"/proc", b"tmpfs", 0, None),
        "unmount": system_call(166, b"/proc", 2),
        "open_tree": system_call(428, -100, b"/", 1),
        "pivot_root": system_call(155, b".", b"."),
        "ptrace": system_call(101, 16, pid, 0, 0),
        "process_vm_readv": system_call(310, pid, 0, 0, 0, 0, 0),
        "process_vm_writev": system_call(311, pid, 0, 0, 0, 0, 0),
        "kcmp": system_call(312, 1, pid, 0, 0, 0),
        "another's memory": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
        "pidfd_getfd": system_call(438, 0, 0, 0),
        "I/O ports": system_call(172, 3),
        "bpf": system_call(321, 0, 0, 0),
        "a key": system_call(248, b"user", b"a", b"b", 1, -2),
        "the session's keys": system_call(250, 0, -3, 0),
        "ask for a key": system_call(249, b"user", b"a", None, -3),
        "fsopen": system_call(430, b"tmpfs", 0),
        "move_mount": system_call(429, -1, b"/", -100, b"/proc", 0),
        "fanotify": system_call(300, 0, 0),
        "personality": system_call(135, 0x0400000),
        "a swap file": system_call(167, b"own", 0),
        "reboot": system_call(169, 0xFEE1DEAD, 672274793, 0, 0),
        "an abstract socket": lambda: socket.socket(socket.AF_UNIX).connect("\0" + host_socket),
        "a vsock socket": lambda: socket.socket(40, socket.SOCK_STREAM),
        "an AF_ALG socket": lambda: socket.socket(38, socket.SOCK_SEQPACKET),
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
