"""What stood on the screen of a guest that has ended, as a file that is not trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd.board.devices.vga import ScreenImage
from hvd.runner import last_screen
from hvd.runner.directory import SCREEN


class FakeMachine:
    def __init__(self, image: ScreenImage) -> None:
        self.image = image

    def device(self, kind: object) -> FakeMachine:
        return self

    def screen(self) -> ScreenImage:
        return self.image


IMAGE = ScreenImage(2, 1, b"a\x07b\x07", (0, 1), bytes(48), "")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_is_kept(tmp_path: Path) -> None:
    last_screen.keep(FakeMachine(IMAGE))  # type: ignore[arg-type]
    found = last_screen.read(tmp_path)
    assert found is not None and "ended" in found.note
    assert (found.columns, found.rows, found.cells, found.cursor, found.palette) == (2, 1, IMAGE.cells, (0, 1), IMAGE.palette)


def test_an_empty_one_is_not(tmp_path: Path) -> None:
    last_screen.keep(FakeMachine(ScreenImage(2, 1, bytes(4), (0, 0), bytes(48))))  # type: ignore[arg-type]
    last_screen.keep(FakeMachine(ScreenImage(note="graphics")))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir()) and last_screen.read(tmp_path) is None


def test_a_disk_that_is_full_costs_only_the_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(path: str, document: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(last_screen, "write_json", full)
    last_screen.keep(FakeMachine(IMAGE))  # type: ignore[arg-type]
    assert "No space left" in capsys.readouterr().err


values = st.none() | st.booleans() | st.integers(-1, 300) | st.text("0f", max_size=8) | st.lists(st.integers(-1, 3), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["columns", "rows", "cells", "cursor", "palette"]), values) | values)
def test_any_document_is_none_or_a_sound_screen(tmp_path: Path, changes: Any) -> None:
    good = {"columns": 2, "rows": 1, "cells": IMAGE.cells.hex(), "cursor": [0, 1], "palette": IMAGE.palette.hex()}
    (tmp_path / SCREEN).write_text(json.dumps(good | changes if isinstance(changes, dict) else changes))
    found = last_screen.read(tmp_path)
    if found is not None:
        assert len(found.cells) == 2 * found.columns * found.rows and len(found.palette) == 48
        assert found.cursor is None or (found.cursor[0] < found.rows and found.cursor[1] < found.columns)
