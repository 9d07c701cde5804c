"""hvpvcc's proof and its replacements: what was missed is found, hostile tables are refused, a finished kernel is marked."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from harness import kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.paravirt import patches
from hvd.errors import HvdError
from hvd.hvpvcc.elf import Elf, FormatError
from hvd.hvpvcc.finish import finish, finished_file
from hvd.hvpvcc.main import DIRECTORY
from hvd.hvpvcc.sites import SECTION, Kind, read_table
from hvd.hvpvcc.thunks import CLI
from hvd.hvpvcc.verify import sensitive, verify

PROGRAM = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "hvpvcc"


def hvpvcc(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True)


def linked(directory: Path, text: str, *more: str) -> Path:
    """A kernel of assembly code by hvpvcc; what is in `more` by the usual assembler."""
    made = directory / "kernel"
    for index, part in enumerate((text, *more)):
        (directory / f"{index}.S").write_text(part + "\n")
        filtered = () if index else (f"-B{DIRECTORY}",)
        subprocess.run(["gcc", "-m32", *filtered, "-c", "-o", directory / f"{index}.o", directory / f"{index}.S"], check=True)
    objects = [str(directory / f"{index}.o") for index in range(1 + len(more))]
    subprocess.run(["ld", "-m", "elf_i386", "-e", "start", "-Ttext=0x100000", "-o", made, *objects], check=True)
    return made


STACK = "start: mov $0x9000, %esp\n"


def test_what_the_usual_assembler_got_is_missed_and_named(tmp_path: Path) -> None:
    made = linked(tmp_path, STACK + "cli; ret", ".globl lost\nlost: sti; .byte 0x0f, 0x01, 0xc1\n mov %cr0, %eax; ret")
    done = hvpvcc("--verify", made)
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stdout.splitlines()[:-1]] == ["sti", "vmcall", "mov    %cr0,%eax"]
    assert done.stdout.splitlines()[0].startswith("0x") and ".text lost" in done.stdout
    assert hvpvcc("--verify", made, "--allow", "^.text lost$").returncode == 0
    report = json.loads(hvpvcc("--report", made, "--json").stdout)
    assert not report["good"] and [row["function"] for row in report["missed"]] == ["lost"] * 3
    assert [(row["kind"], row["function"], row["form"]) for row in report["sites"]] == [("cli", "start", "store")]


def test_a_record_inside_of_an_instruction_is_found(tmp_path: Path) -> None:
    made = linked(tmp_path, STACK + "mov $0xfa, %eax; cli; ret")
    elf = Elf(made.read_bytes())
    section = elf.section(SECTION)
    assert section is not None
    data = bytearray(elf.data[:])
    table = read_table(elf)
    assert table is not None
    site = table.sites[0]
    for at in range(section.offset, section.offset + section.size, 8):
        if struct.unpack_from("<I", data, at)[0] == site.address:
            struct.pack_into("<IBBBB", data, at, site.address - 4, int(Kind.CLI), 1, 1, 0)  # the immediate's first byte
    made.write_bytes(data)
    forged = Elf(bytes(data))
    verdict = verify(made, forged, read_table(forged))
    assert [why for _, why in verdict.wrong] == ["it is no instruction"] and [found.text for found in verdict.missed] == ["cli"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cli", True), ("rep insb (%dx),%es:(%edi)", True), ("mov    %cr3,%eax", True), ("mov    %eax,%ds", True),
        ("mov    %gs:0x14,%eax", False), ("mov    %eax,%gs:(%ebx)", False), ("push   %cs", True), ("pop    %es", True),
        ("push   %ebx", False), ("lea    0x0(%esi),%esi", False), ("in     (%dx),%al", True), ("inc    %eax", False), ("iret", True),
        ("ljmp   *(%eax)", True), ("jmp    *%eax", False), ("movsl  %ds:(%esi),%es:(%edi)", False), ("lods   %ds:(%esi),%al", False),
        ("stos   %al,%es:(%edi)", False), ("str    %eax", True), ("mov    %db7,%eax", True), ("cs nopw 0x0(%eax,%eax,1)", False),
        ("data16 popfw", True), ("lss    0x10,%esp", True), ("popa", False), ("pushf", True), ("invlpg (%eax)", True),
        ("lsl    %eax,%eax", True), ("ss push %ds", True),
    ],
)  # fmt: skip
def test_which_instructions_are_sensitive(text: str, expected: bool) -> None:
    assert sensitive(text) is expected


def test_forms(tmp_path: Path) -> None:
    code = "cli; sti; hlt; pushf; popf; sti; iret; rdtsc; lidt 0x5000; movl %eax, %ss; mov %cr2, %ebx; str %ax"
    made = linked(tmp_path, f"start: lgdt 0x5000; cli\n mov $0x9000, %esp\n {code}")
    finished = finish(Elf(made.read_bytes()))
    assert finished is not None
    rows = {f"{each.site.kind.label} {index}": each.form or each.why for index, each in enumerate(finished.replacements)}
    assert list(rows.values()) == [
        "there is no stack yet", "store", "store", "thunk", "monitor", "thunk", "thunk", "the next instruction is in its shadow", "monitor",
        "the counter is the guest's own", "monitor", "what follows must not be put off", "thunk", "monitor",
    ]  # fmt: skip
    assert finished.replacements[2].code == CLI
    assert all(len(each.code) == each.site.length for each in finished.replacements if each.code)


def test_a_finished_kernel_is_the_loader_s_work_done(tmp_path: Path) -> None:
    neutral = kernel("hole.hvpv.elf")
    out = tmp_path / "out"
    assert hvpvcc("--finish", neutral, "-o", out).returncode == 0
    elf, whole = Elf(neutral.read_bytes()), Elf(out.read_bytes())
    for address, code in patches(neutral):
        assert whole.data[whole.file_offset(address, len(code)) :][: len(code)] == code
    # Nothing else differs but the mark.
    differing = {at for at, (a, b) in enumerate(zip(elf.data[:], whole.data[:], strict=True)) if a != b}
    patched = {elf.file_offset(address, len(code)) + n for address, code in patches(neutral) for n in range(len(code))}
    assert len(differing - patched) == 1
    assert patches(out) == []
    assert "finished already" in hvpvcc("--finish", out).stderr
    assert "it has no sites" in hvpvcc("--finish", kernel("hole.elf"), "-o", out).stderr


def test_the_area_says_that_nobody_is_there() -> None:
    """An image that is not replaced answers its hypercall page with -ENOSYS."""
    table = read_table(Elf(kernel("hole.hvpv.elf").read_bytes()))
    assert table is not None
    elf = Elf(kernel("hole.hvpv.elf").read_bytes())
    at = elf.file_offset(table.area.address, 6)
    assert elf.data[at : at + 6] == b"\xb8" + struct.pack("<i", -38) + b"\xc3"


# ---- tables that lie

HOLE = kernel("hole.hvpv.elf").read_bytes()


def forged(record: bytes, index: int = 0) -> bytes:
    section = Elf(HOLE).section(SECTION)
    assert section is not None
    data = bytearray(HOLE)
    at = section.offset + 8 * (index % (section.size // 8))
    data[at : at + 8] = record
    return bytes(data)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (struct.pack("<IBBBB", 0xFFFFFFFC, 1, 8, 1, 0), "not in a section of code"),
        (struct.pack("<IBBBB", 0x100020, 200, 8, 1, 0), "of kind 200"),
        (struct.pack("<IBBBB", 0x100020, 1, 8, 9, 0), "an instruction of 9"),
        (struct.pack("<IBBBB", 0x100020, 1, 8, 16, 0), "an instruction of 16"),
        (struct.pack("<IBBBB", 0x100020, 1, 8, 1, 255), "255 before"),
        (struct.pack("<IBBBB", 0x100020, 1, 0, 0, 0), "an instruction of 0"),
        (struct.pack("<IBBBB", 0x101000, 1, 8, 1, 0), "in the place for thunks"),
        (struct.pack("<IBBBB", 0x100020, 0, 2, 0, 0), "2 places for thunks"),
    ],
)
def test_a_table_that_lies_is_refused_with_its_reason(record: bytes, problem: str) -> None:
    with pytest.raises(HvdError) as caught:
        patches(forged(record, _some_site()))
    assert caught.value.reason == "IMAGE_FORMAT" and problem in str(caught.value)


def _some_site() -> int:
    """The index of a record that is not the area's."""
    elf = Elf(HOLE)
    section = elf.section(SECTION)
    assert section is not None
    data = elf.bytes_of(section)
    return next(index for index in range(len(data) // 8) if data[8 * index + 4] != Kind.AREA)


def test_other_code_around_a_site_is_refused() -> None:
    elf = Elf(HOLE)
    table = read_table(elf)
    assert table is not None
    site = next(site for site in table.sites if site.kind is Kind.CLI)
    data = bytearray(HOLE)
    data[elf.file_offset(site.address, 8) + 3] = 0xC3
    with pytest.raises(HvdError, match="other code around"):
        patches(bytes(data))


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 200), record=st.binary(min_size=8, max_size=8))
def test_no_record_writes_outside_of_the_kernel_s_code(index: int, record: bytes) -> None:
    data = forged(record, index)
    try:
        elf = Elf(data)
        found = finish(elf)
    except FormatError:
        return
    for address, code in found.patches if found else ():
        assert elf.code_section(address, len(code)) is not None
    table = read_table(elf)
    if table is not None and found is not None and not found.already:
        assert len(finished_file(elf, table, found)) == len(data)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(HOLE)), at=st.integers(0, 300), junk=st.binary(min_size=1, max_size=40))
def test_damaged_files_are_errors_and_nothing_else(cut: int, at: int, junk: bytes) -> None:
    data = bytearray(HOLE)
    data[at : at + len(junk)] = junk
    for each in (bytes(data[: len(HOLE)]), HOLE[:cut]):
        try:
            finish(Elf(each))
        except FormatError as error:
            assert str(error)
