"""Damage to well-formed bytes, the same in every run: for tests that give a parser what nobody would send by mistake."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence

# Seconds that each parser gets; CI has the default, a night may have more.
SECONDS = float(os.environ.get("HVD_FUZZ_SECONDS", "0.5"))
LEAST_INPUTS = 50
# At places where lengths, counts and offsets are.
EXTREMES = tuple(
    value.to_bytes(width, "little") for width in (1, 2, 4, 8) for value in (0, 1, (1 << 8 * width - 1) - 1, 1 << 8 * width - 1, (1 << 8 * width) - 1)
)
WORDS = (b"", b"null", b"[]", b"{}", b'"', b"-1", b"1e999", b"999999999999999999999", b"../../", b"\0", b"\xff\xfe", b"\xed\xa0\x80",
         b"[" * 5000, b"{" * 5000)  # fmt: skip


def _flip(data: bytearray, numbers: random.Random) -> None:
    data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)


def _cut(data: bytearray, numbers: random.Random) -> None:
    del data[numbers.randrange(len(data)) :]


def _remove(data: bytearray, numbers: random.Random) -> None:
    start = numbers.randrange(len(data))
    del data[start : start + numbers.choice((1, 2, 4, 16, 200))]


def _repeat(data: bytearray, numbers: random.Random) -> None:
    start = numbers.randrange(len(data))
    piece = bytes(data[start : start + numbers.choice((1, 4, 16, 64))])
    data[start:start] = piece * numbers.choice((1, 2, 50))


def _extreme(data: bytearray, numbers: random.Random) -> None:
    piece = numbers.choice(EXTREMES)
    start = numbers.randrange(len(data))
    data[start : start + len(piece)] = piece


def _word(data: bytearray, numbers: random.Random) -> None:
    start = numbers.randrange(len(data))
    data[start : start + numbers.choice((0, 1, 4))] = numbers.choice(WORDS)


def _noise(data: bytearray, numbers: random.Random) -> None:
    start = numbers.randrange(len(data))
    length = min(numbers.choice((1, 8, 64)), len(data) - start)
    data[start : start + length] = numbers.randbytes(length)


DAMAGES: Sequence[Callable[[bytearray, random.Random], None]] = (_flip, _flip, _cut, _remove, _repeat, _extreme, _extreme, _word, _noise)
# Formats have their headers at the begin: most damage is done there.
HEAD = 512


def damaged(sample: bytes, numbers: random.Random) -> bytes:
    head = bytearray(sample[:HEAD]) if numbers.random() < 0.8 else bytearray(sample)
    rest = sample[HEAD:] if len(head) < len(sample) else b""
    for _ in range(numbers.choice((1, 1, 2, 3, 8))):
        if not head:
            break
        numbers.choice(DAMAGES)(head, numbers)
    return bytes(head) + rest


def inputs(samples: Sequence[bytes], seed: str) -> Iterator[bytes]:
    """Well-formed ones, nothing, noise, then damaged ones until the time is up; at least so many."""
    numbers = random.Random(seed)
    yield from samples
    yield b""
    yield numbers.randbytes(4096)
    end, count = time.monotonic() + SECONDS, 0
    while count < LEAST_INPUTS or time.monotonic() < end:
        yield damaged(numbers.choice(samples), numbers)
        count += 1
