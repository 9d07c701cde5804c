"""What hvpvcc did to a kernel, and what it could not: for people, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hvd.hvpvcc.finish import Finished, Replacement
from hvd.hvpvcc.verify import Found, Verdict

_FORMS: Final = ("store", "thunk", "monitor", "")
_MOST: Final = 50  # lines of a list


def _found(found: Found) -> dict[str, Any]:
    return {"address": found.address, "section": found.section, "function": found.symbol, "instruction": found.text, "code": found.code.hex()}


def _replaced(each: Replacement, verdict: Verdict) -> dict[str, Any]:
    site = each.site
    row = {"address": site.address, "function": verdict.symbols.get(site.address, ""), "kind": site.kind.label, "code": site.code.hex()}
    row |= {"length": site.length, "form": each.form or "native"}
    return row | ({"why": each.why} if each.why else {})


def as_json(path: Path, verdict: Verdict, finished: Finished | None) -> str:
    replacements = finished.replacements if finished else ()
    return json.dumps(
        {
            "kernel": str(path),
            "good": verdict.good,
            "instructions": verdict.instructions,
            "sensitive": verdict.sensitive,
            "thunks": finished.thunks if finished else 0,
            "thunk_bytes": finished.thunk_bytes if finished else 0,
            "padding_bytes": sum(each.site.length - len(each.site.code) for each in replacements),
            "sites": [_replaced(each, verdict) for each in replacements],
            "missed": [_found(found) for found in verdict.missed],
            "allowed": [_found(found) for found in verdict.allowed],
            "wrong": [{"address": site.address, "kind": site.kind.label, "why": why} for site, why in verdict.wrong],
        },
        indent=1,
    )


def as_text(path: Path, verdict: Verdict, finished: Finished | None) -> str:
    return "\n".join(_lines(path, verdict, finished)) + "\n"


def _lines(path: Path, verdict: Verdict, finished: Finished | None) -> Iterator[str]:
    replacements = finished.replacements if finished else ()
    padding = sum(each.site.length - len(each.site.code) for each in replacements)
    yield f"{path}: {verdict.sensitive:,} of {verdict.instructions:,} instructions are sensitive"
    yield f"{len(replacements):,} sites with {padding:,} bytes of padding"
    if finished is not None:
        yield f"{finished.thunks} thunks of {finished.thunk_bytes:,} bytes; hypercall page at {finished.page:#x}"
    if replacements:
        yield ""
        yield f"{'INSTRUCTION':<18}{'SITES':>7}" + "".join(f"{form or 'native':>9}" for form in _FORMS)
        kinds = Counter(each.site.kind for each in replacements)
        forms = Counter((each.site.kind, each.form) for each in replacements)
        for kind, count in kinds.most_common():
            yield f"{kind.label:<18}{count:>7}" + "".join(f"{forms[kind, form] or '':>9}" for form in _FORMS)
        native = Counter(each.why for each in replacements if not each.form)
        yield from ("", "LEFT AS THEY ARE") if native else ()
        yield from (f"{count:>7}  {why}" for why, count in native.most_common())
    yield from _list("NO SITES, AND NEED NOT BE", verdict.allowed)
    yield from _list("MISSED", verdict.missed)
    if verdict.wrong:
        yield from ("", "RECORDS THAT ARE WRONG")
        yield from (f"  {site.address:#010x}  {site.kind.label}: {why}" for site, why in verdict.wrong[:_MOST])


def _list(title: str, found: tuple[Found, ...]) -> Iterator[str]:
    if not found:
        return
    yield from ("", f"{title}: {len(found)}")
    for (section, symbol, text), count in Counter((each.section, each.symbol, each.text) for each in found).most_common(_MOST):
        yield f"{count:>7}  {section}  {symbol}  {text}"
