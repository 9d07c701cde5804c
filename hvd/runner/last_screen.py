"""What stood on the screen of a guest that has ended: screen.json of its directory. Many a small kernel prints its result
there and halts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hvd.board.devices.vga import MOST_COLUMNS, MOST_ROWS, PALETTE_BYTES, ScreenImage, Vga
from hvd.board.machine import Machine
from hvd.runner.directory import SCREEN, read_json, write_json


def keep(machine: Machine) -> None:
    """In the current directory, when the machine has ended."""
    image = machine.device(Vga).screen()
    if not any(image.cells):
        return
    document = {
        "columns": image.columns,
        "rows": image.rows,
        "cells": image.cells.hex(),
        "cursor": image.cursor,
        "palette": image.palette.hex(),
    }
    try:
        write_json(SCREEN, document)
    except OSError as error:  # a full disk must not hold up the guest's end
        print(f"the last screen was not kept: {error}", file=sys.stderr)


def read(directory: Path) -> ScreenImage | None:
    """None when there is none, or nothing that makes sense: what stands in a guest directory is not trusted."""
    document = read_json(os.path.join(directory, SCREEN))
    if document is None:
        return None
    try:
        columns, rows, cursor = document["columns"], document["rows"], document["cursor"]
        cells, palette = bytes.fromhex(document["cells"]), bytes.fromhex(document["palette"])
        sound = type(columns) is int and type(rows) is int and 0 < columns <= MOST_COLUMNS and 0 < rows <= MOST_ROWS
        if cursor is not None:
            row, column = cursor
            sound = sound and type(row) is int and type(column) is int and 0 <= row < rows and 0 <= column < columns
            cursor = (row, column)
        if not sound or len(cells) != 2 * columns * rows or len(palette) != PALETTE_BYTES:
            return None
    except (KeyError, TypeError, ValueError):
        return None
    return ScreenImage(columns, rows, cells, cursor, palette, "the guest has ended; this stood on its screen last")
