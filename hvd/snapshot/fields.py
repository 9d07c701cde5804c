"""`python -m hvd.snapshot.fields`: the C board's fields for docs/snapshots.md, out of the table that saves and restores them."""

from __future__ import annotations

from hvd.board.libhv import Field, fields


def _short(field: Field) -> str:
    name = field.name.rpartition(".")[2]
    count = f"[{field.count}]" if field.count > 1 else ""
    whole = (1 << field.bits) - 1
    limits = "" if (field.least, field.most) == (0, whole) else f" {field.least}-{field.most}"
    return f"{name}{count}{limits}"


def table() -> str:
    """Markdown: a line for each part of the board."""
    parts: dict[str, list[str]] = {}
    for field in fields():
        parts.setdefault(field.name.rpartition(".")[0], []).append(_short(field))
    return "\n".join(["| part | fields |", "|---|---|", *(f"| `{part}` | {', '.join(own)} |" for part, own in parts.items())])


if __name__ == "__main__":
    print(table())
