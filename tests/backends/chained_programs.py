"""The programs of rare_programs, and code in the buffer that is entered where no block begins, chained from page to page, changed while it is,
remapped behind its first page, and of which an instruction reaches now a device, now memory."""

from __future__ import annotations

import struct
from collections.abc import Callable

from rare_programs import RareMaker
from stream_kernel import BUFFER, DEVICE, DIRECTORY, OTHER_DIRECTORY, USER
from stream_programs import CODE_STUBS, COMPARE, COUNTERS, SET_ESI, SET_ESP, u32

RET = b"\xc3"
ALIAS_PAGES = 0x6000  # further up, pages 0 and 1 are mapped once more
FIRST, SECOND = CODE_STUBS + 0x240, 0xC40  # offsets of code: in page 1, and in page 0
POINTER = 0xBF0  # offset of a far or near pointer
STRADDLING = 0x8000  # pages 8 and 9 are frames 0 and 1, until they are remapped


class ChainedMaker(RareMaker):
    """Mostly code that lies in the buffer."""

    _devices = False

    def _loop(self, body: list[bytes]) -> list[bytes]:
        """Devices are slow."""
        devices, self._devices = self._devices, False
        return body if devices else super()._loop(body)

    def _atoms(self) -> list[bytes]:
        return self._rng.choice(self._chained_table())() if self._rng.random() < 0.4 else super()._atoms()

    def _chained_table(self) -> list[Callable[[], list[bytes]]]:
        return [self._entered, self._entered, self._chained, self._chained, self._straddling, self._straddling, self._device_or_memory]

    # ---- pieces

    def _instruction(self) -> bytes:
        rng = self._rng
        offset = u32(0x400 + 4 * rng.randrange(64))
        plain: tuple[bytes, ...] = (
            b"\x40", b"\x41", b"\x4a", b"\x01\xc8", b"\x29\xd1", b"\x0f\xc8", b"\x89\xc7", b"\x31\xd0", b"\x57\x5f", b"\xf7\xd8",
            b"\xb8" + bytes(rng.choices(b"\x41\x42\x4a\x90\xf8\xf5", k=4)),
            b"\x05" + u32(rng.getrandbits(32)), b"\x13\x86" + offset, b"\xff\x86" + offset, b"\x8b\x96" + offset, b"\x89\x86" + offset,
            b"\xd1\xc0" + COMPARE, b"\x9c\x5a", b"\x0f\x92\xc2", b"\x74\x01\x40", b"\xeb\x01\x40", b"\x66\x05\x34\x12", b"\xe8\0\0\0\0\x5a",
            b"\xe3\x01\x42", b"\x60\x61",
        )  # fmt: skip
        kernels: tuple[bytes, ...] = (b"\xfa", b"\xfb\x90", b"\xfb\xfa", b"\x8c\xd8", b"\x0f\x20\xc2", b"\x1e\x1f", b"\xfb\x9c\x5a", b"\x9c\xfa\x9d")
        return rng.choice(kernels) if self.ring == 0 and rng.random() < 0.25 else rng.choice(plain)

    def _store(self, at: int, code: bytes) -> list[bytes]:
        code += b"\x90" * (-len(code) % 4)
        return [b"\xc7\x86" + u32(at + n) + code[n : n + 4] for n in range(0, len(code), 4)]

    def _go(self, at: int) -> bytes:
        """There and back: by a call, a call or a jump through memory, or a return; EBX is lost. What is there ends with RET."""
        target = u32(USER + at)
        way = self._rng.randrange(4)
        if way == 0:
            return b"\xbb" + target + b"\xff\xd3"
        pointer = b"\xc7\x86" + u32(POINTER) + target
        if way == 1:
            return pointer + b"\xff\x96" + u32(POINTER)
        jump = b"\x68" + target + RET if way == 2 else pointer + b"\xff\xa6" + u32(POINTER)
        # call over a jump to behind; then away
        return b"\xe8\x02\0\0\0" + b"\xeb" + bytes((len(jump),)) + jump

    def _turns(self, body: bytes, turns: int) -> bytes:
        """dec dword [esi + counter]; jg"""
        counter = u32(COUNTERS + 4 * self._rng.randrange(8))
        back = SET_ESI + b"\xff\x8e" + counter
        return b"\xc7\x86" + counter + u32(turns) + body + back + b"\x0f\x8f" + struct.pack("<i", -(len(body) + len(back) + 6))

    # ---- what is done with them

    def _entered(self) -> list[bytes]:
        """From its beginning, from others of its instructions and from the middle of one; once more when it has changed."""
        rng = self._rng
        starts, lengths, code = [0], [], b""
        for _ in range(rng.randrange(2, 9)):
            instruction = self._instruction()
            if instruction[0] == 0xB8 and rng.random() < 0.5:  # its immediate is code, too
                starts.append(len(code) + 1)
            code += instruction
            lengths.append(len(instruction))
            starts.append(len(code))
        at = rng.choice((FIRST, SECOND)) + rng.randrange(4)
        alias = rng.choice((0, 0, ALIAS_PAGES))
        entries = rng.choices(starts, k=4)
        calls = [self._go(at + alias + entry) for entry in (0, *entries)]
        if rng.random() < 0.5:
            rng.shuffle(calls)
        if rng.random() < 0.4:
            calls = [self._turns(b"".join(calls), rng.choice((2, 5)))]
        # one instruction becomes as many as it has bytes
        first = rng.randrange(len(lengths))
        where, new = at + sum(lengths[:first]), rng.choice((b"\x42", b"\x48", b"\x90", RET)).ljust(lengths[first], b"\x4f")
        change = b"".join(b"\xc6\x86" + u32(where + n) + new[n : n + 1] for n in range(len(new)))
        again = [change, self._go(at + alias + rng.choice(starts))] if rng.random() < 0.6 else []
        return [SET_ESI, *self._store(at, code + RET), *calls, *again, SET_ESP, SET_ESI]

    def _chained(self) -> list[bytes]:
        """A page's code jumps into another's middle, directly, again and again, while it is written over: INC and DEC in turn."""
        rng = self._rng
        start, there = b"".join(self._instruction() for _ in range(2)), b"".join(self._instruction() for _ in range(rng.randrange(3)))
        at, beyond = rng.sample((FIRST, SECOND, FIRST + ALIAS_PAGES, SECOND + ALIAS_PAGES), 2)
        if at % ALIAS_PAGES == beyond % ALIAS_PAGES:
            beyond += 0x40
        entry = beyond + (len(there) if rng.random() < 0.5 else 0)
        kind = rng.random()
        opcode = b"\xe9" if kind < 0.6 else b"\x0f" + bytes((0x80 | rng.randrange(16),)) if kind < 0.8 else b"\xe8"
        distance = entry - (at + len(start) + len(opcode) + 4)
        plain = beyond % ALIAS_PAGES  # page 7 is read-only
        stores = [*self._store(at % ALIAS_PAGES, start + opcode + struct.pack("<i", distance) + RET), *self._store(plain, there + b"\x40\x40" + RET)]
        writable = plain + (ALIAS_PAGES if plain < 0x1000 and rng.random() < 0.5 else 0)
        toggle = b"\x80\xb6" + u32(writable + len(there)) + b"\x08"
        whole = b"".join(self._store(writable, there + b"\x42\x4f" + RET))
        change = toggle if rng.random() < 0.7 else whole
        body = self._go(at) + (change if rng.random() < 0.8 else b"\x90") + (self._go(entry) if rng.random() < 0.4 else b"")
        turns = self._turns(body, rng.choice((2, 4, 9)))
        return [SET_ESI, *stores, self._go(at), turns, SET_ESP, SET_ESI]

    def _straddling(self) -> list[bytes]:
        """An instruction and what follows it in the next page, which is another frame then. EAX tells which one it was."""
        rng = self._rng
        before = b"".join(rng.choice((b"\x41", b"\x4a", b"\x90", b"\xf8", b"\x43")) for _ in range(5))
        split = rng.choice((1, 2, 3, 4))
        start = USER + STRADDLING + 0x1000 - split - len(before)
        fills: list[bytes] = []
        load = b""
        for frame in (0x1000, 0, 0xB000):
            load = b"\xb8" + u32(rng.getrandbits(32))
            fills += self._store(frame, load[split:] + self._instruction() + RET)
        head = before + load[:split]
        words = [*range(0, len(head) - 4, 4), len(head) - 4]
        fills += [b"\xc7\x86" + u32(end - len(head) + n) + head[n : n + 4] for n in words for end in (0x1000, 0x2000)]
        calls = [self._go(start - USER + rng.choice((0, 0, rng.randrange(5), 5))) for _ in range(2)]
        if self.ring:
            return [SET_ESI, *fills, *calls, SET_ESP, SET_ESI]
        told = rng.choice((b"\x0f\x01\x3d" + u32(USER + 0x9000), b"\x0f\x20\xdb\x0f\x22\xdb"))

        def mapped(entry: int) -> bytes:
            return b"\xc7\x05" + u32(self._entry_of(9)) + u32(entry) + told

        first = {8: BUFFER, 9: BUFFER + 0x1000, 0xB: BUFFER + 0x4000}
        home = b"".join(b"\xc7\x05" + u32(self._entry_of(page)) + u32(frame | 7) for page, frame in first.items()) + b"\x0f\x20\xdb\x0f\x22\xdb"

        other = b"".join((b"\xbb" + u32(OTHER_DIRECTORY) + b"\x0f\x22\xdb", self._go(start - USER), b"\xbb" + u32(DIRECTORY) + b"\x0f\x22\xdb"))
        steps = [mapped(rng.choice((BUFFER, BUFFER + 0x4000, BUFFER + 0x1000)) | rng.choice((7, 7, 5, 3))) + rng.choice(calls) for _ in range(3)]
        if rng.random() < 0.3:
            steps.insert(rng.randrange(3), other)
        return [SET_ESI, home, *fills, *calls, *steps, mapped(BUFFER + 0x1000 | 7), calls[0], SET_ESP, SET_ESI]

    def _device_or_memory(self) -> list[bytes]:
        """An instruction that reads or writes a device so often that it is called out for; then memory; then it is another one."""
        rng = self._rng
        self._devices = True
        accesses = (b"\x8b\x03", b"\x89\x03", b"\x01\x03", b"\x03\x03", b"\x8a\x03", b"\x0f\xb6\x03", b"\xff\x33\x58", b"\x0f\xba\x23\x03")
        others = (b"\xdb\xe3", b"\xd9\xe8\xdd\xd8", b"\x0f\x57\xc0", b"\xdb\x03\xdd\xd8", b"\x42\x43", b"\xff\x33\x5a", b"\x9c\x5a")
        at = rng.choice((FIRST, SECOND))
        device, memory = u32(DEVICE + 4 * rng.randrange(64)), u32(USER + 4 * rng.randrange(64))

        def use(pointer: bytes, turns: int) -> bytes:
            return self._turns(b"\xbb" + pointer + b"\xba" + u32(USER + at) + b"\xff\xd2", turns)

        access = rng.choice(accesses)
        return [
            SET_ESI, *self._store(at, access + RET), use(device, 10), use(memory, 2), use(device, 2),
            *self._store(at, rng.choice(others) + RET), use(memory, 2),
            *self._store(at, rng.choice((access, rng.choice(accesses))) + RET), use(device, 1), use(memory, 1), SET_ESP, SET_ESI,
        ]  # fmt: skip
