"""A daemon meets the runners of older and of newer ones: version 1 by its recorded bytes, others by what their pid files say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvd.backends.contract import Capability
from hvd.errors import HvdError
from hvd.runner.client import RunnerInstance
from hvd.runner.directory import PROTOCOL, PROTOCOL_OLDEST, process_identity

# As they were on the control socket between the daemon and a runner of version 1, which told none: request -> response.
RECORDED_1 = {
    "0400000008011200": "1000000008011a0c0a0752554e4e494e47a80103",  # get_status: RUNNING, 3 sensitive instructions
    "0400000008021a00": "0400000008024200",  # pause: done
    # wait_status: PAUSED. Its last two bytes are a field (`neglected`) that was not there then: readers of protobuf skip what they do not know.
    "17000000080172130a0752554e4e494e4710001800200028033200": "0c00000008011a080a06504155534544",
}


class OldRunner:
    """Its directory, its process, and its control socket, which plays back what was recorded."""

    def __init__(self, directory: Path, protocol: object = None) -> None:
        self.directory = directory
        self.process = subprocess.Popen(["sleep", "600"])
        identity = process_identity(self.process.pid)
        (directory / "pid").write_text(json.dumps(identity if protocol is None else identity | {"protocol": protocol}))
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.path.relpath(directory / "control"))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._play, args=(connection,), daemon=True).start()

    def _play(self, connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(65536):
                self.asked.append(request.hex())
                if answer := RECORDED_1.get(request.hex()):  # otherwise it waits for a change that does not come
                    connection.sendall(bytes.fromhex(answer))

    def close(self) -> None:
        self._listener.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # a socket's path has 107 bytes
    yield tmp_path


async def test_version_1_is_adopted(place: Path) -> None:
    runner = OldRunner(place)
    instance = await RunnerInstance.adopt(place, "emulation", frozenset({Capability.PAUSE}))
    try:
        status = await instance.status()
        assert (status.state, status.sensitive, status.resets, status.debugged) == ("RUNNING", 3, 0, False)
        await instance.pause()
        assert (await instance.wait_change(status)).state == "PAUSED"
        runner.process.kill()
        runner.process.wait()
        while (ended := await instance.wait_change(status)).state == "PAUSED":
            pass
        assert (ended.state, ended.reason) == ("FAILED", "RUNNER_CRASHED")
    finally:
        await instance.close()
        runner.close()


@pytest.mark.parametrize("protocol", [[1, PROTOCOL + 5], [PROTOCOL, PROTOCOL], "nonsense", [1], ["a", "b"]])
async def test_newer_ones_that_still_speak_with_us(place: Path, protocol: object) -> None:
    runner = OldRunner(place, protocol)
    instance = await RunnerInstance.adopt(place, "emulation", frozenset())
    assert (await instance.status()).state == "RUNNING"
    await instance.close()
    runner.close()


@pytest.mark.parametrize("protocol", [[PROTOCOL + 1, PROTOCOL + 2], [PROTOCOL_OLDEST - 2, PROTOCOL_OLDEST - 1]])
async def test_one_that_does_not(place: Path, protocol: list[int]) -> None:
    runner = OldRunner(place, protocol)
    with pytest.raises(HvdError) as caught:
        await RunnerInstance.adopt(place, "emulation", frozenset())
    assert caught.value.reason == "RUNNER_PROTOCOL" and f"{protocol[0]} to {protocol[1]}" in caught.value.message
    assert "hvctl kill" in caught.value.help and not runner.asked
    runner.close()
