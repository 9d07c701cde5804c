"""`python -m bench.bare KERNEL COMMAND-LINE`: bare Unicorn runs a test kernel up to its first print, without hooks.

Prints JSON: {"seconds", "stack"}, the arguments of that print. With --count instead {"instructions"}, slowly. Without
a hook Unicorn's port writes go nowhere and port reads give 0, so the kernel must not wait for a device before.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_MODE_32
from unicorn.unicorn import Uc as _Uc
from unicorn.x86_const import UC_X86_REG_EAX, UC_X86_REG_EBX, UC_X86_REG_ESP

Uc: Any = _Uc  # its package has no annotations
MEMORY_BYTES: Final = 16 << 20
MULTIBOOT_MAGIC: Final = 0x2BADB002
INFO, COMMAND_LINE = 0x1000, 0x2000
_HEADER = struct.Struct("<28xI12xHH")  # of ELF32: program headers, their size and number (section headers follow)
_SECTIONS = struct.Struct("<32xI10xHH")
_SEGMENT = struct.Struct("<8I")
_SECTION = struct.Struct("<10I")
_SYMBOL = struct.Struct("<IIIBBH")
SYMBOL_TABLE: Final = 2
LOAD: Final = 1


def segments(image: bytes) -> list[tuple[int, bytes]]:
    """(guest-physical address, contents) of an ELF32 file."""
    at, size, number = _HEADER.unpack_from(image)
    headers = [_SEGMENT.unpack_from(image, at + n * size) for n in range(number)]
    return [
        (physical, image[offset : offset + length]) for kind, offset, _, physical, length, *_ in headers if kind == LOAD
    ]


def symbol(image: bytes, wanted: str) -> int:
    """Its address. Raises KeyError."""
    at, size, number = _SECTIONS.unpack_from(image)
    sections = [_SECTION.unpack_from(image, at + n * size) for n in range(number)]
    for section in sections:
        if section[1] == SYMBOL_TABLE:
            names = sections[section[6]][4]
            for name, value, *_ in _SYMBOL.iter_unpack(image[section[4] : section[4] + section[5]]):
                if image[names + name : image.index(b"\0", names + name)].decode() == wanted:
                    return int(value)
    raise KeyError(wanted)


def prepare(image: bytes, command_line: str) -> Any:
    """The machine at the kernel's entry, as Multiboot has it."""
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, MEMORY_BYTES)
    for address, contents in segments(image):
        uc.mem_write(address, contents)
    uc.mem_write(INFO, struct.pack("<5I", 4, 0, 0, 0, COMMAND_LINE))
    uc.mem_write(COMMAND_LINE, command_line.encode() + b"\0")
    uc.reg_write(UC_X86_REG_EAX, MULTIBOOT_MAGIC)
    uc.reg_write(UC_X86_REG_EBX, INFO)
    return uc


def main() -> None:
    arguments = sys.argv[1:]
    counting = "--count" in arguments
    path, command_line = (word for word in arguments if word != "--count")
    image = Path(path).read_bytes()
    (entry,) = struct.unpack_from("<24xI", image)
    uc, until = prepare(image, command_line), symbol(image, "print")
    instructions = 0

    def count(*_: Any) -> None:
        nonlocal instructions
        instructions += 1

    if counting:
        uc.hook_add(UC_HOOK_CODE, count)
    started = time.monotonic_ns()
    uc.emu_start(entry, until)
    seconds = (time.monotonic_ns() - started) / 1e9
    stack = struct.unpack("<8I", uc.mem_read(uc.reg_read(UC_X86_REG_ESP), 32))
    answer = {"instructions": instructions} if counting else {"seconds": seconds, "stack": stack[1:]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
