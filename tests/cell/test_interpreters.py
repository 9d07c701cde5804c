"""Ordinary instructions in the cell's monitor: as Unicorn and as the host's own processor execute them, and the edges by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_rig import DONE, FAILED, NO_ERROR, RAISED, Rig
from differential import SIZE, Differential, build_native, native_input

CF, AF, ZF, SF, TF, DF, OF = 1, 0x10, 0x40, 0x80, 0x100, 0x400, 0x800
UD, GP, PF, DE, BR, DB = 6, 13, 14, 0, 5, 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("rig"), SIZE)


@pytest.fixture
def rig(built: Rig) -> Iterator[Rig]:
    built.reset()
    yield built


@pytest.mark.parametrize("seed", [1, 2])
def test_as_unicorn_executes_them(rig: Rig, seed: int) -> None:
    differential = Differential(rig, seed)
    for _ in range(5_000):
        differential.step()
    done, raised, failed = differential.outcomes
    assert done > 3_000 and raised > 100 and failed == 0


def test_as_the_processor_executes_them(tmp_path: Path) -> None:
    """All flags, faults and error codes, too: the host executes the same cases in 32-bit mode, one instruction at a time."""
    done = subprocess.run([build_native(tmp_path)], input=native_input(11, 12_000), capture_output=True, timeout=100)
    if done.returncode == 77:
        pytest.skip("this host has no page 0 for us")
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(
    "code",
    [
        "0f0b", "0fb9c0", "0fffc0", "0f04", "f090", "f08403", "f087c0", "f083380a", "f00fba2001", "8fe0", "c6c801", "fed0", "fff8", "0fbac001",
        "0fc7c8", "8dc0", "0f38f0c0", "0fb8c0", "0f0dc0", "660fc300", "8ec8",
    ],
)  # fmt: skip
def test_undefined(rig: Rig, code: str) -> None:
    assert rig.run(bytes.fromhex(code), eax=0x2000, ebx=0x2000) == RAISED
    assert (rig.state.vector, rig.state.error, rig.cpu.eip) == (UD, NO_ERROR, 0x1000)


@pytest.mark.parametrize("code", ["0f6f00", "d900", "c5fc1000", "62f17c481000", "0fa6c0", "f20f38f0c0"])
def test_what_the_monitor_has_not_is_said_with_its_bytes(rig: Rig, code: str) -> None:
    assert rig.run(bytes.fromhex(code)) == FAILED
    text = rig.state.failure.decode()
    assert bytes.fromhex(code).hex(" ") in text and "00001000" in text


def test_code_that_runs_into_a_page_that_is_not_there(rig: Rig) -> None:
    rig.state.rights[2] = 0
    assert rig.run(bytes.fromhex("b878"), at=0x1FFE) == RAISED
    assert (rig.state.vector, rig.state.address, rig.cpu.eip) == (PF, 0x2000, 0x1FFE)
    assert rig.run(bytes.fromhex("6a01"), at=0x1FFE, esp=0x8000) == DONE  # the last of the page


def test_code_that_runs_over_the_limit_and_too_long_code(rig: Rig) -> None:
    rig.cpu.segment[1].limit = 0x1FFF
    assert rig.run(bytes.fromhex("b878"), at=0x1FFE) == RAISED
    assert (rig.state.vector, rig.state.error) == (GP, 0)
    assert rig.run(b"\x66" * 15 + b"\x90") == RAISED
    assert (rig.state.vector, rig.state.error) == (GP, 0)


def test_jumps_over_the_limit_change_nothing(rig: Rig) -> None:
    rig.cpu.segment[1].limit = 0xFFFF
    for code in ("e900000200", "0f8400000200", "e800000200", "ffe0", "ffd0"):
        assert rig.run(bytes.fromhex(code), eax=0x20000, esp=0x8000, eflags=ZF) == RAISED, code
        assert (rig.state.vector, rig.state.error, rig.cpu.eip, rig.register("esp")) == (GP, 0, 0x1000, 0x8000)


def test_read_modify_write_is_a_write_from_the_start(rig: Rig) -> None:
    """A fault of `add [mem], reg` says W=1 and leaves the flags alone."""
    rig.state.rights[3] = 1
    assert rig.run(bytes.fromhex("0103"), ebx=0x3000, eax=1, eflags=CF) == RAISED
    assert (rig.state.vector, rig.state.error, rig.state.address, rig.cpu.eflags) == (PF, 3, 0x3000, CF | 2)
    assert rig.run(bytes.fromhex("3903"), ebx=0x3000) == DONE  # CMP only reads


@pytest.mark.parametrize("prefix", ["f3", "f2"])
def test_repeated_moves_are_interruptible(rig: Rig, prefix: str) -> None:
    """A kick ends the turns: all registers are those between two of them, EIP is at the instruction, and it goes on from there."""
    rig.memory[0x4000:0x4010] = list(range(16))
    rig.state.kick_after = 5
    assert rig.run(bytes.fromhex(prefix + "a4"), esi=0x4000, edi=0x5000, ecx=16) == DONE
    assert (rig.cpu.eip, rig.register("ecx"), rig.register("esi"), rig.register("edi")) == (0x1000, 11, 0x4005, 0x5005)
    rig.state.kick_after = 0
    assert rig.step() == DONE
    assert (rig.cpu.eip, rig.register("ecx"), rig.register("edi")) == (0x1002, 0, 0x5010)
    assert list(rig.memory[0x5000:0x5010]) == list(range(16))


def test_a_fault_in_the_middle_of_repeated_stores(rig: Rig) -> None:
    rig.state.rights[5] = 0
    assert rig.run(bytes.fromhex("f3ab"), edi=0x4FF0, ecx=16, eax=0x11223344) == RAISED
    assert (rig.state.vector, rig.state.address, rig.state.error, rig.cpu.eip) == (PF, 0x5000, 2, 0x1000)
    assert (rig.register("ecx"), rig.register("edi")) == (12, 0x5000)


def test_backwards_with_sixteen_bit_addresses(rig: Rig) -> None:
    rig.memory[0x3000] = 0x5A
    assert rig.run(bytes.fromhex("67f3a4"), esi=0xFFFF3000, edi=0xABCD0000, ecx=0x70001, eflags=DF) == DONE
    assert (rig.register("esi"), rig.register("edi"), rig.register("ecx")) == (0xFFFF2FFF, 0xABCDFFFF, 0x70000)
    assert rig.memory[0] == 0x5A


def test_a_scan_stops_behind_what_it_looks_for(rig: Rig) -> None:
    rig.memory[0x4000:0x4004] = [1, 2, 3, 4]
    assert rig.run(bytes.fromhex("f2ae"), edi=0x4000, ecx=100, eax=3) == DONE
    assert (rig.register("edi"), rig.register("ecx"), rig.cpu.eflags & ZF) == (0x4003, 97, ZF)


def test_ports_of_string_instructions(rig: Rig) -> None:
    assert rig.run(bytes.fromhex("f36d"), edi=0x4000, ecx=3, edx=0x1F0) == DONE
    values = [rig.library.rig_port_value(i, 0x1F0, 4) & 0xFFFFFFFF for i in range(3)]
    assert [int.from_bytes(bytes(rig.memory[at : at + 4]), "little") for at in (0x4000, 0x4004, 0x4008)] == values
    rig.state.rights[4] = 1
    before = rig.state.port_count
    assert rig.run(bytes.fromhex("6c"), edi=0x4000, edx=0x1F0) == RAISED
    assert rig.state.port_count == before  # a datum that cannot be stored is not taken from the device


def test_a_step_traps_behind_the_instruction(rig: Rig) -> None:
    assert rig.run(bytes.fromhex("40"), eax=1, eflags=TF) == RAISED
    assert (rig.state.vector, rig.cpu.eip, rig.register("eax")) == (DB, 0x1001, 2)
    assert rig.run(bytes.fromhex("f3aa"), edi=0x4000, ecx=3, eflags=TF) == RAISED
    assert (rig.state.vector, rig.cpu.eip, rig.register("ecx")) == (DB, 0x1000, 2)  # after each turn


def test_sixteen_bit_code_and_stack(rig: Rig) -> None:
    """SS.B and CS.D clear: SP wraps and the rest of ESP stays; EIP goes on, as the processor's does, and only jumps make IP of it."""
    rig.cpu.segment[2].attributes &= ~0x400000
    rig.cpu.segment[1].attributes &= ~0x400000
    assert rig.run(bytes.fromhex("50"), eax=0xAABBCCDD, esp=0x12340000) == DONE
    assert rig.register("esp") == 0x1234FFFE
    assert bytes(rig.memory[0xFFFE:0x10000]) == b"\xdd\xcc"
    assert rig.run(bytes.fromhex("6690"), at=0xFFFE) == DONE
    assert rig.cpu.eip == 0x10000
    assert rig.run(bytes.fromhex("e81000"), esp=0x12340002) == DONE
    assert (rig.cpu.eip, rig.register("esp"), bytes(rig.memory[0:2])) == (0x1013, 0x12340000, b"\x03\x10")
    assert rig.run(bytes.fromhex("c9"), ebp=0x5670000, esp=0x12348000) == DONE  # LEAVE
    assert (rig.register("esp"), rig.register("ebp")) == (0x12340002, 0x5671003)


@pytest.mark.parametrize(
    ("code", "registers", "vector"),
    [
        ("f7f1", {"eax": 1, "edx": 0, "ecx": 0}, DE), ("f7f1", {"eax": 0, "edx": 2, "ecx": 2}, DE),
        ("f7f9", {"eax": 0, "edx": 0x80000000, "ecx": 0xFFFFFFFF}, DE),
        ("f6f9", {"eax": 0x8000, "ecx": 0xFF}, DE), ("d400", {"eax": 5}, DE), ("6203", {"ebx": 0x4000, "eax": 7}, BR),
    ],
)  # fmt: skip
def test_faults_of_arithmetic(rig: Rig, code: str, registers: dict[str, int], vector: int) -> None:
    assert rig.run(bytes.fromhex(code), **registers) == RAISED
    assert (rig.state.vector, rig.state.error, rig.cpu.eip) == (vector, NO_ERROR, 0x1000)
    assert all(rig.register(name) == value for name, value in registers.items())


def test_bits_far_from_the_operand(rig: Rig) -> None:
    assert rig.run(bytes.fromhex("0fab03"), ebx=0x4000, eax=-1) == DONE  # BTS [ebx], -1
    assert rig.memory[0x3FFF] == 0x80
    assert rig.run(bytes.fromhex("660fab03"), ebx=0x4000, eax=0x1FFFF) == DONE  # 16 bits of the number: -1
    assert rig.run(bytes.fromhex("0fab03"), ebx=0x4000, eax=8 * 0x1000 + 3) == DONE
    assert rig.memory[0x5000] == 8


def test_pop_into_memory_relative_to_the_stack(rig: Rig) -> None:
    rig.memory[0x8000] = 0x77
    assert rig.run(bytes.fromhex("8f442404"), esp=0x8000) == DONE  # pop [esp + 4]: ESP is that behind the POP
    assert (rig.memory[0x8008], rig.register("esp")) == (0x77, 0x8004)
