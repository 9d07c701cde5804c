"""The programs of stream_programs, with what faults and what changes code."""

from __future__ import annotations

from collections.abc import Callable

from stream_kernel import ALIAS, DEVICE, ECHO_VECTOR, KERNEL, STREAMS, USER
from stream_programs import CODE_STUBS, COMPARE, SET_ESI, SET_ESP, PlainMaker, u32


class FaultMaker(PlainMaker):
    """What faults, and code that changes."""

    def _wild_table(self) -> list[Callable[[], list[bytes]]]:
        undisturbed = [] if self.timer else [self._other_stack, self._stack_end]  # an interrupt's frame would be seen
        return [
            *undisturbed,
            self._bad_divide,
            self._random_address,
            self._undefined,
            self._patch_next,
            self._patch_same,
            self._call_buffer,
            self._call_alias,
            self._patch_alias,
            self._string_edge,
            self._small_traps,
            self._call_buffer,
            self._patch_next,
            self._device,
            self._bad_shift,
        ]

    def _bad_divide(self) -> list[bytes]:
        rng = self._rng
        return [
            rng.choice(
                (
                    b"\x31\xc9\xf7\xf1",
                    b"\xba\xff\xff\xff\x7f\xb9\x01\0\0\0\xf7\xf1",
                    b"\xd4\x00",
                    b"\x31\xc0\xf6\xf0",
                    b"\xb8\0\0\0\x80\xba\xff\xff\xff\xff\xb9\xff\xff\xff\xff\xf7\xf9",
                    b"\x31\xc9\xf7\xb6" + u32(0x2000),
                )
            ),
            COMPARE,
        ]

    def _random_address(self) -> list[bytes]:
        rng = self._rng
        address = rng.choice(
            (
                0,
                4,
                0xFFFFFFFC,
                0xFFFFFFF0,
                0x7FFFFFFF,
                rng.getrandbits(32) & 0x3FFFFFFF,
                KERNEL - 2,
                USER - 2,
                DEVICE - 2,
            )
        )
        set_register = b"\xbb" + u32(address)
        return [
            set_register,
            rng.choice(
                (
                    b"\x8b\x03",
                    b"\x89\x03",
                    b"\x01\x03",
                    b"\xff\x33",
                    b"\x8a\x03",
                    b"\xfe\x03",
                    b"\x87\x03",
                    b"\x0f\xb1\x0b",
                    b"\xff\x23",
                )
            ),
            SET_ESP,
        ]

    def _undefined(self) -> list[bytes]:
        return [
            self._rng.choice(
                (
                    b"\x0f\x0b",
                    b"\x0f\x0b",
                    b"\x8e\xc8",
                    b"\x8c\xf0",
                    b"\x0f\xb2\xc0",
                    b"\xfe\xd0",
                    b"\xff\xf8",
                    b"\x8d\xc0",
                    b"\x0f\x0b",
                    b"\x0f\x0b",
                )
            )
        ]

    def _stack_end(self) -> list[bytes]:
        """What pops beyond the stack's last page. The exception's own frame still has room."""
        rng = self._rng
        pops: tuple[bytes, ...] = (
            b"\x58",
            b"\xc3",
            b"\x9d",
            b"\xc2\x08\0",
            b"\x8f\x06",
            b"\x66\x58",
            b"\x5c",
            b"\xff\x74\x24\x02",
            b"\xc9",
            b"\x8b\x04\x24",
            b"\x1f",
            b"\x0f\xa1",
            b"\xcf",
            b"\xcb",
        )
        pop = rng.choice(pops)
        if self.ring == 3 and pop in (
            b"\xcf",
            b"\xcb",
        ):  # the processor's order of reading differs from the reference's
            pop = b"\x58"
        data, extra = (0x10, 0x30) if self.ring == 0 else (0x23, 0x5B)
        back = b"\xbb" + u32(data) + b"\x8e\xdb\xbb" + u32(extra) + b"\x8e\xe3"
        return [
            b"\x68"
            + u32(0x202 if self.ring else 2)
            + b"\x9d\xbc"
            + u32(
                USER
                + 0x11000
                - rng.choice((0, 1, 2, 3) if pop in (b"\xcf", b"\xcb") else (0, 1, 2, 3, 0x10, 0x1C, 0x1E))
            ),
            pop,
            SET_ESP,
            back,
            SET_ESI,
        ]

    def _patch_next(self) -> list[bytes]:
        """A store into what runs next, in the same block: INC EAX (40) becomes another one-byte instruction."""
        rng = self._rng
        new = rng.choice((0x41, 0x42, 0x47, 0x48, 0x90, 0x98, 0xF5, 0xF8, 0xFC, 0x9F, 0x60, 0xCC, 0x49))
        restore = SET_ESP if new == 0x60 else b"\x90"
        # call next; pop ebx; mov byte [ebx + 5..], new; inc eax; inc eax
        distance = rng.randrange(3)
        return [b"\xe8\0\0\0\0\x5b\xc6\x43" + bytes((5 + distance, new)) + b"\x40" * 3, restore, SET_ESP]

    def _patch_same(self) -> list[bytes]:
        """A loop that changes an immediate of its own at each turn."""
        n = self._rng.choice((2, 5, 20))
        # call next; pop ebx; mov ecx, n; L: add eax, imm32 (05); inc dword [ebx + 7]; dec ecx; jnz L
        return [b"\xe8\0\0\0\0\x5b\xb9" + u32(n) + b"\x05" + u32(0x1000) + b"\xff\x43\x07" + b"\x49" + b"\x75\xf5"]

    def _body(self) -> bytes:
        rng = self._rng
        body = b"".join(
            rng.choice(
                (
                    b"\x40",
                    b"\x41",
                    b"\x4a",
                    b"\x01\xc8",
                    b"\x29\xd1",
                    b"\x0f\xc8",
                    b"\xf7\xd8",
                    b"\xd1\xc0\x39\xd8",
                    b"\x89\xc7",
                    b"\xff\x86" + u32(4 * rng.randrange(64)),
                    b"\x13\xc1",
                    b"\x57\x5f",
                )
            )
            for _ in range(rng.randrange(1, 5))
        )
        if self.ring == 0 and rng.random() < 0.3:
            body += rng.choice((b"\xfa", b"\xfb\x90", b"\x8c\xd8", b"\x0f\x20\xc0", b"\x9c\x5a", b"\x1e\x1f"))
        return body + b"\xc3" * (4 - (len(body)) % 4)

    def _store_code(self, at: int) -> list[bytes]:
        body = self._body()
        return [b"\xc7\x86" + u32(at + n) + body[n : n + 4] for n in range(0, len(body), 4)]

    def _call_buffer(self) -> list[bytes]:
        """Code into a page of data, and a call there: a page that holds both."""
        at = CODE_STUBS + 32 * self._rng.randrange(16)
        return [*self._store_code(at), b"\x8d\x9e" + u32(at) + b"\xff\xd3"]

    def _call_alias(self) -> list[bytes]:
        """Written here, run there."""
        rng = self._rng
        at = CODE_STUBS + 32 * rng.randrange(16)
        alias = 0x7000 - 0x1000
        return [*self._store_code(at), b"\x8d\x9e" + u32(at + alias) + b"\xff\xd3"]

    def _patch_alias(self) -> list[bytes]:
        """The stream's own code through its other mapping."""
        new = self._rng.choice((0x41, 0x42, 0x48, 0x90, 0x98, 0xF5))
        return [b"\xe8\0\0\0\0\x5b\xc6\x83" + u32(ALIAS - STREAMS + 8) + bytes((new,)) + b"\x40\x40"]

    def _string_edge(self) -> list[bytes]:
        """Repeated, in both directions, into what is not there or not writable."""
        rng = self._rng
        operation = rng.choice((0xA4, 0xA6, 0xAA, 0xAC, 0xAE)) | rng.randrange(2)
        prefix = rng.choice((b"", b"\x66")) + rng.choice((b"", b"\xf3", b"\xf3", b"\xf2"))
        if operation & 0xFE in (0xA4, 0xAC) and rng.random() < 0.3:
            prefix += bytes((rng.choice((0x64, 0x26, 0x36, 0x2E)),))
        offset = rng.choice((0xFF0, 0x1FF0, 0x2FF0, 0x3010, 0x3FF8, 0x4FF0, 0x6FFC, 0x9000, 0x100))
        direction = rng.choice((b"\xfc", b"\xfc", b"\xfd"))
        return [
            direction,
            b"\xbf" + u32(USER + offset),
            b"\xbe" + u32(USER + rng.choice((0x10, 0xFFC, 0x1FF8, 0x3FFC, 0x10))),
            b"\xb9" + u32(rng.choice((0, 1, 5, 40))),
            prefix + bytes((operation,)),
            SET_ESI,
            b"\xfc",
            COMPARE,
        ]

    def _small_traps(self) -> list[bytes]:
        rng = self._rng
        return [
            rng.choice(
                (
                    b"\xcc",
                    b"\xce",
                    b"\xcd" + bytes((ECHO_VECTOR,)),
                    b"\xcd\x03",
                    b"\x62\x86" + u32(0x100) if rng.random() < 0.5 else b"\xce",
                    b"\xcd\x40" if self.ring == 3 else b"\xcc",
                )
            )
        ]

    def _device(self) -> list[bytes]:
        """Memory-mapped I/O, seldom: it goes to Python."""
        rng = self._rng
        if rng.random() < 0.7:
            return [b"\x90"]
        at = u32(DEVICE + 4 * rng.randrange(200))
        return [
            rng.choice(
                (
                    b"\x8b\x1d" + at,
                    b"\x89\x1d" + at,
                    b"\xa1" + at,
                    b"\xa2" + at,
                    b"\xff\x35" + at,
                    b"\x0f\xb6\x1d" + at,
                    b"\x83\x0d" + at + b"\x01",
                    b"\x50\x8f\x05" + at,
                    b"\xf6\x05" + at + b"\x10",
                    b"\x31\x05" + at,
                )
            ),
            SET_ESP,
        ]

    def _other_stack(self) -> list[bytes]:
        """For a while the stack lies where code is, or data."""
        return [
            b"\xbc" + u32(USER + self._rng.choice((0x1C00, 0x800, 0x6C00))),
            bytes((0x50 | self._register(),)),
            b"\x9c",
            b"\xe8\0\0\0\0",
            SET_ESP,
        ]
