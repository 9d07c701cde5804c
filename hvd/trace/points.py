"""Trace points: every reason for which a guest can cross into the hypervisor, by number, name and arguments.

The one table of them. `python -m hvd.trace.points` writes it as a C header (board/native/points.h); TraceService hands it to clients,
so that a decoder needs nothing but the stream. Numbers are stable: new points get new numbers.

    1-31      the machine        32-63    exceptions, 32 + vector
    64-127    hypercalls: 64 + number; of the paravirtual ABI, whose numbers begin at 64, 16 + number
    128-191  privileged instructions and memory of the native cell (docs/cell.md)
    192-255   a backend's own (Backend.trace_points)
    512-1023  system calls of the host's kernel, 512 + number: a backend's own, too
    1024-1535 the same of 32-bit programs, where they differ, 1024 + number
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """What sort of crossing a record is; bit `1 << kind` of the ring's `enabled` word switches it."""

    LOST = 0
    PORT_IO = 1
    MMIO = 2
    INTERRUPT = 3
    EXCEPTION = 4
    HALT = 5
    HYPERCALL = 6
    PRIVILEGED = 7
    PAGE_FAULT = 8
    SYSTEM_CALL = 9
    TRANSLATION = 10
    DEVICE = 11
    MACHINE = 12

    @property
    def label(self) -> str:
        """The name that people type and see: "port-io"."""
        return self.name.lower().replace("_", "-")


class BackendId(enum.IntEnum):
    """The record's backend field. A backend's folder name is the lower-case name."""

    OTHER = 0  # one that is not of this project
    EMULATION = 1
    CONTAINER = 2
    TRAP = 3
    REWRITING = 4
    PARAVIRT = 5
    KVM = 6

    @classmethod
    def of(cls, name: str) -> BackendId:
        """By the folder's name."""
        return cls.__members__.get(name.upper(), cls.OTHER)


@dataclass(frozen=True, slots=True)
class Argument:
    """One of a point's arguments, up to four in one record. format: hex, dec, signed, octal, vector, ns, errno, errno-hex, bool,
    fd, signal, path (the pointer; the text comes with it), socket-address (likewise), open-flags and other sets of named values
    (client/hvctl/sdk/trace_formats.py); whoever does not know a format prints the number."""

    name: str
    format: str = "hex"


@dataclass(frozen=True, slots=True)
class Point:
    id: int
    name: str
    kind: Kind
    arguments: tuple[Argument, ...] = ()
    description: str = ""
    family: str = ""  # who chooses this name chooses this point, too


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody listens to: kinds of crossings (bit n = kind n), and of them only these points; None = all."""

    mask: int = 0
    points: frozenset[int] | None = None
    stacks: int = 0  # kinds of which the guest's call stack is wanted, too

    def __or__(self, other: Wanted) -> Wanted:
        if not self.mask or not other.mask:
            return self if self.mask else other
        points = None if self.points is None or other.points is None else self.points | other.points
        return Wanted(self.mask | other.mask, points, self.stacks | other.stacks)


NOTHING = Wanted()


def _arguments(*words: str) -> tuple[Argument, ...]:
    return tuple(Argument(*word.split(":")) for word in words)


HYPERCALL_BASE = 64
SYSTEM_CALL_BASE = 512
SYSTEM_CALL_32_BASE = 1024
EXCEPTION_BASE = 32

# Intel SDM vol. 3A, table 6-1. The flag says whether the vector pushes an error code.
EXCEPTIONS: dict[int, str] = {
    0: "divide-error", 1: "debug", 2: "nmi", 3: "breakpoint", 4: "overflow", 5: "bound-range", 6: "invalid-opcode",
    7: "device-not-available", 8: "double-fault", 9: "coprocessor-overrun", 10: "invalid-tss", 11: "segment-not-present",
    12: "stack-fault", 13: "general-protection", 14: "page-fault", 16: "x87-error", 17: "alignment-check",
    18: "machine-check", 19: "simd-error", 20: "virtualization", 21: "control-protection",
}  # fmt: skip

# The base hypercall (docs/hypercall.md): number -> name, arguments; the fourth record argument is always the result.
HYPERCALLS: dict[int, tuple[str, tuple[Argument, ...], str]] = {
    0: ("version", _arguments("-", "-", "-", "result:dec"), "ABI version"),
    1: ("log", _arguments("address", "length:dec", "-", "result:errno"), "a line for the hypervisor's log"),
    2: ("annotate", _arguments("value0", "value1", "-", "result:errno"), "a mark in the trace"),
    3: ("clock", _arguments("-", "-", "-", "result:ns"), "the guest's virtual clock"),
    4: ("yield", _arguments("-", "-", "-", "result:errno"), "give the host CPU away"),
    5: ("exit", _arguments("code:dec", "-", "-", "result:errno"), "end the guest with this code"),
    6: ("console-size", _arguments("-", "-", "-", "result:hex"), "rows << 16 | columns of the attached console"),
}
HYPERCALL_UNKNOWN = HYPERCALL_BASE + 63
# Those of the paravirtual ABI (docs/paravirtualisation.md), from number 64 on; their points follow behind the base's. The fourth argument is
# the result here, too.
PARAVIRT_FIRST = 64
PARAVIRT_BASE = 80
PARAVIRT: dict[str, tuple[tuple[Argument, ...], str]] = {
    "pv-version": (_arguments("-", "-", "-", "result:dec"), "version of the paravirtual ABI"),
    "multicall": (_arguments("calls", "count:dec", "-", "result:errno"), "several calls in one crossing"),
    "set-cr0": (_arguments("value", "-", "-", "result:errno"), "CR0"),
    "set-cr3": (_arguments("value", "-", "-", "result:errno"), "another address space"),
    "set-cr4": (_arguments("value", "-", "-", "result:errno"), "CR4"),
    "flush": (_arguments("globals:bool", "-", "-", "result:errno"), "the whole TLB"),
    "invlpg": (_arguments("address", "pages:dec", "-", "result:errno"), "pages out of the TLB"),
    "set-pte": (_arguments("entry", "value", "address", "result:errno"), "one page-table entry"),
    "set-ptes": (_arguments("entries", "count:dec", "-", "result:errno"), "a batch of page-table entries"),
    "set-gdt": (_arguments("base", "limit", "-", "result:errno"), "GDT"),
    "set-idt": (_arguments("base", "limit", "-", "result:errno"), "IDT"),
    "set-ldt": (_arguments("selector", "-", "-", "result:errno"), "LDT"),
    "set-tr": (_arguments("selector", "-", "-", "result:errno"), "task register"),
    "set-descriptor": (_arguments("index:dec", "low", "high", "result:errno"), "an entry of the GDT"),
    "set-traps": (_arguments("gates", "count:dec", "-", "result:errno"), "gates of the IDT"),
    "set-stack": (_arguments("selector", "esp", "-", "result:errno"), "the kernel's stack, in the TSS"),
    "load-segment": (_arguments("register:dec", "selector", "-", "result:errno"), "a segment register (0 ES, 3 DS, 4 FS, 5 GS)"),
    "iret": (_arguments("-", "-", "-", "result:errno"), "IRET"),
    "idle": (_arguments("-", "-", "-", "result:errno"), "interrupts on, and wait for one"),
    "deliver": (_arguments("-", "-", "-", "result:errno"), "interrupts that wait, now"),
    "set-timer": (_arguments("time:ns", "-", "-", "result:errno"), "the interval timer, once"),
    "console": (_arguments("address", "length:dec", "-", "result:errno"), "text for the console"),
    "port-in": (_arguments("port", "size:dec", "-", "value"), "a read of an I/O port"),
    "port-out": (_arguments("port", "size:dec", "value", "result:errno"), "a write to an I/O port"),
    "read-msr": (_arguments("msr", "-", "-", "value"), "a read of a model-specific register"),
    "write-msr": (_arguments("msr", "low", "high", "result:errno"), "a write to a model-specific register"),
    "power": (_arguments("what:dec", "-", "-", "result:errno"), "power off (0) or reset (1)"),
    "debug": (_arguments("value", "-", "-", "result:dec"), "stop for a debugger, when there is one"),
    "fill-page": (_arguments("address", "-", "-", "result:errno"), "the hypercall page's entries, to this page"),
    "set-user-limit": (_arguments("address", "-", "-", "result:errno"), "where the address space of programs ends"),
}

PRIVILEGED_BASE = 128
# Instructions that trapped in the cell and were emulated there, in the order of their numbers: name -> arguments, description.
PRIVILEGED: dict[str, tuple[tuple[Argument, ...], str]] = {
    "cli": ((), "interrupts off"),
    "sti": ((), "interrupts on"),
    "pushf": (_arguments("flags"), "PUSHF"),
    "popf": (_arguments("flags"), "POPF"),
    "iret": (_arguments("selector", "address", "flags", "level:dec"), "return to this place and privilege level"),
    "mov-from-cr": (_arguments("register:dec", "value"), "read of a control register"),
    "mov-to-cr": (_arguments("register:dec", "value"), "write to a control register"),
    "mov-from-dr": (_arguments("register:dec", "value"), "read of a debug register"),
    "mov-to-dr": (_arguments("register:dec", "value"), "write to a debug register"),
    "lgdt": (_arguments("base", "limit"), "LGDT"),
    "lidt": (_arguments("base", "limit"), "LIDT"),
    "lldt": (_arguments("selector"), "LLDT"),
    "ltr": (_arguments("selector"), "LTR"),
    "lmsw": (_arguments("value"), "LMSW"),
    "clts": ((), "CLTS"),
    "invlpg": (_arguments("address"), "a page out of the TLB"),
    "wbinvd": ((), "INVD or WBINVD"),
    "rdmsr": (_arguments("msr", "value"), "read of a model-specific register"),
    "wrmsr": (_arguments("msr", "value"), "write to a model-specific register"),
    "load-segment": (_arguments("register:dec", "selector"), "a segment register is loaded (0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS)"),
    "far-transfer": (_arguments("selector", "address"), "far JMP, CALL or RET to there"),
    "store-table": (_arguments("register:dec", "value"), "SGDT 0, SIDT 1, SLDT 2, STR 3, SMSW 4"),
    "cpuid": (_arguments("leaf", "subleaf"), "CPUID"),
    "rdtsc": (_arguments("value"), "RDTSC"),
    "descriptor-check": (_arguments("selector"), "LAR, LSL, VERR or VERW"),
}
SHADOW_BASE = 160
SHADOW: dict[str, tuple[tuple[Argument, ...], str]] = {
    "fill": (_arguments("address", "physical", "writable:bool", "pages:dec"), "pages of the guest mapped at this linear address"),
    "upgrade": (_arguments("address", "physical"), "a page that was read-only so far is written to"),
    "load": (_arguments("cr3", "kept:dec", "dropped:dec"), "another address space"),
    "emulate": (_arguments("address", "physical"), "an access that no mapping can serve: done by the interpreter"),
}
TRANSLATION_BASE = 170
TRANSLATION: dict[str, tuple[tuple[Argument, ...], str]] = {
    "block": (_arguments("address", "instructions:dec", "bytes:dec", "host-bytes:dec"), "guest code from there was translated"),
    "flush": (_arguments("blocks:dec", "host-bytes:dec"), "the cache was full: all translated code is dropped"),
    "code-write": (_arguments("physical", "blocks:dec"), "the guest wrote where code was translated from: that code is dropped"),
}

POINTS: tuple[Point, ...] = (
    Point(1, "port-in", Kind.PORT_IO, _arguments("port", "size:dec", "value"), "IN, INS: read of an I/O port"),
    Point(2, "port-out", Kind.PORT_IO, _arguments("port", "size:dec", "value"), "OUT, OUTS: write to an I/O port"),
    Point(3, "mmio-read", Kind.MMIO, _arguments("address", "size:dec", "value"), "read of a device's memory"),
    Point(4, "mmio-write", Kind.MMIO, _arguments("address", "size:dec", "value"), "write to a device's memory"),
    Point(5, "halt", Kind.HALT, _arguments("interrupts:bool"), "HLT; the duration is the time until the next interrupt"),
    Point(6, "interrupt", Kind.INTERRUPT, _arguments("vector:vector"), "hardware interrupt delivered to the guest"),
    Point(7, "triple-fault", Kind.MACHINE, (), "a fault while delivering a double fault"),
    Point(8, "reset", Kind.MACHINE, (), "the machine was reset"),
    Point(9, "lost", Kind.LOST, _arguments("records:dec"), "records overwritten before they were read"),
    Point(10, "software-interrupt", Kind.SYSTEM_CALL, _arguments("vector:vector", "accumulator"), "INT n"),
    Point(11, "system-call", Kind.SYSTEM_CALL, _arguments("number:dec"), "SYSCALL or SYSENTER"),
    Point(12, "virtio-notify", Kind.DEVICE, _arguments("slot:dec", "device:dec", "queue:dec", "buffers:dec"),
          "the driver of a virtio device offers buffers; those that the device was done with at once"),
    Point(13, "virtio-fault", Kind.DEVICE, _arguments("slot:dec", "device:dec", "queue:dec"),
          "the driver of a virtio device broke the rules: the device needs a reset"),
    # Work of devices, which is no crossing and not counted as one (hv_note): it goes on within one, or for the world outside.
    *(
        Point(number, f"disk-{what}", Kind.DEVICE, _arguments("disk:dec", "offset", "length:dec", "result:errno"), f"a disk's {text}")
        for number, what, text in ((14, "read", "image is read"), (15, "write", "image is written"),
                                   (16, "flush", "image is flushed to the host's disk"), (17, "discard", "blocks are given back"))
    ),
    Point(18, "nic-receive", Kind.DEVICE, _arguments("nic:dec", "length:dec"), "a network card gives a frame to the guest"),
    Point(19, "nic-transmit", Kind.DEVICE, _arguments("nic:dec", "length:dec"), "a network card sends a frame of the guest"),
    *(
        Point(EXCEPTION_BASE + vector, f"exception.{name}",
              Kind.PAGE_FAULT if vector == 14 else Kind.EXCEPTION,
              _arguments("address", "error-code") if vector == 14 else _arguments("error-code"),
              f"#{vector} delivered to the guest")
        for vector, name in EXCEPTIONS.items()
    ),
    *(
        Point(HYPERCALL_BASE + number, f"hypercall.{name}", Kind.HYPERCALL, arguments, description)
        for number, (name, arguments, description) in HYPERCALLS.items()
    ),
    *(
        Point(PARAVIRT_BASE + index, f"hypercall.{name}", Kind.HYPERCALL, arguments, description)
        for index, (name, (arguments, description)) in enumerate(PARAVIRT.items())
    ),
    Point(HYPERCALL_UNKNOWN, "hypercall.unknown", Kind.HYPERCALL, _arguments("number:dec", "-", "-", "result:errno"),
          "a call that does not exist"),
    *(
        Point(PRIVILEGED_BASE + index, f"privileged.{name}", Kind.PRIVILEGED, arguments, description)
        for index, (name, (arguments, description)) in enumerate(PRIVILEGED.items())
    ),
    *(
        Point(SHADOW_BASE + index, f"shadow.{name}", Kind.PAGE_FAULT, arguments, description)
        for index, (name, (arguments, description)) in enumerate(SHADOW.items())
    ),
    *(
        Point(TRANSLATION_BASE + index, f"translation.{name}", Kind.TRANSLATION, arguments, description)
        for index, (name, (arguments, description)) in enumerate(TRANSLATION.items())
    ),
)  # fmt: skip

BY_ID: dict[int, Point] = {point.id: point for point in POINTS}
BY_NAME: dict[str, Point] = {point.name: point for point in POINTS}


def c_header() -> str:
    """The table as points.h."""

    def constant(name: str) -> str:
        return name.upper().replace("-", "_").replace(".", "_")

    lines = ["/* Generated from hvd/trace/points.py: python3 -m hvd.trace.points */", "#ifndef HV_POINTS_H", "#define HV_POINTS_H", ""]
    lines += ["enum hv_kind {", *(f"    HV_KIND_{kind.name} = {kind.value}," for kind in Kind), "};", ""]
    lines += ["enum hv_backend_id {", *(f"    HV_BACKEND_{b.name} = {b.value}," for b in BackendId), "};", ""]
    lines += ["enum hv_point {", *(f"    HV_POINT_{constant(p.name)} = {p.id}," for p in POINTS)]
    lines += [f"    HV_POINT_EXCEPTION_BASE = {EXCEPTION_BASE},", f"    HV_POINT_HYPERCALL_BASE = {HYPERCALL_BASE},",
              f"    HV_POINT_HYPERCALL_PARAVIRT_BASE = {PARAVIRT_BASE},", "};", ""]
    kinds = ", ".join(f"[{p.id}] = {p.kind.value}" for p in POINTS)
    lines += [f"#define HV_POINT_KINDS {{ {kinds} }}", "", "#endif", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(c_header())
