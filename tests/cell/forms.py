"""The instructions of the differential tests: a table of opcodes (Intel SDM Vol. 2, appendix A) and of the flags that each leaves undefined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
STATUS = CF | PF | AF | ZF | SF | OF


@dataclass(frozen=True)
class Form:
    """An opcode. groups: the /reg values that mean it; None: any. immediate: bytes; "z": by operand size. undefined: flags."""

    code: bytes
    modrm: bool = True
    groups: tuple[int, ...] | None = None
    immediate: int | str = 0
    undefined: int = 0
    register_only: bool = False
    memory_only: bool = False
    flow: bool = False
    string: bool = False
    weight: int = 1
    prefix: bytes = b""


def _forms() -> Iterator[Form]:
    for operation in range(8):
        undefined = AF if operation in (1, 4, 6) else 0
        for form in range(4):
            yield Form(bytes([operation * 8 + form]), undefined=undefined)
        yield Form(bytes([operation * 8 + 4]), False, immediate=1, undefined=undefined)
        yield Form(bytes([operation * 8 + 5]), False, immediate="z", undefined=undefined)
    for opcode, immediate in ((0x80, 1), (0x81, "z"), (0x82, 1), (0x83, 1)):
        yield Form(bytes([opcode]), immediate=immediate, undefined=AF)
    for opcode in (0x84, 0x85):
        yield Form(bytes([opcode]), undefined=AF)
    yield Form(b"\xa8", False, immediate=1, undefined=AF)
    yield Form(b"\xa9", False, immediate="z", undefined=AF)
    for opcode in (0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B):
        yield Form(bytes([opcode]))
    yield Form(b"\x8d", memory_only=True)
    yield Form(b"\x8f", groups=(0,), weight=3)
    for opcode in range(0x40, 0x60):
        yield Form(bytes([opcode]), False)
    for opcode in (0x60, 0x61):
        yield Form(bytes([opcode]), False, weight=3)
    yield Form(b"\x62", memory_only=True, weight=3)
    yield Form(b"\x63", weight=2)
    yield Form(b"\x68", False, immediate="z", weight=2)
    yield Form(b"\x6a", False, immediate=1, weight=2)
    yield Form(b"\x69", immediate="z", undefined=SF | ZF | AF | PF)
    yield Form(b"\x6b", immediate=1, undefined=SF | ZF | AF | PF)
    for condition in range(16):
        yield Form(bytes([0x70 + condition]), False, immediate=1, flow=True)
        yield Form(bytes([0x0F, 0x80 + condition]), False, immediate="z", flow=True)
        yield Form(bytes([0x0F, 0x40 + condition]))
        yield Form(bytes([0x0F, 0x90 + condition]))
    for opcode in (*range(0x90, 0x9A), 0x9E, 0x9F):
        yield Form(bytes([opcode]), False)
    for opcode in range(0xB0, 0xB8):
        yield Form(bytes([opcode]), False, immediate=1)
        yield Form(bytes([opcode + 8]), False, immediate="z")
    for opcode in range(0xA0, 0xA4):
        yield Form(bytes([opcode]), False, immediate="moffs", weight=3)
    for opcode in (0xA4, 0xA6, 0xAA, 0xAC, 0xAE, 0x6C, 0x6E):
        yield Form(bytes([opcode]), False, string=True, weight=4)
        yield Form(bytes([opcode + 1]), False, string=True, weight=4)
    for group in range(8):
        undefined = AF | OF if group >= 4 else OF
        for opcode in (0xC0, 0xC1):
            yield Form(bytes([opcode]), groups=(group,), immediate=1, undefined=undefined)
        for opcode in (0xD0, 0xD1):
            yield Form(bytes([opcode]), groups=(group,), undefined=AF if group >= 4 else 0)
        for opcode in (0xD2, 0xD3):
            yield Form(bytes([opcode]), groups=(group,), undefined=undefined)
    yield Form(b"\xc2", False, immediate=2, flow=True, weight=3)
    yield Form(b"\xc3", False, flow=True, weight=3)
    yield Form(b"\xc6", groups=(0,), immediate=1, weight=3)
    yield Form(b"\xc7", groups=(0,), immediate="z", weight=3)
    yield Form(b"\xc8", False, immediate="enter", weight=5)
    yield Form(b"\xc9", False, weight=3)
    for opcode in (0x27, 0x2F):
        yield Form(bytes([opcode]), False, undefined=OF, weight=3)
    for opcode in (0x37, 0x3F):
        yield Form(bytes([opcode]), False, undefined=OF | SF | ZF | PF, weight=3)
    for opcode in (0xD4, 0xD5):
        yield Form(bytes([opcode]), False, immediate=1, undefined=OF | AF | CF, weight=3)
    for opcode in (0xD6, 0xD7, 0xF5, 0xF8, 0xF9, 0xFC, 0xFD):
        yield Form(bytes([opcode]), False)
    for opcode in range(0xE0, 0xE4):
        yield Form(bytes([opcode]), False, immediate=1, flow=True, weight=3)
    yield Form(b"\xe8", False, immediate="z", flow=True, weight=3)
    yield Form(b"\xe9", False, immediate="z", flow=True, weight=2)
    yield Form(b"\xeb", False, immediate=1, flow=True, weight=2)
    for opcode, immediate in ((0xF6, 1), (0xF7, "z")):
        yield Form(bytes([opcode]), groups=(0,), immediate=immediate, undefined=AF)
        yield Form(bytes([opcode]), groups=(2, 3))
        yield Form(bytes([opcode]), groups=(4, 5), undefined=SF | ZF | AF | PF, weight=3)
        yield Form(bytes([opcode]), groups=(6, 7), undefined=STATUS, weight=5)
    yield Form(b"\xfe", groups=(0, 1))
    yield Form(b"\xff", groups=(0, 1))
    yield Form(b"\xff", groups=(2, 4), flow=True, weight=4)
    yield Form(b"\xff", groups=(6,), weight=3)
    for opcode in (0xA3, 0xAB, 0xB3, 0xBB):
        yield Form(bytes([0x0F, opcode]), undefined=OF | SF | AF | PF, weight=3)
    yield Form(b"\x0f\xba", groups=(4, 5, 6, 7), immediate=1, undefined=OF | SF | AF | PF, weight=4)
    for opcode in (0xA4, 0xAC):
        yield Form(bytes([0x0F, opcode]), immediate="count", undefined=OF | AF, weight=2)
        yield Form(bytes([0x0F, opcode + 1]), undefined=OF | AF, weight=2)
    yield Form(b"\x0f\xaf", undefined=SF | ZF | AF | PF, weight=2)
    for opcode in (0xB0, 0xB1, 0xC0, 0xC1):
        yield Form(bytes([0x0F, opcode]), weight=2)
    for opcode in (0xB6, 0xB7, 0xBE, 0xBF):
        yield Form(bytes([0x0F, opcode]))
    for opcode in (0xBC, 0xBD):
        yield Form(bytes([0x0F, opcode]), undefined=STATUS & ~ZF)
        yield Form(bytes([0x0F, opcode]), undefined=OF | SF | PF | AF, prefix=b"\xf3")
    yield Form(b"\x0f\xb8", prefix=b"\xf3")
    yield Form(b"\x0f\xc3", memory_only=True)
    yield Form(b"\x0f\xc7", groups=(1,), memory_only=True, weight=4)
    for opcode in range(0xC8, 0xD0):
        yield Form(bytes([0x0F, opcode]), False)
    yield Form(b"\x0f\x18", groups=(0,), memory_only=True)
    yield Form(b"\x0f\x1f", groups=(0,))
    for opcode in (0xF0, 0xF1):
        yield Form(bytes([0x0F, 0x38, opcode]), memory_only=True, weight=2)


FORMS = list(_forms())
WEIGHTS = [form.weight for form in FORMS]
LOCKABLE = {
    b"\x00", b"\x09", b"\x80", b"\x81", b"\x83", b"\x86", b"\x87", b"\xf6", b"\xf7", b"\xfe", b"\x0f\xab", b"\x0f\xb1", b"\x0f\xc1", b"\x0f\xc7",
}  # fmt: skip


def may_lock(form: Form, group: int) -> bool:
    if form.code in (b"\x80", b"\x81", b"\x83"):
        return group != 7
    return form.code not in (b"\xf6", b"\xf7") or group in (2, 3)
