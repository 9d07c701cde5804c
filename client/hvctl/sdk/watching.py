"""When a watch breaks off: whether to go on, from where and after how long. No input or output, so that both clients
share it."""

from __future__ import annotations

from collections.abc import Sequence

from hvapi.v1 import guest_pb2

from hvctl.sdk.errors import HvctlError

FIRST_DELAY = 0.1
LONGEST_DELAY = 2.0
# The daemon went away for a moment, or gave us up because we read too slowly: events are kept, so nothing is lost.
_RESUMABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


class Resume:
    """The state of one watch across its connections."""

    def __init__(self, names: Sequence[str], changes_only: bool) -> None:
        self._request = guest_pb2.WatchGuestsRequest(names=names, changes_only=changes_only)
        self._delay = FIRST_DELAY
        self._connected = False

    def request(self) -> guest_pb2.WatchGuestsRequest:
        """What to ask for now."""
        request = guest_pb2.WatchGuestsRequest()
        request.CopyFrom(self._request)
        return request

    def saw(self, event: guest_pb2.GuestEvent) -> None:
        self._connected = True
        self._delay = FIRST_DELAY
        if event.resume_token:
            self._request.resume_token = event.resume_token

    def delay_after(self, error: HvctlError) -> float:
        """Seconds to wait before asking again. Raises the error when asking again is no use."""
        if error.code == "OUT_OF_RANGE" and self._request.resume_token:
            # Too long away: the daemon no longer has what happened since. The present comes anew, so that nothing
            # stays unnoticed.
            self._request.resume_token = ""
            self._request.changes_only = False
            return 0.0
        if error.code not in _RESUMABLE or not self._connected:
            raise error
        delay = self._delay
        self._delay = min(delay * 2, LONGEST_DELAY)
        return delay
