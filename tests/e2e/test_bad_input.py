"""Bad images, names, sizes and guests: each is refused or ends with its reason, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hvctl.sdk import Client, HvctlError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_daemon import RealDaemon, kernel, wait_for

GOOD = "hello.elf"
# What a pause or kill of a guest that does not cooperate may take, hvctl's own start included, on a busy host.
PROMPT_SECONDS = 30.0


def refusal(daemon: RealDaemon, *words: str) -> tuple[int, str, str]:
    """Exit code, reason and message of a command that must fail; a next step must be told."""
    done = daemon.hvctl(words[0], "-o", "json", *words[1:])
    assert done.returncode != 0, done.stdout
    error = json.loads(done.stderr[done.stderr.index("{") :])["error"]
    assert error["help"], error
    return done.returncode, error["reason"], error["message"]


def patched(offset: int, form: str, *values: int) -> bytes:
    data = bytearray(Path(kernel(GOOD)).read_bytes())
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


def segment(number: int, word: int) -> int:
    """Offset of a word of a program header in the good kernel: 2 = virtual, 3 = physical address, 4, 5 = sizes."""
    (table,) = struct.unpack_from("<I", Path(kernel(GOOD)).read_bytes(), 28)
    return int(table) + 32 * number + 4 * word


def good() -> bytes:
    return Path(kernel(GOOD)).read_bytes()


IMAGES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    # name -> content, reason, what the message must say
    "empty": (lambda: b"", "IMAGE_FORMAT", "empty"),
    "one byte": (lambda: b"\x7f", "IMAGE_FORMAT", "no header that is known"),
    "ELF magic only": (lambda: good()[:4], "IMAGE_TRUNCATED", "byte 4"),
    "truncated header": (lambda: good()[:40], "IMAGE_TRUNCATED", "byte 40"),
    "truncated": (lambda: good()[:9000], "IMAGE_TRUNCATED", "byte 9000"),
    "random": (lambda: random.Random(2).randbytes(1 << 20), "IMAGE_FORMAT", "no header that is known"),
    "text": (lambda: b"#!/bin/sh\necho hello\n", "IMAGE_FORMAT", "no header that is known"),
    "ARM": (lambda: patched(18, "<H", 40), "IMAGE_FORMAT", "ARM"),
    "AArch64": (lambda: patched(18, "<H", 183), "IMAGE_FORMAT", "AArch64"),
    "big-endian": (lambda: patched(5, "B", 2), "IMAGE_FORMAT", "not for x86"),
    "library": (lambda: patched(16, "<H", 3), "IMAGE_FORMAT", "library"),
    "overlapping segments": (lambda: patched(segment(1, 3), "<I", 0x100800), "IMAGE_LAYOUT", "overlap"),
    "segment above RAM": (
        lambda: patched(segment(1, 3), "<I", 0x0800_0000),
        "IMAGE_TOO_LARGE",
        "bytes of guest memory",
    ),
    "segment above 3 GiB": (lambda: patched(segment(1, 3), "<I", 0xF000_0000), "IMAGE_LAYOUT", "0xf0000000"),
    "segment beyond 4 GiB": (lambda: patched(segment(0, 3), "<I", 0xFFFF_FF00), "IMAGE_LAYOUT", "0xffffff00"),
    "segment beyond the file": (lambda: patched(segment(0, 4), "<I", 0xFFFF_FF00), "IMAGE_TRUNCATED", "needs"),
    "segment longer in the file": (lambda: patched(segment(1, 5), "<I", 1), "IMAGE_LAYOUT", "more bytes in the file"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_bad_kernel(daemon: RealDaemon, tmp_path: Path, name: str) -> None:
    content, reason, said = IMAGES[name]
    file = tmp_path / "kernel"
    file.write_bytes(content())
    code, found, message = refusal(daemon, "run", "--kernel", str(file), "--memory", "8M")
    assert (code, found) == (125, reason), message
    assert said in message
    assert not daemon.listed(), "a guest that was refused is not made"


def test_bad_initrd(daemon: RealDaemon, tmp_path: Path) -> None:
    """Multiboot modules are not for the test kernels to look at; but they must fit."""
    file = tmp_path / "initrd"
    with file.open("wb") as sparse:
        sparse.truncate(64 << 20)
    _, reason, message = refusal(daemon, "run", "--kernel", kernel(GOOD), "--initrd", str(file), "--memory", "8M")
    assert reason == "IMAGE_TOO_LARGE", message


def test_a_huge_file_is_refused_at_once(daemon: RealDaemon, tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as sparse:
        sparse.write(good())
        sparse.truncate(100 << 30)
    began = time.monotonic()
    code, reason, message = refusal(daemon, "run", "--kernel", str(file))
    assert (code, reason) == (125, "FILE_TOO_LARGE")
    assert str(100 << 30) in message
    assert time.monotonic() - began < PROMPT_SECONDS


@pytest.mark.parametrize("path", ["/dev/zero", "/nonexistent", "pipe"])
def test_what_is_no_file_is_not_read(daemon: RealDaemon, tmp_path: Path, path: str) -> None:
    if path == "pipe":
        os.mkfifo(tmp_path / path)
        path = str(tmp_path / path)
    _, reason, message = refusal(daemon, "create", "--kernel", path)
    assert reason == "FILE_UNREADABLE"
    assert path in message


MEMORIES = [
    ("0", "USAGE", "'0'"),
    ("1", "MEMORY_TOO_SMALL", "1 bytes"),
    ("4097", "MEMORY_TOO_SMALL", "4097"),
    ("1048577", "MEMORY_ALIGNMENT", "1048577"),
    ("100000G", "MEMORY_TOO_LARGE", str(100000 << 30)),
    (str(1 << 64), "USAGE", str(1 << 64)),
    ("-1", "USAGE", "-1"),
    ("much", "USAGE", "much"),
]


@pytest.mark.parametrize(("memory", "reason", "said"), MEMORIES)
def test_bad_memory(daemon: RealDaemon, memory: str, reason: str, said: str) -> None:
    code, found, message = refusal(daemon, "run", "--kernel", kernel(GOOD), "--memory", memory)
    assert (code, found) == (125, reason), message
    assert said in message
    assert not daemon.listed()


def test_bad_memory_past_the_client(daemon: RealDaemon) -> None:
    with Client(daemon.endpoint) as client:
        digest = client.upload_file(kernel(GOOD))
        for memory in (-1, -(1 << 63), 1, (1 << 63) - 1, (1 << 63) - 4096):
            with pytest.raises(HvctlError) as caught:
                client.create_guest(guest={"machine": {"kernel": digest, "memory_bytes": memory}})
            assert caught.value.reason.startswith(("MEMORY_", "FIELD_INVALID")), caught.value
            assert str(memory) in caught.value.message


NAMES = [
    "a" * 64,
    "a/b",
    "guests/a/b",
    "../a",
    "grüße",
    "a b",
    "-",
    "a-",
    "A",
    "a\nb",
    ".",
    "a.b",
    "\u202ea",
    "a" * 100_000,
]


def test_bad_names(daemon: RealDaemon) -> None:
    with Client(daemon.endpoint) as client:
        digest = client.upload_file(kernel(GOOD))
        for name in NAMES:
            calls: list[Callable[[], object]] = [
                lambda name=name: client.create_guest(guest_id=name, guest={"machine": {"kernel": digest}}),
                lambda name=name: client.get_guest(name=f"guests/{name}"),
                lambda name=name: client.kill_guest(name=f"guests/{name}"),
                lambda name=name: client.create_image(image_id=name, image={"kernel": digest}),
            ]
            for call in calls:
                with pytest.raises(HvctlError) as caught:
                    pytest.fail(f"{name!r} is a name: {call()}")
                assert caught.value.reason == "NAME_INVALID", name
                assert len(caught.value.message) < 300
    assert not daemon.listed()


def test_a_bad_name_through_hvctl(daemon: RealDaemon) -> None:
    code, reason, message = refusal(daemon, "create", "--kernel", kernel(GOOD), "--name", "a/b")
    assert (code, reason) == (1, "NAME_INVALID")
    assert "a/b" in message


def test_text_that_is_no_utf8(daemon: RealDaemon) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    for words in (["show", odd], ["create", "--kernel", kernel(GOOD), "--append", odd]):
        assert refusal(daemon, *words)[1] == "TEXT_INVALID"


def test_a_name_that_is_taken(daemon: RealDaemon) -> None:
    daemon.run("spin.elf", name="taken")
    before = daemon.show("taken")
    code, reason, message = refusal(daemon, "run", "--name", "taken", "--kernel", kernel(GOOD))
    assert (code, reason) == (125, "NAME_TAKEN")
    assert "taken" in message
    assert daemon.show("taken") == before


def test_stdout_on_a_full_disk(daemon: RealDaemon) -> None:
    words = daemon.spawn("list").words
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words, env=daemon.environment, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


# --- guests that misbehave ---


def test_ends_of_bad_guests_and_their_neighbour(daemon: RealDaemon) -> None:
    """A neighbour prints all the while, and its process is the same at the end."""
    daemon.run("ticker.elf", name="neighbour")
    neighbour = daemon.runner("neighbour")
    for name, state, reason in (("triple", "STOPPED", "TRIPLE_FAULT"), ("wild", "FAILED", "EXECUTION_ERROR")):
        daemon.run(f"{name}.elf", name=name)
        ended = daemon.wait(name)
        assert (ended["state"], ended["reason"]) == (state, reason)
        assert "0x" in ended["status_message"], "it says where"
        assert ended["start_time"] <= ended["end_time"]
    seen = daemon.ok("logs", "neighbour").stdout.count("\n")
    wait_for(lambda: daemon.ok("logs", "neighbour").stdout.count("\n") > seen + 3, "the neighbour ticks on")
    assert daemon.runner("neighbour") == neighbour


def test_a_guest_that_ends_during_its_start_ends_after_its_start(daemon: RealDaemon) -> None:
    for turn in range(5):
        daemon.run("hello.elf", name=f"quick-{turn}")
        found = daemon.wait(f"quick-{turn}")
        assert found["create_time"] <= found["start_time"] <= found["end_time"]


def prompt(daemon: RealDaemon, *words: str) -> None:
    began = time.monotonic()
    daemon.ok(*words)
    assert time.monotonic() - began < PROMPT_SECONDS, words


@pytest.mark.parametrize("guest", ["spin.elf", "flood.elf", "nonsense.elf"])
def test_a_guest_that_never_ends_obeys_all_the_same(daemon: RealDaemon, guest: str) -> None:
    name = daemon.run(guest, *(("--", "count=4000000000") if guest.startswith("nonsense") else ()))
    for verb, state in (("pause", "PAUSED"), ("resume", "RUNNING"), ("reset", "RUNNING"), ("pause", "PAUSED")):
        prompt(daemon, verb, name)
        assert daemon.show(name)["state"] == state
    prompt(daemon, "resume", name)
    prompt(daemon, "kill", name)
    found = daemon.show(name)
    assert (found["state"], found["reason"]) == ("STOPPED", "KILLED")


def test_a_flood_is_bounded_on_the_disk(own_daemon: RealDaemon) -> None:
    own_daemon.stop()
    own_daemon.options = ("--log-max-bytes", "128K")
    own_daemon.start()
    name = own_daemon.run("flood.elf")
    (directory,) = own_daemon.runtime_dir.glob("guests/*")

    def bytes_of_logs() -> int:
        found = 0
        for file in directory.glob("console.log*"):
            with contextlib.suppress(FileNotFoundError):  # it is being rotated
                found += file.stat().st_size
        return found

    wait_for(lambda: (directory / "console.log.1").exists(), "the log is rotated")
    for _ in range(20):
        assert bytes_of_logs() <= 128 << 10
        time.sleep(0.05)  # the pace of looking
    tail = own_daemon.ok("logs", "--tail", "3", name).stdout.splitlines()
    assert len(tail) == 3
    assert all("quick brown fox" in line for line in tail)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_devices_programmed_with_nonsense(daemon: RealDaemon, seed: int) -> None:
    """guests/nonsense.c: every port, all sizes, strings, holes, hypercalls, with interrupts on."""
    daemon.run("nonsense.elf", "--", "count=300000", f"seed={seed}", name="nonsense")
    ended = daemon.wait("nonsense")
    log = daemon.ok("logs", "nonsense").stdout
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("STOPPED", "EXITED", 0), log[-500:]
    assert "300000 accesses, interrupts came" in log


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_kernels_never_hurt_the_daemon(daemon: RealDaemon, tmp_path: Path, data: st.DataObject) -> None:
    """Headers with random bytes: refused with a reason, or run to whatever end."""
    content = bytearray(good())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    file = tmp_path / "mutant"
    file.write_bytes(content)
    with Client(daemon.endpoint) as client:
        try:
            guest = client.run_guest(kernel=file, memory_bytes=8 << 20)
        except HvctlError as error:
            assert error.reason.startswith(("IMAGE_", "MEMORY_")), error
        else:
            client.delete_guest(name=guest.name, force=True)
        assert client.get_info().version
