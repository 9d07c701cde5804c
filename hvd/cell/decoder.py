"""The cell's instruction decoder (decode.h) for Python."""

from __future__ import annotations

import ctypes
import enum
from typing import Final

from hvd.board.libhv import LIBRARY

LONGEST: Final = 15


class Decoded(enum.IntEnum):
    """enum hv_decoded."""

    DECODED = 0
    MORE = 1  # the bytes end inside of the instruction
    UNKNOWN = 2
    LONG = 3  # longer than 15 bytes


class Map(enum.IntEnum):
    """enum hv_map: the opcode map."""

    ONE = 0
    TWO = 1  # 0F
    THREE_38 = 2
    THREE_3A = 3
    VEX = 4
    THREE_D_NOW = 5


class Instruction(ctypes.Structure):
    """struct hv_insn; decode.h says what the fields mean."""

    _fields_ = [
        ("length", ctypes.c_uint8), ("opcode_offset", ctypes.c_uint8), ("map", ctypes.c_uint8), ("opcode", ctypes.c_uint8),
        ("vex_map", ctypes.c_uint8), ("repeat", ctypes.c_uint8), ("lock", ctypes.c_bool), ("operand_prefix", ctypes.c_bool),
        ("address_prefix", ctypes.c_bool), ("segment", ctypes.c_int8), ("operand_size", ctypes.c_uint8), ("address_size", ctypes.c_uint8),
        ("has_modrm", ctypes.c_bool), ("has_sib", ctypes.c_bool), ("modrm", ctypes.c_uint8), ("mod", ctypes.c_uint8),
        ("reg", ctypes.c_uint8), ("rm", ctypes.c_uint8), ("scale", ctypes.c_uint8), ("index", ctypes.c_uint8), ("base", ctypes.c_uint8),
        ("displacement_size", ctypes.c_uint8), ("displacement_offset", ctypes.c_uint8), ("displacement", ctypes.c_int32),
        ("immediate_size", ctypes.c_uint8), ("immediate_offset", ctypes.c_uint8), ("immediate", ctypes.c_uint32),
        ("second_size", ctypes.c_uint8), ("second", ctypes.c_uint16), ("bytes", ctypes.c_uint8 * LONGEST),
    ]  # fmt: skip


class Decoder:
    """Decodes code that is copied into a buffer of its own. instruction: the last one, overwritten by the next."""

    def __init__(self) -> None:
        """Raises OSError when libhv.so was not built."""
        function = ctypes.CDLL(str(LIBRARY)).hv_decode
        function.argtypes = (ctypes.POINTER(Instruction), ctypes.c_void_p, ctypes.c_uint, ctypes.c_bool)
        function.restype = ctypes.c_int
        self._decode = function
        self.instruction = Instruction()
        self._at = ctypes.byref(self.instruction)

    def decode(self, address: int, available: int, code32: bool = True) -> int:
        """What stands at an address of this process, of which so many bytes may be looked at; a value of Decoded."""
        result: int = self._decode(self._at, address, available, code32)
        return result

    def decode_bytes(self, code: bytes, code32: bool = True) -> int:
        """The instruction at the beginning of `code`; a value of Decoded."""
        buffer = ctypes.create_string_buffer(code, max(1, len(code)))
        return self.decode(ctypes.addressof(buffer), len(code), code32)
