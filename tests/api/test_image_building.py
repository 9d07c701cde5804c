"""What images are built with: recipes' tools and options, processes and their logs, the initramfs."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from hvd.errors import HvdError
from hvd.images import cpio, recipes
from hvd.images.initramfs import busybox_initramfs
from hvd.images.process import CommandError, check_tools, output_of, run_logged
from hvd.images.recipes.linux import missing_options


class TestLinuxRecipe:
    async def test_tools_that_are_missing_are_named_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(HvdError) as raised:
            await recipes.find("linux").build("i386", tmp_path, False, lambda step, fraction, message: None)
        assert raised.value.reason == "TOOL_MISSING"
        assert "sudo apt-get install" in str(raised.value)

    def test_tools_and_files(self, tmp_path: Path) -> None:
        check_tools({"sh": "dash", str(tmp_path): "x"})
        with pytest.raises(HvdError) as raised:
            check_tools({"sh": "dash", "no-such-tool": "b", str(tmp_path / "missing.h"): "a", "nor-this": "b"})
        assert raised.value.metadata["remedy"] == "sudo apt-get install a b"

    def test_missing_options(self) -> None:
        fragments = ["CONFIG_A=y\n# CONFIG_B is not set\n# words\n", 'CONFIG_C="x"\nCONFIG_D=y\n']
        assert missing_options(fragments, 'CONFIG_A=y\nCONFIG_C="y"\n# CONFIG_D is not set\n') == {
            "CONFIG_C",
            "CONFIG_D",
        }

    @pytest.mark.parametrize("arch", ["i386", "x86_64"])
    def test_the_guest_sources_are_there(self, arch: str) -> None:
        sources = Path(recipes.__file__).parents[3] / "guests" / "linux"
        assert "CONFIG_PVH=y" in (sources / "common.config").read_text()
        assert (sources / f"{arch}.config").exists()
        subprocess.run(["sh", "-n", sources / "init"], check=True, timeout=60)


class TestProcess:
    async def test_output_and_failure(self) -> None:
        assert await output_of("printf", "x") == "x"
        with pytest.raises(CommandError, match=r"sh: exit code 3: oops"):
            await output_of("sh", "-c", "echo oops >&2; exit 3")
        with pytest.raises(CommandError, match="did not end"):
            await output_of("sleep", "60", seconds=0.05)

    async def test_log_and_lines(self, tmp_path: Path) -> None:
        lines: list[str] = []
        await run_logged(
            "sh", "-c", "echo one; echo two >&2; echo $KEPT$SECRET",
            log=tmp_path / "log", environment={"KEPT": "three"}, directory=tmp_path, on_line=lines.append,
        )  # fmt: skip
        assert lines == ["one", "two", "three"]
        assert (tmp_path / "log").read_text().endswith("\none\ntwo\nthree\n")

    async def test_cancelling_ends_the_children_too(self, tmp_path: Path) -> None:
        started = asyncio.Event()
        pids: list[int] = []

        def on_line(line: str) -> None:
            pids.append(int(line))
            started.set()

        task = asyncio.create_task(
            run_logged(
                "sh", "-c", "sleep 60 & echo $!; wait",
                log=tmp_path / "log", environment={}, directory=tmp_path, on_line=on_line,
            )
        )  # fmt: skip
        await asyncio.wait_for(started.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            while is_running(pids[0]):
                await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestInitramfs:
    def test_what_cpio_reads(self, tmp_path: Path) -> None:
        archive = busybox_initramfs(b"the busybox", b"#!/bin/sh\n")
        assert archive == busybox_initramfs(b"the busybox", b"#!/bin/sh\n")
        assert len(archive) % 512 == 0
        listing = subprocess.run(
            ["busybox", "cpio", "-itv"], input=archive, capture_output=True, check=True, timeout=10
        ).stdout.decode()
        lines = {line.split()[-1]: line for line in listing.splitlines()}
        assert lines["dev/console"].startswith("crw-------")
        header = archive[: archive.index(b"dev/console\0")][-110:]
        assert (int(header[78:86], 16), int(header[86:94], 16)) == (5, 1)
        assert lines["init"].startswith("-rwxr-xr-x")
        assert "bin/sh -> busybox" in listing
        # Device nodes need root: unpack the rest.
        files = ["bin", "bin/busybox", "init", "bin/sh"]
        subprocess.run(
            ["busybox", "cpio", "-id", *files], input=archive, cwd=tmp_path, check=True, timeout=60, capture_output=True
        )
        assert (tmp_path / "bin/sh").read_bytes() == b"the busybox"
        assert stat.S_IMODE((tmp_path / "init").stat().st_mode) == 0o755
        assert os.readlink(tmp_path / "bin/sh") == "busybox"

    @pytest.mark.parametrize(
        "paths", [["/a"], ["a/b"], ["a", "a"], [".."], [""], ["a/../b"], ["a//b"]], ids=lambda paths: " ".join(paths)
    )
    def test_paths_that_linux_would_drop(self, paths: list[str]) -> None:
        with pytest.raises(ValueError, match="cpio"):
            cpio.archive(cpio.directory(path) for path in paths)
