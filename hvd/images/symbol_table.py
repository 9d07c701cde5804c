"""Names of functions and variables by address, out of an ELF file's symbol table (System V ABI, "Symbol Table")."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 256 << 20
# How far behind a symbol without a size its name still counts.
_REACH: Final = 1 << 16
_SYMTAB, _NOTYPE, _OBJECT, _FUNC = 2, 0, 1, 2
# Class -> ELF header's e_shoff with the following fields; section header; symbol as (name, info, shndx, value, size) positions.
_HEADER: Final = {1: struct.Struct("<32xI10xHHH"), 2: struct.Struct("<40xQ10xHHH")}
_SECTION: Final = {1: struct.Struct("<II4x4xIII4x4x4x"), 2: struct.Struct("<II8x8xQQI4x8x8x")}
_SYMBOL: Final = {1: struct.Struct("<IIIBxH"), 2: struct.Struct("<IBxHQQ")}


class SymbolTable:
    """symbols: (address, size, name), in any order; size 0 = not known."""

    def __init__(self, symbols: Sequence[tuple[int, int, str]]) -> None:
        self._symbols = sorted(symbols)
        self._addresses = [address for address, _, _ in self._symbols]

    def __len__(self) -> int:
        return len(self._symbols)

    def name_of(self, address: int) -> str:
        """"main+0x12"; empty when no symbol covers the address."""
        index = bisect.bisect_right(self._addresses, address) - 1
        if index < 0:
            return ""
        start, size, name = self._symbols[index]
        offset = address - start
        if offset >= (size or _REACH):
            return ""
        return f"{name}+{offset:#x}" if offset else name


def read_symbols(path: Path) -> SymbolTable:
    """Of a little-endian ELF file; empty for what is none, has none or is damaged."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF" or path.stat().st_size > MOST_BYTES:
                return SymbolTable([])
            file.seek(0)
            return SymbolTable(_symbols(file.read()))
    except (OSError, struct.error, IndexError, KeyError, ValueError):
        return SymbolTable([])


def _symbols(data: bytes) -> list[tuple[int, int, str]]:
    bits = data[4]
    offset, entry_size, count, _ = _HEADER[bits].unpack_from(data)
    sections = [_SECTION[bits].unpack_from(data, offset + n * entry_size) for n in range(count)]
    found = []
    for _, kind, where, length, link in sections:
        if kind != _SYMTAB:
            continue
        names = sections[link][2]
        for at in range(where, where + length, _SYMBOL[bits].size):
            if bits == 1:
                name, value, size, info, section = _SYMBOL[bits].unpack_from(data, at)
            else:
                name, info, section, value, size = _SYMBOL[bits].unpack_from(data, at)
            if section == 0 or info & 15 not in (_NOTYPE, _OBJECT, _FUNC) or not name:
                continue
            begin = names + name
            text = data[begin : data.index(b"\0", begin)].decode(errors="replace")
            if text and not text.startswith("."):
                found.append((value, size, text))
    return found
