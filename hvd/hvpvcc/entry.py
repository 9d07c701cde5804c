"""Code at a kernel's entries, which runs before it has set a stack: no call may be put there."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from hvd.cell.decoder import LONGEST, Decoded, Decoder, Instruction, Map
from hvd.hvpvcc.elf import Elf

_MOST: Final = 512  # instructions
_ESP: Final = 4
# MOV, LEA, POP and ADD/SUB/AND of ESP; LSS. Opcodes whose ModRM.reg, or .rm, is the destination.
_TO_REG: Final = {(Map.ONE, 0x8B), (Map.ONE, 0x8D), (Map.TWO, 0xB2)}
_TO_RM: Final = {(Map.ONE, 0x89), (Map.ONE, 0xC7)}
_ENDS: Final = {(Map.ONE, opcode) for opcode in (0xC2, 0xC3, 0xCA, 0xCB, 0xCF, 0xEA, 0xE8, 0xFF)}
_PHYS32_ENTRY: Final = 18  # of notes whose owner is "Xen"


def without_stack(elf: Elf) -> frozenset[int]:
    """Addresses of instructions that run before the kernel has loaded ESP, as far as they follow one another or plain jumps."""
    found: set[int] = set()
    decoder = Decoder()
    for entry in _entries(elf):
        address = entry
        for _ in range(_MOST):
            section = elf.code_section(address)
            if section is None or address in found:
                break
            at = section.offset + address - section.address
            code = elf.data[at : min(at + LONGEST, section.offset + section.size)]
            if decoder.decode_bytes(code) != Decoded.DECODED:
                break
            found.add(address)
            instruction = decoder.instruction
            if _loads_esp(instruction) or (instruction.map, instruction.opcode) in _ENDS:
                break
            address += instruction.length
            if instruction.map == Map.ONE and instruction.opcode in (0xEB, 0xE9):
                size, value = instruction.immediate_size, instruction.immediate
                address = address + (value - (1 << 8 * size) if value >> (8 * size - 1) else value) & 0xFFFF_FFFF
    return frozenset(found)


def _loads_esp(instruction: Instruction) -> bool:
    key = instruction.map, instruction.opcode
    if key == (Map.ONE, 0xBC):  # MOV ESP, imm32
        return True
    if key in _TO_REG:
        return bool(instruction.reg == _ESP)
    return key in _TO_RM and instruction.mod == 3 and instruction.rm == _ESP


def _entries(elf: Elf) -> Iterator[int]:
    """Linear addresses: of the ELF header, and of PVH's note."""
    physical = [elf.entry]
    for section in elf.sections:
        if section.type == 7:
            data = elf.bytes_of(section)
            at = 0
            while at + 12 <= len(data):
                name_size, size, kind = struct.unpack_from("<III", data, at)
                text = at + 12 + -(-name_size // 4) * 4
                if data[at + 12 : at + 16] == b"Xen\0" and kind == _PHYS32_ENTRY and text + 4 <= len(data):
                    physical.append(struct.unpack_from("<I", data, text)[0])
                at = text + -(-size // 4) * 4
    for address in physical:
        if elf.code_section(address) is not None:
            yield address
        for segment in elf.segments:
            if segment.physical != segment.virtual and segment.physical <= address < segment.physical + segment.file_size:
                yield address - segment.physical + segment.virtual


