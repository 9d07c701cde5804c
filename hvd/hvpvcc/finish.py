"""Makes a neutral kernel paravirtual: what each site is replaced by. For files (hvpvcc --finish) and for hvd's loader alike."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, NamedTuple

from hvd.hvpvcc.elf import Elf, FormatError
from hvd.hvpvcc.entry import without_stack
from hvd.hvpvcc.sites import FINISHED, NOP, Kind, Shape, Site, Table, read_table
from hvd.hvpvcc.thunks import CLI, ENTRY_IRET_SITE, Thunks, call

# Sections whose code runs before there is a stack, where no call may be.
NO_STACK: Final = frozenset({".head.text"})
# They are native in a paravirtual kernel, too. Those of the second row are not there for guests, as CPUID says, and fault.
_NATIVE: Final = {
    Kind.RDTSC: "the counter is the guest's own",
    **dict.fromkeys((Kind.XGETBV, Kind.XSETBV, Kind.VM, Kind.ACCESS_FLAG, Kind.SYSEXIT, Kind.MONITOR, Kind.MWAIT), "CPUID hides it"),
}
_NO_ROOM: Final = "what follows must not be put off"
_CALL_BYTES: Final = 5


class Replacement(NamedTuple):
    """form: "store", "thunk", "monitor" (the instruction itself, executed by the monitor, called); empty = left as it is, why says
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
    patches = [(site.address, code) for site, _, code, _ in replacements if code]
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


class Plan(NamedTuple):
    """What sites of a shape are replaced by: by nothing, by code, or by a branch (opcode) to target with rest behind it."""

    form: str
    why: str = ""
    code: bytes = b""
    opcode: bytes = b""
    target: int = 0  # counts from the end of a branch at address 0
    rest: bytes = b""


def _replacements(elf: Elf, table: Table, thunks: Thunks) -> Iterator[Replacement]:
    bare = without_stack(elf)
    no_stack = [section for section in elf.sections if section.executable and section.name in NO_STACK]
    plans: dict[Shape, Plan] = {}
    new = tuple.__new__  # what Replacement() does, in a third of the time
    for site, next_one in zip_longest(table.sites, table.sites[1:]):
        address, shape = site
        plan = plans.get(shape)
        if plan is None and (plan := fixed_plan(site)) is not None:
            plans[shape] = plan
        if plan is not None and not plan.opcode:
            yield new(Replacement, (site, plan.form, plan.code, plan.why))
            continue
        if address + shape.lead in bare or (no_stack and any(section.holds(address) for section in no_stack)):
            yield Replacement(site, "", why="there is no stack yet")
            continue
        if shape.code == b"\xfb" and next_one is not None and next_one.address == address + shape.length:
            yield enabling(site, next_one, thunks)
            continue
        if plan is None:
            plan = plans[shape] = branch_plan(shape, thunks)
        form, _, _, opcode, target, rest = plan
        yield new(Replacement, (site, form, opcode + (target - address & 0xFFFF_FFFF).to_bytes(4, "little") + rest, ""))


def fixed_plan(site: Site) -> Plan | None:
    """Of a site's shape, when it does not depend on where the site is."""
    shape = site.shape
    if not shape.padded:
        raise FormatError(f"the site at {site.address:#x} has other code around its instruction")
    if shape.length < _CALL_BYTES:
        return Plan("", _NO_ROOM)
    if shape.kind in _NATIVE:
        return Plan("", _NATIVE[shape.kind])
    if shape.code == b"\xfa" and shape.length >= len(CLI):
        return Plan("store", code=_filled(CLI, shape.length))
    return None


def branch_plan(shape: Shape, thunks: Thunks) -> Plan:
    rest = _filled(b"", shape.length - _CALL_BYTES)
    if shape.code == b"\xcf":
        return Plan("monitor", opcode=b"\xe8", target=thunks.page + ENTRY_IRET_SITE - _CALL_BYTES, rest=rest)
    if (target := _thunk(shape.code, thunks)) is not None:
        return Plan("thunk", opcode=b"\xe8", target=target - _CALL_BYTES, rest=rest)
    return Plan("monitor", opcode=b"\xe8", target=thunks.site(shape.code) - _CALL_BYTES, rest=rest)


def enabling(site: Site, next_one: Site, thunks: Thunks) -> Replacement:
    """Of STI with another site directly behind it."""
    if next_one.code != b"\xf4":
        return Replacement(site, "", why="the next instruction is in its shadow")
    return Replacement(site, "thunk", _filled(call(site.address, thunks.idle(next_one.length)), site.length))


def _filled(code: bytes, length: int) -> bytes:
    return code.ljust(length, bytes([NOP]))


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
