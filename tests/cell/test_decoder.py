"""The instruction decoder: lengths against Capstone's over random bytes, parts of single instructions, and code that ends too soon."""

from __future__ import annotations

import random

import capstone
import pytest

from hvd.cell.decoder import Decoded, Decoder, Map

# Opcodes of which Capstone thinks otherwise: it gives UD0 and UD1 no ModRM byte (SDM vol. 2: they have one).
EXCEPTED = {(Map.TWO, 0xB9), (Map.TWO, 0xFF)}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder()


def random_code(rnd: random.Random) -> bytes:
    """15 bytes; the rarer maps and prefixes more often than chance has them."""
    prefix = bytes([rnd.choice((0xC4, 0xC5, 0x62, 0x8F, 0x66, 0x67, 0xF2, 0xF3))])
    start = rnd.choice((b"", b"", b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a", prefix))
    return start + rnd.randbytes(15 - len(start))


@pytest.mark.parametrize("code32", [True, False])
def test_lengths_are_capstones(decoder: Decoder, code32: bool) -> None:
    """Whatever Capstone knows has the length that it says; what it refuses may still be decoded, as operands may be reserved."""
    reference = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if code32 else capstone.CS_MODE_16)
    rnd, known = random.Random(code32), 0
    for _ in range(60_000):
        code = random_code(rnd)
        theirs = next(reference.disasm_lite(code, 0, 1), None)
        result = decoder.decode_bytes(code, code32)
        if theirs is None or (decoder.instruction.map, decoder.instruction.opcode) in EXCEPTED:
            continue
        known += 1
        assert result == Decoded.DECODED, (code.hex(), theirs)
        assert decoder.instruction.length == theirs[1], (code.hex(), theirs)
    assert known > 30_000


def test_an_instruction_that_ends_too_soon_needs_more(decoder: Decoder) -> None:
    rnd = random.Random(1)
    for _ in range(5_000):
        code = random_code(rnd)
        if decoder.decode_bytes(code) != Decoded.DECODED:
            continue
        length = decoder.instruction.length
        assert decoder.decode_bytes(code[:length]) == Decoded.DECODED
        for available in range(length):
            assert decoder.decode_bytes(code[:available]) in (Decoded.MORE, Decoded.UNKNOWN), (code.hex(), available)


def test_more_than_fifteen_bytes_are_too_long(decoder: Decoder) -> None:
    assert decoder.decode_bytes(b"\x66" * 14 + b"\x90") == Decoded.DECODED
    assert decoder.decode_bytes(b"\x66" * 15 + b"\x90") == Decoded.LONG
    assert decoder.decode_bytes(b"\x2e" * 10 + bytes.fromhex("81 05 00 00 00 00 00 00 00 00")) == Decoded.LONG
    assert decoder.decode_bytes(b"\x66" * 14) == Decoded.MORE


@pytest.mark.parametrize("code", ["0f04", "0f0a", "0f24c0", "0f36", "0f7a00", "c4e0580000", "62f805480000"])
def test_what_no_manual_has_is_unknown(decoder: Decoder, code: str) -> None:
    assert decoder.decode_bytes(bytes.fromhex(code)) == Decoded.UNKNOWN


@pytest.mark.parametrize(
    ("code", "code32", "parts"),
    [
        ("8b84881034", True, None),  # cut short
        ("8b848878563412", True,
         {"length": 7, "has_sib": True, "base": 0, "index": 1, "scale": 2, "displacement": 0x12345678, "displacement_offset": 3}),
        ("678b42fe", True, {"length": 4, "address_size": 2, "rm": 2, "displacement": -2, "displacement_size": 1}),
        ("8b16ffff", False, {"length": 4, "address_size": 2, "displacement": -1, "displacement_size": 2, "operand_size": 2}),
        ("668b05fcffffff", True, {"operand_size": 2, "operand_prefix": True, "displacement": -4}),
        ("a178563412", True, {"displacement": 0x12345678, "displacement_size": 4, "has_modrm": False}),
        ("67a17856", True, {"length": 4, "displacement": 0x5678}),
        ("c8340102", True, {"immediate": 0x134, "immediate_size": 2, "second": 2, "second_size": 1}),
        ("ea785634121000", True, {"immediate": 0x12345678, "second": 0x10, "second_size": 2}),
        ("66ea78561000", True, {"immediate": 0x5678, "immediate_size": 2, "second": 0x10}),
        ("0f2005", True, {"length": 3, "mod": 3, "reg": 0, "rm": 5, "modrm": 5}),  # mod does not matter
        ("f605000000007f", True, {"immediate": 0x7F, "immediate_offset": 6}),
        ("f61500000000", True, {"length": 6, "immediate_size": 0}),
        ("2ef2f364a4", True, {"segment": 4, "repeat": 0xF3, "opcode_offset": 4}),
        ("f00fb10b", True, {"lock": True, "map": Map.TWO, "opcode": 0xB1}),
        ("660f78c00102", True, {"length": 6, "immediate": 1, "second": 2}),  # EXTRQ
        ("0f78c8", True, {"length": 3}),  # VMREAD
        ("0f0fc1b4", True, {"map": Map.THREE_D_NOW, "opcode": 0xB4, "length": 4}),
        ("c5f877", True, {"map": Map.VEX, "vex_map": 1, "length": 3, "has_modrm": False}),
        ("c4e37d19c101", True, {"map": Map.VEX, "vex_map": 3, "opcode": 0x19, "immediate": 1, "length": 6}),
        ("62f17c48584801", True, {"map": Map.VEX, "vex_map": 1, "opcode": 0x58, "displacement_size": 1, "length": 7}),
        ("6200", True, {"map": Map.ONE, "opcode": 0x62, "length": 2}),  # BOUND
        ("c500", True, {"map": Map.ONE, "opcode": 0xC5, "length": 2}),  # LDS
        ("8fe878c0c101", True, {"map": Map.VEX, "vex_map": 8, "opcode": 0xC0, "length": 6}),  # XOP
    ],
)  # fmt: skip
def test_parts(decoder: Decoder, code: str, code32: bool, parts: dict[str, int] | None) -> None:
    result = decoder.decode_bytes(bytes.fromhex(code), code32)
    if parts is None:
        assert result == Decoded.MORE
        return
    assert result == Decoded.DECODED
    assert {name: getattr(decoder.instruction, name) for name in parts} == parts
    assert bytes(decoder.instruction.bytes)[: decoder.instruction.length] == bytes.fromhex(code)[: decoder.instruction.length]
