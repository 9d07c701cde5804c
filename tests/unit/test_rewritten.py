"""The cell's table of what was rewritten: nothing in it is believed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd.cell.rewritten import SITE, Replacement, Site, pack, sites, unpack, without
from hvd.runner import rewritten


def row(address: int, code: bytes, executions: int = 0, replacement: int = Replacement.CALLOUT) -> bytes:
    return SITE.pack(executions, address, replacement, len(code), code)


def test_rows() -> None:
    table = row(0x1000, b"\xf4", 7) + row(0x2000, b"\x0f\xa2", 2, Replacement.IN_LINE)
    assert list(sites(table)) == [
        Site(0x1000, b"\xf4", Replacement.CALLOUT, 7), Site(0x2000, b"\x0f\xa2", Replacement.IN_LINE, 2),
    ]  # fmt: skip
    assert [site.executions for site in sites(without(table, row(0x1000, b"\xf4", 5)))] == [2, 2]


@given(st.binary(max_size=2000))
def test_nonsense(table: bytes) -> None:
    for site in [*sites(table), *sites(without(table, table[::-1]))]:
        assert site.replacement in Replacement and 1 <= len(site.code) <= 15 and 0 <= site.executions < 2**63


def test_packed() -> None:
    table = b"".join(row(address * 7919, bytes([address % 251, address % 17])) for address in range(5000))
    packed, complete = pack(table, 1 << 20)
    assert complete and unpack(packed) == table
    packed, complete = pack(table, 5000)
    assert not complete and len(packed) <= 5000 and table.startswith(unpack(packed)) and unpack(packed)


@given(st.binary(max_size=100))
def test_packed_nonsense(packed: bytes) -> None:
    with contextlib.suppress(ValueError):
        unpack(packed)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"rewritten": 3, "blocks": 1, "pages": 1, "instructions": 1, "complete": true}',
     '{"rewritten": "AAAA", "blocks": 1, "pages": 1, "instructions": 1, "complete": true}',
     '{"rewritten": "", "blocks": -1, "pages": 1, "instructions": 1, "complete": true}', '{"rewritten": "eJwDAAAAAAE="}'],
)  # fmt: skip
def test_a_file_is_not_trusted(tmp_path: Path, text: str) -> None:
    (tmp_path / "census.json").write_text(text)
    assert rewritten.read(tmp_path) is None
