"""hvctl screen and type against a daemon whose guests' screens are scripted; text, colours and pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from cli_harness import Hvctl
from fake_daemon import FakeDaemon
from hvapi.v1 import guest_pb2
from hvctl import picture
from hvctl.textscreen import GLYPHS, colored_lines, plain_lines

PALETTE = bytes(range(48))


@pytest.fixture(autouse=True)
def guest(daemon: FakeDaemon) -> None:
    daemon.guests["guests/a"] = guest_pb2.Guest(name="guests/a", state=guest_pb2.Guest.RUNNING)


def screen_of(*rows: str, columns: int = 10, attribute: int = 7) -> guest_pb2.Screen:
    cells = b"".join(bytes((ord(c), attribute)) for row in rows for c in row.ljust(columns))
    return guest_pb2.Screen(columns=columns, rows=len(rows), cells=cells, palette=PALETTE)


def test_code_page_437() -> None:
    assert len(GLYPHS) == 256
    assert GLYPHS[0x41] == "A" and GLYPHS[0xC9] == "╔" and GLYPHS[0xDB] == "█" and GLYPHS[1] == "☺" and GLYPHS[0] == " "


def test_plain_and_coloured() -> None:
    shown = screen_of("ab", "", "c")
    assert plain_lines(shown) == ["ab", "", "c"]
    assert colored_lines(shown) == ["ab", "", "c"]
    red_on_blue = guest_pb2.Screen(columns=3, rows=1, cells=b"a\x07b\x1c \x07")
    assert colored_lines(red_on_blue) == ["a\x1b[0;91;44mb\x1b[0m"]
    bar = guest_pb2.Screen(columns=2, rows=1, cells=b"a\x70 \x70")  # blanks that are seen
    assert colored_lines(bar) == ["\x1b[0;30;47ma \x1b[0m"]
    bright = guest_pb2.Screen(columns=1, rows=1, cells=b"a\x9f")
    assert colored_lines(bright) == ["\x1b[0;97;104ma\x1b[0m"]


def test_screen(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    daemon.screens = [screen_of("hello", "world")]
    outcome = hvctl("screen", "a")
    assert (outcome.code, outcome.out, outcome.err) == (0, "hello\nworld\n", "")
    document = hvctl("screen", "a", "-o", "json").json
    assert document["screen"]["columns"] == 10 and document["screen"]["rows"] == 2


def test_watch(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    daemon.screens = [screen_of("one"), screen_of("two")]
    assert hvctl("screen", "a", "--watch").out == "one\n---\ntwo\n"
    assert daemon.requests("GetScreen")[-1].watch


def test_a_graphics_mode(hvctl: Hvctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.screens = [guest_pb2.Screen(note="graphics, not shown")]
    outcome = hvctl("screen", "a")
    assert outcome.out == "" and "graphics, not shown" in outcome.err
    outcome = hvctl("screen", "a", "--png", str(tmp_path / "a.png"))
    assert outcome.code == 4 and "graphics, not shown" in outcome.err
    assert not (tmp_path / "a.png").exists()


def read_png(data: bytes) -> tuple[int, int, bytes, list[bytes]]:
    """Width, height, palette, lines of indexes."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + content),)
        chunks[kind] = content
        at += 12 + length
    width, height, depth, color, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, color) == (8, 3)
    raw = zlib.decompress(chunks[b"IDAT"])
    lines = [raw[n * (width + 1) : (n + 1) * (width + 1)] for n in range(height)]
    assert all(line[0] == 0 for line in lines)
    return width, height, chunks[b"PLTE"], [line[1:] for line in lines]


@pytest.fixture
def rom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A font whose character n, from 2 on, has n in each line."""
    font = bytearray(b"".join(bytes((n,)) * 16 for n in range(256)))
    font[:32] = bytes(16) + bytes.fromhex("00007e81a58181bd9981817e00000000")
    (tmp_path / "vgabios-test.bin").write_bytes(b"\x55\xaa junk" + font + b"more")
    monkeypatch.setattr(picture, "ROM_PLACES", (str(tmp_path),))
    picture.font.cache_clear()
    yield
    picture.font.cache_clear()


@pytest.mark.usefixtures("rom")
def test_the_pixels() -> None:
    cells = bytes((0xC1, 0x4E, 0x81, 0x87))  # a line's code, whose ninth dot repeats the eighth; one that does not
    shown = guest_pb2.Screen(columns=2, rows=1, cells=cells, palette=PALETTE, cursor_row=0, cursor_column=1)
    width, height, palette, lines = read_png(picture.png(shown))
    assert (width, height, palette) == (18, 16, PALETTE)
    left = bytes((14, 14, 4, 4, 4, 4, 4, 14, 14))
    right = bytes((7, 8, 8, 8, 8, 8, 8, 7, 8))
    assert lines[:14] == [left + right] * 14
    assert lines[14:] == [left + bytes((7,)) * 9] * 2


@pytest.mark.usefixtures("rom")
def test_png_of_80x25(hvctl: Hvctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.screens = [screen_of(*["x" * 80] * 25, columns=80)]
    assert hvctl("screen", "a", "--png", str(tmp_path / "a.png")).code == 0
    assert read_png((tmp_path / "a.png").read_bytes())[:2] == (720, 400)
    assert hvctl("screen", "a", "--png", str(tmp_path / "no" / "a.png")).code == 1
    assert hvctl("screen", "a", "--png", "x", "--watch").code == 2


def test_without_a_font_the_package_is_named(
    hvctl: Hvctl, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "ROM_PLACES", (str(tmp_path),))
    picture.font.cache_clear()
    daemon.screens = [screen_of("a")]
    outcome = hvctl("screen", "a", "--png", str(tmp_path / "a.png"))
    assert outcome.code == 1 and "seabios" in outcome.err


def typed(daemon: FakeDaemon) -> list[tuple[str, str]]:
    return [(entry.WhichOneof("input"), entry.text or entry.key) for entry in daemon.requests("TypeKeys")[-1].inputs]


def test_texts_and_keys_keep_their_order(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    assert hvctl("type", "a", "echo hi", "--key", "enter", "x", "--key=ctrl-c", "--key", "up", "").code == 0
    assert typed(daemon) == [
        ("text", "echo hi"), ("key", "enter"), ("text", "x"), ("key", "ctrl-c"), ("key", "up"), ("text", ""),
    ]  # fmt: skip
    assert hvctl("type", "--key", "f1", "a", "-o", "json").json == {"events": 2}
    assert typed(daemon) == [("key", "f1")]
    assert hvctl("type", "a", "--", "-x", "--key").code == 0
    assert typed(daemon) == [("text", "-x"), ("text", "--key")]


def test_nothing_to_type(hvctl: Hvctl) -> None:
    assert hvctl("type", "a").code == 2
    assert hvctl("type", "a", "--key").code == 2
    assert hvctl("type", "--key", "enter").code == 2
