"""A kernel's symbols, put back from its System.map."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from hvd.images.process import CommandError
from hvd.images.symbols import put_symbols, symbol_options

SECTIONS = [(0x1000, ".text"), (0x3000, ".data")]


def names(file: Path) -> dict[str, tuple[str, int]]:
    table = subprocess.run(["nm", file], capture_output=True, text=True, check=True, timeout=60).stdout
    return {name: (type_, int(address, 16)) for address, type_, name in map(str.split, table.splitlines())}


def test_each_symbol_belongs_to_the_section_below_it() -> None:
    text = "00000010 A constant\n00001000 T start\n00001004 t local\n00003008 D variable\n00009000 B end\nnonsense\n"
    assert symbol_options(text, SECTIONS) == [
        "--add-symbol start=.text:0x0,function,global",
        "--add-symbol local=.text:0x4,function,local",
        "--add-symbol variable=.data:0x8,object,global",
        "--add-symbol end=.data:0x6000,object,global",
    ]


def test_a_stripped_kernel_gets_its_names_back(tmp_path: Path) -> None:
    whole, stripped, made = (tmp_path / name for name in ("whole", "stripped", "made"))
    source = "int counter = 1; static int add(int n) { return counter += n; } int _start(void) { return add(2); }"
    compile_ = ["gcc", "-xc", "-O0", "-nostdlib", "-static", "-no-pie", "-o", whole, "-"]
    subprocess.run(compile_, input=source, text=True, check=True, timeout=60)
    subprocess.run(["strip", "-s", "-o", stripped, whole], check=True, timeout=60)
    known = names(whole)
    (tmp_path / "System.map").write_text(
        "".join(f"{address:016x} {type_} {name}\n" for name, (type_, address) in known.items())
    )
    asyncio.run(put_symbols(stripped, tmp_path / "System.map", made))
    assert names(made) == known
    assert sorted(path.name for path in tmp_path.iterdir()) == ["System.map", "made", "stripped", "whole"]


def test_a_file_that_is_no_kernel_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no ELF")
    (tmp_path / "System.map").write_text("0000000000001000 T start\n")
    with pytest.raises(CommandError):
        asyncio.run(put_symbols(tmp_path / "kernel", tmp_path / "System.map", tmp_path / "made"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["System.map", "kernel"]
