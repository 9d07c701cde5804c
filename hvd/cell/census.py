"""The census: which instructions of a kernel show or change what belongs to it without a trap, when it runs at CPL 3.

By recursive descent: from where the kernel was seen to execute, along jumps and calls whose target stands in the instruction. What is
only reached through registers or memory is found when it is executed; what follows a call that never returns may be no code, and
be counted all the same.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Final

from hvd.cell.decoder import LONGEST, Decoded, Decoder, Instruction, Map
from hvd.cell.sensitive import CANDIDATES, Sensitive, sensitive

PAGE: Final = 4096
MASK: Final = 0xFFFF_FFFF
# Every so many instructions the clock is looked at.
_CLOCK_EVERY: Final = 512

# A page of linear memory, or None when nothing is mapped there.
ReadPage = Callable[[int], bytes | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """A sensitive instruction that cannot trap. address: linear."""

    address: int
    code: bytes
    what: Sensitive


@dataclass(slots=True)
class Census:
    """findings: by address. instructions: so many were looked at, in so many pages. unknown: places where the decoder gave up.
    complete: False = time or room ended first."""

    findings: dict[int, Finding] = field(default_factory=dict)
    instructions: int = 0
    pages: int = 0
    unknown: int = 0
    complete: bool = True

    def in_order(self) -> list[Finding]:
        return [self.findings[address] for address in sorted(self.findings)]


_STRAIGHT, _END, _BRANCH, _JUMP = range(4)  # BRANCH: also to its target; JUMP: only there
_ONE_END: Final = frozenset({0xC2, 0xC3, 0xCA, 0xCB, 0xCF, 0xEA})  # RET, RETF, IRET, far JMP
_ONE_BRANCH: Final = frozenset({*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8})
_TWO_END: Final = frozenset({0x0B, 0x07, 0x35, 0xFF, 0xB9})  # UD2, SYSRET, SYSEXIT, UD0, UD1


def _flow(instruction: Instruction) -> int:
    opcode = instruction.opcode
    if instruction.map == Map.ONE:
        if opcode in _ONE_BRANCH:
            return _BRANCH
        if opcode in (0xEB, 0xE9):
            return _JUMP
        if opcode in _ONE_END or (opcode == 0xFF and instruction.reg in (4, 5)):
            return _END
        return _STRAIGHT
    if instruction.map == Map.TWO:
        if 0x80 <= opcode <= 0x8F:
            return _BRANCH
        return _END if opcode in _TWO_END else _STRAIGHT
    return _STRAIGHT


def _relative(instruction: Instruction) -> int:
    size: int = instruction.immediate_size
    value: int = instruction.immediate
    return value - (1 << 8 * size) if value >> (8 * size - 1) else value


class Descent:
    """A census that can be continued: what was visited is not looked at again. 32-bit code."""

    def __init__(self, read_page: ReadPage, most_instructions: int = 2_000_000, native: Set[str] = frozenset()) -> None:
        """read_page(address): PAGE bytes at a multiple of PAGE. native: names of instructions that are no findings. Raises OSError when
        libhv.so was not built."""
        self._native = native
        self.census = Census()
        self._read_page = read_page
        self._most = most_instructions
        self._decoder = Decoder()
        self._visited: set[int] = set()
        self._pages: dict[int, bool] = {}
        # A page and the beginning of the next one; instructions do not reach further.
        self._window = (ctypes.c_uint8 * (PAGE + LONGEST))()
        self._window_page = -1
        self._window_bytes = 0

    def feed(self, entries: Iterable[int], seconds: float = 30.0) -> Census:
        """Look at what is reached from these linear addresses, for at most so long."""
        census, visited = self.census, self._visited
        deadline = time.monotonic() + seconds
        work = [entry & MASK for entry in entries if entry & MASK not in visited]
        instruction, decode = self._decoder.instruction, self._decoder.decode
        base = ctypes.addressof(self._window)
        countdown = _CLOCK_EVERY
        while work:
            address = work.pop()
            while address not in visited:
                countdown -= 1
                if countdown == 0:
                    countdown = _CLOCK_EVERY
                    if time.monotonic() > deadline or census.instructions > self._most:
                        census.complete = False
                        return census
                offset = address % PAGE
                if address - offset != self._window_page and not self._load(address - offset):
                    break
                result = decode(base + offset, min(LONGEST, self._window_bytes - offset), True)
                visited.add(address)
                if result != Decoded.DECODED:
                    census.unknown += 1
                    break
                census.instructions += 1
                if (instruction.map, instruction.opcode) in CANDIDATES and (what := sensitive(instruction)) is not None:
                    code = bytes(self._window[offset : offset + instruction.length])
                    if what.name not in self._native:
                        census.findings[address] = Finding(address, code, what)
                flow = _flow(instruction)
                behind = address + instruction.length & MASK
                if flow == _STRAIGHT:
                    address = behind
                    continue
                if flow == _END:
                    break
                target = behind + _relative(instruction)
                # With a prefix of 66 EIP is cut to 16 bits.
                target &= MASK if instruction.operand_size == 4 or instruction.immediate_size == 1 else 0xFFFF
                if flow == _JUMP:
                    address = target
                else:
                    if target not in visited:
                        work.append(target)
                    address = behind
        return census

    def _load(self, page: int) -> bool:
        data = self._read_page(page)
        if data is None:
            return False
        if page not in self._pages:
            self._pages[page] = True
            self.census.pages += 1
        following = self._read_page(page + PAGE & MASK) or b""
        data += following[:LONGEST]
        ctypes.memmove(self._window, data, len(data))
        self._window_page, self._window_bytes = page, len(data)
        return True
