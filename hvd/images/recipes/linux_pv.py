"""The small Linux once more, the same source and configuration, made ready by hvpvcc to become a paravirtual kernel (docs/hvpvcc.md)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hvd.errors import HvdError
from hvd.hvpvcc import main as hvpvcc
from hvd.hvpvcc.elf import Elf, FormatError
from hvd.hvpvcc.finish import finish
from hvd.hvpvcc.report import as_json, as_text
from hvd.hvpvcc.sites import read_table
from hvd.hvpvcc.verify import verify
from hvd.images.process import CommandError
from hvd.images.recipes.linux import LinuxRecipe, Tool

_ROOT: Final = Path(__file__).resolve().parents[3]


class _Hvpvcc(Tool):
    name = "-pv"
    description = ", with sites for paravirt"

    def __init__(self) -> None:
        sources = sorted((_ROOT / "hvd" / "hvpvcc" / "filter").glob("*.[ch]"))
        sources.append(_ROOT / "guests" / "include" / "hv" / "sites.h")
        self.key = (hvpvcc.SKIP, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources))
        # What `hvpvcc gcc` does, without starting Python for each of the build's thousand calls of the compiler.
        self.options = (f"CC=gcc -B{hvpvcc.DIRECTORY}",)
        self.environment = {"HVPVCC_SKIP": hvpvcc.SKIP}

    async def check(self, kernel: Path, result: Path) -> None:
        await asyncio.to_thread(_check, kernel, result)


def _check(kernel: Path, result: Path) -> None:
    try:
        elf = Elf(kernel.read_bytes())
        table = read_table(elf)
        if table is None:
            raise CommandError("the kernel has no sites: hvpvcc's assembler was not used")
        verdict, finished = verify(kernel, elf, table), finish(elf)
    except FormatError as error:
        raise CommandError(f"the kernel's table of sites: {error}") from error
    (result / "hvpvcc.txt").write_text(as_text(kernel, verdict, finished))
    (result / "hvpvcc.json").write_text(as_json(kernel, verdict, finished))
    if not verdict.good:
        missed = [f"{found.text} in {found.symbol}" for found in verdict.missed]
        wrong = [f"{site.address:#x}: {why}" for site, why in verdict.wrong]
        raise CommandError(f"hvpvcc missed or mistook instructions: {', '.join((missed + wrong)[:5])}")


class LinuxPvRecipe(LinuxRecipe):
    name = "linux-pv"
    description = "the small Linux, built by hvpvcc: paravirtual under paravirt, an ordinary kernel elsewhere"
    images: Mapping[str, str] = {"i386": "linux-pv"}

    def tool(self) -> Tool:
        if not Path(hvpvcc.DIRECTORY, "as").exists():
            raise HvdError("TOOL_MISSING", tools=f"{hvpvcc.DIRECTORY}as", remedy="build it, by `make setup`")
        return _Hvpvcc()
