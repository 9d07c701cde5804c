"""What is compared: one table. A workload is an operation that a program reports by itself, with its own clock.

Programs: guests/linux/ops.c, a static 32-bit Linux program that runs on the host, in a container and in guests; and
guests/nano.c, a kernel, which runs where a kernel can, with guests/nano_native.c for what of it a process of the host can do.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from hvctl.sdk.errors import HvctlError

PROGRAM: Final = "ops"
KERNEL: Final = "nano.elf"
KERNEL_NATIVE: Final = "nano-native"
# Backend -> the same kernel as it is built for that one: what is there first.
KERNELS: Final[dict[str, tuple[str, ...]]] = {"paravirt": ("nano.pv.elf", "nano.hvpv.elf")}
# "op NAME NANOSECONDS COUNT", "nano NAME PICOSECONDS COUNT": of one operation, and how many there were.
_LINE: Final = re.compile(r"^(op|nano) (\S+) (\d+) (\d+)\s*$", re.MULTILINE)
_UNITS: Final = {"op": 1e-9, "nano": 1e-12}


class Workload(NamedTuple):
    name: str  # as the program reports it
    title: str  # of one operation
    stresses: str  # for a student: what it is about
    first: int = 1  # so many operations to begin with, which says how many fill the time of a measurement
    most: int = 1
    natively: str = ""  # of NANO: what stands for it in a process of the host, if it is not just the same
    not_natively: str = ""  # of NANO: why nothing does


# What a process of the host cannot do.
_PRIVILEGED: Final = "the processor refuses it to a process: it is privileged"
_DEVICE: Final = "a process may not reach a device: its kernel has them all"
_TABLES: Final = "a process has no page tables to write: they are its kernel's"
# Group -> its workloads. Those of PROGRAM are run one by one, those of KERNEL all in one guest.
PROGRAMS: Final = (
    Workload("compute-1000", "computing, 1000 rounds of a hash",
             "CPU-bound: nothing but arithmetic in a program; the kernel is not involved", 500, 2_000_000),
    Workload("getpid", "system call (getpid)",
             "system-call-bound: into the kernel and back, which does next to nothing there. By int 0x80, as 32-bit programs call: a 64-bit "
             "kernel, such as the host's, is far slower at that than at calls of 64-bit programs, so a guest with a 32-bit kernel may be below 1",
             500, 2_000_000),
    Workload("page-touch", "first touch of a page",
             "memory- and fault-bound: each touch is a page fault, and the kernel finds a page and maps it", 256, 12_288),
    Workload("fork-exec", "fork, exec, exit, wait",
             "a new address space, filled and thrown away: page tables, faults and system calls together", 5, 2_000),
    Workload("ping-pong", "a byte there and back between two processes",
             "two context switches and four system calls", 50, 50_000),
    Workload("disk-64k", "64 KiB written, synced, read back",
             "disk: a virtual disk and its flushes, or the host's own file system", 16, 512),
)  # fmt: skip
NANO: Final = (
    Workload("system-call", "system call (int 0x80, iret)", "user mode to kernel mode and back", natively="the host's kernel's, int 0x80"),
    Workload("in", "in (port 0x80)", "a device register is read", not_natively=_DEVICE),
    Workload("cr-write", "write of CR0", "a privileged instruction", not_natively=_PRIVILEGED),
    Workload("sti-cli", "sti, cli", "interrupts on and off: the most frequent sensitive instructions of a kernel", not_natively=_PRIVILEGED),
    Workload("call-ret", "call, ret", "an indirect jump, which a translator has to look up"),
    Workload("kernel-int", "int n in the kernel, iret", "an interrupt without a change of mode",
             not_natively="a process is never in the kernel's mode when an interrupt of its own comes"),
    Workload("cli", "cli", "one instruction that traps", not_natively=_PRIVILEGED),
    Workload("shadow-fill", "first touch of a mapped page", "the guest's page tables have it, the hypervisor's do not yet",
             natively="the processor finds it in the page tables: a TLB miss"),
    Workload("page-fault", "page fault that maps a page", "a fault that is the guest's own", natively="the host's kernel maps a page of zeros"),
    Workload("divide-error", "divide error", "an exception", natively="the host's kernel sends a signal"),
    Workload("pte-change", "page-table change, invlpg, touch", "page tables and their shadows must agree", not_natively=_TABLES),
    Workload("pte-batch", "64 page-table entries written and flushed", "a kernel that tells of its page tables can do it once for many",
             not_natively=_TABLES),
    Workload("context-switch", "context switch (CR3, stack)", "another address space",
             natively="from one process of the host to another, by a byte through a pipe"),
    Workload("hypercall", "a hypercall that does nothing",
             "the least that asking the hypervisor costs: under paravirt by its own ABI, elsewhere by a port",
             not_natively="there is no hypervisor to ask"),
    Workload("program-int", "int 0x80 of a program, iret", "into the kernel and back, the call alone", natively="the host's kernel's, int 0x80"),
    Workload("copy-4k", "copy of 4 KiB", "rep movs: one instruction, much work"),
    Workload("table-4k", "a table of 4 KiB, filled and summed", "loops of a few instructions on memory in kernel mode, without a call"),
    Workload("kernel-compute", "computing in the kernel", "calls, mostly, and memory and arithmetic in kernel mode",
             natively="in a process: there is no kernel"),
    Workload("user-compute", "computing in user mode", "the same in user mode"),
)  # fmt: skip
# The one whose command is the user's.
COMMAND: Final = Workload("run", "the command", "as it is: from its start to its end, by the clock of where it runs")


class Cost(NamedTuple):
    seconds: float  # of one operation
    operations: int  # that were made


def costs(text: str) -> dict[str, Cost]:
    """What a program reported: name -> cost."""
    return {
        name: Cost(int(value) * _UNITS[prefix], int(count))
        for prefix, name, value, count in _LINE.findall(text.replace("\r", ""))
    }


def cost(text: str, name: str) -> Cost:
    """Raises HvctlError when the program did not report it."""
    found = costs(text).get(name)
    if found is None:
        raise HvctlError.local("NOT_EXPLAINED", problem=f"{name} was not reported, but {text[-300:].strip()!r}")
    return found
