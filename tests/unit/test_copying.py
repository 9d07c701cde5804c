"""Copies of guests' files that do not go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from hvd.backends.contract import Capability, CopyFound, Files
from hvd.errors import HvdError
from hvd.guests import copying


class FakeFiles(Files):
    def __init__(self) -> None:
        self.took: list[bytes] = []
        self.ended = False

    async def copy_in(self, path: str, place: bool, keep_owners: bool, chunks: AsyncIterator[bytes]) -> tuple[int, int]:
        try:
            async for chunk in chunks:
                self.took.append(chunk)
        finally:
            self.ended = True
        return len(self.took), 0

    async def copy_out(self, path: str, follow_link: bool) -> AsyncGenerator[CopyFound | bytes, None]:
        try:
            yield CopyFound("FILE", "x", 0, 0, "")
            while True:
                yield b"x"
        finally:
            self.ended = True


class FakeGuest:
    """Supervisor, guest and backend of one that runs."""

    name = "fake"
    is_alive = True
    capabilities = frozenset({Capability.COPY})

    def __init__(self) -> None:
        self.own = FakeFiles()
        self.backend = self

    def get(self, name: str) -> FakeGuest:
        return self

    def reachable(self, verb: str, capability: Capability) -> FakeGuest:
        return self

    def files(self) -> Files:
        return self.own


async def test_a_client_that_sends_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "STALL_SECONDS", 0.05)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    guest = FakeGuest()
    with pytest.raises(HvdError) as given_up:
        await copying.copy_in(guest, "guests/x", "/x", True, False, chunks())  # type: ignore[arg-type]
    assert given_up.value.reason == "COPY_STALLED" and guest.own.took == [b"one"] and guest.own.ended


async def test_a_client_that_takes_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "STALL_SECONDS", 0.05)
    guest = FakeGuest()
    copy = copying.copy_out(guest, "guests/x", "/x", False)  # type: ignore[arg-type]
    assert isinstance(await anext(copy), CopyFound)
    while not guest.own.ended:
        await asyncio.sleep(0.01)
    with pytest.raises(HvdError) as given_up:
        async for _ in copy:
            pass
    assert given_up.value.reason == "COPY_STALLED"


async def test_a_client_that_goes_ends_the_copy() -> None:
    guest = FakeGuest()
    copy = copying.copy_out(guest, "guests/x", "/x", False)  # type: ignore[arg-type]
    await anext(copy)
    await copy.aclose()
    assert guest.own.ended


async def test_a_guest_that_cannot() -> None:
    guest = FakeGuest()
    guest.capabilities = frozenset()  # type: ignore[misc]
    with pytest.raises(HvdError) as refused:
        async for _ in copying.copy_out(guest, "guests/x", "/x", False):  # type: ignore[arg-type]
            pass
    assert refused.value.reason == "CAPABILITY_MISSING"
