"""Numbers that the C compiler gives: offsets and sizes of what C and Python share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cell_rig import INCLUDE, compiler


def c_numbers(directory: Path, headers: tuple[str, ...], expressions: Mapping[str, str]) -> dict[str, int]:
    """name -> C expression to name -> value."""
    lines = [f'printf("%s\\"{name}\\": %llu", first, (unsigned long long)({text})); first = ", ";' for name, text in expressions.items()]
    includes = "".join(f'#include "{header}"\n' for header in headers)
    body = "\n".join(lines)
    source = directory / "numbers.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n{includes}int main(void) {{ const char *first = "{{";\n{body}\nputs("}}"); return 0; }}\n'
    )
    program = directory / "numbers"
    subprocess.run([compiler(), "-std=gnu11", *INCLUDE, "-o", str(program), str(source)], check=True, timeout=60)
    numbers: dict[str, int] = json.loads(subprocess.run([program], check=True, capture_output=True, timeout=10).stdout)
    return numbers
