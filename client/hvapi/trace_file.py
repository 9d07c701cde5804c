"""Files of trace blocks, as the daemon's sessions and `-o records` write them: MAGIC, then messages, each behind its length (a varint)."""

from __future__ import annotations

import io
from typing import Final

from google.protobuf import proto

from hvapi.v1 import trace_pb2

MAGIC: Final = b"HVDTRACE1\n"
# No message of a daemon is larger; a longer one is damage.
MOST_BYTES: Final = 16 << 20


def framed(block: trace_pb2.StreamTraceResponse) -> bytes:
    """A block as it stands in a file."""
    data = io.BytesIO()
    proto.serialize_length_prefixed(block, data)
    return data.getvalue()
