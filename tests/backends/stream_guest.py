"""A guest that runs many small streams of code in turn and keeps a record of every exception, of the state each stream ends with, and of
what it left in memory; on two backends, the records must be the same.

Its kernel is at KERNEL, guest-physical memory from 0. What streams work on is mapped once more at USER, and their code at STREAMS; the
first MiBs of the linear address space, where random numbers point to, are not mapped.
"""

from __future__ import annotations

import json
import random
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stream_kernel import (
    BUFFER,
    CODE,
    CR0,
    CR4,
    DEVICE,
    DIRECTORY,
    ECHO_VECTOR,
    END_VECTOR,
    EXIT_PORT,
    GDT,
    GDT_ROWS,
    IDT,
    KERNEL,
    KERNEL_STACK,
    LDT,
    LOG,
    LOG_BYTES,
    MAPS,
    PORT,
    PRISTINE,
    RAM,
    RECORD,
    STACK,
    STATE,
    STREAM_BYTES,
    STREAM_MEMORY,
    STREAMS,
    TABLE,
    TSS,
    USER,
    Paging,
    kernel_image,
    local_descriptors,
    page_tables,
)  # fmt: skip

from hvd.board import cpuid
from hvd.board.hot import MMIO, HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, Exit, ExitReason, Segment, Vcpu
from hvd.trace.counters import Counters, decode_counters
from hvd.trace.points import BackendId

SECONDS: Final = 20.0
KICK_SECONDS: Final = 0.002


@dataclass
class Program:
    """One stream. chunks: each a list of instructions (bytes), behind any of which it can go on when that faults."""

    ring: int
    eflags: int
    registers: list[int]
    chunks: list[list[bytes]]
    seed: int = 0
    cr0: int = CR0
    cr4: int = CR4
    dr7: int = 0  # for the registers of stream_kernel.WATCHED
    notes: dict[str, Any] = field(default_factory=dict)

    def code(self) -> tuple[bytes, list[int]]:
        """Machine code, and for each byte of it the offset to go on at when the instruction there faults."""
        code, recover = b"", []
        for chunk in self.chunks:
            for atom in chunk:
                code += atom
                recover += [len(code)] * len(atom)
        end = bytes((0xCD, END_VECTOR))
        return code + end, recover + [len(code)] * len(end)

    def dump(self) -> str:
        chunks = [[atom.hex() for atom in chunk] for chunk in self.chunks]
        return json.dumps(
            {
                "ring": self.ring,
                "eflags": self.eflags,
                "registers": self.registers,
                "cr0": self.cr0,
                "cr4": self.cr4,
                "dr7": self.dr7,
                "chunks": chunks,
                "notes": self.notes,
            }
        )

    @classmethod
    def load(cls, text: str) -> Program:
        row = json.loads(text)
        chunks = [[bytes.fromhex(atom) for atom in chunk] for chunk in row["chunks"]]
        control = {name: row[name] for name in ("cr0", "cr4", "dr7") if name in row}
        return cls(row["ring"], row["eflags"], row["registers"], chunks, **control, notes=row.get("notes", {}))


@dataclass
class Outcome:
    end: str  # how the guest ended
    records: list[list[tuple[int, ...]]]  # of each stream
    devices: list[tuple[Any, ...]]
    ticks: int = 0
    kicks: int = 0


Create = Callable[[HotBoard, GuestMemory], Vcpu]


class Side:
    """One backend's vcpu with the guest."""

    def __init__(self, name: str, directory: Path, paging: Paging = Paging.SMALL) -> None:
        self.name, self.paging = name, paging
        self._counters = directory / f"counters-{paging.name}-{name}"
        self.image, self.handlers, self.gates = kernel_image(directory, paging)
        self.vcpu: Vcpu | None = None
        self.extra: dict[int, bytes] = {}  # more guest-physical memory, by address: free are 0x700000 and above
        self._open()

    def _open(self) -> None:
        self.memory = GuestMemory(RAM)
        self.memory.add_mmio(DEVICE, 0x1000, "device")
        for name, where in MMIO.items():
            self.memory.add_mmio(where.start, len(where), name, hot=True)
        if self.name == "emulation":
            from hvd.backends.emulation.vcpu import NativeVcpu

            self.board = HotBoard(BackendId.EMULATION)
            self._claim()
            self.vcpu = NativeVcpu(self.board, self.memory, cpuid.leaves)
        else:
            from hvd.backends.rewriting.vcpu import create

            self.board = HotBoard(BackendId.REWRITING, counters=self._counters)
            self._claim()
            self.vcpu = create(self.board, self.memory, cpuid.leaves, self.name.partition("-")[2])

    def _claim(self) -> None:
        """Before there is a vcpu."""
        self.board.claim(range(PORT, PORT + 8))
        self.board.claim(range(EXIT_PORT, EXIT_PORT + 1))

    def counters(self) -> Counters:
        """Of rewriting."""
        return decode_counters(self._counters.read_bytes())

    def close(self) -> None:
        assert self.vcpu
        self.vcpu.close()
        self.memory.close()
        self.board.close()

    def reopen(self) -> None:
        self.close()
        self._open()

    def _load(self, programs: Sequence[Program], timer: int) -> int:
        memory = self.memory
        memory.clear_all()
        memory.write(GDT, struct.pack(f"<{len(GDT_ROWS)}Q", *GDT_ROWS))
        memory.write(LDT, local_descriptors(self.gates))
        gate_low = 0x8E00
        for vector, handler in enumerate(self.handlers):
            access = 0xEE00 if vector in (3, 4, END_VECTOR, ECHO_VECTOR) else gate_low
            memory.write(IDT + 8 * vector, struct.pack("<HHHH", handler & 0xFFFF, 8, access, handler >> 16))
        memory.write(TSS, struct.pack("<III", 0, KERNEL + KERNEL_STACK, 0x10))
        memory.write(TSS + 0x66, struct.pack("<H", 0x68))
        memory.write(CODE, self.image)
        for address, content in page_tables(self.paging).items():
            memory.write(address, content)
        # data: the same for every stream
        memory.write(PRISTINE, random.Random(1).randbytes(0x3000))
        for page in range(3):
            memory.write(
                PRISTINE + 0x1000 * page + 0x900, b"\xc3" * 64
            )  # where code is called, should none have been written
        memory.write(BUFFER + 0x3000, random.Random(2).randbytes(0x1000))
        fpu = bytearray(512)
        struct.pack_into("<HHBBHIIIIII", fpu, 0, 0x37F, 0, 0, 0, 0, 0, 0, 0, 0, 0x1F80, 0)
        for n in range(8):
            struct.pack_into("<4f", fpu, 160 + 16 * n, n + 0.5, -n, n * 1e3, 1.0 / (n + 1))
        memory.write(STATE + 0x200, bytes(fpu))
        memory.write(STATE + 32, struct.pack("<HI", 8 * len(GDT_ROWS) - 1, KERNEL + GDT))
        memory.write(STATE + 40, struct.pack("<HI", 0x7FF, KERNEL + IDT))
        for address, content in self.extra.items():
            memory.write(address, content)
        at = placed = 0
        for program in programs:
            code, recover = program.code()
            if at + len(code) + 64 > STREAM_BYTES:
                break
            memory.write(STREAM_MEMORY + at, code)
            memory.write(MAPS + 2 * at, struct.pack(f"<{len(recover)}H", *recover))
            registers = list(program.registers)
            registers[4], registers[6] = STACK, USER
            row = struct.pack(
                "<III8I5I", STREAMS + at, program.ring, program.eflags, *registers, KERNEL + MAPS + 2 * at, len(code), program.cr0,
                program.cr4 | self.paging.cr4, program.dr7,
            )
            memory.write(TABLE + 64 * placed, row)
            at += len(code) + 1
            placed += 1
        memory.write(STATE, struct.pack("<II", 0, placed))
        memory.write(STATE + 16, struct.pack("<I", KERNEL + LOG))
        memory.write(STATE + 28, struct.pack("<I", timer))
        return placed

    def kick_after(self, timer: int, seconds: float) -> float:
        """How long until the vcpu is kicked, again."""
        return KICK_SECONDS if timer else seconds

    def interrupted(self) -> None:
        """Between two runs of the vcpu, after a kick."""

    def stopped(self, exit_: Exit) -> bool:
        """Whether it goes on after what a debugger asked for."""
        return False

    def run(self, programs: Sequence[Program], timer: int = 0, seconds: float = SECONDS) -> Outcome:
        """As many of the programs as there is room for. timer: periods of the 8254 between interrupts, 0 = none."""
        placed = self._load(programs, timer)
        assert self.vcpu
        vcpu = self.vcpu
        vcpu.memory_changed(0, RAM)
        flat = {name: Segment(0x10, 0, 0xFFFF_FFFF, 0xC09300) for name in ("ds", "es", "fs", "gs", "ss")}
        vcpu.enter(
            EntryState(
                registers={"rip": KERNEL + CODE, "rsp": KERNEL + KERNEL_STACK - 512, "rflags": 2}, cr0=CR0, cr3=DIRECTORY, cr4=CR4 | self.paging.cr4,
                segments=flat | {"cs": Segment(8, 0, 0xFFFF_FFFF, 0xC09B00)}, gdt=(KERNEL + GDT, 8 * len(GDT_ROWS) - 1),
                idt=(KERNEL + IDT, 0x7FF),
            )
        )  # fmt: skip
        self.board.start_clock()
        late = threading.Event()
        over = threading.Event()

        def kick() -> None:
            """When it is late, or all the time."""
            until = time.monotonic() + seconds
            while not over.wait(self.kick_after(timer, seconds)):
                if time.monotonic() >= until:
                    late.set()
                assert self.vcpu
                self.vcpu.kick()

        kicker = threading.Thread(target=kick)
        kicker.start()
        devices: list[tuple[Any, ...]] = []
        end = ""
        kicks = 0
        while not end:
            exit_ = self.vcpu.run()
            match exit_.reason:
                case ExitReason.INTERRUPTED:
                    kicks += 1
                    end = "late" if late.is_set() else ""
                    self.interrupted()
                case ExitReason.DEBUG if self.stopped(exit_):
                    pass
                case ExitReason.PORT_OUT if exit_.address == EXIT_PORT:
                    end = f"exit {exit_.value:#x}"
                case ExitReason.PORT_OUT | ExitReason.MMIO_WRITE:
                    devices.append((exit_.reason.name, exit_.address, exit_.size, exit_.value))
                case ExitReason.PORT_IN | ExitReason.MMIO_READ:
                    exit_.value = (exit_.address * 0x9E3779B1 + len(devices)) & ((1 << 8 * exit_.size) - 1)
                    devices.append((exit_.reason.name, exit_.address, exit_.size))
                case _:
                    end = f"{exit_.reason.name} at {exit_.rip:#x}: {exit_.detail}"
        over.set()
        kicker.join()
        (used,) = struct.unpack("<I", self.memory.read(STATE + 16, 4))
        if end.startswith("ERROR"):  # perhaps it cannot go on
            kept = self.memory.read(0, RAM)
            self.reopen()
            self.memory.write(0, kept)
        records: list[list[tuple[int, ...]]] = [[] for _ in range(placed)]
        length = min(max(used - KERNEL - LOG, 0), LOG_BYTES)
        for row in RECORD.iter_unpack(self.memory.read(LOG, length - length % RECORD.size)):
            if row[14] < placed:
                records[row[14]].append(row)
        (ticks,) = struct.unpack("<I", self.memory.read(STATE + 20, 4))
        return Outcome(end, records, devices, ticks, kicks)
