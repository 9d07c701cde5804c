"""Random instructions on the cell's interpreters and on Unicorn: registers, flags, memory, ports and faults must be the same.

The same cases for the host's own processor: native.c. `python tests/cell/differential.py SEED COUNT [native]` runs longer than the
suite does.
"""

from __future__ import annotations

import ctypes
import random
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import unicorn
from cell_rig import FAILED, INTERPRETERS, RAISED, READ_ONLY, Rig, build
from forms import CF, FORMS, LOCKABLE, OF, STATUS, WEIGHTS, Form, may_lock
from unicorn import x86_const as x86

SIZE = 0x40000
CODE, CODE_END = 0x30000, 0x40000
ABSENT_PAGES = (5, 17)
READ_ONLY_PAGES = (9, 21)
UNICORN_REGISTERS = [
    x86.UC_X86_REG_EAX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ESP, x86.UC_X86_REG_EBP,
    x86.UC_X86_REG_ESI, x86.UC_X86_REG_EDI, x86.UC_X86_REG_EIP, x86.UC_X86_REG_EFLAGS,
]  # fmt: skip


@dataclass
class Case:
    form: Form
    code: bytes
    registers: list[int]
    eflags: int
    operand_size: int = 4
    group: int = 0
    memory_operand: bool = False
    repeated: bool = False
    notes: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        registers = " ".join(f"{value:08x}" for value in self.registers)
        return f"{self.code.hex(' ')} registers {registers} eflags {self.eflags:x}"


class Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self) -> int:
        rnd = self.random
        kind = rnd.random()
        if kind < 0.55:
            return rnd.randrange(CODE)
        if kind < 0.7:
            return rnd.randrange(48)
        if kind < 0.8:
            return (rnd.randrange(CODE // 4096) * 4096 + rnd.randrange(-8, 8)) & 0xFFFFFFFF
        if kind < 0.9:
            return rnd.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        return rnd.getrandbits(32)

    def modrm(self, form: Form, address_size: int) -> tuple[bytes, int, bool]:
        rnd = self.random
        group = rnd.choice(form.groups) if form.groups else rnd.randrange(8)
        mod = 3 if form.register_only else rnd.randrange(3) if form.memory_only else rnd.choice((0, 0, 1, 1, 2, 3, 3))
        rm = rnd.randrange(8)
        if mod == 3:
            return bytes([0xC0 | group << 3 | rm]), group, False
        out = bytes([mod << 6 | group << 3 | rm])
        if address_size == 2:
            size = 1 if mod == 1 else 2 if mod == 2 or rm == 6 else 0
        else:
            size = 1 if mod == 1 else 4 if mod == 2 or rm == 5 else 0
            if rm == 4:
                sib = rnd.randrange(64) | (rnd.choice((0, 0, 0, 1, 2, 3)) << 6)
                out += bytes([sib])
                if mod == 0 and sib & 7 == 5:
                    size = 4
        displacement = self.number() if size == 4 or rnd.random() < 0.3 else rnd.randrange(-40, 41)
        return out + (displacement & ((1 << 8 * size) - 1)).to_bytes(size, "little"), group, True

    def immediate(self, form: Form, operand_size: int, address_size: int) -> bytes:
        rnd = self.random
        kind = form.immediate
        if kind == "enter":
            return rnd.randrange(0, 200).to_bytes(2, "little") + bytes([rnd.choice((0, 1, 2, 3, 31, 40))])
        if kind == "moffs":
            return (self.number() & ((1 << 8 * address_size) - 1)).to_bytes(address_size, "little")
        if kind == "count":
            return bytes([rnd.randrange(8 * operand_size + 1)])
        size = operand_size if kind == "z" else int(kind)
        return (self.number() & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def case(self) -> Case:
        rnd = self.random
        form = rnd.choices(FORMS, WEIGHTS)[0]
        operand_size = 2 if rnd.random() < 0.3 and form.flow is False else 4
        address_size = 2 if rnd.random() < 0.15 else 4
        prefixes = [b"\x66"] if operand_size == 2 else []
        if address_size == 2:
            prefixes.append(b"\x67")
        if rnd.random() < 0.1:
            prefixes.append(bytes([rnd.choice((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65))]))
        repeated = form.string and rnd.random() < 0.6
        if repeated:
            prefixes.append(bytes([rnd.choice((0xF2, 0xF3))]))
        rnd.shuffle(prefixes)
        group, memory, operand = 0, False, b""
        if form.modrm:
            operand, group, memory = self.modrm(form, address_size)
        if form.code in LOCKABLE and memory and may_lock(form, group) and rnd.random() < 0.2:
            prefixes.insert(0, b"\xf0")
        code = b"".join(prefixes) + form.prefix + form.code + operand + self.immediate(form, operand_size, address_size)
        registers = [self.number() for _ in range(8)]
        registers[4] = rnd.randrange(0x100, CODE - 0x100) & (~3 if rnd.random() < 0.9 else ~0)
        if form.string:
            if repeated:
                registers[1] = (registers[1] & 0xFFFF0000 if address_size == 2 else 0) | rnd.choice((0, 1, 2, 5, 40, 300))
            if rnd.random() < 0.3:
                registers[0] = 0
        if form.code == b"\xc9":
            registers[5] = rnd.randrange(CODE)
        if form.code in (b"\xf6", b"\xf7") and group >= 6 and rnd.random() < 0.7:  # divisions that work
            registers[2] = rnd.choice((0, 0xFFFFFFFF, 1, 3))
            registers[0] = rnd.choice((registers[0], rnd.randrange(0x4000)))
        if form.code[:1] == b"\xd2" or form.code in (b"\xd3", b"\x0f\xa5", b"\x0f\xad"):
            registers[1] = (registers[1] & ~0xFF) | rnd.choice((0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, rnd.randrange(256)))
        eflags = 2 | rnd.getrandbits(32) & STATUS | (0x400 if rnd.random() < 0.2 else 0)
        return Case(form, code, registers, eflags, operand_size, group, memory, repeated)


def undefined_flags(case: Case) -> int:
    """The flags that the SDM leaves undefined for these operands."""
    form, undefined = case.form, case.form.undefined
    count = None
    if form.code in (b"\xc0", b"\xc1"):
        count = case.code[-1] & 31
    elif form.code in (b"\xd2", b"\xd3"):
        count = case.registers[1] & 31
    elif form.code in (b"\x0f\xa4", b"\x0f\xac"):
        count = case.code[-1] & 31
    elif form.code in (b"\x0f\xa5", b"\x0f\xad"):
        count = case.registers[1] & 31
    if count is not None:
        if count == 0:
            return 0
        bits = 8 * (case.operand_size if form.code[-1] & 1 or form.code[0] == 0x0F else 1)
        if count == 1:
            undefined &= ~OF
        elif count >= bits and (form.code[0] == 0x0F or case.group >= 4):
            undefined |= CF
            if form.code[0] == 0x0F and count > bits:
                undefined |= STATUS
    return undefined


class Reference:
    """Unicorn with the same memory map."""

    def __init__(self, initial: bytes) -> None:
        self.memory = (ctypes.c_uint8 * (SIZE + 4096))()
        base = (ctypes.addressof(self.memory) + 4095) & ~4095
        self.base = base
        ctypes.memmove(base, initial, SIZE)
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        uc.ctl_set_cpu_model(x86.UC_CPU_X86_HASWELL)
        for page in range(SIZE // 4096):
            if page in ABSENT_PAGES:
                continue
            rights = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
            if page not in READ_ONLY_PAGES and page < CODE // 4096:
                rights |= unicorn.UC_PROT_WRITE
            uc.mem_map_ptr(page * 4096, 4096, rights, base + page * 4096)
        self.uc = uc
        self.fresh = uc.context_save()
        self.fault: tuple[str, int] | None = None
        self.interrupt: int | None = None
        self.ports: list[tuple[str, int, int, int]] = []
        self.answers: list[int] = []
        uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._invalid)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        uc.hook_add(unicorn.UC_HOOK_INSN, self._port_in, None, 1, 0, x86.UC_X86_INS_IN)
        uc.hook_add(unicorn.UC_HOOK_INSN, self._port_out, None, 1, 0, x86.UC_X86_INS_OUT)

    def begin(self) -> None:
        if self.interrupt is not None:  # it remembers exceptions, and makes double faults of later ones
            self.uc.context_restore(self.fresh)
        self.fault = self.interrupt = None
        self.ports.clear()

    def _invalid(self, uc: unicorn.Uc, access: int, address: int, size: int, value: int, data: object) -> bool:
        absent = access in (unicorn.UC_MEM_READ_UNMAPPED, unicorn.UC_MEM_WRITE_UNMAPPED, unicorn.UC_MEM_FETCH_UNMAPPED)
        self.fault = ("absent" if absent else "protected", address & 0xFFFFFFFF)
        return False

    def _interrupt(self, uc: unicorn.Uc, number: int, data: object) -> None:
        if self.interrupt is None:  # it goes on with a double fault, as there is no IDT
            self.interrupt = number
        uc.emu_stop()

    def _port_in(self, uc: unicorn.Uc, port: int, size: int, data: object) -> int:
        self.ports.append(("in", port, size, 0))
        return self.answers[len(self.ports) - 1] & ((1 << 8 * size) - 1)

    def _port_out(self, uc: unicorn.Uc, port: int, size: int, value: int, data: object) -> None:
        self.ports.append(("out", port, size, value & ((1 << 8 * size) - 1)))


class Disagreement(AssertionError):
    pass


class Differential:
    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.generator = rig, Generator(seed)
        initial = random.Random(seed).randbytes(SIZE)
        rig.reset()
        ctypes.memmove(rig.memory, initial, SIZE)
        for page in ABSENT_PAGES:
            rig.state.rights[page] = 0
        for page in (*READ_ONLY_PAGES, *range(CODE // 4096, SIZE // 4096)):
            rig.state.rights[page] = READ_ONLY
        self.reference = Reference(initial)
        self.slot = CODE
        self.outcomes = [0, 0, 0]
        self.libc = ctypes.CDLL(None)

    def place(self, code: bytes) -> int:
        if self.slot + 48 > CODE_END - 0x1000:
            self.slot = CODE
        at, self.slot = self.slot, self.slot + 32
        self.reference.uc.ctl_remove_cache(at, at + 32)  # from the time before, or looked at by a jump
        padded = code.ljust(32, b"\x90")
        ctypes.memmove(ctypes.addressof(self.rig.memory) + at, padded, 32)
        ctypes.memmove(self.reference.base + at, padded, 32)
        return at

    def step(self) -> None:
        case = self.generator.case()
        at = self.place(case.code)
        rig, reference = self.rig, self.reference
        rig.cpu.r[:] = case.registers
        rig.cpu.eip, rig.cpu.eflags = at, case.eflags
        rig.state.port_count = rig.state.port_hash = 0
        outcome = rig.step()
        self.outcomes[outcome] += 1
        if outcome == FAILED:
            raise Disagreement(f"{case}: {rig.state.failure.decode()}")

        uc = reference.uc
        reference.begin()
        if case.form.code[0] in (0x6C, 0x6D):
            port = case.registers[2] & 0xFFFF
            size = 1 if case.form.code[0] == 0x6C else case.operand_size
            reference.answers = [rig.library.rig_port_value(i, port, size) & 0xFFFFFFFF for i in range(301)]
        uc.reg_write_batch(list(zip(UNICORN_REGISTERS, [*case.registers, at, case.eflags], strict=True)))
        error = None
        try:
            if case.repeated:
                uc.emu_start(at, at + len(case.code))
            else:
                uc.emu_start(at, 0xFFFFFFF0, 0, 1)
        except unicorn.UcError as raised:
            error = raised
        self.compare(case, at, outcome, error)

    def compare(self, case: Case, at: int, outcome: int, error: unicorn.UcError | None) -> None:
        rig, reference = self.rig, self.reference
        ours = [*rig.cpu.r, rig.cpu.eip, rig.cpu.eflags]
        theirs = [value & 0xFFFFFFFF for value in reference.uc.reg_read_batch(UNICORN_REGISTERS)]
        if reference.interrupt is None and error is not None and error.errno == unicorn.UC_ERR_INSN_INVALID:
            reference.interrupt = 6
        if outcome == RAISED and rig.state.vector == 14:
            if reference.fault is None and case.form.code == b"\xc8":
                # Processors look whether the stack's new end can be written, Unicorn does not.
                self.resynchronise(case, ours, at)
                return
            if reference.fault is None:
                self.fail(case, ours, theirs, f"page fault at {rig.state.address:x} that Unicorn does not have, {error}")
            kind, address = reference.fault
            same = kind == ("protected" if rig.state.error & 1 else "absent") and address // 4096 == rig.state.address // 4096
            crossing = 0 < abs(address - rig.state.address) < 8  # both pages of one operand fault
            if not same and not crossing and case.form.code[0] & ~1 not in (0xA4, 0xA6):  # of these both operands may fault
                self.fail(case, ours, theirs, f"page fault {rig.state.error:x} at {rig.state.address:x}, Unicorn {kind} {address:x}")
        elif outcome == RAISED and self.unchecked(case):
            pass
        elif outcome == RAISED:
            if reference.interrupt != rig.state.vector:
                self.fail(case, ours, theirs, f"exception {rig.state.vector}, Unicorn {reference.interrupt} {error}")
        elif reference.fault is not None and self.jumped_out(case, ours[8], reference.fault[1]):
            theirs[8] = ours[8]
        elif reference.fault and case.form.code == b"\x63" and reference.fault[0] == "protected":
            theirs[:] = ours  # processors write only what ARPL changes
        elif reference.fault or reference.interrupt is not None or error:
            self.fail(case, ours, theirs, f"Unicorn faults: {reference.fault} {reference.interrupt} {error}")
        if outcome == RAISED:
            self.resynchronise(case, ours, at)
            return
        mask = ~undefined_flags(case)
        ours[9] &= mask & 0xCFF
        theirs[9] &= mask & 0xCFF
        if ours != theirs and not self.excepted(case, ours, theirs):
            self.fail(case, ours, theirs, "registers")
        if rig.state.port_count != len(reference.ports):
            self.fail(case, ours, theirs, f"{rig.state.port_count} port accesses, Unicorn {reference.ports}")
        if self.libc.memcmp(rig.memory, ctypes.c_void_p(reference.base), CODE):
            here, there = bytes(rig.memory)[:CODE], ctypes.string_at(reference.base, CODE)
            differs = [f"{i:x}: {here[i]:02x} {there[i]:02x}" for i in range(CODE) if here[i] != there[i]]
            if self.excepted_memory(case):
                ctypes.memmove(reference.base, rig.memory, CODE)
            else:
                self.fail(case, ours, theirs, f"memory {differs[:16]}")

    def unchecked(self, case: Case) -> bool:
        """Exceptions that Unicorn does not know: stores through CS, MOVNTI with prefixes."""
        prefixes = case.code[: case.code.index(case.form.code)]
        return (self.rig.state.vector == 13 and 0x2E in prefixes) or (self.rig.state.vector == 6 and case.form.code == b"\x0f\xc3")

    @staticmethod
    def jumped_out(case: Case, eip: int, address: int) -> bool:
        """Unicorn fetches a jump's target in the same breath."""
        return case.form.flow and abs(eip - address) < 16

    def resynchronise(self, case: Case, ours: list[int], at: int) -> None:
        """After a fault: ours has changed no register, but for finished turns of string instructions; memory may be half written."""
        if not case.repeated and (ours[:8] != case.registers or ours[8] != at or ours[9] != case.eflags):
            self.fail(case, ours, [*case.registers, at, case.eflags], "registers changed in spite of a fault")
        ctypes.memmove(self.reference.base, self.rig.memory, CODE)

    @staticmethod
    def excepted(case: Case, ours: list[int], theirs: list[int]) -> bool:
        code, size = case.form.code, case.operand_size
        if code[0] == 0x0F and 0xC8 <= code[1] < 0xD0 and size == 2 and len(code) == 2:
            return True  # BSWAP of 16 bits is undefined
        if code == b"\xc8" and size == 2:
            ours[5] = theirs[5] = ours[5] & 0xFFFF  # Unicorn changes EBP, processors BP only
            return ours == theirs
        if case.code[0] == 0xF0 and code in (b"\xf6", b"\xf7") and case.group == 3:
            ours[9] = theirs[9]  # Unicorn's flags of LOCK NEG are wrong
            return ours == theirs
        if code == b"\xc2" and case.code[-1] & 0x80:
            ours[4] = theirs[4]  # Unicorn takes its operand to be signed
            return ours == theirs
        if code in (b"\x0f\xa4", b"\x0f\xa5", b"\x0f\xac", b"\x0f\xad") and size == 2:
            count = (case.code[-1] if not code[1] & 1 else case.registers[1]) & 31
            return count > 16  # undefined result
        return False

    @staticmethod
    def excepted_memory(case: Case) -> bool:
        return Differential.excepted(case, [], [])

    def fail(self, case: Case, ours: list[int], theirs: list[int], what: str) -> None:
        names = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags")
        differ = ", ".join(f"{name} {a:x} (Unicorn {b:x})" for name, a, b in zip(names, ours, theirs, strict=True) if a != b)
        raise Disagreement(f"{case}: {what}; {differ}")


def native_input(seed: int, count: int) -> bytes:
    """What native.c reads. Not in it: ports and segments FS and GS, which are not the guest's there."""
    generator = Generator(seed)
    rights = [0 if page in ABSENT_PAGES else 1 if page in READ_ONLY_PAGES or page >= CODE // 4096 else 2 for page in range(SIZE // 4096)]
    out = bytearray(rights) + random.Random(seed).randbytes(SIZE)
    while count:
        case = generator.case()
        prefixes = case.code[: case.code.index(case.form.code)]
        if case.form.code[0] in (0x6C, 0x6D, 0x6E, 0x6F) or 0x64 in prefixes or 0x65 in prefixes:
            continue
        out += case.code.ljust(16, b"\x90")
        out += struct.pack("<12I", *case.registers, case.eflags, len(case.code), case.repeated, 0)
        count -= 1
    return bytes(out)


def build_native(directory: Path) -> Path:
    sources = [Path(__file__).with_name("native.c"), Path(__file__).with_name("rig.c"), *INTERPRETERS]
    return build(directory / "native", *sources, options=["-fPIE", "-pie"])


def main_native(seed: int, count: int) -> int:
    with tempfile.TemporaryDirectory() as directory:
        return subprocess.run([build_native(Path(directory))], input=native_input(seed, count)).returncode


def main() -> int:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    if "native" in sys.argv[3:]:
        return main_native(seed, count)
    failures: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        differential = Differential(Rig(Path(directory), SIZE), seed)
        for _ in range(count):
            try:
                differential.step()
            except Disagreement as disagreement:
                ctypes.memmove(differential.reference.base, differential.rig.memory, CODE)
                case = str(disagreement)
                key = case.split(":")[1].split(" at ")[0][:40] + case.split(" registers")[0][:9]
                failures[key] = (failures.get(key, (0, ""))[0] + 1, case)
    for number, text in sorted(failures.values(), reverse=True)[:60]:
        print(number, text)
    print(f"{count} instructions, done/raised/failed {differential.outcomes}, {sum(n for n, _ in failures.values())} disagreements")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
