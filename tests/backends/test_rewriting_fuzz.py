"""Random kernels and programs under rewriting and under emulation: the same exceptions in the same order, registers, flags and memory.

HVD_FUZZ_SEEDS=first:last runs many more than the suite does. What is found is shrunk, and printed as a line for corpus/programs.jsonl.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from chained_programs import ChainedMaker
from rare_programs import RareMaker
from stream_compare import DONE, Pair, all_same, difference, disassembled
from stream_guest import Program, Side
from stream_kernel import CR0, CR4, DEVICE, KERNEL, STACK, STREAMS, USER, Paging
from stream_programs import SET_ESI, SET_ESP

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.rewriting.backend import BACKEND as REWRITING
from hvd.board.vcpu import CensusCommand, Exit
from hvd.cell.decoder import Decoded, Decoder
from hvd.cell.rewritten import Replacement, sites

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
AVAILABLE = REWRITING.probe() if NATIVE.available else NATIVE
pytestmark = pytest.mark.skipif(not AVAILABLE.available, reason=f"{AVAILABLE.reason}; {AVAILABLE.remedy}")

CORPUS = Path(__file__).parent / "corpus" / "programs.jsonl"
PER_TEST = 250
KERNELS, PROGRAMS, INTERRUPTED, OTHER_PAGES, WITHHELD, WATCHED = (
    range(0, 1500, PER_TEST),
    range(100_000, 101_000, PER_TEST),
    range(200_000, 200_500, PER_TEST),
    range(400_000, 400_500, PER_TEST),
    range(500_000, 500_500, PER_TEST),
    range(600_000, 600_250, PER_TEST),
)
CHAINED, CHAINED_INTERRUPTED = range(700_000, 700_060), range(700_100, 700_120)
WATCHED_INTERRUPTED = range(610_000, 610_250)
TIMER = 400  # periods of the 8254: 335 us
MOST_SHOWN = 4
MP, EM, TS, TSD = 2, 4, 8, 4
RDTSC, ENTER_LEAVE = b"\x0f\x31", b"\xc8\x10\0\0\xc9"
READS_DR = re.compile(rb"\x0f\x21[\xc0-\xdf]")
MOVES_DR = re.compile(rb"\x0f\x23[\xc0-\xdf]")
REPEATED = re.compile(rb"[\xf2\xf3][\xa4-\xa7\xaa-\xaf]")
SMALL_STACK = b"\x8e\xd3\xbc"  # MOV SS, EBX; MOV ESP
PUSH_BELOW, PUSH_TOP = b"\xff\x74\x24\xfc", b"\xff\x74\x24\0"  # PUSH [ESP - 4], PUSH [ESP]
# Not both TS and EM: of MMX and SSE emulation looks at TS first, which is wrong (SDM vol. 3A, tables 12-1 and 13-1).
WITHHOLDING = ((CR0 | TS, CR4), (CR0 & ~MP | TS, CR4), (CR0 | EM, CR4), (CR0 | TS, CR4 | TSD), (CR0, CR4 | TSD))
instructions = 0


@pytest.fixture(scope="module", params=(Paging.BIG, Paging.PAE), ids=lambda paging: paging.name)
def other_pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("streams")
    pair = Pair(Side("emulation", directory, request.param), Side("rewriting", directory, request.param))
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("streams")
    pair = Pair(Side("emulation", directory), Side("rewriting", directory))
    yield pair
    pair.close()


def nominal(program: Program) -> int:
    """Instructions that it executes if nothing faults: loops are as long as their counters say."""
    decoder = Decoder()
    count = 0
    for chunk in program.chunks:
        code, turns = b"".join(chunk), 1
        if chunk[0][:2] == b"\xc7\x86" and len(chunk[0]) == 10 and chunk[-1][:2] == b"\xff\x8e":
            (turns,) = struct.unpack_from("<I", chunk[0], 6)
        length = 0
        while code and decoder.decode_bytes(code) == Decoded.DECODED:
            code = code[decoder.instruction.length :]
            length += 1
        count += length * turns
    return count


def look(pair: Pair, programs: list[Program], timer: int = 0) -> None:
    global instructions
    found = pair.differences(programs, timer)
    instructions += sum(map(nominal, programs))
    lines = []
    for program, text in found[:MOST_SHOWN]:
        small = program if text.startswith("not") else pair.shrink(program, timer)
        lines += [f"seed {program.seed}, ring {program.ring}: {text}", disassembled(small), "corpus: " + small.dump()]
    assert not found, f"{len(found)} differences\n" + "\n".join(lines)


@pytest.mark.parametrize("first", KERNELS)
def test_kernels(pair: Pair, first: int) -> None:
    look(pair, [RareMaker(seed, ring=0).program() for seed in range(first, first + PER_TEST)])


@pytest.mark.parametrize("first", PROGRAMS)
def test_programs(pair: Pair, first: int) -> None:
    look(pair, [RareMaker(seed, ring=3).program() for seed in range(first, first + PER_TEST)])


@pytest.mark.parametrize("first", INTERRUPTED)
def test_interrupted(pair: Pair, first: int) -> None:
    """By a timer and by kicks, in the middle of translated code: nothing of it is to be seen."""
    look(pair, [RareMaker(seed, timer=True).program() for seed in range(first, first + PER_TEST)], TIMER)


def withheld(seed: int, timer: bool = False) -> Program:
    cr0, cr4 = WITHHOLDING[seed % len(WITHHOLDING)]
    return replace(RareMaker(seed, ring=3, timer=timer).program(), cr0=cr0, cr4=cr4)


@pytest.mark.parametrize("first", WITHHELD)
def test_withheld_programs(pair: Pair, first: int) -> None:
    """x87 and SSE registers change hands by #NM, and RDTSC is the kernel's alone."""
    look(pair, [withheld(seed) for seed in range(first, first + PER_TEST - 50)])
    look(pair, [withheld(seed, timer=True) for seed in range(first + PER_TEST - 50, first + PER_TEST)], TIMER)


def watched(seed: int, timer: bool = False) -> Program:
    """Breakpoint registers for a few of: reads and writes of 1, 2 and 4 bytes, writes; or for an instruction.

    Not where emulation is no help: it sees both at once, one too early, and what an instruction had read that faults then; and between ENTER and
    LEAVE on a 16-bit stack it shows another upper half of EBP than a processor. Nor on a 16-bit stack of a program that is interrupted: IRET leaves
    ESP the upper half of the kernel's there. What #DB's frame leaves below the stack is not looked at: undefined flags. Nor may a kernel that has
    repeated string instructions watch what those access: after the last turn EIP is behind one (hvd/cell/strings.c), and emulation's is still at it.
    Nor does it read where its watched memory is, to have its stack there: the frame of #DB hits once more under emulation.
    """
    random = Random(seed)
    program = RareMaker(seed, timer=timer).program()
    program.chunks = [[PUSH_TOP if atom == PUSH_BELOW else atom for atom in chunk] for chunk in program.chunks]
    repeated = any(REPEATED.search(atom) for chunk in program.chunks for atom in chunk)
    for avoided in (READS_DR, *([MOVES_DR] if repeated else [])):
        program.chunks = [[b"\x90" * len(atom) if avoided.match(atom) else atom for atom in chunk] for chunk in program.chunks]
    code = program.code()[0]
    dr7 = random.choice((0x40, 0x80)) if random.random() < 0.2 and RDTSC not in code else 0
    # The third is for a program's stack: a kernel's handlers have frames there.
    stack = program.ring and not any(avoided in code for avoided in (ENTER_LEAVE, *([SMALL_STACK] if timer else [])))
    for register in () if dr7 else (0, 1, 2) if stack else (0, 1):
        if random.random() < 0.6:
            enabled, kind, length = random.choice((1, 2)), random.choice((1, 1 if register == 2 else 3)), random.choice((0, 1, 3))
            dr7 |= enabled << 2 * register | (kind | length << 2) << 16 + 4 * register
    return replace(program, dr7=dr7)


@pytest.mark.parametrize("first", WATCHED)
def test_breakpoint_registers(pair: Pair, first: int) -> None:
    look(pair, [watched(seed) for seed in range(first, first + PER_TEST)])


def test_breakpoint_registers_and_interrupts(pair: Pair) -> None:
    """#DB for what an instruction accessed comes before the interrupt behind it, and not later because of a signal."""
    look(pair, [watched(seed, timer=True) for seed in WATCHED_INTERRUPTED], TIMER)


@pytest.mark.parametrize("first", OTHER_PAGES)
def test_other_pages(other_pages: Pair, first: int) -> None:
    paging = other_pages.other.paging
    look(other_pages, [RareMaker(seed, paging=paging).program() for seed in range(first, first + PER_TEST)])


def test_chained(pair: Pair) -> None:
    """Blocks that are entered in the middle, chained across pages, changed and remapped; instructions that access now devices, now memory."""
    look(pair, [ChainedMaker(seed).program() for seed in CHAINED])
    look(pair, [ChainedMaker(seed, timer=True).program() for seed in CHAINED_INTERRUPTED], TIMER)


def test_counted(pair: Pair) -> None:
    """The census's counters touch nothing of the guest's, come with a flush of the cache and go with another."""
    vcpu = pair.other.vcpu
    assert not vcpu.rewritten(CensusCommand.COUNT).sites
    look(pair, [RareMaker(seed).program() for seed in range(300_000, 300_120)])
    look(pair, [RareMaker(seed, timer=True).program() for seed in range(300_120, 300_160)], TIMER)
    found = list(sites(vcpu.rewritten(CensusCommand.COLLECT).sites))
    vcpu.rewritten(CensusCommand.END)
    # Each program begins with the kernel's LGDT, and ends with INT 81, which comes in through a gate and goes out by IRET.
    assert {site.replacement for site in found} == set(Replacement) - {Replacement.BREAKPOINT}
    assert max(site.executions for site in found if site.code[:2] == b"\x0f\x01") >= 40
    look(pair, [RareMaker(seed).program() for seed in range(300_000, 300_010)])
    assert not any(site.executions for site in sites(vcpu.rewritten(CensusCommand.COLLECT).sites))


def test_there_were_enough() -> None:
    if not instructions:
        pytest.skip("the tests before were not run")
    assert instructions > 1_000_000, instructions


@pytest.mark.skipif("HVD_FUZZ_SEEDS" not in os.environ, reason="HVD_FUZZ_SEEDS=first:last is not set")
@pytest.mark.timeout(0)
def test_many_more(pair: Pair, other_pages: Pair) -> None:
    first, last = map(int, os.environ["HVD_FUZZ_SEEDS"].split(":"))
    for at in range(first, last, PER_TEST):
        seeds = range(at, min(at + PER_TEST, last))
        print(f"seeds {seeds.start} to {seeds.stop}", flush=True)
        look(pair, [RareMaker(seed).program() for seed in seeds])
        look(pair, [RareMaker(seed, timer=True).program() for seed in seeds], TIMER)
        look(pair, [withheld(seed) for seed in seeds])
        look(pair, [watched(seed) for seed in seeds])
        look(pair, [watched(seed, timer=True) for seed in seeds], TIMER)
        look(pair, [ChainedMaker(seed).program() for seed in seeds])
        look(other_pages, [RareMaker(seed, paging=other_pages.other.paging).program() for seed in seeds])


def corpus() -> list[Program]:
    return [Program.load(line) for line in CORPUS.read_text().splitlines()] if CORPUS.exists() else []


@pytest.mark.parametrize("program", corpus(), ids=lambda program: program.notes.get("about", ""))
def test_what_was_found_once(pair: Pair, program: Program) -> None:
    one, two = pair.run([program])
    assert all_same(one.records[0], two.records[0]) and one.devices == two.devices, difference(one, two)


# ---- what only a processor does right: the reference is no help


def alone(pair: Pair, *code: str, ring: int = 0) -> list[tuple[int, ...]]:
    """The records of a program on rewriting."""
    program = Program(ring, 2, [0x11111111 * n for n in range(8)], [[bytes.fromhex(atom)] for atom in code])
    outcome = pair.other.run([program])
    assert outcome.end == "exit 0x600d", outcome.end
    assert outcome.records[0][-1][0] == DONE
    return outcome.records[0]


def test_popa_at_the_end_of_the_stack_changes_nothing(pair: Pair) -> None:
    for left in (1, 4, 0x1C, 0x1E):
        fault, _, _ = alone(pair, "bc" + struct.pack("<I", USER + 0x11000 - left).hex(), "61", SET_ESP.hex())
        assert (fault[0], fault[5]) == (14, USER + 0x11000)
        assert fault[7:14] == (*(0x11111111 * n for n in (0, 1, 2, 3, 5)), USER, 0x77777777)


def test_masked_moves_go_through_the_window(pair: Pair) -> None:
    """MASKMOVDQU, whose destination no ModRM byte names."""
    records = alone(pair, "bf" + struct.pack("<I", USER + 0x2000).hex(), "660f75c0", "660ff7c0", SET_ESI.hex())
    assert (records[0][0], records[0][5]) == (14, USER + 0x2000)
    records = alone(pair, "bf" + struct.pack("<I", USER + 0x100).hex(), "660f75c0", "660ff7c0", "8b8600010000")
    assert records[0][0] == 0x81 and records[0][7] == 0xFFFFFFFF


def test_code_segments_cannot_be_written(pair: Pair) -> None:
    records = alone(pair, "2e8986" + "00010000", "2e8b8e00010000")
    assert records[0][:3] == (13, 0, records[0][2])


def test_misaligned_sse_operands(pair: Pair) -> None:
    assert alone(pair, "0f2886" + "04000000")[0][0] == 13


def test_lock_where_it_must_not_be(pair: Pair) -> None:
    for code in ("f001c8", "f08b06", "f090"):
        assert alone(pair, code)[0][0] == 6


@pytest.mark.parametrize("ring", (0, 3))
def test_int1_is_a_trap(pair: Pair, ring: int) -> None:
    """Wherever the host's own #DB for it leaves EIP; two in a row tell. Emulation knows no INT1."""
    records = alone(pair, "f1", "f1", "90", ring=ring)
    start = records[0][2] - 1
    assert [(record[0], record[2] - start) for record in records[:3]] == [(1, 1), (1, 2), (0x81, 5)]


def test_int1_is_stepped_over(pair: Pair) -> None:
    """By the debugger, with every instruction of a program that executes it."""
    vcpu = pair.other.vcpu
    assert vcpu
    program = Program(3, 0x202, [0] * 8, [[b"\x90\xf1"], [b"\x90"]])
    undisturbed = pair.other.run([program]).records
    stops = []

    def stopped(exit_: Exit) -> bool:
        stops.append(vcpu.registers()["rip"])
        vcpu.set_debug(frozenset(), frozenset(), step=vcpu.registers()["rip"] - STREAMS < 0x100)
        return True

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pair.other, "stopped", stopped)
        vcpu.set_debug(frozenset({STREAMS}), frozenset(), step=False)
        assert pair.other.run([program]).records == undisturbed
        vcpu.set_debug(frozenset(), frozenset(), step=False)
    assert stops[:2] == [STREAMS, STREAMS + 1] and stops[2] >= KERNEL


def test_shrinking_keeps_what_differs_by_chance_only(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    program = RareMaker(1).program()
    monkeypatch.setattr(pair, "check", lambda program, timer=0: "")
    assert pair.shrink(program) == program
    monkeypatch.setattr(pair, "check", lambda program, timer=0: "eax 0x1 0x2" if program.chunks else "")
    assert sum(map(len, pair.shrink(program).chunks)) == 1


UNDEFINED, PRIVILEGED, ENDED = 6, 13, 0x81


@pytest.mark.parametrize(
    ("state", "xgetbv", "rdtscp"),
    [
        pytest.param({}, ENDED, ENDED, id="native"),
        pytest.param({"dr7": 0xD0001}, ENDED, ENDED, id="watched"),
        pytest.param({"cr0": CR0 | TS}, ENDED, ENDED, id="withheld"),
        pytest.param({"cr0": CR0 | TS, "dr7": 0xD0001}, ENDED, ENDED, id="withheld and watched"),
        pytest.param({"cr4": CR4 | TSD}, ENDED, PRIVILEGED, id="without the time"),
    ],
)
def test_programs_see_one_processor(pair: Pair, state: dict[str, int], xgetbv: int, rdtscp: int) -> None:
    """Their CPUID is the host's: what it tells of is there, however they are executed. Not for kernels, whose CPUID tells of neither."""

    def first(code: str, ring: int, **state: int) -> int:
        program = Program(ring, 0x202 if ring else 2, [0] * 8, [[bytes.fromhex(code)]], **state)
        return pair.other.run([program]).records[0][0][0]

    assert (first("0f01d0", 3, **state), first("0f01f9", 3, **state)) == (xgetbv, rdtscp)
    assert (first("0f01d0", 0, **state), first("0f01f9", 0, **state)) == (UNDEFINED, UNDEFINED)


def test_no_interrupt_between_a_new_ss_and_its_esp(pair: Pair) -> None:
    """CLI; XOR ESP, ESP; STI; MOV SS, EBX; MOV ESP: there is no stack until the last one is done."""
    turns = bytes.fromhex("bb10000000" + "b900200000" + "fa31e4" + "fb" + "8ed3") + SET_ESP + bytes.fromhex("49" + "75f2")
    outcome = pair.other.run([Program(0, 2, [0] * 8, [[turns], [b"\x90"]])], TIMER)
    assert outcome.end == "exit 0x600d" and outcome.ticks, outcome.end
    assert [record[0] for record in outcome.records[0]] == [0x81, DONE]


def test_segment_limits(pair: Pair) -> None:
    """GS ends at 0xFFF."""
    assert alone(pair, "65a1fc0f0000")[0][0] == 0x81
    assert alone(pair, "65a1fd0f0000")[0][:2] == (13, 0)


def test_null_segments(pair: Pair) -> None:
    records = alone(pair, "31db8ee3", "64a100000000", "bb300000008ee3", "64a100000000")
    assert [record[0] for record in records] == [13, 0x81, DONE]


def test_device_registers(pair: Pair) -> None:
    """Reads and writes of memory-mapped devices come out once each."""
    at = struct.pack("<I", DEVICE + 8).hex()
    program = Program(
        0,
        2,
        [0] * 8,
        [[bytes.fromhex(code)] for code in ("a1" + at, "8305" + at + "01", "ff35" + at, "8f05" + at, "0fb61d" + at)],
    )
    one, two = pair.run([program])
    assert one.devices == two.devices and len(two.devices) == 6
    assert all_same(one.records[0], two.records[0]), difference(one, two)


def test_blocks_that_are_translated_again_are_counted(pair: Pair) -> None:
    """A loop writes a procedure and calls it: that one block, once a turn."""

    def counted(turns: int) -> int:
        start, body = b"\xb9" + struct.pack("<I", turns), bytes.fromhex("c78600180000" + "40c39090" + "8d9e00180000" + "ffd3")
        loop = body + b"\x49\x75" + struct.pack("<b", -len(body) - 3)
        before = pair.other.counters().retranslated_blocks
        outcome = pair.other.run([Program(0, 2, [0] * 8, [[start + loop]])])
        assert outcome.records[0][0][:1] + outcome.records[0][0][7:8] == (0x81, turns)
        return pair.other.counters().retranslated_blocks - before

    counted(2)
    assert counted(150) - counted(50) == 100


def test_more_code_than_the_cache_knows_blocks(pair: Pair) -> None:
    """A block each two bytes, three times: the cache is flushed on the way, while chains lead through it."""
    jumps = 0x90000
    pair.other.extra = {0x700000: b"\xeb\0" * (jumps // 2) + b"\xc3"}
    call = "b8" + struct.pack("<I", KERNEL + 0x700000).hex() + "ffd0"
    before = pair.other.vcpu.figures()["cache_flushes"]
    try:
        records = alone(pair, "31db", *[call + "43"] * 3)
    finally:
        pair.other.extra = {}
    assert records[0][0] == 0x81 and records[0][10] == 3
    assert pair.other.vcpu.figures()["cache_flushes"] >= before + 2


def test_stack_at_the_window_of_translated_code(pair: Pair) -> None:
    """STACK is as the streams expect it."""
    assert alone(pair, "90")[0][6] == STACK
