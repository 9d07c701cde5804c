"""The proof that hvpvcc missed nothing: every sensitive instruction that disassembly finds in a linked kernel is a site, and every site is one.

By objdump, which knows nothing of hvpvcc, from symbol to symbol: a kernel that is stripped is checked less well, since data in sections of code
puts the disassembler out of step.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hvd.hvpvcc.elf import Elf, FormatError
from hvd.hvpvcc.sites import Site, Table

# Code that the kernel copies elsewhere before it runs, with relative branches adjusted only where they come first.
ALLOWED_SECTIONS: Final = r"^\.altinstr_replacement "

_PREFIXES: Final = r"(?:(?:rep\w*|lock|[c-gs]s|data16|addr16)\s+)*"
_ALONE: Final = re.compile(
    _PREFIXES + r"(?:cli|sti|hlt|pushf[wl]?|popf[wl]?|iret[wl]?|[ls][gil]dt[lw]?|ltr[wl]?|str|[sl]msw[wl]?|clts|rdmsr|wrmsr|rdtscp?|rdpmc|cpuid"
    r"|invlpg|invd|wbn?o?invd|invpcid|in|out|ins[bwl]?|outs[bwl]?|lar[wl]?|lsl[wl]?|verr|verw|ljmp[wl]?|lcall[wl]?|lret[wl]?|sysexitl?|sysenter|syscall"
    r"|sysretl?|mwaitx?|monitorx?|xgetbv|xsetbv|l[defgs]s[wl]?|swapgs|clac|stac|vmcall|vmmcall|vmlaunch|vmresume|vmxoff|vmfunc)(?:\s|$)"
)
_SPECIAL: Final = re.compile(r"(?:^|[\s,])%(?:(?:cr|db|dr|tr)[0-9]|[c-gs]s)(?:,|\s*$)")
_LINE: Final = re.compile(r"^ *([0-9a-f]+):\t([0-9a-f ]+?)\s*(?:\t(.*))?$")
_SECTION: Final = re.compile(r"^Disassembly of section (.*):$")
_SYMBOL: Final = re.compile(r"^[0-9a-f]+ <(.*)>:$")


@dataclass(frozen=True, slots=True)
class Found:
    """A sensitive instruction."""

    address: int
    section: str
    symbol: str
    text: str
    code: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    instructions: int
    sensitive: int
    missed: tuple[Found, ...]
    allowed: tuple[Found, ...]  # missed, where that is right
    wrong: tuple[tuple[Site, str], ...]  # sites that are none, and why
    symbols: dict[int, str]  # of sites: the function

    @property
    def good(self) -> bool:
        return not self.missed and not self.wrong


def sensitive(text: str) -> bool:
    """Of an instruction as objdump prints it."""
    if _ALONE.match(text):
        return True
    # Of MOV, PUSH and POP those with a special register as an operand, not as a prefix of one.
    return bool(re.match(_PREFIXES + r"(?:mov|push|pop)[wl]?\s", text) and _SPECIAL.search(text.split("#")[0].rstrip()))


def _multiboot_header(elf: Elf) -> range:
    """Addresses of a Multiboot 1 header in a section of code: data (specification, 3.1)."""
    for section in elf.sections:
        if section.executable:
            data = elf.bytes_of(section)[:8192]
            for at in range(0, len(data) - 11, 4):
                magic, flags, checksum = struct.unpack_from("<III", data, at)
                if magic == 0x1BADB002 and not (magic + flags + checksum) & 0xFFFF_FFFF:
                    return range(section.address + at, section.address + at + (48 if flags & 1 << 16 else 12))
    return range(0)


def verify(path: Path, elf: Elf, table: Table | None, allowed_sections: str = ALLOWED_SECTIONS) -> Verdict:
    """Raises FormatError: objdump cannot read it."""
    allow = re.compile(allowed_sections)
    sites = {site.instruction: site for site in table.sites} if table else {}
    seen: set[int] = set()
    missed: list[Found] = []
    allowed: list[Found] = []
    symbols: dict[int, str] = {}
    data = _multiboot_header(elf)
    instructions = found = 0
    for section, symbol, address, text, code in _disassembly(path):
        instructions += 1
        site = sites.get(address)
        if site is not None and site.code == code:
            seen.add(address)
            symbols[site.address] = symbol
        if address in data or not sensitive(text):
            continue
        found += 1
        if site is None:
            (allowed if allow.search(f"{section} {symbol}") else missed).append(Found(address, section, symbol, text, code))
    wrong = [(site, "it is no instruction") for address, site in sites.items() if address not in seen]
    wrong += [(site, "there is other code around it") for address, site in sites.items() if address in seen and not site.shape.padded]
    return Verdict(instructions, found, tuple(missed), tuple(allowed), tuple(wrong), symbols)


def _disassembly(path: Path) -> Iterator[tuple[str, str, int, str, bytes]]:
    """(section, symbol, address, text, bytes) of each instruction."""
    section = symbol = ""
    command = ("objdump", "-d", "-w", "-z", "--", str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if (match := _LINE.match(line)) is not None:
                if match[3]:
                    yield section, symbol, int(match[1], 16), match[3].strip(), bytes.fromhex(match[2])
            elif (match := _SYMBOL.match(line)) is not None:
                symbol = match[1]
            elif (match := _SECTION.match(line)) is not None:
                section = match[1]
        problem = process.stderr.read().strip()
    if process.returncode:
        raise FormatError(f"objdump: {problem[-200:]}")
