"""Which backend runs a guest: the one that was asked for, otherwise the best fitting one, and why.

Probing may take seconds and touches devices, so answers are kept: "it runs here" for good, "it does not" for a while,
so that what the remedy told people to do takes effect without restarting the daemon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hvd.backends.contract import Availability, Backend, Capability, EngineInfo, LaunchSpec
from hvd.errors import HvdError

# Ask an unavailable backend again after this long.
PROBE_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Probe:
    availability: Availability
    engines: Sequence[EngineInfo]
    time: float  # time.monotonic


@dataclass(frozen=True, slots=True)
class Placement:
    backend: Backend
    engine: str
    # Why this one, when the request left the choice open.
    reason: str


class Backends:
    """The backends of this build and what is known of them here."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = dict(sorted(backends.items(), key=lambda item: -item[1].preference))
        self._probes: dict[str, Probe] = {}
        self._locks = {name: asyncio.Lock() for name in backends}

    def all(self) -> list[Backend]:
        """The most preferred first."""
        return list(self._backends.values())

    @property
    def available(self) -> dict[str, bool]:
        """Which of them run here, as far as is known."""
        return {name: name in self._probes and self._probes[name].availability.available for name in self._backends}

    def get(self, name: str) -> Backend:
        """Raises HvdError BACKEND_UNKNOWN."""
        try:
            return self._backends[name]
        except KeyError:
            raise HvdError("BACKEND_UNKNOWN", backend=name[:80], known=", ".join(sorted(self._backends))) from None

    async def probe(self, backend: Backend) -> Probe:
        """What is known of it, asking it when that is nothing or stale."""
        async with self._locks[backend.name]:
            known = self._probes.get(backend.name)
            if known and (known.availability.available or time.monotonic() - known.time < PROBE_AGAIN_SECONDS):
                return known
            availability, engines = await asyncio.to_thread(lambda: (backend.probe(), backend.engines()))
            self._probes[backend.name] = probe = Probe(availability, engines, time.monotonic())
            return probe

    async def probe_all(self) -> None:
        await asyncio.gather(*map(self.probe, self.all()))

    async def _engine(self, backend: Backend, wanted: str) -> str:
        """The engine's name, empty for a backend that has but one way. Raises ENGINE_UNKNOWN, BACKEND_UNAVAILABLE."""
        probe = await self.probe(backend)
        if not probe.availability.available:
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend=backend.name,
                problem=probe.availability.reason,
                remedy=probe.availability.remedy,
            )
        if not wanted:
            fitting = [engine.name for engine in probe.engines if engine.availability.available]
            return fitting[0] if fitting else ""
        for engine in probe.engines:
            if engine.name == wanted:
                if not engine.availability.available:
                    raise HvdError(
                        "BACKEND_UNAVAILABLE",
                        backend=f"{backend.name} ({wanted})",
                        problem=engine.availability.reason,
                        remedy=engine.availability.remedy,
                    )
                return wanted
        known = ", ".join(engine.name for engine in probe.engines) or "but one way of executing"
        raise HvdError("ENGINE_UNKNOWN", backend=backend.name, engine=wanted[:80], known=known)

    async def place(self, wanted: str, engine: str, spec: LaunchSpec) -> Placement:
        """The backend for this guest.

        Raises HvdError BACKEND_UNKNOWN, BACKEND_UNAVAILABLE, ENGINE_UNKNOWN, NO_BACKEND_FITS, and whatever
        Backend.check finds.
        """
        if wanted:
            backend = self.get(wanted)
            chosen = await self._engine(backend, engine)
            await asyncio.to_thread(backend.check, replace(spec, engine=chosen))
            return Placement(backend, chosen, "")
        refusals: list[tuple[str, HvdError]] = []
        # Of machines a backend of containers has no opinion, and the other way round.
        sort = [each for each in self.all() if (Capability.CONTAINER in each.capabilities) == (spec.container is not None)]
        for backend in sort:
            try:
                chosen = await self._engine(backend, engine)
                await asyncio.to_thread(backend.check, replace(spec, engine=chosen))
            except HvdError as error:
                refusals.append((backend.name, error))
                continue
            passed_over = "".join(f"; not {name}: {error.message}" for name, error in refusals)
            return Placement(
                backend,
                chosen,
                f"the most preferred that can run this guest here{passed_over}",
            )
        # When all that run here say the same of the guest (a truncated kernel, say), that is the answer.
        checked = [error for _, error in refusals if error.reason != "BACKEND_UNAVAILABLE"]
        # What never can run such a guest has nothing to say beside what could, once what stands in its way is remedied.
        checked = [error for error in checked if error.reason != "CAPABILITY_MISSING"] or checked
        if checked and len({error.reason for error in checked}) == 1:
            raise checked[0]
        raise HvdError("NO_BACKEND_FITS", problems="; ".join(f"{name}: {error.message}" for name, error in refusals))
