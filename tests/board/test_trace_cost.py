"""What tracing costs while nobody looks: one load and one branch, in every place where crossings are recorded."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_CONDITIONAL = re.compile(r"j(?!mp)\w+\s+([0-9a-f]+) <([\w.]+)(?:\+0x[0-9a-f]+)?>")


def instructions(binary: Path, function: str) -> list[tuple[int, str]]:
    """Address and text of each; those that the compiler moved away as unlikely are not among them. It may have made a function of it for arguments
    that are always the same."""
    symbols = subprocess.run(["nm", str(binary)], capture_output=True, text=True, check=True).stdout.split()
    (function,) = {symbol for symbol in symbols if re.fullmatch(rf"{function}(\.constprop\.\d+)?", symbol)}
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(binary)], capture_output=True, text=True, check=True
    )
    found = [line.strip().split(":", 1) for line in done.stdout.partition(f"<{function}>:")[2].split("\n\n")[0].splitlines()]
    return [(int(address, 16), re.sub(r"\s+", " ", text).strip()) for address, text in (pair for pair in found if len(pair) == 2)]


@pytest.mark.parametrize("binary", ["hvd/libhv.so", "hvd/hvd-cell"])
def test_off_is_one_load_and_one_branch(binary: str) -> None:
    """Along the way on which nobody looks, from the count on: the daemon's word is loaded and tested, and one branch leads to all the rest."""
    path = ROOT / binary
    if not path.exists():
        pytest.skip(f"{binary} is not built here")
    code = instructions(path, "hv_cross")
    body = dict(code)
    text = "\n".join(f"{address:x}: {line}" for address, line in code)
    # Branches that leave the function are those to what is done when somebody looks.
    leaving = [(at, match) for at, (_, line) in enumerate(code) if (match := _CONDITIONAL.match(line)) and int(match[1], 16) not in body]
    assert len(leaving) == 1, f"one branch leads out of the way:\n{text}"
    at, _ = leaving[0]
    before = " ; ".join(line for _, line in code[max(0, at - 2) : at])
    assert re.search(r"mov \(%\w+\),%e?\w+ ; test %\w+,%\w+$|cmpl \$0x0,\(%\w+\)$", before), f"it tests the word that the daemon writes:\n{text}"
    # What follows is the way out: no other look at memory beyond the stack, no call.
    way = []
    for _, line in code[at + 1 :]:
        way.append(line)
        if line.startswith("ret"):
            break
    assert all(re.match(r"(add \$\S+,%rsp|pop|ret|mov \S*\(%rsp\),|lea|xor)", line) for line in way), f"nothing else is done:\n{text}"


def test_records_take_the_kinds_from_one_place() -> None:
    """The shared library has no other function that looks at the daemon's word while a guest crosses: all go through hv_cross or hv_note."""
    sources = [*(ROOT / "hvd").glob("board/native/*.c"), *(ROOT / "hvd").glob("cell/*.c"), *(ROOT / "hvd").glob("backends/*/*.c")]
    looking = {path.name for path in sources if re.search(r"trace->enabled|->watched", path.read_text())}
    assert looking == {"crossing.c"}
