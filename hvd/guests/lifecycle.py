"""The life of one guest: a state machine moved by verbs (start, stop, kill, ...) and by what its process tells.

Verbs are serialized by a lock per guest and idempotent. Each runs as a task of its own that the caller only waits for:
a client that goes away in the middle leaves no half state behind. How a guest ended always comes from its process (or
from its exit record); a verb that ends a guest asks for it and waits for that news like everybody else.

    STOPPED, FAILED, LOST --start--> STARTING --> RUNNING <--pause, resume--> PAUSED
    RUNNING, PAUSED --stop--> STOPPING --> STOPPED;  any of them --end--> STOPPED, FAILED, LOST --restart policy-->
    STARTING
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog
from hvapi.v1 import guest_pb2

from hvd.backends.contract import Backend, Capability, Instance, InstanceStatus, LaunchSpec
from hvd.errors import HvdError
from hvd.guests import adoption, conditions, records
from hvd.guests.adoption import first_status
from hvd.guests.containers import with_stdin
from hvd.guests.events import now, timestamp_of
from hvd.guests.host import Host
from hvd.guests.model import ALIVE, ENDED, Guest, State, copy_of, state_name
from hvd.guests.restart import is_on
from hvd.guests.restarting import PolicyRestarts
from hvd.guests.waiters import Waiters
from hvd.host_errors import known
from hvd.runner.directory import PID

log = structlog.get_logger()

GuestEvent = guest_pb2.GuestEvent
# A runner that was told to kill its guest gets so long to say that it did.
KILL_SECONDS = 10.0
# At the daemon's end, verbs under way get so long to finish.
CLOSE_SECONDS = 5.0
# What a verb changes in what a backend is told for a start.
Adapt = Callable[[LaunchSpec], LaunchSpec]


def unchanged(spec: LaunchSpec) -> LaunchSpec:
    return spec


_FINAL = frozenset({"STOPPED", "FAILED", "LOST"})


class GuestLife(PolicyRestarts):
    """One guest: its message (`guest`, always as it is now), its instance while it runs."""

    def __init__(self, guest: guest_pb2.Guest, host: Host, *, known: bool = True) -> None:
        """known: whether `guest` says how it is; otherwise adopt() finds out, and verbs wait for that."""
        super().__init__(guest, known)
        self.instance: Instance | None = None
        # Counts the runs seen by this daemon: a reader of the guest's files compares it to notice that they were made
        # anew.
        self.run = 0
        self._host = host
        self._ended = asyncio.Event()
        self._last_end: guest_pb2.Guest | None = None
        self._leaving = asyncio.Event()
        self.warned = asyncio.Event()  # there is something that viewers of its console should know (conditions)
        self._resets = 0
        self._follower: asyncio.Task[None] | None = None
        self._waiters = Waiters()

    @property
    def directory(self) -> Path:
        return self._host.directory(self.guest.uid)

    @property
    def backend(self) -> Backend:
        """Raises HvdError BACKEND_UNKNOWN: this build has it not."""
        return self._host.backend(self.guest.backend)

    @property
    def is_alive(self) -> bool:
        return self.guest.state in ALIVE

    # --- verbs ---

    async def start(self, paused: bool, attach_stdin: bool = False) -> None:
        """attach_stdin: of a container without a terminal, for this run. Raises HvdError GUEST_BUSY while it stops, and whatever
        keeps it from starting (it is FAILED then)."""

        async def work() -> None:
            async with self._exclusively():
                self._cancel_restart()
                if self.guest.state == Guest.STOPPING:
                    raise HvdError("GUEST_BUSY", verb="stop", name=self.guest.name)
                if self.is_alive:
                    return
                self.guest.restart_count = 0
                self._restarts.forget()
                await self._launch(paused, by_hand=True, adapt=with_stdin if attach_stdin else unchanged)

        await self._run(work())

    async def begin_from(
        self, make_ready: Callable[[], Awaitable[None]], adapt: Adapt, paused: bool, backend: str = "", engine: str = ""
    ) -> None:
        """End it if it runs, do make_ready() while it is stopped, and start it with what adapt makes of its LaunchSpec: by a
        snapshot. backend and engine: its new ones; empty = as they are. Raises as start() and kill() do, and what make_ready
        raises; it is stopped then."""

        async def work() -> None:
            async with self._exclusively():
                self._cancel_restart()
                await self._kill()
                await make_ready()
                if backend:
                    self.guest.backend, self.guest.engine = backend, engine
                self.guest.restart_count = 0
                self._restarts.forget()
                await self._launch(paused, by_hand=True, adapt=adapt)

        await self._run(work())

    async def stop(self, grace: float) -> None:
        """Ask it to end, kill it after `grace` seconds, or at once if it cannot hear."""

        async def work() -> None:
            async with self._exclusively():
                self._cancel_restart()
                if not self.is_alive:
                    return
                run = self.run
                heard = await self._ask_to_end()
            if heard:
                await self._ended_or_leaving(grace)
            async with self._exclusively():
                if self.run == run:
                    await self._kill()

        await self._run(work())

    async def kill(self) -> None:
        """End it at once; no error when it has ended. Raises HvdError RUNNER_TIMEOUT."""

        async def work() -> None:
            async with self._exclusively():
                self._cancel_restart()
                await self._kill()

        await self._run(work())

    async def pause(self) -> None:
        """Raises HvdError GUEST_WRONG_STATE, GUEST_BUSY, CAPABILITY_MISSING."""

        async def work() -> None:
            async with self._exclusively():
                if self.guest.state != Guest.PAUSED:
                    await self._running("pause", Capability.PAUSE).pause()
                    if self.guest.state == Guest.RUNNING:  # not ended meanwhile, nor told by its process already
                        self._move(Guest.PAUSED, "paused")

        await self._run(work())

    async def resume(self) -> None:
        """Raises HvdError GUEST_WRONG_STATE, GUEST_BUSY, CAPABILITY_MISSING."""

        async def work() -> None:
            async with self._exclusively():
                if self.guest.state != Guest.RUNNING:
                    await self._running("resume", Capability.PAUSE).resume()
                    if self.guest.state == Guest.PAUSED:
                        self._move(Guest.RUNNING, "resumed")

        await self._run(work())

    async def reset(self) -> None:
        """Raises HvdError GUEST_WRONG_STATE, GUEST_BUSY, CAPABILITY_MISSING."""

        async def work() -> None:
            async with self._exclusively():
                await self._running("reset", Capability.RESET).reset()

        await self._run(work())

    async def delete(self, force: bool, etag: str) -> None:
        """Raises HvdError GUEST_WRONG_STATE unless it has ended or force is given; ETAG_MISMATCH, DISK_FULL."""

        async def work() -> None:
            async with self._exclusively():
                if etag and etag != self.guest.etag:
                    raise HvdError("ETAG_MISMATCH", name=self.guest.name)
                if self.is_alive and not force:
                    raise HvdError(
                        "GUEST_WRONG_STATE", name=self.guest.name, state=state_name(self.guest), verb="delete",
                        needed="STOPPED, FAILED or LOST", remedy="stop it first, or delete with --force",
                    )  # fmt: skip
                self._cancel_restart()
                await self._kill()
                await self._host.forget(self)
                self.deleted = True
                await self._host.remove(self.guest.uid)
                self._host.changed(self, GuestEvent.DELETED, "deleted")
                self._waiters.fail(HvdError("GUEST_NOT_FOUND", name=self.guest.name))

        await self._run(work())

    def update(self, message: str = "updated") -> None:
        """What was asked for has been changed (by the supervisor)."""
        if not is_on(self.guest.restart_policy):
            self._cancel_restart()
        self._host.changed(self, GuestEvent.CHANGED, message)

    async def wait(self, states: frozenset[int], timeout: float | None) -> guest_pb2.Guest:
        """The guest when it is (or was, however shortly, from now on) in one of the states.

        Raises HvdError WAIT_TIMED_OUT, and GUEST_NOT_FOUND when it is deleted meanwhile.
        """
        if self.guest.state in states:
            return self.guest
        try:
            return await self._waiters.wait(states, timeout)
        except TimeoutError:
            state = state_name(self.guest)
            raise HvdError("WAIT_TIMED_OUT", name=self.guest.name, state=state, seconds=timeout) from None

    async def end_of(self, run: int, seconds: float) -> guest_pb2.Guest | None:
        """The guest as it was when that run ended, waiting for it; None = it has not ended within so many seconds."""
        if self.run == run:
            try:
                await asyncio.wait_for(self._ended.wait(), seconds)
            except TimeoutError:
                return None
        return self._last_end

    def reachable(self, verb: str, capability: Capability) -> Instance:
        """The instance, for looking into the guest. Raises HvdError GUEST_WRONG_STATE, CAPABILITY_MISSING."""
        backend = self.backend
        if capability not in backend.capabilities:
            raise HvdError("CAPABILITY_MISSING", backend=backend.name, capability=capability.value)
        if not self.is_known:
            raise HvdError("GUEST_BUSY", verb="adoption", name=self.guest.name)
        if self.instance is None:
            raise HvdError(
                "GUEST_WRONG_STATE",
                name=self.guest.name,
                state=state_name(self.guest),
                verb=verb,
                needed="RUNNING or PAUSED",
                remedy=f"`hvctl start {self.guest.name.removeprefix('guests/')}` first",
            )
        return self.instance

    # --- adoption and farewell ---

    async def adopt(self, last_boot: str) -> None:
        """At the daemon's start: find out what became of the guest while no daemon was there. Never raises."""
        try:
            await self._adopt(last_boot)
        finally:
            self._known.set()

    async def _adopt(self, last_boot: str) -> None:
        was = self.guest.state
        self._asked_to_end = was == Guest.STOPPING
        try:
            found = await adoption.find_out(self.guest, self.directory, self.backend, last_boot)
        except Exception as error:  # one odd guest never stops the daemon
            log.exception("guest could not be adopted", guest=self.guest.name)
            if was not in ALIVE:
                return
            found = adoption.Found(status=InstanceStatus("LOST", "INTERNAL", f"adopting it failed: {error!r}"))
        if found.instance is not None and found.status is not None:
            self._follow(found.instance, found.status, "adopted")
            if was == Guest.STOPPING:
                self._spawn(self.stop(self._host.stop_grace))
        elif found.status is not None:
            self._end(found.status, found.time_ns)
        elif conditions.has(self.guest, conditions.RESTART_PENDING):
            self._schedule_restart()

    def leave(self) -> None:
        """The daemon is about to go: nobody waits for this guest any more."""
        self._leaving.set()

    async def close(self) -> None:
        """The daemon goes, the guest stays. A start under way is seen through, if it is quick."""
        self.leave()
        self._cancel_restart(keep_condition=True)
        if self._verbs:
            await asyncio.wait(self._verbs, timeout=CLOSE_SECONDS)
        tasks = [task for task in (self._follower, *self._verbs) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.instance is not None:
            await self.instance.close()
            self.instance = None

    # --- inside ---

    async def _ended_or_leaving(self, seconds: float) -> None:
        """Raises HvdError SHUTTING_DOWN when the daemon goes first: the next one finds the guest STOPPING and finishes
        it.
        """
        waits = [asyncio.create_task(event.wait()) for event in (self._ended, self._leaving)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._leaving.is_set() and not self._ended.is_set():
            raise HvdError("SHUTTING_DOWN")

    def _running(self, verb: str, capability: Capability) -> Instance:
        if self.guest.state == Guest.STOPPING:
            raise HvdError("GUEST_BUSY", verb="stop", name=self.guest.name)
        return self.reachable(verb, capability)

    async def _launch(self, paused: bool, by_hand: bool, adapt: Adapt = unchanged) -> None:
        """Under the lock. The policy retries its own starts that fail, not those that somebody is told about."""
        backend = self.backend
        if await self._readopt(backend):
            return
        for field in ("exit_code", "end_time"):
            self.guest.ClearField(field)
        self._asked_to_end = False
        conditions.clear(self.guest, conditions.RESTART_PENDING, conditions.RESTART_GIVEN_UP, conditions.LOG_LOSING)
        conditions.clear(self.guest, *conditions.WARNINGS)
        self.warned.clear()
        self.guest.start_time.CopyFrom(now())
        self._move(Guest.STARTING, "starting")
        self._ended.clear()
        try:
            spec = adapt(self._host.resolve(self.guest, paused))
            # Known before there is a process: should the daemon die now, the next one looks for it.
            await asyncio.gather(self._host.keep(self), self._prepare_directory())
            spec = replace(spec, traced=self._host.trace.before_launch(self.directory))
            self.run += 1  # only now: whoever sees it finds nothing of the run before
            async with self._host.plugged(self.guest, spec) as plugged:
                instance = await backend.launch(plugged, self.directory)
            status = instance.started or await first_status(instance)
        except Exception as error:
            self._asked_to_end = by_hand
            problem = known(error)
            self._end(InstanceStatus("FAILED", problem.reason, str(problem), metadata=problem.metadata), 0)
            raise
        self._follow(instance, status, "started")
        if status.state in _FINAL:
            await self._ended.wait()

    async def _prepare_directory(self) -> None:
        """Raises HvdError DISK_FULL, OSError."""
        if self._host.take_blank(self.guest):
            records.prepare_directory(self.directory, self.guest, blank=True)  # one small file: a thread would take longer
        else:
            await asyncio.to_thread(records.prepare_directory, self.directory, self.guest)

    async def _readopt(self, backend: Backend) -> bool:
        """A LOST guest's runner may live after all: one guest must never run twice."""
        process = await asyncio.to_thread(records.read_process, self.directory) if (self.directory / PID).exists() else None
        if process is None or not records.is_living(process) or records.read_exit(self.directory):
            return False
        try:
            found = await adoption.adopt_instance(backend, self.directory)
        except HvdError as error:
            raise HvdError(
                "GUEST_WRONG_STATE",
                name=self.guest.name,
                state=state_name(self.guest),
                verb="start",
                needed=f"an end of its old runner (process {process.pid}, which does not answer: {error.message})",
                remedy="`hvctl kill` ends it",
            ) from error
        if found.instance is not None and found.status is not None:
            self.run += 1  # it was thought to have ended
            self._follow(found.instance, found.status, "found again")
        return True

    def _follow(self, instance: Instance, status: InstanceStatus, message: str) -> None:
        self.instance = instance
        self._ended.clear()
        self._resets = status.resets
        self._restarts.begin()
        try:
            self._host.trace.begin(self.directory, instance.trace)
        except OSError as error:  # it runs, and is watched, whether or not it is traced
            log.error("trace cannot be switched on", guest=self.guest.name, problem=str(error))
        self.guest.host_pid = instance.pid
        for fact, value in instance.facts.items():
            setattr(self.guest, fact, value)
        if not status.debugged:  # one that an earlier daemon let in has left with it
            conditions.clear(self.guest, conditions.DEBUGGED)
        if status.state not in _FINAL:
            conditions.put_warnings(self.guest, status)
            self._warn()
            if self.guest.state in ENDED:  # adopted although it was thought lost
                for field in ("exit_code", "end_time"):
                    self.guest.ClearField(field)
            state = self.guest.state if self.guest.state == Guest.STOPPING else State.Value(status.state)
            self._move(state, message)
        self._follower = asyncio.create_task(self._follow_until_end(instance, status))

    async def _follow_until_end(self, instance: Instance, status: InstanceStatus) -> None:
        try:
            while status.state not in _FINAL:
                status = await instance.wait_change(status)
                self._observe(status)
        except Exception as error:
            # It promised not to raise: a bug, but the guest's state must say something true.
            log.exception("watching a guest failed", guest=self.guest.name)
            status = InstanceStatus("LOST", "INTERNAL", f"watching it failed: {error!r}; `hvctl kill` ends its runner")
        record = await asyncio.to_thread(records.read_exit, self.directory)
        self.instance = None
        try:
            self._host.trace.end(self.directory)
        except OSError as error:
            log.error("trace cannot be ended", guest=self.guest.name, problem=str(error))
        self._end(status, record.time_ns if record else 0)
        await instance.close()

    def _observe(self, status: InstanceStatus) -> None:
        if status.state in _FINAL:
            return
        for message in conditions.observe(self.guest, status):
            self._host.changed(self, GuestEvent.CHANGED, message)
        self._warn()
        if status.resets != self._resets:
            self._resets = status.resets
            self._host.changed(self, GuestEvent.CHANGED, f"reset ({status.resets} since its start)")
        state = State.Value(status.state)
        if self.guest.state not in (state, Guest.STOPPING):
            self._move(state, status.state.lower())

    def _warn(self) -> None:
        if conditions.warning(self.guest):
            self.warned.set()

    def _move(self, state: guest_pb2.Guest.State.ValueType, message: str, reason: str = "", explanation: str = "") -> None:
        self.guest.state = state
        self.guest.reason = reason
        self.guest.status_message = explanation
        self._host.changed(self, GuestEvent.CHANGED, message)
        self._waiters.reached(self.guest)

    def _end(self, status: InstanceStatus, time_ns: int) -> None:
        guest = self.guest
        guest.host_pid = guest.monitor_pid = 0
        guest.exit_signal = (status.metadata or {}).get("exit_signal", "")
        guest.oom_killed = "oom_killed" in (status.metadata or {})
        conditions.clear(guest, conditions.DEBUGGED)
        for message in conditions.observe_end(guest, status):
            self._host.changed(self, GuestEvent.CHANGED, message)
        guest.end_time.CopyFrom(timestamp_of(time_ns) if time_ns else now())
        guest.ClearField("exit_code")
        if status.state == "STOPPED":
            guest.exit_code = status.exit_code or 0
        restart = self._wants_restart(status)
        reason = status.reason or status.state
        self._move(State.Value(status.state), f"ended: {reason}", reason, status.message)
        self._last_end = copy_of(guest)
        self._ended.set()
        if restart:
            self._schedule_restart()

    async def _ask_to_end(self) -> bool:
        """True = it heard, and gets its grace. Under the lock."""
        instance = self.instance
        self._asked_to_end = True
        if instance is None:
            return False
        was = self.guest.state
        heard = True
        if was != Guest.STOPPING:
            try:
                if was == Guest.PAUSED:
                    await instance.resume()  # a guest that stands still hears no power button
                heard = Capability.STOP in self.backend.capabilities and await instance.request_stop()
            except HvdError as error:
                log.info("guest cannot be asked to end", guest=self.guest.name, reason=error.reason)
                heard = False
            if self.guest.state in ENDED:
                return False
            self._move(Guest.STOPPING, "stopping")
        return heard

    async def _kill(self) -> None:
        """Under the lock."""
        self._asked_to_end = True
        if self.instance is None:
            # LOST: its runner may still live.
            process = await asyncio.to_thread(records.read_process, self.directory)
            if self.guest.state == Guest.LOST and process is not None:
                await asyncio.to_thread(records.kill_process, process)
            return
        await self.instance.kill()
        if await self.end_of(self.run, KILL_SECONDS) is None:
            raise HvdError("RUNNER_TIMEOUT", call="kill", seconds=KILL_SECONDS)
