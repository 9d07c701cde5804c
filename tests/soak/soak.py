"""The soak: random verbs on random guests of every backend, checked against the model, while the daemon is killed at random moments.

Each worker has guests of its own, so that what it expects of them depends on nobody else; the daemon serves them all at once. What the
soak did is counted in a Report.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import leaks
from hvapi.v1 import guest_pb2
from hvctl.sdk import Client, HvctlError
from real_daemon import RealDaemon, is_process, kernel, wait_for
from soak_model import ALIVE, FAILED, STARTING, STOPPED, STOPPING, Kind, Model

from hvd.guests.supervisor import BLANK

State = guest_pb2.Guest.State
MEMORY = 4 << 20
GUESTS_A_WORKER = 5
# A call that has no answer by then is a failure, on whatever machine.
CALL_SECONDS = 60.0
# A worker that has not got further by then stands still: longer than any call, and what it waits for on its own.
STANDSTILL_SECONDS = 2 * CALL_SECONDS
# The daemon is away: the call may have been carried out or not.
AWAY = frozenset({"UNAVAILABLE", "CANCELLED"})
KINDS = (
    Kind("emulation", "ticker.elf", ticks=True),
    Kind("emulation", "echo.elf"),
    Kind("emulation", "ticker.elf", ("count=4",), exit_code=0, ticks=True),
    Kind("emulation", "ticker.elf", restarts=True, ticks=True),
    Kind("trap", "ticker.elf", ticks=True),
    Kind("trap", "ticker.elf", restarts=True, ticks=True),
    Kind("rewriting", "ticker.elf", ticks=True),
    Kind("rewriting", "ticker.elf", ("count=4",), exit_code=0, ticks=True),
    Kind("paravirt", "ticker.pv.elf", ticks=True),
    Kind("paravirt", "ticker.pv.elf", restarts=True, ticks=True),
    Kind("container", "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done", ticks=True),
    Kind("container", "sleep 0.5; exit 3", exit_code=3),
)
# Files and folders of the daemon's own that come when they are needed first, and stay.
FRAMEWORK = ("-wal", "-shm", ".sqlite", "/lock", "/snapshots-incoming", "/guests", "/guests/.runtime", "/.runtime/runc", "/.runtime/crun")
NO_SNAPSHOT_NOW = frozenset({"GUEST_WRONG_STATE", "NAME_TAKEN", "GUEST_BUSY", "SNAPSHOT_NOT_FOUND", "SNAPSHOT_FAILED"})


@dataclass
class Report:
    verbs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    daemon_kills: int = 0
    process_kills: int = 0
    cut_short: int = 0
    guests: int = 0
    looks: int = 0
    survived: int = 0  # guests found running as before after a kill of the daemon, all kills together
    ticks: int = 0
    seconds: float = 0.0
    restart_seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # resident bytes of the daemon, at the end of each life

    def text(self) -> str:
        worst = max(self.restart_seconds, default=0.0)
        verbs = ", ".join(f"{verb} {count}" for verb, count in sorted(self.verbs.items()))
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(self.refused.items()))
        return (
            f"{self.seconds:.0f} s, {sum(self.verbs.values())} verbs on {self.guests} guests ({verbs}; refused as they must be: {refused}), "
            f"{self.daemon_kills} kills of the daemon ({self.cut_short} verbs under way, {self.survived} guests found running as before, "
            f"slowest return {worst:.1f} s), {self.process_kills} kills of guests' processes, {self.looks} looks, {self.ticks} ticks in logs"
        )


class Soak:
    """One run against one daemon. rootfs: of the containers; None = none."""

    def __init__(self, daemon: RealDaemon, seed: int, rootfs: Path | None, backends: set[str], workers: int = 4) -> None:
        self.daemon, self.seed = daemon, seed
        self.report = Report()
        self.kinds = [kind for kind in KINDS if kind.backend in backends and (rootfs or not kind.is_container)]
        if rootfs is not None:
            daemon.ok("image", "import", "soak", str(rootfs))
        # One guest of each, so that every blob, template and cache is there before anything is counted.
        with Client(daemon.endpoint, timeout=CALL_SECONDS) as client:
            self.digests = {kind.program: client.upload_file(Path(kernel(kind.program))) for kind in self.kinds if not kind.is_container}
        self.files = leaks.files_below(daemon.state_dir, daemon.runtime_dir)
        self.uids: set[str] = set()
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.up = threading.Event()
        self.up.set()
        self.lost = False  # the daemon was killed and does not come back
        self.lock = threading.Lock()
        self.number = itertools.count()
        self.life = 0  # of the daemon: how often it was started anew
        self.workers = [Worker(self, random.Random(f"{seed}/{number}")) for number in range(workers)]
        self.orphans = leaks.orphan_cells()

    def run(self, seconds: float, kills: int | None = None, pause: tuple[float, float] = (0.1, 3.0)) -> Report:
        """For so long, or until the daemon was killed so often. Raises what a worker found first."""
        chance = random.Random(f"{self.seed}/killer")
        began = time.monotonic()
        threads = [threading.Thread(target=worker.run, name=f"soak-{number}", daemon=True) for number, worker in enumerate(self.workers)]
        for thread in threads:
            thread.start()
        try:
            while not self.failures and time.monotonic() - began < seconds and (kills is None or self.report.daemon_kills < kills):
                if self.stop.wait(chance.uniform(*pause)):
                    break
                self._all_move(threads)
                if kills != 0:
                    self._kill_daemon()
        except BaseException:
            self.lost = True
            raise
        finally:
            self.stop.set()
            self.up.set()
            for thread in threads:
                while thread.is_alive():
                    thread.join(1.0)
                    self._all_move(threads)
        self.report.seconds = time.monotonic() - began
        if self.failures:
            raise self.failures[0]
        return self.report

    def _all_move(self, threads: list[threading.Thread]) -> None:
        """Raises AssertionError with what a worker waits for that stands still."""
        frames = sys._current_frames()
        for thread, worker in zip(threads, self.workers, strict=True):
            seconds = time.monotonic() - worker.moved
            if thread.is_alive() and seconds > STANDSTILL_SECONDS:
                where = "".join(traceback.format_stack(frames.get(thread.ident or 0)))
                raise AssertionError(f"{thread.name} stands still for {seconds:.0f} s in {worker.verb}:\n{where}\n{self.daemon.log()[-3000:]}")

    def _kill_daemon(self) -> None:
        daemon = self.daemon
        self.report.memory.append(leaks.resident_bytes(daemon.pid))
        self.up.clear()
        daemon.stop(signal.SIGKILL)
        began = time.monotonic()
        daemon.start()
        self.report.restart_seconds.append(time.monotonic() - began)
        self.report.daemon_kills += 1
        self.life += 1
        self.up.set()

    def check_nothing_is_left(self) -> None:
        """After every guest was deleted."""
        daemon = self.daemon
        with daemon.client() as client:
            for guest in client.guests():
                client.delete_guest(name=guest.name, force=True, allow_missing=True)
            findings = [finding.message for finding in client.get_info().findings if "left alone" in finding.message]
        assert not findings, findings

        def left() -> list[object]:
            templates = _children(daemon.pid)
            mine = leaks.processes_below(daemon.directory) - {daemon.pid} - templates - {spare for pid in templates for spare in _children(pid)}
            files = leaks.files_below(daemon.state_dir, daemon.runtime_dir) - self.files
            files = {file for file in files if not file.endswith(FRAMEWORK) and f"/{BLANK}" not in file}  # those for the next guests
            return [*mine, *sorted(files), *leaks.mounts_below(daemon.directory), *leaks.groups_of(self.uids),
                    *(leaks.orphan_cells() - self.orphans), *leaks.named_after(self.uids)]  # fmt: skip

        wait_for(lambda: not left(), lambda: f"nothing is left: {left()}")
        assert leaks.descriptors(daemon.pid)["/memfd:"] == 0, leaks.descriptors(daemon.pid)


def _children(pid: int) -> set[int]:
    """Of a daemon templates, above all, and of each of those spares: they end with the daemon."""
    found = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ended has none
        for task in Path(f"/proc/{pid}/task").iterdir():
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


class Worker:
    def __init__(self, soak: Soak, chance: random.Random) -> None:
        self.soak, self.chance = soak, chance
        self.models: dict[str, Model] = {}
        self.life = 0
        self.client = Client(soak.daemon.endpoint, timeout=CALL_SECONDS)
        # What it does, and since when.
        self.verb, self.moved = "", time.monotonic()

    # --- the loop ---

    def run(self) -> None:
        try:
            while not self.soak.stop.is_set():
                self._step()
            self._look_at_all()
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            self.soak.failures.append(error)
            self.soak.stop.set()
        finally:
            self.client.close()

    def _step(self) -> None:
        if self.life != self.soak.life:
            self.life = self.soak.life
            self._look_at_all()
        if len(self.models) < GUESTS_A_WORKER:
            self._create()
            return
        model = self.chance.choice(list(self.models.values()))
        self._look(model)
        if model.exists and not model.states & {STOPPING, STARTING}:
            self._do(model, model.choose(self.chance))
        elif model.exists:
            self._settle(model)

    def _call(self, verb: str, call: Callable[[], Any]) -> tuple[str, Any]:
        """("ok", answer), ("refused", reason), ("away", None)"""
        self.verb, self.moved = verb, time.monotonic()
        try:
            answer = call()
        except HvctlError as error:
            self.moved = time.monotonic()
            if error.code in AWAY and error.reason != "SHUTTING_DOWN":
                if self.soak.lost:
                    raise
                self.soak.report.cut_short += 1
                self.soak.up.wait(CALL_SECONDS)
                return "away", None
            with self.soak.lock:
                self.soak.report.refused[error.reason] += 1
            return "refused", error.reason
        self.moved = time.monotonic()
        with self.soak.lock:
            self.soak.report.verbs[verb] += 1
        return "ok", answer

    # --- looking ---

    def _get(self, model: Model) -> guest_pb2.Guest | None:
        while True:
            how, answer = self._call("get", lambda: self.client.get_guest(name=f"guests/{model.name}"))
            if how == "ok":
                return answer
            if how == "refused":
                assert answer == "GUEST_NOT_FOUND", answer
                return None

    def _look(self, model: Model) -> None:
        self._compare(model, self._get(model))

    def _compare(self, model: Model, guest: guest_pb2.Guest | None) -> None:
        self.soak.report.looks += 1
        if guest is None:
            assert model.exists is not True, f"{model.name} is lost: its creation was acknowledged"
            self._gone(model)
            return
        assert model.exists is not False, f"{model.name} is there though its deletion was acknowledged"
        assert model.uid in ("", guest.uid), f"{model.name} is another guest now"
        model.exists, model.uid = True, guest.uid
        self.soak.uids.add(guest.uid)
        was = model.run
        model.seen(State.Name(guest.state), guest.reason, guest.exit_code, (guest.host_pid, str(guest.start_time)))
        if was is not None and was == model.run:
            self.soak.report.survived += model.deaths_survived != self.soak.life
        model.deaths_survived = self.soak.life

    def _look_at_all(self) -> None:
        """Completeness: every guest whose creation was answered is there, as it must be."""
        while True:
            how, found = self._call("list", lambda: {guest.name.removeprefix("guests/"): guest for guest in self.client.guests()})
            if how == "ok":
                break
            assert how == "away", found
        for model in list(self.models.values()):
            guest = found.get(model.name)
            self._compare(model, guest)

    def _settle(self, model: Model) -> None:
        """A stop that was cut short is finished by the next daemon."""
        states = [State.RUNNING, State.PAUSED, State.STOPPED, State.FAILED]
        how, answer = self._call("wait", lambda: self.client.wait_guest(name=f"guests/{model.name}", states=states, timeout=CALL_SECONDS))
        assert how != "refused", f"{model.name}: {answer}"
        if how == "ok":
            self._look(model)

    def _gone(self, model: Model) -> None:
        self.models.pop(model.name, None)

    # --- verbs ---

    def _create(self) -> None:
        kind = self.chance.choice(self.soak.kinds)
        with self.soak.lock:
            name = f"s{next(self.soak.number)}"
            self.soak.report.guests += 1
        guest = guest_pb2.Guest(backend=kind.backend)
        if kind.is_container:
            guest.image = "soak"
            guest.container.command.extend(["sh", "-c", kind.program])
        else:
            guest.machine.kernel, guest.machine.memory_bytes = self.soak.digests[kind.program], MEMORY
            guest.machine.args.extend(kind.args)
            if self.chance.random() < 0.3:
                guest.machine.disks.add(size_bytes=1 << 20)
        if kind.restarts:
            guest.restart_policy.mode = guest_pb2.RestartPolicy.ON_FAILURE
        request = guest_pb2.CreateGuestRequest(guest_id=name, guest=guest, request_id=str(uuid.uuid4()))
        model = self.models[name] = Model(name, kind)
        while True:
            how, answer = self._call("create", lambda: self.client.create_guest(request))
            if how == "ok":
                model.uid = answer.uid
                self.soak.uids.add(answer.uid)
                self._do(model, "start")
                return
            assert how == "away", f"{name}: creation was refused: {answer}"
            model.exists = None
            if self.chance.random() < 0.3:  # it is not asked for again: it may be there or not
                self._look(model)
                return

    def _do(self, model: Model, verb: str) -> None:
        name = f"guests/{model.name}"
        client = self.client
        calls: dict[str, Callable[[], Any]] = {
            "start": lambda: client.start_guest(name=name),
            "pause": lambda: client.pause_guest(name=name),
            "resume": lambda: client.resume_guest(name=name),
            "reset": lambda: client.reset_guest(name=name),
            "stop": lambda: client.stop_guest(name=name, grace_period={"nanos": 200_000_000}),
            "kill": lambda: client.kill_guest(name=name),
        }
        if verb in calls:
            if verb in ("reset",):
                model.gaps = True
            self._finish(model, verb, self._call(verb, calls[verb]))
        else:
            getattr(self, "_" + verb.replace("-", "_"))(model, name)

    def _finish(self, model: Model, verb: str, outcome: tuple[str, Any]) -> None:
        how, answer = outcome
        if how == "ok":
            model.done(verb)
        elif how == "away":
            model.cut_short(verb)
        elif model.kind.restarts and answer == "GUEST_WRONG_STATE":  # it is being started again just now
            return
        else:
            model.refused(verb, answer)

    def _delete(self, model: Model, name: str) -> None:
        self._deleted(model, self._call("delete", lambda: self.client.delete_guest(name=name)))

    def _delete_force(self, model: Model, name: str) -> None:
        self._deleted(model, self._call("delete", lambda: self.client.delete_guest(name=name, force=True)), force=True)

    def _deleted(self, model: Model, outcome: tuple[str, Any], force: bool = False) -> None:
        how, answer = outcome
        if how == "ok":
            assert force or model.states - ALIVE, f"{model.name} was deleted while it was {model.states}"
            model.exists = False
            assert self._get(model) is None, f"{model.name} is there though its deletion was answered"
            self._gone(model)
        elif how == "away":
            model.exists = None
            if force:
                model.cut_short("kill")
                model.states.add(FAILED)  # its container or runner was ended, and nobody was there to say why
        else:
            assert answer == "GUEST_WRONG_STATE" and not force and model.states & (ALIVE | {STARTING}), f"{model.name}: {answer}"

    def _crash(self, model: Model, name: str) -> None:
        """kill -9 of what owns it: runner, cell, or a container's monitor."""
        guest = self._get(model)
        if guest is None or State.Name(guest.state) not in ALIVE or not guest.host_pid:
            return
        pid = guest.monitor_pid if model.kind.is_container else guest.host_pid
        if model.kind.backend in ("trap", "rewriting") and self.chance.random() < 0.5:
            pid = next(iter(_children(guest.host_pid)), pid) if is_process(guest.host_pid) else pid
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself
            return
        with self.soak.lock:
            self.soak.report.process_kills += 1
        model.cut_short("crash")

        def shown() -> bool:  # by itself: nobody touches the guest
            now = self._get(model)
            return now is None or State.Name(now.state) not in ALIVE or now.host_pid != guest.host_pid

        wait_for(shown, f"{model.name}'s end is seen after process {pid} of {State.Name(guest.state)} {guest.host_pid} was killed", CALL_SECONDS)

    def _logs(self, model: Model, name: str) -> None:
        def call() -> bytes:
            answers = self.client.get_logs(name=name, timeout=CALL_SECONDS)
            return b"".join(line.text for answer in answers for line in answer.lines)

        how, log = self._call("logs", call)
        if how == "ok" and model.kind.ticks:
            self.soak.report.ticks += model.check_log(log)

    def _memory(self, model: Model, name: str) -> None:
        how, answer = self._call(
            "memory", lambda: list(self.client.read_memory(name=name, address=0x100000, length=4096, timeout=CALL_SECONDS))
        )
        assert how != "refused" or answer in ("GUEST_WRONG_STATE", "RUNNER_GONE"), answer

    def _registers(self, model: Model, name: str) -> None:
        how, answer = self._call("registers", lambda: self.client.get_registers(name=name))
        assert how != "refused" or answer in ("GUEST_WRONG_STATE", "RUNNER_GONE"), answer

    def _snapshot(self, model: Model, name: str) -> None:
        identifier = self.chance.choice(("one", "two"))
        how, answer = self._call(
            "snapshot", lambda: self.client.snapshot_guest(name=name, snapshot_id=identifier, timeout=CALL_SECONDS)
        )
        if how == "ok":
            model.snapshots.add(identifier)
        elif how == "refused":
            assert answer in NO_SNAPSHOT_NOW | {"RUNNER_GONE"}, f"{model.name}: {answer}"

    def _restore(self, model: Model, name: str) -> None:
        identifier = self.chance.choice(sorted(model.snapshots))
        model.gaps = True
        how, answer = self._call("restore", lambda: self.client.restore_guest(snapshot=f"{name}/snapshots/{identifier}", timeout=CALL_SECONDS))
        if how == "refused":
            raise AssertionError(f"{model.name}: restore was refused with {answer}")
        self._finish(model, "restore", (how, answer))
        if how == "ok":  # as it was when it was taken
            model.states |= ALIVE
        else:
            model.states |= ALIVE | {STOPPED}

    def _exec(self, model: Model, name: str) -> None:
        def call() -> bytes:
            with self.client.execute(guest_pb2.ExecSetup(name=name, command=["echo", "here"]), timeout=CALL_SECONDS) as execution:
                return b"".join(data for _, data in execution)

        how, answer = self._call("exec", call)
        if how == "ok":
            assert answer in (b"here\n", b""), answer
        elif how == "refused":
            assert answer in ("GUEST_WRONG_STATE", "RUNNER_GONE", "CONTAINER_FAILED", "EXEC_FAILED", "CANCELLED"), f"{model.name}: {answer}"

    def _copy(self, model: Model, name: str) -> None:
        how, answer = self._call(
            "copy",
            lambda: b"".join(answer.chunk for answer in self.client.copy_out(name=name, path="/etc/passwd", timeout=CALL_SECONDS)),
        )
        assert how != "refused" or answer in ("GUEST_WRONG_STATE", "RUNNER_GONE", "GUEST_BUSY", "COPY_REFUSED"), f"{model.name}: {answer}"
