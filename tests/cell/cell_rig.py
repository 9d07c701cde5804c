"""The cell's interpreters as a library for tests (rig.c), and the same instruction on Unicorn, for comparison."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CELL = ROOT / "hvd" / "cell"
INTERPRETERS = [CELL / name for name in ("decode.c", "emulate.c", "execute.c", "flow.c", "alu.c", "strings.c")]
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
INCLUDE = [f"-I{ROOT / 'hvd/board/native'}", f"-I{CELL}", f"-I{ROOT / 'tests/cell'}"]


def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    assert found, "a C compiler is needed: apt install gcc"
    if not subprocess.run([found, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.startswith("x86_64"):
        pytest.skip("the cell is for x86-64")
    return found


def build(target: Path, *sources: Path, options: list[str]) -> Path:
    command = [compiler(), *FLAGS, *options, *INCLUDE, "-o", str(target), *map(str, sources)]
    subprocess.run(command, check=True, timeout=100)
    return target


def sanitizers_work(directory: Path) -> bool:
    (directory / "empty.c").write_text("int main(void) { return 0; }\n")
    probe = [compiler(), *SANITIZE, "-o", str(directory / "empty"), str(directory / "empty.c")]
    return subprocess.run(probe, capture_output=True, timeout=60).returncode == 0


class Segment(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint32), ("limit", ctypes.c_uint32), ("attributes", ctypes.c_uint32), ("selector", ctypes.c_uint16),
                ("reserved", ctypes.c_uint16)]  # fmt: skip


class Cpu(ctypes.Structure):
    """The beginning of struct hv_cpu."""

    _fields_ = [("r", ctypes.c_uint32 * 8), ("eip", ctypes.c_uint32), ("eflags", ctypes.c_uint32), ("segment", Segment * 8)]


class State(ctypes.Structure):
    """struct rig."""

    _fields_ = [("memory", ctypes.c_void_p), ("size", ctypes.c_uint32), ("rights", ctypes.c_uint8 * 256),
                ("kick_after", ctypes.c_uint32), ("kicked_calls", ctypes.c_uint32), ("vector", ctypes.c_uint32),
                ("error", ctypes.c_uint32), ("address", ctypes.c_uint32), ("port_count", ctypes.c_uint32),
                ("port_hash", ctypes.c_uint32), ("failure", ctypes.c_char * 200)]  # fmt: skip


DONE, RAISED, FAILED = range(3)
ABSENT, READ_ONLY, WRITABLE = range(3)
NO_ERROR = 0xFFFFFFFF


class Rig:
    """One memory and one processor; step() executes what stands at EIP."""

    def __init__(self, directory: Path, size: int = 0x40000) -> None:
        library = ctypes.CDLL(str(build(directory / "rig.so", Path(__file__).with_name("rig.c"), *INTERPRETERS, options=["-shared", "-fPIC"])))
        library.rig_cpu.restype = ctypes.POINTER(Cpu)
        library.rig_state.restype = ctypes.POINTER(State)
        self.library = library
        self.memory = (ctypes.c_uint8 * size)()
        self.reset()

    def reset(self) -> None:
        ctypes.memset(self.memory, 0, len(self.memory))
        self.library.rig_reset(self.memory, len(self.memory))
        self.cpu: Cpu = self.library.rig_cpu().contents
        self.state: State = self.library.rig_state().contents

    def step(self) -> int:
        return int(self.library.rig_step())

    def run(self, code: bytes, at: int = 0x1000, **registers: int) -> int:
        """One instruction; registers by name: eax=..., eflags=..."""
        ctypes.memmove(ctypes.addressof(self.memory) + at, code, len(code))
        self.cpu.eip = at
        for name, value in registers.items():
            if name == "eflags":
                self.cpu.eflags = value | 2
            else:
                self.cpu.r[REGISTERS.index(name)] = value & 0xFFFFFFFF
        return self.step()

    def register(self, name: str) -> int:
        return int(self.cpu.r[REGISTERS.index(name)])


REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
