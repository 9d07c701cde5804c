"""Page tokens: what a client gives back to go on behind the last page (AIP-158). It is to make nothing of them."""

from __future__ import annotations

import base64
import binascii

from hvd.errors import HvdError


def encode_token(name: str) -> str:
    """The next page begins after this name."""
    return base64.urlsafe_b64encode(b"after:" + name.encode()).decode()


def decode_token(token: str) -> str:
    """The name; empty = from the beginning. Raises HvdError PAGE_TOKEN_INVALID."""
    if not token:
        return ""
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith("after:"):
        raise HvdError("PAGE_TOKEN_INVALID", token=token[:80])
    return text.removeprefix("after:")
