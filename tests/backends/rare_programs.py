"""The programs of stream_programs, with what few kernels do: code, stacks and data in segments of all kinds, call gates, large pages, EFLAGS.AC."""

from __future__ import annotations

import struct
from collections.abc import Callable

from kernel_programs import Maker
from stream_kernel import BUFFER, KERNEL, LARGE, LDT, LDT_SELECTOR, USER
from stream_programs import CODE_STUBS, SET_ESI, SET_ESP, u32

TARGET, WAY_BACK = 0x300, 0x308  # offsets of two far pointers in the buffer
AC = 0x40000
TSD = 4


def selector(row: int, ring: int) -> int:
    """Of the LDT."""
    return row << 3 | 4 | ring


class RareMaker(Maker):
    """What few kernels do."""

    def _kernel_table(self) -> list[Callable[[], list[bytes]]]:
        return [*super()._kernel_table(), *self._rare_table()]

    def _user_table(self) -> list[Callable[[], list[bytes]]]:
        return [*super()._user_table(), *self._rare_table()]

    def _rare_table(self) -> list[Callable[[], list[bytes]]]:
        return [
            self._other_code,
            self._other_code,
            self._gate,
            self._small_stack,
            self._local_data,
            self._local_table,
            self._large_page,
            self._large_page,
            self._alignment,
            self._time,
        ]

    # ---- code segments

    def _there_and_back(self, there: int, body: bytes, back: bytes) -> bytes:
        """A far jump to a code segment, the body, and `back`, which jumps through WAY_BACK. EBX is lost."""
        home = 0x08 if self.ring == 0 else 0x1B

        def build(length: int) -> bytes:
            start = b"\xe8\0\0\0\0\x5b\x81\xc3" + u32(length - 5)  # EBX = the body's address
            first = b"\x89\x9e" + u32(TARGET) + b"\x66\xc7\x86" + u32(TARGET + 4) + struct.pack("<H", there)
            second = b"\x81\xc3" + u32(len(body) + len(back)) + b"\x89\x9e" + u32(WAY_BACK) + b"\x66\xc7\x86" + u32(WAY_BACK + 4)
            return start + first + second + struct.pack("<H", home) + b"\xff\xae" + u32(TARGET)

        return build(len(build(0))) + body + back

    def _other_code(self) -> list[bytes]:
        """16-bit code, code of the LDT, conforming code, and selectors of what is no code."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.6:
            body = b"".join(self._small_code() for _ in range(rng.randrange(1, 6)))
            there = selector(1 if self.ring == 0 else 2, self.ring)
            return [SET_ESI, self._there_and_back(there, body, b"\x66\x67\xff\xae" + u32(WAY_BACK)), SET_ESP]
        body = self._body().rstrip(b"\xc3")
        if kind < 0.9:
            there = rng.choice((selector(0 if self.ring == 0 else 3, self.ring), selector(11, self.ring)))
        else:
            there = selector(rng.choice((0, 3, 6, 10, 12, 13, 14, 15)), self.ring)
        return [SET_ESI, self._there_and_back(there, body, b"\xff\xae" + u32(WAY_BACK)), SET_ESP]

    def _small_code(self) -> bytes:
        """An instruction in 16-bit code. Jumps that are taken lead to the first 64 KiB, where nothing is."""
        rng = self._rng
        offset = u32(self._edge() if rng.random() < 0.1 else rng.randrange(0x400, CODE_STUBS - 16))
        return rng.choice(
            (
                b"\x01\xc8",
                b"\x66\x01\xc8",
                b"\x40",
                b"\x66\x4a",
                b"\xb8\x34\x12",
                b"\x66\xb9" + u32(rng.getrandbits(32)),
                b"\x67\x8b\x86" + offset,
                b"\x67\x89\x86" + offset,
                b"\x66\x67\x01\x86" + offset,
                b"\x66\x67\x8b\x96" + offset,
                b"\x50\x58",
                b"\x66\x50\x66\x59",
                b"\x60\x61",
                b"\x66\x60\x66\x61",
                b"\x6a\x80\x5a",
                b"\x98",
                b"\x66\x98",
                b"\x99",
                b"\x8d\x40\x10",
                b"\x66\x8d\x47\x10",
                b"\x0f\xb6\xc1",
                b"\x66\x0f\xbf\xc1",
                b"\xcc",
                b"\xcd\x82",
                b"\x9c\x66\x0f\xba\x34\x24\x09\x59" if self.ring else b"\x9c\x59",
                b"\x8b\x44\x10" if rng.random() < 0.05 else b"\x90",
                b"\x74\x00" if rng.random() < 0.05 else b"\xf8",
                b"\x0f\x0b" if rng.random() < 0.2 else b"\xf5",
                b"\xfa" if self.ring == 0 or rng.random() < 0.1 else b"\x90",
            )
        )

    def _gate(self) -> list[bytes]:
        """Through call gates: without and with parameters, one for the kernel only, and what is none."""
        rng = self._rng
        row = rng.choice((8, 8, 9, 9, 9, 10, 12, 14, 15))
        pushes = [b"\x68" + u32(rng.getrandbits(32)), b"\x6a" + bytes((rng.randrange(128),))]
        call = b"\x9a" + u32(rng.getrandbits(32)) + struct.pack("<H", selector(row, rng.choice((self.ring, self.ring, 0, 3))))
        pointer = [b"\xc7\x86" + u32(TARGET) + u32(0), b"\xc7\x86" + u32(TARGET + 4) + u32(selector(row, 3))]
        if rng.random() < 0.3:
            return [SET_ESI, *pointer, b"".join(pushes) + b"\xff\x9e" + u32(TARGET), SET_ESP]
        return [b"".join(pushes) + call, SET_ESP]

    # ---- data and stacks

    def _small_stack(self) -> list[bytes]:
        """SP instead of ESP. In the kernel nothing may fault there: an exception's frame would lie there, too."""
        rng = self._rng
        a, b = self._register(), self._register()
        row, home = (4, 0x10) if self.ring == 0 else (5, 0x23)
        # IRET to such a stack leaves ESP the upper half of the kernel's: an interrupt would be seen there.
        shows_esp = (b"\xc8\x10\0\0\xc9", b"\x54" + bytes((0x58 | a,)), b"\x89" + bytes((0xE0 | a,)))
        work = rng.choice(
            (
                *(() if self.timer else shows_esp),
                bytes((0x50 | a, 0x58 | b)),
                b"\x66" + bytes((0x50 | a,)) + b"\x66" + bytes((0x58 | b,)),
                b"\xe8\0\0\0\0" + bytes((0x58 | a,)),
                b"\x60\x61",
                b"\x68abcd" + bytes((0x58 | a,)),
                b"\xff\xb6" + u32(0x100) + bytes((0x58 | a,)),
                b"\x6a\x11\x8f\x86" + u32(0x104),
            )
        )
        top = rng.choice((0x800, 0x800, 0x7FE, 0x10800, 0x40010800))
        return [
            SET_ESI,
            b"\xbb" + u32(selector(row, self.ring)) + b"\x8e\xd3\xbc" + u32(top) + work + b"\xbb" + u32(home) + b"\x8e\xd3" + SET_ESP,
        ]

    def _local_data(self) -> list[bytes]:
        """Data segments of the LDT: within their limits, at which the reference does not look."""
        rng = self._rng
        row, target = rng.choice((1, 6, 7, 14, 12, 13, 8, 9, 0, 3, 15, 4, 5)), rng.choice((0, 3, 4, 5))
        prefix = bytes(({0: 0x26, 3: 0x3E, 4: 0x64, 5: 0x65}[target],))
        level = rng.choice((self.ring, self.ring, 0, 3))
        load = b"\xbb" + u32(selector(row, level)) + b"\x8e" + bytes((0xC0 | target << 3 | 3,))
        usable = row == 14 or (row == (6 if self.ring == 0 else 7) and level == self.ring)  # otherwise it is not loaded
        homes = {4: 0x30, 5: 0x38} if self.ring == 0 else {4: 0x5B, 5: 0x63}
        back = b"\xbb" + u32(homes.get(target, 0x10 if self.ring == 0 else 0x23)) + b"\x8e" + bytes((0xC0 | target << 3 | 3,))
        offset = u32(rng.randrange(0x400, CODE_STUBS - 16))
        use = prefix + rng.choice((b"\x8b\x86", b"\x89\x86", b"\x01\x86", b"\x8a\x86")) + offset
        # One piece: what is loaded may not be there any more, and then it is not used.
        return [SET_ESI, load + use if usable else load, back]

    def _local_table(self) -> list[bytes]:
        """The LDT goes and comes, or one of its descriptors changes under the selector's cached copy."""
        rng = self._rng
        if self.ring:
            return [rng.choice((b"\x0f\x00\xd0", b"\x0f\x01\x17", b"\x0f\x01\xf0"))]
        load = b"\xbb" + u32(selector(14, rng.choice((0, 3)))) + b"\x8e\xe3"
        use = b"\x64\xa1" + u32(USER + 0x10)
        back = b"\xbb" + u32(0x30) + b"\x8e\xe3"
        if rng.random() < 0.5:
            no_table, table = b"\x31\xdb\x0f\x00\xd3", b"\xbb" + u32(LDT_SELECTOR) + b"\x0f\x00\xd3"
            return [load, no_table, use, load, table, load, use, back]
        at = KERNEL + LDT + 8 * 14
        base = rng.choice((0, 0x10, 0x100))
        change = b"\xc7\x05" + u32(at) + u32(0xFFFF | base << 16)
        return [load, change, use, load + use, back, b"\xc7\x05" + u32(at) + u32(0xFFFF)]

    # ---- pages, flags and time

    def _large_page(self) -> list[bytes]:
        """The buffer through a large page: data, and code that was written here and runs there."""
        rng = self._rng
        base = LARGE + BUFFER - USER
        at = u32(base + rng.randrange(CODE_STUBS))
        stub = CODE_STUBS + 32 * rng.randrange(16)
        return rng.choice(
            (
                [b"\x8b\x86" + at],
                [b"\x89\x86" + at],
                [b"\x66\x01\x86" + at],
                [b"\x87\x86" + at],
                [*self._store_code(stub), b"\x8d\x9e" + u32(base + stub) + b"\xff\xd3"],
                [*self._store_code(base + stub), b"\x8d\x9e" + u32(stub) + b"\xff\xd3"],
                [b"\x89\x86" + u32(LARGE - USER + 0x4000)] if rng.random() < 0.1 else [b"\x90"],
            )
        )

    def _alignment(self) -> list[bytes]:
        """EFLAGS.AC without CR0.AM: nothing is checked. PUSHF shows it."""
        rng = self._rng
        on, off = u32(AC | 0x202), u32(0x202)
        offset = u32(rng.randrange(0x400, 0x1000) | 1)
        misaligned = rng.choice((b"\x8b\x86", b"\x89\x86", b"\x01\x86", b"\x66\x8b\x86", b"\xff\xb6", b"\x0f\xc1\x86", b"\x0f\xb7\x86")) + offset
        return [b"\x68" + on + b"\x9d", misaligned, SET_ESP, misaligned, SET_ESP, b"\x9c\x58", b"\x68" + off + b"\x9d"]

    def _time(self) -> list[bytes]:
        """RDTSC and CR4.TSD, which the kernel need not mind; RDPMC. The reference has other exceptions for the latter."""
        rng = self._rng
        read = b"\x0f\x31\x31\xc0\x31\xd2"
        if self.ring:
            return [read]
        set_it, clear = (b"\xb8" + u32(self._cr4 ^ bits) + b"\x0f\x22\xe0" for bits in (TSD, 0))
        return rng.choice(([read], [set_it, read, clear]))
