"""The toy's vcpu: MOV AL, imm8; MOV EDX, imm32; OUT DX, AL; IN AL, DX; JMP rel8; HLT."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from hvd.board.hot import HotBoard, PortResult
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, Exit, ExitReason, Segment, Vcpu
from hvd.errors import HvdError
from hvd.trace.points import BY_NAME

PORT_IN: Final = BY_NAME["port-in"].id
PORT_OUT: Final = BY_NAME["port-out"].id
MOV_AL, MOV_EDX, OUT_DX, IN_DX, JMP, HLT = 0xB0, 0xBA, 0xEE, 0xEC, 0xEB, 0xF4
GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")


class ToyVcpu(Vcpu):
    def __init__(self, board: HotBoard, memory: GuestMemory) -> None:
        self._board = board
        self._memory = memory
        self._kicked = threading.Event()
        self._registers = dict.fromkeys((*GENERAL, "rip", "rflags"), 0)
        self._state = EntryState({}, 0)
        self._asked: Exit | None = None  # a PORT_IN that waits for its answer

    def enter(self, state: EntryState) -> None:
        self._asked = None
        self._state = state
        self._registers = dict.fromkeys(self._registers, 0)
        for name, value in state.registers.items():
            self._registers["r" + name[1:] if name.startswith("e") else name] = value

    def run(self) -> Exit:
        if self._asked is not None:
            self._set_al(self._asked.value)
            self._asked = None
        while not self._kicked.is_set():
            # What is typed comes to the UART here; the timer's interrupts come to nobody.
            self._board.advance()
            start = self._board.host_ns()
            left = self._step(start)
            self._board.account(run_ns=self._board.host_ns() - start)
            if left is not None:
                return left
        self._kicked.clear()
        return Exit(ExitReason.INTERRUPTED, rip=self._rip)

    def kick(self) -> None:
        self._kicked.set()

    @property
    def _rip(self) -> int:
        return self._registers["rip"]

    def _set_al(self, value: int) -> None:
        self._registers["rax"] = self._registers["rax"] & ~0xFF | value & 0xFF

    def _step(self, start_ns: int) -> Exit | None:
        """One instruction; an Exit when the board's Python side is needed."""
        rip = self._rip
        try:
            opcode = self._memory.read(rip, 1)[0]
            operand = self._memory.read(rip + 1, {MOV_AL: 1, MOV_EDX: 4, JMP: 1}.get(opcode, 0))
        except HvdError as error:
            return Exit(ExitReason.ERROR, rip=rip, detail=str(error))
        after = rip + 1 + len(operand)
        port, value = self._registers["rdx"] & 0xFFFF, self._registers["rax"] & 0xFF
        if opcode == MOV_AL:
            self._set_al(operand[0])
        elif opcode == MOV_EDX:
            self._registers["rdx"] = int.from_bytes(operand, "little")
        elif opcode == JMP:
            after += int.from_bytes(operand, "little", signed=True)
        elif opcode == HLT:
            return Exit(ExitReason.HALT, rip=rip, start_ns=start_ns)  # it has no STI: interrupts are off
        elif opcode == OUT_DX:
            # First the board's devices in C: only what is not theirs leaves.
            result = self._board.port_out(port, 1, value)
            if result is PortResult.WAIT:
                return Exit(ExitReason.CONSOLE_FULL, rip=rip)  # the same instruction again, afterwards
            if result is PortResult.LEAVE:
                self._registers["rip"] = after
                return Exit(ExitReason.PORT_OUT, port, 1, value, rip, start_ns)
            self._board.cross(PORT_OUT, start_ns, rip, 0, port, 1, value)
        elif opcode == IN_DX:
            result, value = self._board.port_in(port, 1)
            if result is PortResult.LEAVE:
                self._registers["rip"] = after
                self._asked = Exit(ExitReason.PORT_IN, port, 1, 0, rip, start_ns)
                return self._asked
            self._set_al(value)
            self._board.cross(PORT_IN, start_ns, rip, 0, port, 1, value)
        else:
            metadata = {"address": hex(rip), "bytes": f"{opcode:02x}"}
            return Exit(ExitReason.ERROR, rip=rip, detail=f"it knows no opcode {opcode:#04x}", metadata=metadata)
        self._registers["rip"] = after & 0xFFFF_FFFF
        return None

    def registers(self) -> dict[str, int]:
        state = self._state
        found = self._registers | {
            "cr0": state.cr0, "cr2": 0, "cr3": state.cr3, "cr4": state.cr4, "cr8": 0, "efer": state.efer,
            "gdtr.base": state.gdt[0], "gdtr.limit": state.gdt[1],
            "idtr.base": state.idt[0], "idtr.limit": state.idt[1],
        }  # fmt: skip
        for name in SEGMENTS:
            segment = state.segments.get(name, Segment(0, 0, 0, 0))
            found |= {name: segment.selector, f"{name}.base": segment.base, f"{name}.limit": segment.limit}
            found[f"{name}.attributes"] = segment.attributes
        return found

    def set_register(self, name: str, value: int) -> None:
        if name not in self._registers:
            raise KeyError(name)
        self._registers[name] = value

    def inject(self, vector: int) -> None:
        """Its guests never take interrupts: they have no STI."""

    def memory_changed(self, address: int, length: int) -> None:
        """Nothing is derived from memory here."""

    def close(self) -> None:
        """There is nothing to free."""


def create(board: HotBoard, memory: GuestMemory, cpuid: Callable[..., dict[Any, Any]], engine: str) -> Vcpu:
    """Raises HvdError ENGINE_UNKNOWN. cpuid: not used, since there is no CPUID instruction."""
    if engine:
        raise HvdError("ENGINE_UNKNOWN", backend="toy", engine=engine, known="none but the default")
    return ToyVcpu(board, memory)
