"""Programs on two backends: what differs, and the least of a program that still does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stream_guest import Outcome, Program, Side

DONE = 0xFEED
NAMES = (
    "vector", "error", "eip", "cs", "eflags", "cr2", "esp", "eax", "ecx", "edx", "ebx", "ebp", "esi", "edi", "stream", "ds/es", "fs/gs", "cr0^cr4",
)  # fmt: skip


def same(one: Sequence[int], two: Sequence[int]) -> bool:
    """Page faults of what reads and writes are writes; QEMU reads first, and says so where there is no page or no right to read. What goes
    beyond 4 GiB is a page fault there."""
    if tuple(one) == tuple(two):
        return True
    if one[0] == 14 and one[5] >= 0xFFFFFFF0 and two[0] in (12, 13) and one[2:5] == two[2:5]:
        return True
    # The same, across two pages: the second is absent, the first cannot be written.
    if one[0] == two[0] == 14 and two[1] & 3 == 3 and not one[1] & 2 and not one[5] & 0xFFF and 0 < one[5] - two[5] < 16 and one[2:5] == two[2:5]:
        return True
    reads_first = one[0] == two[0] == 14 and not one[1] & 2 and two[1] == one[1] | 2
    return reads_first and (one[0], *one[2:]) == (two[0], *two[2:])


def all_same(one: Sequence[Sequence[int]], two: Sequence[Sequence[int]]) -> bool:
    return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))


def differing(one: Outcome, two: Outcome) -> list[int]:
    """Numbers of the streams that left other records; all from the first on that one of the two did not end."""
    return [
        number
        for number, (a, b) in enumerate(zip(one.records, two.records, strict=True))
        if not all_same(a, b) or not a
    ]


def difference(one: Outcome, two: Outcome, number: int = 0) -> str:
    """In words, for the first record that differs; "" when none does."""
    text = ""
    for at, (a, b) in enumerate(zip(one.records[number], two.records[number], strict=False)):
        if not same(a, b):
            fields = [f"{name} {x:#x} {y:#x}" for name, x, y in zip(NAMES, a, b, strict=True) if x != y]
            text = f"record {at} (vector {a[0]:#x} at {a[2]:#x}): " + ", ".join(fields)
            break
    if not text and len(one.records[number]) != len(two.records[number]):
        text = f"{len(one.records[number])} and {len(two.records[number])} records; ends: {one.end}; {two.end}"
    if not text and one.end.split(" at ")[0] != two.end.split(" at ")[0]:
        text = f"ends: {one.end}; {two.end}"
    if not text and one.devices != two.devices:
        text = f"devices: {one.devices}; {two.devices}"
    return text


def kind_of(text: str) -> tuple[str, ...]:
    """Which fields differ, and the vector: roughly the same failure."""
    words = text.replace(",", "").replace("(", "").replace(")", "").split()
    return tuple(word for word in words if not word.startswith("0x") and not word.isdigit()) + tuple(
        words[at + 1] for at, word in enumerate(words) if word == "vector"
    )


def ended(outcome: Outcome) -> int:
    """How many programs came to their ends."""
    for number, records in enumerate(outcome.records):
        if not records or records[-1][0] != DONE:
            return number
    return len(outcome.records)


class Pair:
    """A reference and what is compared with it."""

    def __init__(self, reference: Side, other: Side) -> None:
        self.reference, self.other = reference, other
        self.records = 0

    def run(self, programs: Sequence[Program], timer: int = 0, seconds: float = 20.0) -> tuple[Outcome, Outcome]:
        return self.reference.run(programs, timer, seconds), self.other.run(programs, timer, seconds)

    def close(self) -> None:
        self.reference.close()
        self.other.close()

    def check(self, program: Program, timer: int = 0) -> str:
        """One program alone: the difference, or "". A program that does not end on the reference says nothing."""
        reference = self.reference.run([program], timer, 3)
        if reference.end == "late":
            return ""
        return difference(reference, self.other.run([program], timer, 8))

    def shrink(self, program: Program, timer: int = 0) -> Program:
        """Drop chunks, then single instructions, as long as the two still differ in the same way. Those that do not differ again stay whole."""
        kind = kind_of(self.check(program, timer))
        if not kind:
            return program
        size = max(len(program.chunks) // 2, 1)
        while True:
            at = 0
            while at < len(program.chunks):
                fewer = replace(program, chunks=program.chunks[:at] + program.chunks[at + size :])
                if fewer.chunks and kind_of(self.check(fewer, timer)) == kind:
                    program = fewer
                else:
                    at += size
            if size == 1:
                break
            size = max(size // 2, 1)
        for number, chunk in enumerate(program.chunks):
            at = 0
            while at < len(program.chunks[number]) and len(chunk) > 1:
                atoms = program.chunks[number][:at] + program.chunks[number][at + 1 :]
                fewer = replace(program, chunks=[*program.chunks[:number], atoms, *program.chunks[number + 1 :]])
                if kind_of(self.check(fewer, timer)) == kind:
                    program = fewer
                else:
                    at += 1
        return program

    def differences(self, programs: Sequence[Program], timer: int = 0) -> list[tuple[Program, str]]:
        """Those of many that come out otherwise. A program that ends the guest ends a batch; what follows it is another."""
        found = []
        while programs:
            one, two = self.run(programs, timer)
            self.records += sum(map(len, one.records))
            over = min(ended(one), ended(two))
            for number, program in enumerate(programs[: min(over + 1, len(one.records))]):
                if number == over or not all_same(one.records[number], two.records[number]):
                    text = self.check(program, timer)
                    if not text and number != over:
                        text = "not on its own: " + difference(one, two, number)
                    if text:
                        found.append((program, text))
            programs = programs[over + 1 if over < len(one.records) else over :]
        return found


def disassembled(program: Program) -> str:
    """For reading, with Capstone if it is installed."""
    try:
        import capstone
    except ImportError:
        return " ".join(atom.hex() for chunk in program.chunks for atom in chunk)
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    lines = []
    for chunk in program.chunks:
        for atom in chunk:
            lines += [f"{i.bytes.hex():20} {i.mnemonic} {i.op_str}" for i in engine.disasm(atom, 0)] or [atom.hex()]
    return "\n".join(lines)
