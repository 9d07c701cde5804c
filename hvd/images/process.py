"""Programs that building an image needs: are they here, run them, end them with the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from hvd.errors import HvdError

# What of the daemon's environment a build may see: nothing that changes its result.
_KEPT = ("PATH", "HOME", "http_proxy", "https_proxy", "no_proxy")
_SECONDS = 600.0
_LINE_BYTES = 1 << 20


class CommandError(Exception):
    """A program failed; says how and with which last words."""


def check_tools(packages: Mapping[str, str]) -> None:
    """packages: program (or, with a slash, file) -> the Debian package that has it. Raises HvdError TOOL_MISSING
    naming all."""
    missing = [tool for tool in packages if not (Path(tool).exists() if "/" in tool else shutil.which(tool))]
    if missing:
        needed = " ".join(sorted({packages[tool] for tool in missing}))
        raise HvdError("TOOL_MISSING", tools=", ".join(missing), remedy=f"sudo apt-get install {needed}")


async def output_of(
    *command: str,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
    directory: Path | None = None,
    seconds: float = _SECONDS,
) -> str:
    """What the program writes to stdout. Raises CommandError when it fails (unless check is false) or takes longer
    than seconds."""
    async with _started(command, environment or {}, directory, asyncio.subprocess.PIPE) as process:
        try:
            out, err = await asyncio.wait_for(process.communicate(), seconds)
        except TimeoutError:
            raise CommandError(f"{command[0]} did not end within {seconds:g} s") from None
    if check and process.returncode:
        raise CommandError(_how_it_ended(command, process.returncode, err.decode(errors="replace")))
    return out.decode(errors="replace")


async def run_logged(
    *command: str, log: Path, environment: Mapping[str, str], directory: Path, on_line: Callable[[str], None]
) -> None:
    """Run the program at low priority, its stdout and stderr appended to the log and told line by line. Raises
    CommandError."""
    last = ""
    with log.open("ab") as file:
        file.write(f"+ {' '.join(command)}\n".encode())
        async with _started(
            ("nice", "-n", "10", *command), environment, directory, asyncio.subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            while line := await process.stdout.readline():
                file.write(line)
                file.flush()
                text = line.decode(errors="replace").rstrip()
                last = text or last
                on_line(text)
            await process.wait()
    if process.returncode:
        raise CommandError(_how_it_ended(command, process.returncode, last))


@contextlib.asynccontextmanager
async def _started(
    command: tuple[str, ...], environment: Mapping[str, str], directory: Path | None, stderr: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env={**kept, "LC_ALL": "C", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        limit=_LINE_BYTES,
        # A session of its own: make's children end with it, and a ^C at the daemon's terminal is the daemon's to
        # handle.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _how_it_ended(command: tuple[str, ...], code: int, last_words: str) -> str:
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    lines = last_words.strip().splitlines()
    return f"{command[0]}: {how}: {' / '.join(lines[-3:])[:500]}"
