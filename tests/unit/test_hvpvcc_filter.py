"""hvpvcc's assembler filter: which lines become sites, and that the code is the same but for padding."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from hvd.hvpvcc.elf import Elf
from hvd.hvpvcc.main import DIRECTORY, SKIP
from hvd.hvpvcc.sites import SECTION, Kind

FILTER = Path(DIRECTORY, "as")
# Of an object, which has no addresses yet: offsets in its sections.
RECORD = struct.Struct("<IBBBB")
PROGRAM = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "hvpvcc"


def assemble(tmp_path: Path, text: str, *options: str, skip: str = "", piped: bool = False) -> Path:
    source, made = tmp_path / "in.s", tmp_path / "out.o"
    source.write_text(text + "\n")
    command = [str(FILTER), "--32", *options, "-o", str(made), *(["-"] if piped else [str(source)])]
    environment = {"PATH": "/usr/bin:/bin", "HVPVCC_SKIP": skip}
    done = subprocess.run(command, input=text + "\n" if piped else None, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return made


def dump(made: Path, section: str) -> bytes:
    elf = Elf(made.read_bytes())
    return b"".join(elf.bytes_of(each) for each in elf.sections if each.name == section)


def sites(made: Path) -> list[tuple[Kind, int, int, int, int]]:
    """(kind, offset, length, original, lead) of each record but the area's."""
    records = RECORD.iter_unpack(dump(made, SECTION))
    return [(Kind(kind), offset, length, original, lead) for offset, kind, length, original, lead in records if kind != Kind.AREA]


def kinds(made: Path) -> list[Kind]:
    return [kind for kind, *_ in sites(made)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cli", [Kind.CLI]),
        ("CLI", [Kind.CLI]),
        ("name: 1: sti; hlt", [Kind.STI, Kind.HLT]),
        ("pushf; popl %eax; cli", [Kind.PUSHF, Kind.CLI]),
        ("pushfl\n popfl", [Kind.PUSHF, Kind.POPF]),
        ("/* cli */ nop # cli ; cli", []),
        ("/* cli\n cli */ cli", [Kind.CLI]),
        ("iret", [Kind.IRET]),
        ("movl %cr0, %eax\n movl %ecx, %cr3", [Kind.MOV_FROM_CR, Kind.MOV_TO_CR]),
        ("mov %db7, %eax; mov %eax, %db6", [Kind.MOV_FROM_DR, Kind.MOV_TO_DR]),
        ("movw %ds, %ax; movl %eax, %es", [Kind.MOV_FROM_SEGMENT, Kind.MOV_TO_SEGMENT]),
        ("movl %fs:4(%eax,%ebx), %ecx; movl %ecx, %gs:8", []),
        ("pushl %ds; popl %es; push (%eax); pop %ebx", [Kind.PUSH_SEGMENT, Kind.POP_SEGMENT]),
        ("inb $0x60, %al; outl %eax, %dx; inc %eax", [Kind.IN, Kind.OUT]),
        ("rep; insb", [Kind.INS]),
        ("rep insl", [Kind.INS]),
        ("rep; movsb; rep; ret", []),
        ("lgdt (%eax); sidt 4(%esp); ltr %ax; str %eax; smsw %ax", [Kind.LGDT, Kind.SIDT, Kind.LTR, Kind.STR, Kind.SMSW]),
        ("rdmsr; rdtsc; cpuid; wbinvd; invlpg (%eax)", [Kind.RDMSR, Kind.RDTSC, Kind.CPUID, Kind.WBINVD, Kind.INVLPG]),
        ("ljmp $8, $1f; 1: lcall *(%eax); lret", [Kind.FAR_JUMP, Kind.FAR_CALL, Kind.FAR_RETURN]),
        (".byte 0xfa", [Kind.CLI]),
        (".byte 0x0f, 0x01, 0xc8", [Kind.MONITOR]),
        (".byte 0xfa, 0xfa", []),
        ("data16 popf", [Kind.POPF]),
        (".data; .byte 0xcf; .byte 0x9c", []),
        (".section .debug_x; .byte 0x9c; .text; sti", [Kind.STI]),
        ('.section .mine, "ax"; cli; .section .other, "a"; .byte 0xfa', [Kind.CLI]),
        # A section that is named again has the flags that it had.
        ('.section .cold, "ax"\n cli\n .data\n .long 0\n .section .cold\n sti', [Kind.CLI, Kind.STI]),
        ('.pushsection .fixup, "ax"; cli; .popsection; .pushsection .data; .byte 0xfa; .popsection; sti', [Kind.CLI, Kind.STI]),
        (".data; .text; .previous; .byte 0xfa; .previous; cli", [Kind.CLI]),
        ('.section .altinstr_replacement, "ax"; rdtscp', []),
        (".code16; cli; .code32; sti", [Kind.STI]),
        (".code64; cli; .code32; sti", [Kind.STI]),
        (".intel_syntax noprefix; mov eax, cr0; mov cr4, eax; mov ds, ax; mov eax, ebx; in al, dx",
         [Kind.MOV_FROM_CR, Kind.MOV_TO_CR, Kind.MOV_TO_SEGMENT, Kind.IN]),
        (".macro twice\n cli\n .endm\n twice\n twice", [Kind.CLI, Kind.CLI]),
        (".macro do op:req\n \\op\n .endm\n do rdmsr\n do nop\n do sti", [Kind.RDMSR, Kind.STI]),
        (".irp r, eax, ebx\n mov %cr0, %\\r\n .endr", [Kind.MOV_FROM_CR, Kind.MOV_FROM_CR]),
        ('.ascii "cli; \\"sti"; hlt', [Kind.HLT]),
    ],
)  # fmt: skip
def test_lines_become_sites(tmp_path: Path, line: str, expected: list[Kind]) -> None:
    assert kinds(assemble(tmp_path, line)) == expected


def test_padding_is_behind_and_before_sti_so_that_its_shadow_stays(tmp_path: Path) -> None:
    made = assemble(tmp_path, "cli; sti; hlt; lidt 0x12345678; movl %eax, %ss; movl %ebx, %esp")
    assert sites(made) == [
        (Kind.CLI, 0, 8, 1, 0),
        (Kind.STI, 8, 5, 1, 4),
        (Kind.HLT, 13, 5, 1, 0),
        (Kind.LIDT, 18, 7, 7, 0),
        (Kind.MOV_TO_SEGMENT, 25, 2, 2, 0),  # no room: what loads ESP must follow
    ]
    assert dump(made, ".text")[:29] == bytes.fromhex("fa90909090909090 90909090fb f490909090 0f011d78563412 8ed0 89dc")


def test_only_what_loads_ss_has_no_room(tmp_path: Path) -> None:
    made = assemble(
        tmp_path,
        "lds (%eax), %ebx; les pass_ss, %ebx; lfs (%eax), %ebx; lss (%eax), %esp; LSS (%eax), %esp\n"
        "movw class, %es; movw (%eax), %SS; pop %ss; popl %ds\n"
        "movw %ss:(%eax), %es; ss movw (%eax), %ds\n .intel_syntax noprefix; mov ss, ax; mov es, ss:[eax]",
    )
    none = [Kind.LOAD_FAR, Kind.LOAD_FAR, Kind.MOV_TO_SEGMENT, Kind.POP_SEGMENT, Kind.MOV_TO_SEGMENT]
    assert [kind for kind, _, length, original, _ in sites(made) if length < 5 and length == original] == none
    assert len(sites(made)) == 13


def test_a_prefix_on_a_line_of_its_own_is_not_torn_off(tmp_path: Path) -> None:
    made = assemble(tmp_path, "rep\n insb")
    assert kinds(made) == []


def test_what_has_no_sites_is_assembled_as_it_is(tmp_path: Path) -> None:
    text = "movl %eax, %ebx\n ret"
    plain = tmp_path / "plain.o"
    subprocess.run(["as", "--32", "-o", str(plain), "-"], input=text + "\n", text=True, check=True)
    assert assemble(tmp_path, text).read_bytes() == plain.read_bytes()
    assert assemble(tmp_path, text, piped=True).read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("piped", [False, True])
def test_64_bit_code_and_skipped_outputs_are_left_alone(tmp_path: Path, piped: bool) -> None:
    assert SECTION.encode() not in assemble(tmp_path, "cli", "--64", piped=piped).read_bytes()
    assert kinds(assemble(tmp_path, "cli", skip=r"/out\.o$", piped=piped)) == []
    assert kinds(assemble(tmp_path, "cli", skip=SKIP, piped=piped)) == [Kind.CLI]


def test_errors_name_the_source_s_lines(tmp_path: Path) -> None:
    done = subprocess.run([str(FILTER), "--32", "-o", str(tmp_path / "x.o"), "-"], input="cli\nsti\nnonsense\n", capture_output=True, text=True)
    assert done.returncode and ":3: Error" in done.stderr


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["i686-linux-gnu-gcc-12"], ["-B"]),
        (["clang-14"], ["-B", "-fno-integrated-as"]),
        (["ccache", "gcc"], ["gcc", "-B"]),
        (["ccache", "clang"], ["clang", "-B", "-fno-integrated-as"]),
    ],
)
def test_compilers_by_their_names(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    first = tmp_path / names[0]
    first.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    first.chmod(0o755)
    done = subprocess.run([PROGRAM, first, *names[1:], "-c", "a b.c"], capture_output=True, text=True, check=True)
    assert [line.partition("/")[0] for line in done.stdout.splitlines()] == [*expected, "-c", "a b.c"]


def test_a_line_of_a_thousand_statements(tmp_path: Path) -> None:
    assert kinds(assemble(tmp_path, "cli; sti; " * 500)) == [Kind.CLI, Kind.STI] * 500


def test_the_hvpvcc_program_compiles_c_with_inline_assembly(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text('unsigned f(void) { unsigned x; __asm__ volatile("pushf; pop %0; cli" : "=r"(x)); return x; }\n')
    subprocess.run([PROGRAM, "gcc", "-m32", "-O2", "-g", "-pipe", "-c", "-o", tmp_path / "a.o", source], check=True)
    assert kinds(tmp_path / "a.o") == [Kind.PUSHF, Kind.CLI]
    subprocess.run([PROGRAM, "--skip", "/a[.]o$", "gcc", "-m32", "-c", "-o", tmp_path / "a.o", source], check=True)
    assert kinds(tmp_path / "a.o") == []


def test_the_kinds_are_those_of_the_header() -> None:
    header = (Path(__file__).resolve().parents[2] / "guests" / "include" / "hv" / "sites.h").read_text()
    names = header[header.index("HV_SITE_CLI") : header.index("HV_SITE_KINDS")].replace("\n", " ").split(",")
    assert [name.strip().removeprefix("HV_SITE_") for name in names if name.strip()] == [kind.name for kind in Kind][1:]
