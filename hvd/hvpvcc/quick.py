"""What finish() makes of a neutral kernel, written into a guest's memory: by C for the thousands of sites (patch.c), by finish.py's own rules
for the shapes that they are of."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from hvd.board.libhv import LIBRARY
from hvd.board.memory import LOW_RAM_END, GuestMemory
from hvd.errors import HvdError
from hvd.hvpvcc.elf import Elf
from hvd.hvpvcc.entry import without_stack
from hvd.hvpvcc.finish import NO_STACK, Plan, branch_plan, enabling, fixed_plan
from hvd.hvpvcc.sites import NOP, PAGE, Kind, Site, area_of, records_of, shape_of
from hvd.hvpvcc.thunks import Thunks

_u8, _u16, _u32, _u64, _pointer = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_MOST_SHAPES: Final = 1024
_NONE: Final = 0xFFFF_FFFF
_ENABLING: Final = b"\2"
_PLAN: Final = struct.Struct("<IBBB9s")
_ADDRESSES: Final = 1 << 32


class _Record(ctypes.Structure):
    """struct hv_record."""

    _fields_ = (("address", _u32), ("kind", _u8), ("length", _u8), ("original", _u8), ("lead", _u8))


class _Range(ctypes.Structure):
    """struct hv_range."""

    _fields_ = (("start", _u64), ("size", _u64), ("offset", ctypes.c_int64))


class _Shape(ctypes.Structure):
    """struct hv_shape."""

    _fields_ = (("first", _u32), ("plain", _u32), ("content", _u64))


class _Table(ctypes.Structure):
    """struct hv_table."""

    _fields_ = (
        ("file", ctypes.c_char_p), ("file_size", _u64), ("code", ctypes.POINTER(_Range)), ("stackless", ctypes.POINTER(_Range)),
        ("bare", ctypes.POINTER(_u32)), ("codes", _u32), ("stackless_count", _u32), ("bare_count", _u32), ("last_kind", _u32),
        ("area", _u64), ("area_end", _u64),
    )  # fmt: skip


@functools.cache
def library() -> Any:
    """libhv.so. Raises HvdError NATIVE_MISSING."""
    try:
        lib = ctypes.PyDLL(str(LIBRARY))
        lib.hv_sites_group.argtypes = [_pointer] * 6
        lib.hv_sites_group.restype = ctypes.c_int
        lib.hv_sites_write.argtypes = [_pointer, _pointer, _pointer, _u32, ctypes.c_char_p, _pointer, _u32, _pointer, _u64]
        lib.hv_sites_write.restype = ctypes.c_bool
    except (OSError, AttributeError) as error:
        raise HvdError("NATIVE_MISSING", path=LIBRARY, problem=error) from error
    return lib


def patch(memory: GuestMemory, elf: Elf) -> bool:
    """The kernel, of a whole file in bytes, was just loaded. False: nothing is wrong with what was done, but finish() has to do it all, or to
    tell what is wrong with the kernel. Raises FormatError as finish() does; HvdError NATIVE_MISSING, ADDRESS_OUTSIDE."""
    if (found := records_of(elf)) is None:
        return True
    area = area_of(elf, *found)
    if area.finished:
        return True
    sections = [section for section in elf.code if section.address + section.size <= _ADDRESSES]
    if len(sections) < len(elf.code) or not isinstance(elf.data, bytes):
        return False
    number = _u32(len(found[0]) // ctypes.sizeof(_Record))
    sites = (_Record * number.value).from_buffer_copy(found[0])
    shape, state, shapes = (_u16 * number.value)(), ctypes.create_string_buffer(number.value), (_Shape * _MOST_SHAPES)()
    without = [section for section in sections if section.name in NO_STACK]
    bare = sorted(address for address in without_stack(elf) if address < _ADDRESSES)
    code, stackless = (_ranges((s.address, s.size, s.offset - s.address) for s in each) for each in (sections, without))
    table = _Table(
        elf.data, len(elf.data), code, stackless, (_u32 * len(bare))(*bare), len(code), len(stackless), len(bare), max(Kind),
        area.address, area.address + area.pages * PAGE,
    )  # fmt: skip
    count = library().hv_sites_group(ctypes.byref(table), sites, ctypes.byref(number), shape, state, shapes)
    if count < 0:
        return False

    def site_of(index: int, which: int) -> Site:
        record, content = sites[index], shapes[which].content
        address, length = record.address, record.length
        return Site(address, shape_of(address, record.kind, length, record.original, record.lead, elf.data[content : content + length]))

    thunks = Thunks(area)
    plans: list[Plan | None] = [None] * count
    single: list[tuple[int, bytes]] = []
    # In finish()'s order, which is that of the thunks.
    for index, step, which in sorted(_events(shapes[:count], shape, state.raw[: number.value])):
        if step == 0:
            plans[which] = fixed_plan(site_of(index, which))
        elif step == 1 and plans[which] is None:
            plans[which] = branch_plan(site_of(index, which).shape, thunks)
        elif step == 2 and ((plan := plans[which]) is None or plan.opcode):
            made = enabling(site_of(index, which), site_of(index + 1, shape[index + 1]), thunks)
            single += [(made.site.address, made.code)] if made.code else []
    segments = _ranges((s.virtual, s.file_size, s.physical - s.virtual) for s in elf.segments)
    packed = b"".join(map(_packed, plans))
    end = min(memory.size, LOW_RAM_END)
    if not library().hv_sites_write(sites, shape, state, number, packed, segments, len(segments), memory.host_address, end):
        return False
    for address, made_code in [*single, (thunks.first, bytes(thunks.code))]:
        if made_code:
            memory.write(elf.physical(address), made_code)
    return True


def _ranges(rows: Iterable[tuple[int, int, int]]) -> ctypes.Array[_Range]:
    ranges = [_Range(*row) for row in rows]
    return (_Range * len(ranges))(*ranges)


def _events(shapes: Sequence[_Shape], shape: ctypes.Array[Any], state: bytes) -> Iterator[tuple[int, int, int]]:
    """What is to be thought about, and when: (index of a site, 0 = its shape is new, 1 = it is the first that may be a branch, 2 = it is an STI
    with another site behind it; number of the shape)."""
    for which, about in enumerate(shapes):
        yield about.first, 0, which
        if about.plain != _NONE:
            yield about.plain, 1, which
    index = state.find(_ENABLING)
    while index >= 0:
        yield index, 2, shape[index]
        index = state.find(_ENABLING, index + 1)


def _packed(plan: Plan | None) -> bytes:
    """struct hv_plan."""
    if plan is None or not plan.form:
        return bytes(_PLAN.size)
    if plan.opcode:
        return _PLAN.pack(plan.target & 0xFFFF_FFFF, 2, plan.opcode[0], 0, b"")
    code = plan.code.rstrip(bytes([NOP]))  # C fills up to the site's length
    return _PLAN.pack(0, 1, 0, len(code), code)
