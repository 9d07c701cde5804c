"""hvpvcc's verbs for a kernel that is linked."""

from __future__ import annotations

import argparse
import re
import struct
import sys
from pathlib import Path

from hvd.hvpvcc.elf import Elf, FormatError
from hvd.hvpvcc.finish import finish, finished_file
from hvd.hvpvcc.report import as_json, as_text
from hvd.hvpvcc.sites import read_table
from hvd.hvpvcc.verify import ALLOWED_SECTIONS, verify

_RELOCATABLE = 1  # ET_REL


def linked(arguments: list[str]) -> int:
    """The exit code: 0 good, 1 something was missed, 2 it cannot be done."""
    parser = argparse.ArgumentParser("hvpvcc", allow_abbrev=False)
    parser.add_argument("verb", choices=("verify", "report", "finish"))
    parser.add_argument("kernel", type=Path)
    parser.add_argument("--allow", default="")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args([arguments[0].removeprefix("--"), *arguments[1:]])
    try:
        return _do(options)
    except FormatError as error:
        print(f"hvpvcc: {options.kernel}: {error}", file=sys.stderr)
    except re.error as error:
        print(f"hvpvcc: --allow {options.allow}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"hvpvcc: {error.filename or options.kernel}: {error.strerror}", file=sys.stderr)
    return 2


def _do(options: argparse.Namespace) -> int:
    path: Path = options.kernel
    elf = Elf(path.read_bytes())
    if struct.unpack_from("<H", elf.data[:18], 16)[0] == _RELOCATABLE:
        raise FormatError("it is an object, not a linked kernel")
    table = read_table(elf)
    finished = finish(elf)
    if options.verb == "finish":
        if table is None or finished is None:
            raise FormatError("hvpvcc did not build it: it has no sites")
        if finished.already:
            raise FormatError("it is finished already")
        output: Path = options.output or path
        output.write_bytes(finished_file(elf, table, finished))
        output.chmod(path.stat().st_mode & 0o777)
        return 0
    if finished is not None and finished.already:
        raise FormatError("it is finished: only the neutral kernel can be looked at")
    allow = "|".join(f"(?:{each})" for each in (ALLOWED_SECTIONS, options.allow) if each)
    verdict = verify(path, elf, table, allow)
    if options.verb == "report":
        sys.stdout.write(as_json(path, verdict, finished) + "\n" if options.json else as_text(path, verdict, finished))
        return 0
    for found in verdict.missed:
        print(f"{found.address:#010x} {found.section} {found.symbol}: {found.text}: missed")
    for site, why in verdict.wrong:
        print(f"{site.address:#010x} {site.kind.label}: {why}")
    print(f"{verdict.sensitive} sensitive of {verdict.instructions} instructions, {len(table.sites) if table else 0} sites, "
          f"{len(verdict.allowed)} allowed, {len(verdict.missed)} missed, {len(verdict.wrong)} records wrong")  # fmt: skip
    return 0 if verdict.good else 1
