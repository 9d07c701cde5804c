"""The OCI runtime's command line: runc, crun (https://github.com/opencontainers/runtime-tools/blob/master/docs/command-line-interface.md)."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from hvd.backends.contract import Availability, EngineInfo
from hvd.cgroup.hierarchy import hierarchy
from hvd.cgroup.processes import remove
from hvd.errors import HvdError

log = structlog.get_logger()

# Engine -> what it is. The first that is there is the default.
RUNTIMES = {
    "runc": "the reference runtime, in Go",
    "crun": "in C; starts faster",
}
# Those that refuse a host with controllers of both versions of control groups.
NOT_HYBRID = frozenset({"crun"})
CALL_SECONDS = 30.0
_MOST_MESSAGE = 500


class Runtime:
    """One runtime with its containers' state below `root`. Calls are short processes."""

    def __init__(self, name: str, root: Path) -> None:
        """name: a key of RUNTIMES. Raises HvdError BACKEND_UNAVAILABLE."""
        found = shutil.which(name)
        if found is None:
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend=f"container ({name})",
                problem=f"{name} is not installed",
                remedy=f"apt-get install {name}",
            )
        self.name = name
        self.root = root / name
        self.path = Path(found)
        if name in NOT_HYBRID and is_hybrid():
            self.path = _wrapper(self.root, self.path)

    @property
    def global_arguments(self) -> list[str]:
        """Before every command."""
        return ["--root", str(self.root)]

    async def start(self, uid: str) -> None:
        """Let a created container run. Raises HvdError CONTAINER_FAILED."""
        await self._call("start", uid)

    async def pause(self, uid: str) -> None:
        await self._call("pause", uid)

    async def resume(self, uid: str) -> None:
        await self._call("resume", uid)

    async def delete(self, uid: str) -> None:
        """With everything that runs in it; no error when there is none, nor when somebody else deletes it meanwhile: the
        runtime that an earlier daemon called may still be at it. Raises HvdError CONTAINER_FAILED."""
        for last in (False, False, True):
            if not (self.root / uid).exists():
                return  # what both runtimes remove last
            try:
                await self._call("delete", "--force", uid)
                return
            except HvdError:
                if last and (self.root / uid).exists():
                    raise

    def forget(self, uid: str) -> bool:
        """What delete() does for a container whose processes have all ended, without a process for it: its control groups and
        the runtime's record of it. False when something is in the way: then it takes delete(). Blocks for a moment."""
        try:
            remove(hierarchy(), uid)
        except FileNotFoundError:  # somebody else is at it
            return False
        except OSError as error:
            log.info("control group cannot be removed yet", guest=uid, problem=str(error))
            return False
        shutil.rmtree(self.root / uid, ignore_errors=True)
        return not (self.root / uid).exists()

    async def status(self, uid: str) -> str:
        """ "creating", "created", "running", "paused", "stopped"; empty = it knows no such container."""
        try:
            state = json.loads(await self._call("state", uid))
        except (HvdError, ValueError):
            return ""
        return str(state.get("status", ""))

    async def _call(self, *arguments: str) -> bytes:
        """Its standard output. Raises HvdError CONTAINER_FAILED."""
        code, output, errors = await run([str(self.path), *self.global_arguments, *arguments])
        if code:
            raise HvdError(
                "CONTAINER_FAILED", what=f"{self.name} {arguments[0]}", problem=last_line(errors) or f"exit code {code}"
            )
        return output


def is_hybrid() -> bool:
    """Are there controllers of both versions of control groups?"""
    found = hierarchy()
    return bool(found.version_1 and found.version_2)


def _wrapper(directory: Path, runtime: Path) -> Path:
    """A program that runs the runtime where it sees version 1 of control groups only."""
    path = directory / "version-1"
    unified = hierarchy().unified
    words = f"""#!/bin/sh
# {runtime.name} refuses a host that has controllers of both versions: here it sees those of version 1 alone.
exec unshare --mount --propagation slave sh -c 'umount {unified} && exec {runtime} "$@"' {runtime.name} "$@"
"""
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(words, "utf-8")
        new.chmod(0o700)
        new.rename(path)
    return path


async def run(words: Sequence[str], seconds: float = CALL_SECONDS) -> tuple[int, bytes, str]:
    """(exit code, standard output, standard error) of a program without input. Raises HvdError CONTAINER_FAILED when it
    cannot be started, or has not ended in time: then it is killed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise HvdError("CONTAINER_FAILED", what=words[0], problem=error) from error
    try:
        output, errors = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        raise HvdError("CONTAINER_FAILED", what=Path(words[0]).name, problem=f"no answer in {seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output, errors.decode(errors="replace")


def last_line(text: str) -> str:
    """What a runtime says last is why it failed; its logrus wrapping is taken off."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    if 'msg="' in line:
        line = line.partition('msg="')[2].rpartition('"')[0].replace('\\"', '"')
    return line[:_MOST_MESSAGE]


def engines() -> list[EngineInfo]:
    return [
        EngineInfo(
            name,
            description,
            Availability(True)
            if shutil.which(name)
            else Availability(False, f"{name} is not installed", f"apt-get install {name}"),
        )
        for name, description in RUNTIMES.items()
    ]
