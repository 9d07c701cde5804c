"""gdb's registers of i386 and x86-64: their order and names (the target description, GDB manual, appendix G), and where
each one is in the vcpu.

The features "core", "sse" and "segments" are gdb's own; "system" is ours: what only a kernel sees. System registers and
selectors are read-only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hvd.board.paging import CR0_PE, EFER_LMA
from hvd.board.vcpu import Vcpu

I386: Final = "i386"
X86_64: Final = "i386:x86-64"
I8086: Final = "i8086"  # the registers of I386; gdb disassembles 16-bit code
ARCHITECTURES: Final = (I386, X86_64, I8086)


class State:
    """A vcpu's registers at one stop, read when they are first asked for."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu

    @functools.cached_property
    def general(self) -> dict[str, int]:
        return self.vcpu.registers()

    @functools.cached_property
    def fpu(self) -> bytes:
        """FXSAVE's image."""
        return self.vcpu.fpu()


def executing(values: Mapping[str, int]) -> str:
    """The architecture of a vcpu's present mode, by Vcpu.registers()."""
    if not values["cr0"] & CR0_PE:
        return I8086
    return X86_64 if values["efer"] & EFER_LMA else I386


Read = Callable[[State], int]
Write = Callable[[State, int], None]


@dataclass(frozen=True, slots=True)
class Register:
    """Its place in the list is its number."""

    feature: str
    name: str
    bits: int
    type: str
    read: Read
    write: Write | None = None  # None = read-only
    group: str = ""

    @property
    def bytes(self) -> int:
        return self.bits // 8


# FXSAVE's image (SDM vol. 1, 10.5.1.1): offset and bytes.
_FPU: Final = {
    "fctrl": (0, 2),
    "fstat": (2, 2),
    "fioff": (8, 4),
    "fiseg": (12, 2),
    "fooff": (16, 4),
    "foseg": (20, 2),
    "fop": (6, 2),
}
_TAGS, _MXCSR, _ST, _XMM = 4, 24, 32, 160


def _general(name: str) -> tuple[Read, Write]:
    return lambda state: state.general[name], lambda state, value: state.vcpu.set_register(name, value)


def _read_only(name: str) -> Read:
    return lambda state: state.general.get(name, 0)


def _fpu(offset: int, size: int) -> tuple[Read, Write]:
    def write(state: State, value: int) -> None:
        image = bytearray(state.vcpu.fpu())
        image[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        state.vcpu.set_fpu(bytes(image))

    return lambda state: int.from_bytes(state.fpu[offset : offset + size], "little"), write


def _read_tags(state: State) -> int:
    """The x87 tag word, two bits a register: 0 valid, 1 zero, 2 special, 3 empty (SDM vol. 1, 8.1.7). The image has one bit."""
    image = state.fpu
    top = image[3] >> 3 & 7
    tags = 0
    for register in range(8):
        at = _ST + 16 * (register - top & 7)
        mantissa, exponent = (
            int.from_bytes(image[at : at + 8], "little"),
            int.from_bytes(image[at + 8 : at + 10], "little") & 0x7FFF,
        )
        if not image[_TAGS] >> register & 1:
            tag = 3
        elif exponent == 0 and mantissa == 0:
            tag = 1
        else:
            tag = 0 if 0 < exponent < 0x7FFF and mantissa >> 63 else 2
        tags |= tag << 2 * register
    return tags


def _write_tags(state: State, value: int) -> None:
    image = bytearray(state.vcpu.fpu())
    image[_TAGS] = sum(1 << register for register in range(8) if value >> 2 * register & 3 != 3)
    state.vcpu.set_fpu(bytes(image))


@functools.cache
def registers(architecture: str) -> tuple[Register, ...]:
    """gdb's list, in its order."""
    long = architecture == X86_64
    word = 64 if long else 32
    names = "rax rbx rcx rdx rsi rdi rbp rsp" if long else "rax rcx rdx rbx rsp rbp rsi rdi"
    found: list[Register] = []

    def add(feature: str, name: str, bits: int, type_: str, access: tuple[Read, Write] | Read, group: str = "") -> None:
        read, write = access if isinstance(access, tuple) else (access, None)
        found.append(Register(feature, name, bits, type_, read, write, group))

    for name in [*names.split(), *(f"r{n}" for n in range(8, 16) if long)]:
        pointer = "data_ptr" if name in ("rbp", "rsp") else f"int{word}"
        add("core", name if long else f"e{name[1:]}", word, pointer, _general(name))
    add("core", "rip" if long else "eip", word, "code_ptr", _general("rip"))
    add("core", "eflags", 32, "i386_eflags", _general("rflags"))
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        add("core", name, 32, "int32", _read_only(name))
    for n in range(8):
        add("core", f"st{n}", 80, "i387_ext", _fpu(_ST + 16 * n, 10))
    for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"):
        add("core", name, 32, "int", (_read_tags, _write_tags) if name == "ftag" else _fpu(*_FPU[name]), "float")
    for n in range(16 if long else 8):
        add("sse", f"xmm{n}", 128, "vec128", _fpu(_XMM + 16 * n, 16))
    add("sse", "mxcsr", 32, "i386_mxcsr", _fpu(_MXCSR, 4), "vector")
    if long:
        for name in ("fs", "gs"):
            add("segments", f"{name}_base", 64, "int", _read_only(f"{name}.base"))
    for name in ("cs", "ss", "ds", "es", *(("fs", "gs") if not long else ())):
        add("system", f"{name}_base", word, f"int{word}", _read_only(f"{name}.base"))
    for name in ("gdtr", "idtr"):
        add("system", f"{name}_base", word, f"int{word}", _read_only(f"{name}.base"))
        add("system", f"{name}_limit", 32, "int32", _read_only(f"{name}.limit"))
    for name in ("tr", "ldtr"):
        add("system", name, 32, "int32", _read_only(name))
    flags = {"cr0": "hvd_cr0", "cr4": "hvd_cr4", "efer": "hvd_efer"}
    for name in ("cr0", "cr2", "cr3", "cr4", *(("cr8",) if long else ()), "efer"):
        add("system", name, 64, flags.get(name, "int64"), _read_only(name))
    return tuple(found)


_FEATURES: Final = {
    "core": "org.gnu.gdb.i386.core",
    "sse": "org.gnu.gdb.i386.sse",
    "segments": "org.gnu.gdb.i386.segments",
    "system": "org.hvd.i386.system",
}
_VECTORS: Final = (
    ("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16), ("v8i16", "int16", 8), ("v4i32", "int32", 4),
    ("v2i64", "int64", 2),
)  # fmt: skip
# Type -> bytes, bits by name (SDM vol. 3A, 2.5 and 2.2.1; vol. 1, 3.4.3 and 10.2.3).
_FLAGS: Final[dict[str, tuple[str, int, dict[str, int]]]] = {
    "i386_eflags": ("core", 4, {
        "CF": 0, "": 1, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14, "RF": 16, "VM": 17, "AC": 18,
        "VIF": 19, "VIP": 20, "ID": 21,
    }),
    "i386_mxcsr": ("sse", 4, {
        "IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6, "IM": 7, "DM": 8, "ZM": 9, "OM": 10, "UM": 11, "PM": 12, "FZ": 15,
    }),
    "hvd_cr0": ("system", 8, {
        "PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5, "WP": 16, "AM": 18, "NW": 29, "CD": 30, "PG": 31,
    }),
    "hvd_cr4": ("system", 8, {
        "VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8, "OSFXSR": 9, "OSXMMEXCPT": 10, "UMIP": 11,
        "LA57": 12, "VMXE": 13, "SMXE": 14, "FSGSBASE": 16, "PCIDE": 17, "OSXSAVE": 18, "SMEP": 20, "SMAP": 21, "PKE": 22,
    }),
    "hvd_efer": ("system", 8, {"SCE": 0, "LME": 8, "LMA": 10, "NXE": 11}),
}  # fmt: skip


def _types(feature: str) -> list[str]:
    lines = []
    if feature == "sse":
        lines += [f'<vector id="{id_}" type="{type_}" count="{count}"/>' for id_, type_, count in _VECTORS]
        fields = "".join(f'<field name="{id_}" type="{id_}"/>' for id_, _, _ in _VECTORS)
        lines.append(f'<union id="vec128">{fields}<field name="uint128" type="uint128"/></union>')
    for id_, (home, size, bits) in _FLAGS.items():
        if home == feature:
            fields = "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in bits.items())
            lines.append(f'<flags id="{id_}" size="{size}">{fields}</flags>')
    return lines


@functools.cache
def target_xml(architecture: str) -> bytes:
    """The target description."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines.append(f"<architecture>{architecture}</architecture>")
    if architecture == I8086:  # gdb would look for a Linux of it, and complain
        lines.append("<osabi>none</osabi>")
    table = registers(architecture)
    for feature, name in _FEATURES.items():
        own = [register for register in table if register.feature == feature]
        if not own:
            continue
        lines += [f'<feature name="{name}">', *_types(feature)]
        for register in own:
            group = f' group="{register.group}"' if register.group else ""
            lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>')
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""]).encode()


def read(register: Register, state: State) -> bytes:
    """Little-endian, as gdb wants it."""
    return (register.read(state) & (1 << register.bits) - 1).to_bytes(register.bytes, "little")
