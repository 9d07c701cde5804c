"""Test kernels that hvpvcc built of unmodified sources: the same console and end as without it, as they are under every backend, and replaced
under paravirt."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest
from harness import kernel
from machine_run import Final, run_to_end

from hvd.backends.paravirt.backend import BACKEND
from hvd.hvpvcc.elf import Elf
from hvd.hvpvcc.finish import finish, finished_file
from hvd.hvpvcc.sites import read_table
from hvd.hvpvcc.verify import verify

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")

# Kernel -> command line. Not here: what tries instructions at CPL 3 in code that is the kernel's as well (exceptions), stacks that are not
# flat (modes); docs/hvpvcc.md says so.
KERNELS = {
    "hello": "one two", "hypercalls": "", "interrupts": "", "apic": "", "paging": "", "halt": "", "reset": "", "compute": "n=300000", "echo": "",
    "isolation": "", "garbage": "", "ports": "n=500", "ticker": "count=2", "hole": "", "exits": "slow=20 fast=200", "virtio": "",
}  # fmt: skip
NEUTRAL = {"emulation": "native", "rewriting": ""}


def run(name: str, backend: str, engine: str = "") -> Final:
    plain = name.split(".")[0]
    return run_to_end(kernel(name), KERNELS[plain], b"hello\rq" if plain == "echo" else b"", backend=backend, engine=engine)


@functools.cache
def expected(name: str) -> Final:
    return run(f"{name}.elf", "emulation", "native")


def same(found: Final, wanted: Final) -> None:
    assert found.console == wanted.console, found.end
    assert (found.end.reason, found.end.exit_code) == (wanted.end.reason, wanted.end.exit_code)


@pytest.mark.parametrize("name", KERNELS)
def test_replaced_under_paravirt(name: str) -> None:
    same(run(f"{name}.hvpv.elf", "paravirt"), expected(name))


@pytest.mark.parametrize("backend", NEUTRAL)
@pytest.mark.parametrize("name", ["hole", "interrupts", "paging", "compute"])
def test_neutral_elsewhere(name: str, backend: str) -> None:
    same(run(f"{name}.hvpv.elf", backend, NEUTRAL[backend]), expected(name))


def test_the_hole_is_open_where_nobody_closes_it() -> None:
    assert "HOLE open" in run("hole.hvpv.elf", "trap").console
    assert "HOLE closed" in run("hole.hvpv.elf", "paravirt").console


def test_finished_by_the_tool_it_is_as_by_the_loader(tmp_path: Path) -> None:
    elf = Elf(kernel("hole.hvpv.elf").read_bytes())
    table, finished = read_table(elf), finish(elf)
    assert table is not None and finished is not None
    made = tmp_path / "hole"
    made.write_bytes(finished_file(elf, table, finished))
    same(run_to_end(made, backend="paravirt", engine=""), expected("hole"))


# ---- nothing is missed

# Instructions that are no kernel's: bytes that make no sense, 16-bit code that objdump takes for another.
ALLOWED = {"garbage": "no_instructions", "teach": ""}


@pytest.mark.parametrize("name", [*KERNELS, "teach"])
def test_nothing_is_missed(name: str) -> None:
    path = kernel(f"{name}.hvpv.elf")
    elf = Elf(path.read_bytes())
    verdict = verify(path, elf, read_table(elf))
    missed = [found for found in verdict.missed if not (name in ALLOWED and ALLOWED[name] and ALLOWED[name] in found.symbol)]
    assert missed == [] and not verdict.wrong
    assert verdict.sensitive >= 50


def test_without_the_tool_nothing_is_a_site() -> None:
    path = kernel("hole.elf")
    elf = Elf(path.read_bytes())
    assert read_table(elf) is None and finish(elf) is None
    verdict = verify(path, elf, None)
    assert not verdict.good and {"pushf", "popf", "cli"} <= {found.text for found in verdict.missed}


def test_the_paravirtual_build_of_a_neutral_kernel_needs_nothing_else() -> None:
    """Sources and flags are the same: what differs in code is padding, and the room for thunks."""

    def text(name: str) -> int:
        return int(subprocess.run(["size", kernel(name)], capture_output=True, text=True, check=True).stdout.split()[6])

    assert 0 < text("hole.hvpv.elf") - text("hole.elf") < 4 * 4096


def test_a_table_that_lies_is_a_load_that_failed_and_no_crash(tmp_path: Path) -> None:
    elf = Elf(kernel("hole.hvpv.elf").read_bytes())
    table = read_table(elf)
    assert table is not None
    data = bytearray(elf.data[:])
    site = next(site for site in table.sites if len(site.code) == 1 and not site.lead)
    data[elf.file_offset(site.address, 5) + 4] = 0xC3  # where only padding may be
    made = tmp_path / "lies.elf"
    made.write_bytes(data)
    end = run_to_end(made, backend="paravirt", engine="").end
    assert (end.reason, "other code around" in end.message) == ("LOAD_FAILED", True)
