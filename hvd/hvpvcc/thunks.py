"""What sites are replaced by: a store, or a call of a small function, a thunk, in the room that the kernel has for it.

No thunk changes a register or flag that the instruction does not change. They address the page of the virtual processor through SS, which in a
kernel is flat; DS and ES may be a program's. Thunks and hypercall page are reached by relative calls, so that they work before paging is on, at
physical addresses, as well. Offsets and entries: guests/include/hv/paravirt.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from hvd.hvpvcc.elf import FormatError
from hvd.hvpvcc.sites import PAGE, Area

VCPU: Final = 0xFFFF_F000
IF, PENDING, CR0, FLAGS = 0x000, 0x004, 0x010, 0x028
SELECTORS: Final = 0x030  # 4 bytes apart, in the order of their encoding
GDT, TWINS, TWIN_COUNT, DESCRIPTORS = 0x052, 0x300, 256, 0x800
ENTRY_SITE, ENTRY_IDLE, ENTRY_DELIVER, ENTRY_IRET_SITE = 0x040, 0x0C0, 0x100, 0x180
FIRST_THUNK: Final = 0x200  # behind the entries

_CALL, _JUMP = 0xE8, 0xE9
_SS: Final = b"\x36"
_TF_IOPL: Final = 0x3100
_ALIGNMENT: Final = 16
# A thunk's code, given where it will stand.
_Build = Callable[[int], bytes]


def branch(opcode: int, at: int, target: int) -> bytes:
    """CALL or JMP rel32 that stands at `at`."""
    return struct.pack("<BI", opcode, target - at - 5 & 0xFFFF_FFFF)


def call(at: int, target: int) -> bytes:
    return branch(_CALL, at, target)


def jump(at: int, target: int) -> bytes:
    return branch(_JUMP, at, target)


def _vcpu(offset: int) -> bytes:
    return struct.pack("<I", VCPU + offset)


# CLI: movb $0, %ss:VCPU + IF + 1. No flag, no register, no stack.
CLI: Final = _SS + b"\xc6\x05" + _vcpu(IF + 1) + b"\0"


class Thunks:
    """Hands out thunks: each once, when it is first asked for."""

    def __init__(self, area: Area) -> None:
        self.page = area.address
        self.code = bytearray()  # of all of them, from first on
        self.first = area.address + FIRST_THUNK
        self._room = area.pages * PAGE - FIRST_THUNK
        self._known: dict[object, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def _get(self, key: object, build: _Build) -> int:
        """Raises FormatError: there is no room."""
        if (known := self._known.get(key)) is not None:
            return known
        at = self.first + len(self.code)
        code = build(at)
        code += b"\xcc" * (-len(code) % _ALIGNMENT)
        if len(self.code) + len(code) > self._room:
            raise FormatError(f"{self._room} bytes are not enough for this kernel's thunks")
        self.code += code
        self._known[key] = at
        return at

    def sti(self) -> int:
        """Interrupts on. JECXZ tests without flags; when something is pending, the monitor does it all: what comes next still is in the
        shadow of STI."""
        slow = self.site(b"\xfb")

        def build(at: int) -> bytes:
            code = _SS + b"\xc6\x05" + _vcpu(IF + 1) + b"\x02"  # movb $2, IF + 1
            code += b"\x51" + _SS + b"\x8b\x0d" + _vcpu(PENDING)  # push %ecx; mov PENDING, %ecx
            code += b"\xe3\x0e\x59" + CLI  # jecxz 1f; pop %ecx; movb $0, IF + 1
            return code + jump(at + len(code), slow) + b"\x59\xc3"  # 1: pop %ecx; ret

        return self._get("sti", build)

    def pushf(self) -> int:
        """The processor's flags, in which IF is always on and IOPL 0, with the guest's IF and IOPL."""
        code = b"\xff\x34\x24\x9c\x50\x51\x8b\x44\x24\x08"  # pushl (%esp); pushf; push %eax; push %ecx; mov 8(%esp), %eax
        code += _SS + b"\x8b\x0d" + _vcpu(IF) + b"\x8d\x84\x08" + struct.pack("<i", -0x200)  # mov IF, %ecx; lea -0x200(%eax,%ecx), %eax
        code += _SS + b"\x8b\x0d" + _vcpu(FLAGS) + b"\x8d\x04\x08"  # mov FLAGS, %ecx; lea (%eax,%ecx), %eax
        code += b"\x89\x44\x24\x10\x59\x58\x8d\x64\x24\x04\xc3"  # mov %eax, 16(%esp); pop %ecx; pop %eax; lea 4(%esp), %esp; ret
        return self._get("pushf", lambda at: code)

    def popf(self) -> int:
        """IF by a store; a change of IOPL, and TF, by the monitor."""
        slow = self.site(b"\x9d")

        def build(at: int) -> bytes:
            code = b"\x50\x8b\x44\x24\x08" + _SS + b"\x33\x05" + _vcpu(FLAGS)  # push %eax; mov 8(%esp), %eax; xor FLAGS, %eax
            code += b"\xa9" + struct.pack("<I", _TF_IOPL) + b"\x75\x31"  # test $TF|IOPL, %eax; jne slow
            code += b"\x8b\x44\x24\x08\x25" + struct.pack("<I", 0x200)  # mov 8(%esp), %eax; and $IF, %eax
            code += _SS + b"\xa3" + _vcpu(IF) + b"\x58\x74\x0a"  # mov %eax, IF; pop %eax; je done
            code += _SS + b"\x83\x3d" + _vcpu(PENDING) + b"\0\x75\x08"  # cmpl $0, PENDING; jne deliver
            done = b"\xff\x74\x24\x04\x9d"  # pushl 4(%esp); popf
            code += done + b"\xc2\x04\x00"  # ret $4
            code += done
            code += call(at + len(code), self.page + ENTRY_DELIVER) + b"\xc2\x04\x00"
            code += b"\x58"  # slow: pop %eax
            return code + jump(at + len(code), slow)

        return self._get("popf", build)

    def read_control(self, number: int, register: int) -> int:
        """MOV from CR0, CR2, CR3, CR4."""
        offset = CR0 + 4 * (number - (number > 1))
        code = _SS + bytes([0x8B, register << 3 | 5]) + _vcpu(offset) + b"\xc3"
        return self._get(("cr", number, register), lambda at: code)

    def read_selector(self, segment: int, register: int, *, half: bool) -> int:
        """MOV from a segment register to a general one, of 16 bits (half) or 32."""
        load = b"\x66" + _SS + b"\x8b" if half else _SS + b"\x0f\xb7"
        code = load + bytes([register << 3 | 5]) + _vcpu(SELECTORS + 4 * segment) + b"\xc3"
        return self._get(("selector", segment, register, half), lambda at: code)

    def push_selector(self, segment: int) -> int:
        # pushl (%esp); push %eax; movzwl selector, %eax; mov %eax, 8(%esp); pop %eax; ret
        code = b"\xff\x34\x24\x50" + _SS + b"\x0f\xb7\x05" + _vcpu(SELECTORS + 4 * segment) + b"\x89\x44\x24\x08\x58\xc3"
        return self._get(("push", segment), lambda at: code)

    def _load_selector(self, segment: int) -> int:
        """A function: [return, selector] on the stack; loads the twin and returns 5 bytes behind its caller, or returns to it. The twin that the
        monitor offers is good as long as the guest's descriptor is the one that it was made of, and its DPL not below the RPL."""
        start = b"\x9c\x50\x51\x52\x53"  # pushf; push %eax; push %ecx; push %edx; push %ebx
        start += b"\x0f\xb7\x44\x24\x18\x89\xc2\xa8\x04"  # movzwl 24(%esp), %eax; mov %eax, %edx; test $4, %al
        end = b"\x5b\x5a\x59\x58\x9d\xc2\x04\x00"  # slow: pop %ebx; pop %edx; pop %ecx; pop %eax; popf; ret $4
        load = b"\x66" + _SS + b"\xa3" + _vcpu(SELECTORS + 4 * segment)  # mov %ax, the selector
        load += bytes([0x8E, 0xC0 | segment << 3 | 2]) + b"\x83\x44\x24\x14\x05"  # mov %edx, the segment register; addl $5, 20(%esp)
        # The body, from its end on: what jumps to `slow` must know how far that is.
        parts: list[tuple[bytes, bytes, str]] = [
            (b"", b"\x75", "slow"),  # jne
            (b"\x89\xc1\xc1\xe9\x03", b"\x74", "load"),  # mov %eax, %ecx; shr $3, %ecx; je load: null
            (b"\x81\xf9" + struct.pack("<I", TWIN_COUNT), b"\x73", "slow"),  # cmp $256, %ecx; jae
            (_SS + b"\x0f\xb7\x14\x4d" + _vcpu(TWINS) + b"\x85\xd2", b"\x74", "slow"),  # movzwl TWINS(,%ecx,2), %edx; test %edx, %edx; je
            (_SS + b"\x8b\x1d" + _vcpu(GDT) + b"\x8d\x1c\xcb" + _SS + b"\x8b\x03"  # mov GDT, %ebx; lea (%ebx,%ecx,8), %ebx; mov (%ebx), %eax
             + _SS + b"\x3b\x04\xcd" + _vcpu(DESCRIPTORS), b"\x75", "slow"),  # cmp DESCRIPTORS(,%ecx,8), %eax; jne
            (_SS + b"\x8b\x5b\x04" + _SS + b"\x3b\x1c\xcd" + _vcpu(DESCRIPTORS + 4), b"\x75", "slow"),  # mov 4(%ebx), %ebx; cmp; jne
            (b"\x0f\xb7\x44\x24\x18\xa8\x03", b"\x74", "load"),  # movzwl 24(%esp), %eax; test $3, %al; je load
            (b"\xf7\xd3\xf7\xc3" + struct.pack("<I", 0x6000), b"\x75", "slow"),  # not %ebx; test $DPL, %ebx; jne: below 3
        ]  # fmt: skip
        length = sum(len(code) + 2 for code, _, _ in parts)
        body = b""
        for code, jump_opcode, where in parts:
            behind = len(body) + len(code) + 2
            body += code + jump_opcode + bytes([length - behind + (len(load) if where == "slow" else 0)])
        return self._get(("load", segment), lambda at: start + body + load + end)

    def load_selector(self, segment: int, register: int, code: bytes) -> int:
        """MOV of a general register to DS, ES, FS or GS; code: the instruction."""
        function, slow = self._load_selector(segment), self.site(code)

        def build(at: int) -> bytes:
            made = bytes([0x50 | register])  # push
            made += call(at + 1, function)
            return made + jump(at + 6, slow) + b"\xc3"

        return self._get(("mov", segment, register), build)

    def pop_selector(self, segment: int, code: bytes) -> int:
        function, slow = self._load_selector(segment), self.site(code)

        def build(at: int) -> bytes:
            made = b"\xff\x74\x24\x04" + call(at + 4, function)  # pushl 4(%esp)
            return made + jump(at + 9, slow) + b"\xc2\x04\x00"  # ret $4

        return self._get(("pop", segment), build)

    def idle(self, skip: int) -> int:
        """STI with HLT behind it; returns behind the HLT, whose site has so many bytes."""

        def build(at: int) -> bytes:
            code = call(at, self.page + ENTRY_IDLE) + b"\x50\x8b\x44\x24\x04"  # push %eax; mov 4(%esp), %eax
            return code + b"\x8d\x40" + bytes([skip]) + b"\x89\x44\x24\x04\x58\xc3"  # lea skip(%eax), %eax; mov %eax, 4(%esp); pop %eax; ret

        return self._get(("idle", skip), build)

    def site(self, code: bytes) -> int:
        """The instruction itself, executed by the monitor as if it stood at the site."""
        return self._get(code, lambda at: call(at, self.page + ENTRY_SITE) + bytes([len(code)]) + code)
