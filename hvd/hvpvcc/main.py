"""hvpvcc: the compiler's wrapper, and what is done with the kernel afterwards (docs/hvpvcc.md).

As a compiler it is started for every object, so that it imports next to nothing then.
"""

from __future__ import annotations

import os
import sys
from typing import Final

DIRECTORY: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "")
# Outputs that do not run as guest kernel, of kernels that people know: Linux's set-up code, trampolines and vDSO; what a configuration tries.
SKIP: Final = r"/arch/x86/(boot|realmode/rm|entry/vdso)/|^/dev/null$"
LAUNCHERS: Final = frozenset({"ccache", "distcc", "icecc", "sccache"})  # before the compiler's name
USAGE: Final = """\
hvpvcc [--skip REGEX] COMPILER ARGUMENTS...   compile with room for replacements: CC="hvpvcc gcc"
hvpvcc --flags                                the option of gcc that does the same, for builds that start the compiler often
hvpvcc --verify KERNEL [--allow REGEX]        the proof that nothing was missed; exit code 1: something was
hvpvcc --report KERNEL [--json]               what is replaced where and how, and what is not
hvpvcc --finish KERNEL [-o OUTPUT]            make the linked kernel a paravirtual one; hvd does that by itself for the backend paravirt

  --skip REGEX    outputs (absolute paths) that are left alone, besides those known of Linux; or in $HVPVCC_SKIP
  --allow REGEX   "SECTION FUNCTION" of sensitive instructions that need not be sites
"""


def _compile(arguments: list[str]) -> int:
    skip = [SKIP, os.environ.get("HVPVCC_SKIP", "")]
    while arguments[:1] == ["--skip"] and len(arguments) > 1:
        skip.append(arguments[1])
        arguments = arguments[2:]
    if not arguments:
        sys.stderr.write(USAGE)
        return 2
    if not os.path.exists(DIRECTORY + "as"):
        # gcc would take the usual assembler and say nothing.
        sys.stderr.write(f"hvpvcc: {DIRECTORY}as is missing: `make setup` builds it\n")
        return 2
    os.environ["HVPVCC_SKIP"] = "|".join(f"({each})" for each in skip if each)
    launcher = os.path.basename(arguments[0]) in LAUNCHERS and len(arguments) > 1
    front, rest = arguments[: 1 + launcher], arguments[1 + launcher :]
    # clang assembles by itself, where nothing would be seen.
    own = ["-fno-integrated-as"] if "clang" in os.path.basename(front[-1]) else []
    try:
        os.execvp(front[0], [*front, f"-B{DIRECTORY}", *own, *rest])
    except OSError as error:
        sys.stderr.write(f"hvpvcc: {arguments[0]}: {error.strerror}\n")
        return 127


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--flags"]:
        print(f"-B{DIRECTORY}")
        return 0
    if arguments and arguments[0] in ("--verify", "--report", "--finish"):
        from hvd.hvpvcc.linked import linked

        return linked(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    return _compile(arguments)


if __name__ == "__main__":
    sys.exit(main())
