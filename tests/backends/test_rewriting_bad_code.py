"""Code as no compiler writes it, under both engines of rewriting: correct, or the end of the guest with the reason, the bytes and the address."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from rare_programs import RareMaker
from stream_compare import DONE, Pair, all_same, difference
from stream_guest import Outcome, Program, Side
from stream_kernel import CR0, DEVICE, IDT, KERNEL, STREAMS, USER
from stream_programs import SET_ESP

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.rewriting.backend import BACKEND as REWRITING

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
AVAILABLE = REWRITING.probe() if NATIVE.available else NATIVE
pytestmark = pytest.mark.skipif(not AVAILABLE.available, reason=f"{AVAILABLE.reason}; {AVAILABLE.remedy}")

ENGINES = {"translate": "rewriting", "breakpoint": "rewriting-breakpoint"}
SPARE = 0x700000  # guest-physical, also at KERNEL + SPARE; up to 8 MiB
END = KERNEL + (8 << 20)
CACHE = 0x2_0000_0000  # HV_CACHE
HOST_CODE_64 = 0x33
LATE_SECONDS = 1.0
CR0_AM = 0x40000


@pytest.fixture(scope="module", params=ENGINES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("streams")
    pair = Pair(Side("emulation", directory), Side(ENGINES[request.param], directory))
    yield pair
    pair.close()


def word(value: int) -> str:
    return struct.pack("<I", value & 0xFFFF_FFFF).hex()


def program(*code: str, ring: int = 0, cr0: int = CR0) -> Program:
    flags = 0x202 if ring else 2
    return Program(ring, flags, [0x11111111 * n for n in range(8)], [[bytes.fromhex(atom)] for atom in code], cr0=cr0)


def alike(pair: Pair, *code: str, ring: int = 0, extra: dict[int, bytes] | None = None) -> list[tuple[int, ...]]:
    """The records, which are those of emulation."""
    pair.reference.extra = pair.other.extra = extra or {}
    try:
        one, two = pair.run([program(*code, ring=ring)])
    finally:
        pair.reference.extra = pair.other.extra = {}
    assert all_same(one.records[0], two.records[0]), difference(one, two)
    assert two.records[0][-1][0] == DONE, two.end
    return two.records[0]


def alone(pair: Pair, *code: str, ring: int = 0, extra: dict[int, bytes] | None = None) -> Outcome:
    """On rewriting."""
    pair.other.extra = extra or {}
    try:
        return pair.other.run([program(*code, ring=ring)])
    finally:
        pair.other.extra = {}


EAX = 7  # of a record
END_VECTOR = 0x81


@pytest.mark.parametrize("ring", [0, 3])
def test_a_jump_into_its_own_middle(pair: Pair, ring: int) -> None:
    """EB FF: to its second byte, which begins FF C0, INC EAX."""
    assert alike(pair, "31c0" + "ebffc0" + "ebffc0", ring=ring)[0][EAX] == 2


@pytest.mark.parametrize("ring", [0, 3])
def test_a_loop_through_an_immediate(pair: Pair, ring: int) -> None:
    """MOV EAX, imm; then from the immediate's first byte: ADD EAX, 5; NOP; DEC ECX; JNZ there."""
    records = alike(pair, "b903000000" + "b883c00590" + "4975f9", ring=ring)
    assert records[0][EAX] == 0x9005C083 + 10


def test_instructions_that_overlap_across_pages(pair: Pair) -> None:
    """MOV EAX, imm with one byte before the page's end; then it is entered at that end."""
    code = bytes.fromhex("b840404040" + "40" + "49" + "75fa" + "c3")  # MOV EAX; INC EAX; DEC ECX; JNZ into the immediate, 3 INC from there; RET
    call = "b902000000" + "b8" + word(KERNEL + SPARE + 0xFFF) + "ffd0"
    assert alike(pair, call, extra={SPARE + 0xFFF: code})[0][EAX] == 0x40404040 + 1 + 3


def test_a_sensitive_instruction_in_the_middle_of_another(pair: Pair) -> None:
    """MOV EAX, imm whose bytes are CLI; PUSHF; POP EBX; RET, run both ways."""
    code = bytes.fromhex("b8fa9c5bc3" + "c3")
    at = KERNEL + SPARE
    records = alike(pair, "fb90" + "be" + word(at) + "ffd6" + "8d4601" + "ffd0" + "fb90" + "ffd6" + "cd82", extra={SPARE: code})
    assert records[0][10] & 0x200 == 0 and records[0][4] & 0x200  # EBX saw IF off; STI came behind it


THRICE = "31c0" + "be" + word(KERNEL + SPARE) + "ffd6ffd6ffd6"  # EAX = 0; CALL SPARE, three times


@pytest.mark.parametrize("distance", [0x20, 0x1000])
def test_a_function_that_changes_what_it_returns_to(pair: Pair, distance: int) -> None:
    """CALL; MOV EAX, imm; RET. The function adds one to the immediate, in its own page and from another one."""
    at = KERNEL + SPARE
    caller = bytes.fromhex("e8" + word(distance - 5) + "b8" + word(5) + "c3")
    function = bytes.fromhex("ff05" + word(at + 6) + "c3")
    assert alike(pair, THRICE, extra={SPARE: caller, SPARE + distance: function})[0][EAX] == 8


def test_a_function_that_returns_elsewhere(pair: Pair) -> None:
    """Over the instruction behind the call, then to its second byte, then to it: MOV EAX, imm with FF C0, INC EAX, in it; and RET."""
    at = KERNEL + SPARE
    caller = bytes.fromhex("e8" + word(0x20 - 5) + "b8ffc0c390" + "40c3")
    function = bytes.fromhex("8b15" + word(at + 0x40) + "832d" + word(at + 0x40) + "01" + "011424c3")  # MOV EDX, [n]; SUB [n], 1; ADD [ESP], EDX; RET
    code = "31c0" + "be" + word(at) + "ffd6" + "c705" + word(at + 0x40) + word(1) + "ffd6ffd6"
    assert alike(pair, code, extra={SPARE: caller, SPARE + 0x20: function, SPARE + 0x40: bytes.fromhex(word(5))})[0][EAX] == 0x90C3C0FF + 1


def test_a_call_that_never_returns_in_front_of_no_code(pair: Pair) -> None:
    """POP EDX; RET: to whom called the caller. Behind the call are an undefined instruction, a jump into nowhere, and the page's end."""
    function = bytes.fromhex("5a40c3")
    callers = {SPARE + 0x100: "0fff", SPARE + 0x200: "e900000070", SPARE + 0xFFB: ""}
    extra = {where: bytes.fromhex("e8" + word(SPARE - where - 5) + behind) for where, behind in callers.items()}
    code = "31c0" + "".join("be" + word(KERNEL + where) + "ffd6ffd6" for where in callers)
    assert alike(pair, code, extra={SPARE: function, **extra})[0][EAX] == 6


def test_a_function_that_takes_the_coprocessor_away(pair: Pair) -> None:
    """FNINIT; CALL; FNINIT. The function sets CR0.TS: what was known of it before the call is not known behind it."""
    caller = bytes.fromhex("dbe3" + "e8" + word(0x20 - 7) + "dbe3" + "c3")
    function = bytes.fromhex("0f20c083c8080f22c0c3")
    records = alike(pair, "0f06" + "be" + word(KERNEL + SPARE) + "ffd6", extra={SPARE: caller, SPARE + 0x20: function})
    assert records[0][0] == 7 and records[0][2] == KERNEL + SPARE + 7


@pytest.mark.parametrize("address", [0x1234, 0x7FFFFFFF, END, 0xFFFFFFF0])
def test_a_jump_to_where_nothing_is_mapped(pair: Pair, address: int) -> None:
    fault = alike(pair, "b8" + word(address) + "ffe0")[0]
    assert (fault[0], fault[2], fault[5]) == (14, address, address)


def test_code_that_runs_into_what_is_not_mapped(pair: Pair) -> None:
    """The last instruction reaches over the end of the last page. Emulation faults too early: it is no help."""
    at = END - 4
    fault = alone(pair, "31c0" + "b9" + word(at) + "ffe1", extra={at - KERNEL: bytes.fromhex("404040b8")}).records[0][0]
    assert (fault[0], fault[2], fault[5], fault[EAX]) == (14, at + 3, END, 3)


def test_code_on_a_devices_registers(pair: Pair) -> None:
    """There is no memory to run from, and a device's answers are not known beforehand: the end, and it says where."""
    outcome = pair.other.run([program("b8" + word(DEVICE + 0x10) + "ffe0")])
    pair.other.reopen()
    assert outcome.end.startswith("ERROR") and f"{DEVICE + 0x10:08x}" in outcome.end, outcome.end


DEVICE_CODE = USER + 0x1900
# what accesses a device, and what is written over it: of the x87 and SSE the monitor executes nothing
SUCCESSORS = {"8b03": "dbe3", "0103": "0f57c0", "ff3358": "d9e8ddd8", "890390": "db03ddd8", "870390": "9c58"}


@pytest.mark.parametrize("access", SUCCESSORS)
def test_an_instruction_that_accesses_a_device_again_and_again_is_written_over(pair: Pair, access: str) -> None:
    """More often than makes it a callout, then memory, then the device; then there is another instruction, and then it again."""

    def put(code: str) -> str:
        whole = bytes.fromhex(code + "c3").ljust(8, b"\x90")
        return "".join("c705" + word(DEVICE_CODE + n) + whole[n : n + 4].hex() for n in (0, 4))

    def call(pointer: int, turns: int) -> str:
        return "be" + word(turns) + "bb" + word(pointer) + "ba" + word(DEVICE_CODE) + "ffd2" + "4e" + "75fb"

    device, memory = call(DEVICE + 0x20, 12), call(USER + 0x40, 3)
    one, two = pair.run([program(put(access), device, memory, device, put(SUCCESSORS[access]), memory, put(access), device, memory)])
    assert all_same(one.records[0], two.records[0]) and two.records[0][-1][0] == DONE, difference(one, two)
    assert one.devices == two.devices and len(two.devices) >= 36


@pytest.mark.parametrize("ring", [0, 3])
def test_a_page_that_is_code_and_stack(pair: Pair, ring: int) -> None:
    """Each PUSH and CALL writes to the page that is running."""
    code = bytes.fromhex("b928000000" + "51" + "e802000000" + "eb02" + "40c3" + "5a" + "01d3" + "49" + "75f0" + "ffe6")
    at = USER + 0x1100
    code += b"\x90" * (-len(code) % 4)
    put = ["c705" + word(at + n) + code[n : n + 4].hex() for n in range(0, len(code), 4)]
    # ESI: where it comes back to, behind the jump
    start = "31c031db" + "bc" + word(USER + 0x1800) + "e800000000" + "5e" + "83c60b" + "bf" + word(at) + "ffe7"
    records = alike(pair, *put, start, SET_ESP.hex(), ring=ring)
    assert records[0][0] == END_VECTOR and records[0][EAX] == 40 and records[0][10] == sum(range(1, 41))


@pytest.mark.parametrize("ring", [0, 3])
def test_a_store_over_what_runs(pair: Pair, ring: int) -> None:
    """REP STOSB over the instructions behind it; then a loop that writes its next instruction, another one each turn."""
    # call next; pop edi; add edi, 13; mov ecx, 6; mov al, 42; rep stosb; six INT3, which become INC EDX
    code = "31d2" + "e800000000" + "5f" + "83c70d" + "b906000000" + "b042" + "f3aa" + "cc" * 6
    records = alike(pair, code, ring=ring)
    assert records[0][0] == END_VECTOR and records[0][9] == 6
    # L: lea edi, [esi + 14]; mov eax, 1; and eax, ebp; add al, 42; stosb; (INC EDX or INC EBX); dec ebp; jnz L
    turns = "31d231db" + "bd0a000000" + "e800000000" + "5e" + "8d7e0e" + "b801000000" + "21e8" + "0442" + "aa" + "90" + "4d" + "75ef"
    records = alike(pair, turns, ring=ring)
    assert records[0][0] == END_VECTOR and records[0][9:11] == (5, 5)


def test_more_code_than_the_cache_has_bytes(pair: Pair) -> None:
    """PUSHF and POPF, whose work in line is long."""
    count = 0x7F000
    if pair.other.name != "rewriting":
        pytest.skip("this engine has no cache")
    before = pair.other.vcpu.figures()["cache_flushes"]
    outcome = alone(pair, "31db" + ("b8" + word(KERNEL + SPARE) + "ffd0") * 2, extra={SPARE: b"\x9c\x9d" * count + b"\x43\xc3"})
    assert outcome.records[0][0][0] == END_VECTOR and outcome.records[0][0][10] == 2, outcome.end
    assert pair.other.vcpu.figures()["cache_flushes"] > before


# ---- what the backend does not do: the end, and it says which instruction asked for it

IDT_ROW = KERNEL + IDT + 8 * 0x50
NT_FRAME = "68" + word(0x4002) + "9d" + "68" + word(2) + "6a08" + "e800000000" + "83042405"  # EIP behind the IRET, CS 08
# what the reason says: what comes before, and the instruction
NOT_DONE = {
    "IRET to virtual-8086 mode": ("6a00" * 5 + "68" + word(0x20202) + "6a10" + "6a00", "cf"),
    "IRET with EFLAGS.NT set": (NT_FRAME, "cf"),
    "switches tasks": ("", "ea" + word(0) + "2800"),
    "a task gate": ("c705" + word(IDT_ROW) + word(0x280000) + "c705" + word(IDT_ROW + 4) + word(0xE500), "cd50"),
    "a return to real mode": ("0f20c0" + "25" + word(0x7FFF_FFFE), "0f22c0"),
}


@pytest.mark.parametrize("what", NOT_DONE)
def test_what_is_not_done_ends_with_bytes_and_address(pair: Pair, what: str) -> None:
    before, instruction = NOT_DONE[what]
    outcome = alone(pair, before + instruction)
    pair.other.reopen()
    assert outcome.end.startswith("ERROR") and what in outcome.end, outcome.end
    assert outcome.end.endswith(f"{bytes.fromhex(instruction).hex(' ')} at 0008:{STREAMS + len(before) // 2:08x}"), outcome.end


# ---- EFLAGS.AC, which the host checks in all that runs natively, and the guest only where CR0.AM says so

SET_AC, CLEAR_AC = "68" + word(0x40202) + "9d", "68" + word(0x202) + "9d"
FOR_REP = "b903000000" + "bf" + word(USER + 0x201)
MISALIGNED = (FOR_REP, "8b8601000000", "899e0a000000", "66ff8603000000", "f3a5", "0fb7862300000083c001", "87860d000000", "ff7621" + "8f4631")


@pytest.mark.parametrize("ring", [0, 3])
def test_alignment_is_not_checked(pair: Pair, ring: int) -> None:
    records = alike(pair, SET_AC, *MISALIGNED, "9c58", "cd82", CLEAR_AC, "9c5b", ring=ring)
    assert records[0][EAX] & 0x40000 and records[0][4] & 0x40000


def test_alignment_of_x87_and_sse(pair: Pair) -> None:
    alike(pair, SET_AC, "d9e8" + "dd9e01000000", "0f118603010000", "dd8601000000" + "ddd8", CLEAR_AC, ring=3)


def test_alignment_is_checked(pair: Pair) -> None:
    """In ring 3 only; the reference does not at all."""
    enable = "0f20c0" + "0d" + word(CR0_AM) + "0f22c0"
    assert alone(pair, enable, SET_AC, *MISALIGNED, CLEAR_AC).records[0][0][0] == END_VECTOR
    records = pair.other.run([program(SET_AC, *MISALIGNED[:4], "8b06", CLEAR_AC, ring=3, cr0=CR0 | CR0_AM)]).records[0]
    assert [record[:2] for record in records[:4]] == [(17, 0)] * 3 + [(END_VECTOR, 0)]


LOCKED = (
    "9c", "9d", "fa", "fb", "c3", "cf", "60", "61", "50", "58", "0e", "1f", "6a01", "8cc3", "8ec3", "7400", "eb00", "e800000000", "0f8400000000",
    "cd82", "e200", "0f20c0", "0f31", "90", "8b06", "f4", "ec", "a4", "c9", "ffe0", "ffd0", "d9e8", "0f58c1", "39c0", "01c0",
)  # fmt: skip


def test_lock_is_for_a_few(pair: Pair) -> None:
    """With others it is #UD, also where a translation has other instructions in their place. The reference does not look."""
    records = alone(pair, *(f"f0{code}" for code in LOCKED)).records[0]
    addresses = [STREAMS + sum(1 + len(before) // 2 for before in LOCKED[:at]) for at in range(len(LOCKED))]
    assert [record[:3] for record in records[: len(LOCKED)]] == [(6, 0, address) for address in addresses]


# ---- user code that leaves for the host's 64-bit segment

TO_64_BITS = "ea" + word(STREAMS + 7) + struct.pack("<H", HOST_CODE_64).hex()
ESCAPES = {
    "a system call of the host": "b827000000" + "0f05" + "f4",  # getpid
    "a privileged instruction": "f4",
    "a wild store": "4831c0" + "48c7c0ffffff7f" + "48c1e010" + "c60001",
    "a loop": "ebfe",
    "an interrupt gate of the host's": "cd80",
}


def escape(pair: Pair, code: str) -> Outcome:
    """How it ends; the next guest gets a cell of its own."""
    outcome = pair.other.run([program(TO_64_BITS + code, ring=3)], seconds=LATE_SECONDS)
    pair.other.reopen()
    return outcome


@pytest.mark.parametrize("what", ESCAPES)
def test_programs_that_leave_for_64_bit_code(pair: Pair, what: str) -> None:
    end = escape(pair, ESCAPES[what]).end
    assert end.startswith("ERROR") and ("64-bit code" in end or "system call of the host" in end), end
    alike(pair, "90", ring=3)


def test_a_program_that_overwrites_the_code_cache(pair: Pair) -> None:
    """And comes back as if nothing had happened: its own guest ends, one way or another."""
    save = "8c0d" + word(USER + 0x104)  # MOV [USER + 104], CS
    store_target = "c705" + word(USER + 0x100)
    leave = "ea" + word(0) + struct.pack("<H", HOST_CODE_64).hex()
    fill = "48bf" + struct.pack("<Q", CACHE).hex() + "b900001000" + "b0f4" + "f3aa" + "ff2c25" + word(USER + 0x100)
    length = len(bytes.fromhex(save + store_target + "00000000" + leave))
    target = STREAMS + length + len(bytes.fromhex(fill))
    code = save + store_target + word(target) + "ea" + word(STREAMS + length) + struct.pack("<H", HOST_CODE_64).hex() + fill
    outcome = pair.other.run([program(code, ring=3)], seconds=LATE_SECONDS)
    pair.other.reopen()
    assert outcome.end.split(" at ")[0] in ("ERROR", "SHUTDOWN"), outcome.end
    alike(pair, "90", ring=3)


@pytest.mark.parametrize("call", ["0f05", "0f34"], ids=["syscall", "sysenter"])
def test_a_program_calls_the_host(pair: Pair, call: str) -> None:
    """CPUID hides them from kernels. A processor that has them calls the host, which loses the address; otherwise they are undefined."""
    outcome = alone(pair, call, ring=3)
    if outcome.end.startswith("ERROR"):
        pair.other.reopen()
        assert "SYSCALL or SYSENTER (0f 05, 0f 34)" in outcome.end, outcome.end
    else:
        assert [record[:3] for record in outcome.records[0][:1]] == [(6, 0, STREAMS)], outcome
    alike(pair, "90", ring=3)


# ---- programs with random errors in their bytes

MUTANTS = 150
ENDS = (
    "exit", "SHUTDOWN", "late", "the monitor cannot execute", "the guest left its cell's segments", "SYSCALL or SYSENTER",
    *NOT_DONE, "code is fetched at",
)  # fmt: skip
PREFIXES = b"\x66\x67\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x0f"


def mutant(seed: int, ring: int) -> Program:
    """A few lines of a random program, with bits turned, bytes changed, put in or left out."""
    whole, random = RareMaker(seed, ring=ring).program(), Random(seed)
    first = random.randrange(max(len(whole.chunks) - 5, 1))
    chunks = [list(chunk) for chunk in whole.chunks[first : first + 6]]
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        chunk = random.choice(chunks)
        at = random.randrange(len(chunk))
        code = bytearray(chunk[at] or b"\x90")
        place = random.randrange(len(code))
        match random.randrange(5):
            case 0:
                code[place] ^= 1 << random.randrange(8)
            case 1:
                code[place] = random.getrandbits(8)
            case 2:
                code.insert(place, random.choice(PREFIXES))
            case 3:
                code[place:place] = random.randbytes(random.randrange(1, 4))
            case _:
                del code[place]
        chunk[at] = bytes(code)
    return replace(whole, chunks=[[code or b"\x90" for code in chunk] for chunk in chunks])


@pytest.mark.parametrize("ring", [0, 3])
def test_programs_with_random_errors(pair: Pair, ring: int) -> None:
    """They come to one of the ends that there are, and what runs next in the same cell, or in a new one, comes out right."""
    for seed in range(1_000, 1_000 + MUTANTS):
        outcome = pair.other.run([mutant(seed, ring)], seconds=LATE_SECONDS)
        assert any(end in outcome.end for end in ENDS), (seed, outcome.end)
        if seed % 10 == 0:
            alike(pair, "31c0" + "40", "9c5b", ring=ring)
