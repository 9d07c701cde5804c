"""A kernel's symbols for a debugger: its stripped ELF file with what its System.map names put back.

Made from what a build keeps, so that a kernel of the cache needs no new build for it. Without debugging information: names of
functions and variables, no lines.
"""

from __future__ import annotations

import asyncio
import bisect
import re
from pathlib import Path

from hvd.images.process import output_of

TOOLS = {"objdump": "binutils", "objcopy": "binutils"}
# A line of objdump's table of sections: number, name, size, address.
_SECTION = re.compile(r"\s*\d+ (\S+)\s+[0-9a-f]+\s+([0-9a-f]+)\s.*\bALLOC\b")
_FUNCTIONS = frozenset("tTwW")


async def put_symbols(kernel: Path, system_map: Path, made: Path) -> None:
    """Raises CommandError; OSError when the map cannot be read or the disk is full."""
    table = await output_of("objdump", "-hw", str(kernel))
    sections = sorted((int(row[2], 16), row[1]) for row in map(_SECTION.match, table.splitlines()) if row)
    options = made.with_name(f"{made.name}.options")
    incoming = made.with_name(f"{made.name}.new")
    names = await asyncio.to_thread(system_map.read_text)
    try:
        options.write_text("\n".join(symbol_options(names, sections)))
        await output_of("objcopy", f"@{options}", str(kernel), str(incoming))
        incoming.rename(made)
    finally:
        options.unlink(missing_ok=True)
        incoming.unlink(missing_ok=True)


def symbol_options(system_map: str, sections: list[tuple[int, str]]) -> list[str]:
    """objcopy's options, one for each symbol: `ADDRESS TYPE NAME` lines as of nm, and sections by ascending address. What lies
    below all sections (constants) is left out."""
    starts = [start for start, _ in sections]
    options = []
    for line in system_map.splitlines():
        words = line.split()
        if len(words) != 3:
            continue
        address, type_, name = int(words[0], 16), words[1], words[2]
        index = bisect.bisect_right(starts, address) - 1
        if index < 0:
            continue
        start, section = sections[index]
        sort = "function" if type_ in _FUNCTIONS else "object"
        options.append(
            f"--add-symbol {name}={section}:{address - start:#x},{sort},{'global' if type_.isupper() else 'local'}"
        )
    return options
