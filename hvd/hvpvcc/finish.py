"""Makes a neutral kernel paravirtual: what each site is replaced by. For files (hvpvcc --finish) and for hvd's loader alike."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from hvd.hvpvcc.elf import Elf, FormatError
from hvd.hvpvcc.entry import without_stack
from hvd.hvpvcc.sites import FINISHED, NOP, Kind, Site, Table, padded, read_table
from hvd.hvpvcc.thunks import CLI, ENTRY_IRET, Thunks, call, jump

# Sections whose code runs before there is a stack, where no call may be.
_NO_STACK: Final = frozenset({".head.text"})
# They are native in a paravirtual kernel, too. Those of the second row are not there for guests, as CPUID says, and fault.
_NATIVE: Final = {
    Kind.RDTSC: "the counter is the guest's own",
    **dict.fromkeys((Kind.XGETBV, Kind.XSETBV, Kind.VM, Kind.ACCESS_FLAG, Kind.SYSEXIT, Kind.MONITOR, Kind.MWAIT), "CPUID hides it"),
}
_NO_ROOM: Final = "what follows must not be put off"
_CALL_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class Replacement:
    """form: "store", "thunk", "monitor" (the instruction itself, executed by the monitor, called), "jump"; empty = left as it is, why says
    wherefore: it traps, or is harmless."""

    site: Site
    form: str
    code: bytes = b""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """patches: (linear address, bytes) for the neutral kernel. page: the hypercall page's linear address, which is to be filled when the
    kernel is loaded."""

    page: int
    replacements: tuple[Replacement, ...]
    thunks: int
    thunk_bytes: int
    patches: tuple[tuple[int, bytes], ...]
    already: bool  # the file was finished before: nothing is to be done but to fill the page


def finish(elf: Elf) -> Finished | None:
    """None: hvpvcc had nothing to do with this kernel. Raises FormatError."""
    table = read_table(elf)
    if table is None:
        return None
    if table.area.finished:
        return Finished(table.area.address, (), 0, 0, (), True)
    thunks = Thunks(table.area)
    replacements = tuple(_replacements(elf, table, thunks))
    patches = [(each.site.address, each.code) for each in replacements if each.code]
    if thunks.code:
        patches.append((thunks.first, bytes(thunks.code)))
    return Finished(table.area.address, replacements, len(thunks), len(thunks.code), tuple(patches), False)


def finished_file(elf: Elf, table: Table, finished: Finished) -> bytes:
    """The file with the patches in it, marked."""
    data = bytearray(elf.data[:])
    for address, code in finished.patches:
        at = elf.file_offset(address, len(code))
        data[at : at + len(code)] = code
    struct.pack_into("<B", data, table.area.record + 6, FINISHED)
    return bytes(data)


def _replacements(elf: Elf, table: Table, thunks: Thunks) -> Iterator[Replacement]:
    bare = without_stack(elf)
    following = {site.address: site for site in table.sites}
    for site in table.sites:
        if not padded(elf, site):
            raise FormatError(f"the site at {site.address:#x} has other code around its instruction")
        section = elf.code_section(site.address)
        assert section is not None  # read_table() saw to it
        next_one = following.get(site.end)
        if site.length < _CALL_BYTES:
            yield Replacement(site, "", why=_NO_ROOM)
        elif site.kind in _NATIVE:
            yield Replacement(site, "", why=_NATIVE[site.kind])
        elif site.code == b"\xfa" and site.length >= len(CLI):
            yield Replacement(site, "store", _filled(site, CLI))
        elif section.name in _NO_STACK or site.instruction in bare:
            yield Replacement(site, "", why="there is no stack yet")
        elif site.code == b"\xfb" and next_one is not None:
            if next_one.code != b"\xf4":
                yield Replacement(site, "", why="the next instruction is in its shadow")
            else:
                yield Replacement(site, "thunk", _filled(site, call(site.address, thunks.idle(next_one.length))))
        elif site.code == b"\xcf":
            yield Replacement(site, "jump", _filled(site, jump(site.address, thunks.page + ENTRY_IRET)))
        else:
            target = _thunk(site.code, thunks)
            form = "thunk" if target is not None else "monitor"
            yield Replacement(site, form, _filled(site, call(site.address, target if target is not None else thunks.site(site.code))))


def _filled(site: Site, code: bytes) -> bytes:
    return code + bytes([NOP]) * (site.length - len(code))


_PUSH_SELECTOR: Final = {b"\x06": 0, b"\x0e": 1, b"\x16": 2, b"\x1e": 3, b"\x0f\xa0": 4, b"\x0f\xa8": 5}
_POP_SELECTOR: Final = {b"\x07": 0, b"\x1f": 3, b"\x0f\xa1": 4, b"\x0f\xa9": 5}
_SIMPLE: Final[dict[bytes, Callable[[Thunks], int]]] = {b"\xfb": Thunks.sti, b"\x9c": Thunks.pushf, b"\x9d": Thunks.popf}
_ESP: Final = 4


def _thunk(code: bytes, thunks: Thunks) -> int | None:
    """None: there is none that does it by memory alone."""
    if (simple := _SIMPLE.get(code)) is not None:
        return simple(thunks)
    if (segment := _PUSH_SELECTOR.get(code)) is not None:
        return thunks.push_selector(segment)
    if (segment := _POP_SELECTOR.get(code)) is not None:
        return thunks.pop_selector(segment, code)
    modrm = code[-1]
    register, other = modrm & 7, modrm >> 3 & 7
    if modrm < 0xC0 or register == _ESP:
        return None
    if code[:-1] == b"\x0f\x20" and other in (0, 2, 3, 4):
        return thunks.read_control(other, register)
    if code[:-1] in (b"\x8c", b"\x66\x8c") and other < 6:
        return thunks.read_selector(other, register, half=len(code) == 3)
    if code[:-1] in (b"\x8e", b"\x66\x8e") and other in _POP_SELECTOR.values():
        return thunks.load_selector(other, register, code)
    return None
