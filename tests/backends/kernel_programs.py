"""The programs of stream_programs, with what is for kernels (ring 0), and what programs (ring 3) may not do."""

from __future__ import annotations

import struct
from collections.abc import Callable

from fault_programs import FaultMaker
from stream_kernel import BUFFER, CR0, DIRECTORY, KERNEL, OTHER_DIRECTORY, PORT, STATE, USER, USER_TABLE
from stream_programs import CODE_STUBS, SET_ESI, SET_ESP, u32


class Maker(FaultMaker):
    """Programs from a seed."""

    # ---- for kernels

    def _kernel_table(self) -> list[Callable[[], list[bytes]]]:
        return [
            self._interrupt_flag,
            self._interrupt_flag,
            self._flags_atom,
            self._flags_atom,
            self._segments,
            self._segments,
            self._segments,
            self._far,
            self._control,
            self._control,
            self._descriptors,
            self._descriptors,
            self._paging,
            self._paging,
            self._paging,
            self._ports,
            self._interrupt_return,
            self._debug_registers,
            self._system,
        ]

    def _entry_of(self, page: int) -> int:
        return KERNEL + USER_TABLE + self._paging_kind.entry_bytes * page

    def _interrupt_flag(self) -> list[bytes]:
        return self._rng.choice(
            (
                [b"\xfa"],
                [b"\xfb"],
                [b"\xfb", b"\xfa"],
                [b"\xfb\x9c", b"\x58"],
                [b"\x9c\xfa\x9d"],
                [b"\xfb\xeb\0"],
                [b"\xfb\x74\0"],
                [b"\xfb\x0f\x85\0\0\0\0"],
                [b"\xfb\xfb"],
            )
        )

    def _segments(self) -> list[bytes]:
        rng = self._rng
        a = self._register()
        good = rng.choice((0x10, 0x10, 0x23, 0x20, 0, 3, 0x30, 0x38, 0x50, 0x48, 0x08))
        bad = rng.choice((0x40, 0x28, 0x80, 0xFFFC, 0x13, 0x68, 0x0B, 0x5B, 0x1B, 0x77))
        selector = good if rng.random() < 0.8 else bad
        target = rng.choice((0, 3, 4, 5, 4, 5))  # es ds fs gs
        load = b"\xbb" + u32(selector)
        back = b"\xbb" + u32({4: 0x30, 5: 0x38}.get(target, 0x10)) + b"\x8e" + bytes((0xC0 | target << 3 | 3,))
        push = {0: b"\x06", 1: b"\x0e", 2: b"\x16", 3: b"\x1e", 4: b"\x0f\xa0", 5: b"\x0f\xa8"}
        pop = {0: b"\x07", 2: b"\x17", 3: b"\x1f", 4: b"\x0f\xa1", 5: b"\x0f\xa9"}
        use = bytes((0x60 | target, 0xA1)) + u32(16)
        if target in (0, 3):
            use = b"\x26\xa1" + u32(USER + 16) if target == 0 else b"\xa1" + u32(USER + 16)
        if selector not in (0x10, 0x23, 0x20, 0x30, 0x38, 0x50, 0x48, 0x08) or (selector == 0x38 and target in (0, 3)):
            use = b"\x90"  # the reference does not look at limits, nor that there is a segment at all
        lfar = {0: b"\xc4", 3: b"\xc5", 4: b"\x0f\xb4", 5: b"\x0f\xb5"}
        any_segment = rng.randrange(6)
        return rng.choice(
            (
                [load, b"\x8e" + bytes((0xC0 | target << 3 | 3,)), use, back],
                [b"\x8c" + bytes((0xC0 | any_segment << 3 | a,))],
                [push[any_segment], bytes((0x58 | a,))],
                [b"\x66\x8c" + bytes((0xC0 | any_segment << 3 | a,))],
                [b"\x8c" + bytes((0x86 | any_segment << 3,)) + u32(rng.choice((0x100, 0x2000, 0xFFF)))],
                [push[target], pop[target]],
                [load, b"\x53", pop[target], use, back, SET_ESP],
                [b"\x16", b"\x17"],
                [b"\x8c\xd3", b"\x8e\xd3"],
                [b"\xc7\x86" + u32(0x204) + u32(selector), lfar[target] + b"\x9e" + u32(0x200), use, back],
                [b"\x8e" + bytes((0x86 | target << 3,)) + u32(0x2000), back],
                [b"\x66" + push[any_segment], b"\x66" + bytes((0x58 | a,))],
                [load, b"\x8e\xd3" if selector in (0x10, 0x40, 0x28, 0, 0x48, 0x23, 0xFFFC) else b"\x90", SET_ESP],
            )
        )

    def _far(self) -> list[bytes]:
        """Far calls and jumps to what follows, and to nonsense."""
        rng = self._rng
        selector = rng.choice((0x08, 0x08, 0x48, 0x40, 0x10, 0, 0x18))
        pick = rng.randrange(4)
        if pick == 0:  # push cs; push next; retf
            return [b"\x0e\xe8\0\0\0\0\x83\x04\x24\x05\xcb", SET_ESP]
        if pick == 1:  # call next; pop ebx; add ebx, 20; mov [esi+300], ebx; mov [esi+304], selector; jmp far [esi+300]
            return [
                b"\xe8\0\0\0\0\x5b\x83\xc3\x1a\x89\x9e\0\3\0\0\xc7\x86\4\3\0\0" + u32(selector) + b"\xff\xae\0\3\0\0",
                b"\x8c\xcb",
            ]
        if pick == 2:  # the same with a far call whose procedure returns at once
            return [
                b"\xe8\0\0\0\0\x5b\x83\xc3\x1c\x89\x9e\0\3\0\0\xc7\x86\4\3\0\0"
                + u32(selector)
                + b"\xff\x9e\0\3\0\0\xeb\x01\xcb",
                SET_ESP,
            ]
        return (
            [b"\xea" + u32(USER + 0x2000) + struct.pack("<H", selector)]
            if selector in (0x40, 0x10, 0, 0x18)
            else [b"\x90"]
        )

    def _interrupt_return(self) -> list[bytes]:
        """IRET to what follows, with flags of all kinds."""
        rng = self._rng
        value = rng.getrandbits(32) & 0x207CD5 & ~0x4000 | 2 | rng.choice((0, 0x200))
        if rng.random() < 0.05:
            value |= 0x4000  # NT: a task switch, which is #TS or #GP
            return [b"\x68" + u32(value), b"\x9d", b"\x68" + u32(2), b"\x9d"]
        selector = rng.choice((0x08, 0x08, 0x08, 0x48, 0x10, 0x40))
        # pushf-image, selector, call next; add [esp], 6; iret
        return [
            b"\x6a\x02\x9d\x68" + u32(value) + b"\x6a" + bytes((selector,)) + b"\xe8\0\0\0\0\x83\x04\x24\x05\xcf",
            SET_ESP,
        ]

    def _control(self) -> list[bytes]:
        rng = self._rng
        a = self._register()
        bits = rng.choice((0, 8, 4, 0x10000, 0x40000, 2, 0x20))
        use = rng.choice((b"\xd9\xe8\xdd\xd8", b"\x0f\x57\xc0", b"\x9b", b"\x66\x0f\xef\xc9", b"\xdf\xe0", b"\x90"))
        store = b"\xc7\x86" + u32(0x3010) + u32(rng.getrandbits(32))
        return rng.choice(
            (
                [b"\x0f\x20" + bytes((0xC0 | a,))],
                [b"\x0f\x20" + bytes((0xD8 | a,))],
                [b"\x0f\x20" + bytes((0xE0 | a,))],
                [b"\x0f\x20" + bytes((0xD0 | a,))],
                [b"\xb8" + u32(CR0 ^ bits), b"\x0f\x22\xc0", use, store, b"\xb8" + u32(CR0), b"\x0f\x22\xc0"],
                [b"\x0f\x06"],
                [b"\x0f\x20\xc0\x83\xc8\x08\x0f\x22\xc0", use, use, b"\x0f\x06", use],
                [b"\x66\x0f\x01\xe0"],
                [b"\x66\x0f\x01\xe3"],
                [b"\xb8\x3b\0\0\0", b"\x0f\x01\xf0", use, b"\x0f\x06"],
                [
                    b"\xb8" + u32(self._cr4 ^ rng.choice((0x80, 4, 0x200))),
                    b"\x0f\x22\xe0",
                    b"\xb8" + u32(self._cr4),
                    b"\x0f\x22\xe0",
                ],
                [b"\x0f\x22\xc8"],
                [b"\x0f\x20" + bytes((0xC8 | a,))],
                [b"\xb8" + u32(rng.getrandbits(32)), b"\x0f\x22\xd0", b"\x0f\x20" + bytes((0xD0 | a,))],
            )
        )

    def _descriptors(self) -> list[bytes]:
        rng = self._rng
        a = self._register()
        selector = rng.choice(
            (0x08, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x68, 0, 3, 0x80, 0xFFF8, 0x70, 0x4B, 0x13)
        )
        load = b"\xbb" + u32(selector)
        where = u32(rng.choice((0x200, 0xFFE, 0x2000, 0x3000)))
        return rng.choice(
            (
                [load, b"\x0f\x02" + bytes((0xC0 | a << 3 | 3,))],
                [load, b"\x0f\x03" + bytes((0xC0 | a << 3 | 3,))],
                [load, b"\x0f\x00\xe3"],
                [load, b"\x0f\x00\xeb"],
                [b"\x0f\x01\x86" + where],
                [b"\x0f\x01\x8e" + where],
                [b"\x0f\x00\xc0"],
                [b"\x0f\x00\xc8"],
                [b"\x0f\x00\x86" + where],
                [b"\x0f\x01\xa6" + where],
                [b"\x0f\x01\x15" + u32(KERNEL + STATE + 32)],
                [b"\x0f\x01\x1d" + u32(KERNEL + STATE + 40)],
                [b"\x66\x0f\x02" + bytes((0xC0 | a << 3 | 3,))],
                [b"\x0f\x02\x9e" + where],
                [load, b"\x63\xd8"],
                [load, b"\x63\x9e" + u32(0x204)],
                [b"\x31\xdb\x0f\x00\xd3"],
                [load, b"\x0f\x00\xd3" if selector in (0, 3, 0x10, 0x40, 0x80) else b"\x90"],
                [b"\x0f\x01\x96" + u32(0x2000)],
            )
        )

    def _paging(self) -> list[bytes]:
        """An entry of the page table changes, the TLB is told, and the page is used; another address space for a while."""
        rng = self._rng
        page = rng.choice((8, 9, 0xA, 0xB))
        entry = rng.choice(
            (
                BUFFER | 7,
                BUFFER + 0x1000 | 7,
                BUFFER | 5,
                BUFFER + 0x4000 | 3,
                0,
                BUFFER + 0x1000 | 1,
                BUFFER + 0x3000 | 5,
            )
        )
        change = b"\xc7\x05" + u32(self._entry_of(page)) + u32(entry)
        told = b"\x0f\x01\x3d" + u32(USER + page * 0x1000)
        # The whole change is one piece: an exception in between would see an entry that the TLB need not know.
        at = u32(page * 0x1000 + rng.choice((0x10, 0x804, 0xFFE)))
        use = rng.choice((b"\x8b\x86" + at, b"\x89\x86" + at, b"\x66\x89\x86" + at, b"\x66\x8b\x86" + at))
        flush = rng.choice((told, b"\x0f\x20\xdb\x0f\x22\xdb", told))
        switch = b"\xbb" + u32(OTHER_DIRECTORY) + b"\x0f\x22\xdb"
        back = b"\xbb" + u32(DIRECTORY) + b"\x0f\x22\xdb"
        stub = page * 0x1000 + 0x800 + 32 * rng.randrange(16)
        code = b"".join(self._store_code(CODE_STUBS + 0x100))
        return rng.choice(
            (
                [change + flush, use],
                [switch, use, back],
                [change + flush, use, switch, use, back],
                [use, change + flush, use],
                [b"\x0f\x09"],
                [told],
                [
                    code,
                    b"\xc7\x05" + u32(self._entry_of(page)) + u32(BUFFER + 0x1000 | 7) + told,
                    b"\x8d\x9e" + u32(page * 0x1000 + 0x900) + b"\xff\xd3",
                ],
                [*self._store_code(CODE_STUBS + 0x100), b"\xc7\x86" + u32(0x900) + b"\x42\x42\x42\xc3"]
                + [
                    b"\xc7\x05"
                    + u32(self._entry_of(page))
                    + u32(frame | 7)
                    + told
                    + b"\x8d\x9e"
                    + u32(page * 0x1000 + 0x900)
                    + b"\xff\xd3"
                    for frame in (BUFFER + 0x1000, BUFFER)
                ],
                [b"\x8d\x9e" + u32(stub)],
            )
        )

    def _ports(self) -> list[bytes]:
        """Of a device in Python seldom; of none; strings."""
        rng = self._rng
        if rng.random() < 0.6:
            return [b"\xba" + u32(0x7777), rng.choice((b"\xec", b"\xed", b"\x66\xed", b"\xee", b"\xef"))]
        port = b"\xba" + u32(PORT + rng.randrange(4))
        return rng.choice(
            (
                [port, b"\xec"],
                [port, b"\xef"],
                [port, b"\x66\xed"],
                [port, b"\xb9\3\0\0\0\x8d\xbe" + u32(0x120), b"\xf3\x6c"],
                [port, b"\xb9\2\0\0\0", b"\xf3\x6f", SET_ESI],
            )
        )

    def _debug_registers(self) -> list[bytes]:
        rng = self._rng
        a = self._register()
        n = rng.randrange(4)
        return rng.choice(
            (
                [b"\x0f\x23" + bytes((0xC0 | n << 3 | a,)), b"\x0f\x21" + bytes((0xC0 | n << 3 | a,))],
                [b"\x0f\x21" + bytes((0xC0 | 7 << 3 | a,))],
                [b"\x90"],
            )
        )

    def _system(self) -> list[bytes]:
        rng = self._rng
        return rng.choice(
            (
                [b"\xd6"],
                [b"\x8d\x5e\x10\xd7"],
                [b"\x9b"],
                [b"\x0f\xae\xf0"],
                [b"\xf3\x90"],
                [b"\x0f\x18\x06"],
                [b"\x0f\x1f\x44\0\0"],
                [b"\x2e\x90"],
                [b"\x66\x90"],
                [b"\x90"],
                [b"\x0f\xae\x9e" + u32(0x40)],
            )
        )

    # ---- for programs

    def _user_table(self) -> list[Callable[[], list[bytes]]]:
        return [self._forbidden, self._forbidden, self._user_segments, self._user_stack]

    def _forbidden(self) -> list[bytes]:
        rng = self._rng
        return [
            rng.choice(
                (
                    b"\xfa",
                    b"\xfb",
                    b"\xf4",
                    b"\x0f\x20\xc0",
                    b"\x0f\x22\xd8",
                    b"\x0f\x06",
                    b"\xec",
                    b"\xef",
                    b"\xe4\x20",
                    b"\x0f\x01\x3e",
                    b"\x0f\x32",
                    b"\x0f\x30",
                    b"\x0f\x09",
                    b"\x0f\x01\x16",
                    b"\x0f\x00\xd3",
                    b"\xa1" + u32(KERNEL + 0x10000),
                    b"\xa3" + u32(KERNEL + 0x1000),
                    b"\xff\x25" + u32(USER + 0x100),
                    b"\xcd\x20",
                    b"\x0f\x21\xc0",
                    b"\x0f\x23\xf8",
                    b"\xea" + u32(USER) + b"\x08\0",
                    b"\x9a" + u32(USER) + b"\x10\0",
                )
            )
        ]

    def _user_segments(self) -> list[bytes]:
        rng = self._rng
        selector = rng.choice((0x23, 0x20, 0x5B, 0x63, 0, 3, 0x1B, 0x10, 0x08, 0x40, 0x38, 0x80, 0x13))
        target = rng.choice((0, 3, 4, 5))
        load = b"\xbb" + u32(selector)
        use = (
            b"\x26\xa1" + u32(USER + 16)
            if target == 0
            else b"\xa1" + u32(USER + 16)
            if target == 3
            else bytes((0x60 | target, 0xA1)) + u32(16)
        )
        if selector not in (0x23, 0x20, 0x5B, 0x63, 0x1B) or (selector == 0x63 and target in (0, 3)):
            use = b"\x90"
        back = b"\xbb" + u32({4: 0x5B, 5: 0x63}.get(target, 0x23)) + b"\x8e" + bytes((0xC0 | target << 3 | 3,))
        return [load, b"\x8e" + bytes((0xC0 | target << 3 | 3,)), use, back]

    def _user_stack(self) -> list[bytes]:
        rng = self._rng
        return [
            b"\xbc"
            + u32(rng.choice((USER + 0x10000, USER + 0x12002, USER + 0x11000, 0, 4, KERNEL + 0x2F000, USER + 0x3010))),
            rng.choice((b"\x50", b"\x9c", b"\xe8\0\0\0\0", b"\x6a\1")),
            SET_ESP,
        ]
