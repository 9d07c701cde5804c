"""A root for containers: mmdebstrap's minbase of one of Debian's releases. It is of the day on which it was built: --force makes it
anew."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hvd.errors import HvdError
from hvd.images.lock import locked
from hvd.images.process import CommandError, check_tools, run_logged
from hvd.images.recipes.recipe import Built, Progress, Recipe

# Part of the cache's key: raise it when this module makes something else of the same inputs.
_VERSION: Final = 1
SUITES: Final = ("bookworm", "trixie", "bullseye")
_TOOLS: Final = {"mmdebstrap": "mmdebstrap"}
_COMMAND: Final = ("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar")


class DebianRootRecipe(Recipe):
    """Of one release: what `debian` is when it is asked for a suite."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.name = f"debian-{suite}"
        self.description = f"a root for containers: Debian {suite}, minbase"
        self.images: Mapping[str, str] = {"x86_64": self.name}

    async def build(self, arch: str, cache_dir: Path, force: bool, progress: Progress) -> Built:
        if os.geteuid():
            problem = "files of a root file system have owners"
            raise HvdError("ROOT_NEEDED", what=f"building '{self.name}'", problem=problem)
        check_tools(_TOOLS)
        log = cache_dir / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps([_VERSION, self.suite, *_COMMAND]).encode()).hexdigest()[:16]
        result = cache_dir / "images" / f"{self.name}-{key}.tar"
        result.parent.mkdir(parents=True, exist_ok=True)
        waiting = "another build of the same is under way: waiting for it"
        try:
            async with locked(result.with_suffix(".lock"), lambda: progress("fetch", -1, waiting)):
                if force or not result.exists():
                    with tempfile.TemporaryDirectory(dir=result.parent, prefix=f"{self.name}-work-") as directory:
                        work = Path(directory)
                        await run_logged(
                            *_COMMAND, self.suite, str(work / "root.tar"),
                            log=log, environment={"TMPDIR": directory}, directory=work,
                            on_line=lambda line: progress("fetch", -1, line[:100]),
                        )  # fmt: skip
                        (work / "root.tar").rename(result)
        except (CommandError, OSError) as error:
            raise HvdError("BUILD_FAILED", recipe=self.name, step="fetch", problem=error, log=log) from error
        progress("pack", 1, f"kept in {result}")
        return Built(rootfs=result, command=("bash",), description=f"Debian {self.suite}, minbase")
