"""Delivery of exceptions and interrupts in 32-bit protected mode, in Python, on Unicorn's public API (Intel SDM vol. 3A, chapter 6).

Only between two emu_starts: registers are written through the API, the frame straight into guest memory, so that linear must equal
physical. What that cannot do raises Unsupported.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any

from unicorn import UcError  # type: ignore[attr-defined]
from unicorn import x86_const as x86

from hvd.board.memory import GuestMemory
from hvd.errors import HvdError

CR0_PE, CR0_PG = 1, 1 << 31
TF, IF, NT, RF, VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
INTERRUPT_GATE, TRAP_GATE = 0xE, 0xF
DOUBLE_FAULT, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION = 8, 10, 11, 12, 13
CONTRIBUTORY = frozenset({0, 10, 11, 12, 13})  # table 6-4
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
IDT_BIT, EXTERNAL_BIT = 2, 1
REMEDY = "use the emulation backend's engine `native`"

# Opcodes whose #GP, #NP, #TS or #SS carries a selector: the public API does not tell an error code.
SELECTOR_OPCODES = frozenset({0x07, 0x17, 0x1F, 0x8E, 0x9A, 0xC4, 0xC5, 0xCA, 0xCB, 0xCF, 0xEA})
SELECTOR_OPCODES_0F = frozenset({0x00, 0xA1, 0xA9, 0xB2, 0xB4, 0xB5})
PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3})
CALL_OR_JUMP_FAR = (3, 5)  # the register field of opcode FF


class Unsupported(Exception):
    """The guest needs what this engine has not. The message says what."""


class TripleFault(Exception):
    """A fault while a double fault was delivered."""


class _Fault(Exception):
    def __init__(self, vector: int, error: int = 0) -> None:
        super().__init__(vector, error)
        self.vector = vector
        self.error = error


class Cause(enum.Enum):
    EXTERNAL = "external"  # an interrupt from outside
    SOFTWARE = "software"  # INT n: subject to the gate's privilege level
    FAULT = "fault"


def error_code(instruction: bytes, vector: int) -> int | None:
    """The error code of a fault that the instruction raised, None for a vector without one. Raises Unsupported when it can only be
    known from inside the CPU."""
    if vector not in WITH_ERROR_CODE:
        return None
    if vector in (GENERAL_PROTECTION, STACK_FAULT) and not _loads_selector(instruction):
        return 0
    if vector == 17:
        return 0
    raise Unsupported(f"the error code of exception {vector} is not visible through Unicorn's public API; {REMEDY}")


def _loads_selector(instruction: bytes) -> bool:
    rest = instruction.lstrip(bytes(PREFIXES))
    if len(rest) < 2:
        return True
    if rest[0] == 0x0F:
        return rest[1] in SELECTOR_OPCODES_0F
    if rest[0] == 0xFF:
        return rest[1] >> 3 & 7 in CALL_OR_JUMP_FAR
    return rest[0] in SELECTOR_OPCODES


class Delivery:
    """The IDT walk of one vcpu. on_deliver(vector, error code or None, cause) is told of every event, also of those that fail."""

    def __init__(self, uc: Any, memory: GuestMemory, on_deliver: Callable[[int, int | None, Cause], None]) -> None:
        self._uc = uc
        self._memory = memory
        self._on_deliver = on_deliver

    def deliver(self, vector: int, error: int | None, cause: Cause, length: int = 0) -> None:
        """Make the guest's next instruction the handler's first. length: of the INT instruction, which EIP is behind of already.
        Raises TripleFault, Unsupported."""
        if self._read(x86.UC_X86_REG_CR0) & CR0_PG:
            raise Unsupported(f"the guest takes an interrupt or exception with paging on; {REMEDY}")
        while True:
            self._on_deliver(vector, error, cause)
            try:
                self._through_gate(vector, error, cause)
                return
            except _Fault as fault:
                if cause is Cause.FAULT and vector == DOUBLE_FAULT:
                    raise TripleFault from fault
                if cause is Cause.SOFTWARE:  # faults are reported at the instruction, not behind it
                    self._uc.reg_write(x86.UC_X86_REG_EIP, self._read(x86.UC_X86_REG_EIP) - length)
                both = cause is Cause.FAULT and vector in CONTRIBUTORY and fault.vector in CONTRIBUTORY
                external = EXTERNAL_BIT if cause is not Cause.SOFTWARE else 0
                vector, error = (DOUBLE_FAULT, 0) if both else (fault.vector, fault.error | external)
                cause = Cause.FAULT

    def _read(self, register: int) -> Any:
        return self._uc.reg_read(register)

    def _word_pair(self, address: int) -> tuple[int, int]:
        try:
            low, high = struct.unpack("<II", self._memory.read(address & 0xFFFF_FFFF, 8))
        except HvdError as error:
            raise Unsupported(f"a descriptor table at {address:#x}, which is not RAM") from error
        return low, high

    def descriptor(self, selector: int, vector: int = GENERAL_PROTECTION) -> tuple[int, int]:
        """Both words of a descriptor of the GDT. Raises the fault `vector` for a selector that is none."""
        _, base, limit, _ = self._read(x86.UC_X86_REG_GDTR)
        if selector & 4:
            raise Unsupported(f"selector {selector:#x} is in the LDT; {REMEDY}")
        if not selector & ~3 or (selector | 7) > limit:
            raise _Fault(vector, selector & ~3)
        return self._word_pair(base + (selector & ~7))

    def _through_gate(self, vector: int, error: int | None, cause: Cause) -> None:
        _, table, limit, _ = self._read(x86.UC_X86_REG_IDTR)
        own_error = vector * 8 + IDT_BIT
        if vector * 8 + 7 > limit:
            raise _Fault(GENERAL_PROTECTION, own_error)
        low, high = self._word_pair(table + vector * 8)
        kind = high >> 8 & 0x1F
        old_cs, old_ss = self._read(x86.UC_X86_REG_CS), self._read(x86.UC_X86_REG_SS)
        cpl = old_cs & 3
        if kind not in (INTERRUPT_GATE, TRAP_GATE):
            if kind in (5, 6, 7):
                raise Unsupported(f"interrupt {vector} goes through a task gate or a 16-bit gate; {REMEDY}")
            raise _Fault(GENERAL_PROTECTION, own_error)
        if cause is Cause.SOFTWARE and high >> 13 & 3 < cpl:
            raise _Fault(GENERAL_PROTECTION, own_error)
        if not high & 0x8000:
            raise _Fault(NOT_PRESENT, own_error)
        selector, offset = low >> 16, high & 0xFFFF_0000 | low & 0xFFFF
        _, code = self.descriptor(selector)
        dpl = code >> 13 & 3
        if code & 0x1800 != 0x1800 or dpl > cpl:
            raise _Fault(GENERAL_PROTECTION, selector & ~3)
        if not code & 0x8000:
            raise _Fault(NOT_PRESENT, selector & ~3)
        flags = self._read(x86.UC_X86_REG_EFLAGS)
        if flags & VM:
            raise Unsupported(f"an interrupt in virtual-8086 mode; {REMEDY}")
        stack = self._read(x86.UC_X86_REG_ESP)
        frame = [self._read(x86.UC_X86_REG_EIP), old_cs, flags]
        inward = not code & 0x400 and dpl < cpl  # a conforming segment keeps the privilege level
        new_ss = old_ss
        if inward:
            frame += [stack, old_ss]
            stack, new_ss = self._inner_stack(dpl)
        if error is not None:
            frame.insert(0, error)
        self._push(stack, new_ss, frame)
        self._load(selector & ~3 | (dpl if inward else cpl), new_ss if inward else None)
        self._uc.reg_write(x86.UC_X86_REG_ESP, (stack - 4 * len(frame)) & 0xFFFF_FFFF)
        cleared = TF | NT | RF | VM | (IF if kind == INTERRUPT_GATE else 0)
        self._uc.reg_write(x86.UC_X86_REG_EFLAGS, flags & ~cleared)
        self._uc.reg_write(x86.UC_X86_REG_EIP, offset)

    def _inner_stack(self, level: int) -> tuple[int, int]:
        """ESP and SS of a privilege level, from the TSS."""
        selector, base, limit, _ = self._read(x86.UC_X86_REG_TR)
        if level * 8 + 11 > limit:
            raise _Fault(INVALID_TSS, selector & ~3)
        esp, ss = self._word_pair(base + 4 + 8 * level)
        ss &= 0xFFFF
        _, stack = self.descriptor(ss, INVALID_TSS)
        if ss & 3 != level or stack >> 13 & 3 != level or stack & 0x1A00 != 0x1200:
            raise _Fault(INVALID_TSS, ss & ~3)
        if not stack & 0x8000:
            raise _Fault(STACK_FAULT, ss & ~3)
        return esp, ss

    def _push(self, stack: int, selector: int, frame: list[int]) -> None:
        if selector & ~3:
            low, high = self.descriptor(selector)
            if low >> 16 or high & 0xFF00_00FF:
                raise Unsupported(f"the stack segment {selector:#x} has a base other than 0; {REMEDY}")
        try:
            self._memory.write((stack - 4 * len(frame)) & 0xFFFF_FFFF, struct.pack(f"<{len(frame)}I", *frame))
        except HvdError as error:
            raise Unsupported(f"the stack at {stack:#x} is not RAM") from error

    def _load(self, cs: int, ss: int | None) -> None:
        uc = self._uc
        try:
            if ss is not None:
                # Unicorn refuses an SS of a more privileged level than the present one; in real mode there is none.
                cr0 = self._read(x86.UC_X86_REG_CR0)
                uc.reg_write(x86.UC_X86_REG_CR0, cr0 & ~CR0_PE)
                uc.reg_write(x86.UC_X86_REG_SS, 0)
                uc.reg_write(x86.UC_X86_REG_CR0, cr0)
                uc.reg_write(x86.UC_X86_REG_SS, ss)
            uc.reg_write(x86.UC_X86_REG_CS, cs)
        except UcError as error:
            raise Unsupported(f"Unicorn refuses the handler's segments cs={cs:#x} ss={ss}: {error}") from error
