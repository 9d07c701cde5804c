"""Modules of a distribution's kernel, out of its package, in the order in which insmod can load them.

Debian's packages come without modules.dep, which depmod makes at installation: what a module needs is read from the
module itself.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path

# A string of the section .modinfo.
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def load_order(directory: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    """(file name, content) of these modules and all that they need, what is needed first. A name that has no file is
    built in and left out. directory: lib/modules of the package."""
    files = {
        path.name.partition(".")[0].replace("-", "_"): path for path in sorted(directory.glob("*/kernel/**/*.ko*"))
    }
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or f"{path.name.partition('.')[0]}.ko" in ordered:
            return
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        depends = _DEPENDS.search(content)
        for needed in filter(None, depends[1].decode().split(",")) if depends else ():
            add(needed)
        ordered[f"{path.name.partition('.')[0]}.ko"] = content

    for name in names:
        add(name)
    return list(ordered.items())
