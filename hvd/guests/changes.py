"""Which fields of a guest an update names, and taking them over."""

from __future__ import annotations

from collections.abc import Sequence

from hvapi.v1 import guest_pb2

from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.model import Guest


def take(target: guest_pb2.Guest, source: guest_pb2.Guest, wanted: Sequence[model.Mutable]) -> None:
    """Put these fields of source into target."""
    for field in wanted:
        target.ClearField(field)
        target.MergeFrom(guest_pb2.Guest(**{field: getattr(source, field)}))


def asked_fields(asked: guest_pb2.Guest, paths: Sequence[str]) -> list[model.Mutable]:
    """Of an update mask; no paths = all changeable fields that are set. Raises HvdError FIELD_IMMUTABLE, FIELD_INVALID."""
    if not paths or list(paths) == ["*"]:
        return [
            field
            for field in model.MUTABLE
            if (asked.HasField(field) if field in ("restart_policy", "limits") else getattr(asked, field))
        ]
    for path in paths:
        if path in model.MUTABLE:
            continue
        if path.partition(".")[0] in Guest.DESCRIPTOR.fields_by_name:
            raise HvdError("FIELD_IMMUTABLE", field=path, mutable=", ".join(model.MUTABLE))
        raise HvdError(
            "FIELD_INVALID",
            field="update_mask",
            value=repr(path[:80]),
            problem="is no field of a guest",
            remedy=f"fields that can be changed: {', '.join(model.MUTABLE)}",
        )
    return [field for field in model.MUTABLE if field in paths]
