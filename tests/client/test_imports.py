"""What hvctl imports, and what it leaves for later: importing is most of what a verb costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_harness import environment
from fake_daemon import FakeDaemon

DEADLINE = 60.0

# What starts no sooner for being imported: of grpc, protobuf and Python, and our own for other verbs.
_HEAVY = (
    "asyncio.base_events", "ssl", "grpc.aio._channel", "grpc_status.rpc_status", "google.protobuf.text_format", "tarfile", "pathlib", "difflib",
    "rich", "yaml", "ast", "dis", "tempfile", "dataclasses", "json", "linecache", "locale", "shutil", "textwrap", "tokenize",
    "hvapi.v1.inspect_pb2", "hvapi.v1.metrics_pb2", "hvapi.v1.system_pb2", "hvapi.v1.trace_pb2",
    "hvctl.sdk.aio", "hvctl.sdk.copying", "hvctl.sdk.debug", "hvctl.sdk.guests", "hvctl.sdk.trace", "hvctl.verbs.create",
)  # fmt: skip
_HEAVY_OF_LIST = (*_HEAVY, "hashlib", "hvapi.v1.image_pb2", "hvctl.terminal", "hvctl.verbs.making")


@pytest.mark.parametrize(("words", "heavy"), [
    (("list",), _HEAVY_OF_LIST),
    (("run", "--memory", "64M", "--append", "exit=0"), _HEAVY),
], ids=("list", "run"))  # fmt: skip
def test_a_verb_imports_only_what_it_needs(daemon: FakeDaemon, words: tuple[str, ...], heavy: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hvctl", *words],
        env=environment(daemon), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert {"hvctl.output", "grpc"} <= imported
    assert not imported.intersection(heavy)


def test_lazy_modules_are_whole_when_they_are_used() -> None:
    code = """
from hvctl import lazily
lazily.install()
lazily.install()
import asyncio, grpc, grpc.aio, inspect, platform, socket
assert inspect.cleandoc(" one line") == "one line" and platform.system() and not hasattr(inspect, "__path__")
assert inspect.cleandoc("two\\n    lines") == "two\\nlines" and inspect.isfunction(inspect.signature) and platform.machine()
try:
    inspect.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
async def main():
    return grpc.aio.insecure_channel("unix:/nowhere"), asyncio.current_task(), socket.gethostname()
assert all(asyncio.run(main()))
"""
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, check=True)


def test_lazy_modules_are_whole_for_every_thread(tmp_path: Path) -> None:
    """Also for one that asks while another loads it; one that fails to load is tried again."""
    (tmp_path / "slow.py").write_text("""
import time
first = 1
time.sleep(0.2)
def both():
    return first + last
last = 2
""")
    (tmp_path / "broken.py").write_text("import os\nif not os.environ.get('MENDED'): raise ImportError('broken')\nanswer = 3\n")
    code = """
import os, sys, threading
from hvctl import lazily
lazily.NAMES |= {"slow", "broken"}
lazily.install()
import broken, slow
import slow as again
assert type(slow) is not type(sys)
answers = []
threads = [threading.Thread(target=lambda: answers.append(slow.both() + again.first)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert answers == [4] * 8 and type(slow) is type(sys), answers
for _ in range(2):
    try:
        broken.answer
    except ImportError as error:
        assert str(error) == "broken"
    else:
        raise AssertionError
os.environ["MENDED"] = "1"
assert broken.answer == 3
"""
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
