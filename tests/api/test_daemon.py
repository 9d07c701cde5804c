"""The daemon as a whole: restarts and adoption, roles, errors, sockets, a full disk, the process itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hvapi.v1 import guest_pb2, system_pb2

from hvd.api import errors, roles
from hvd.errors import REASONS, HvdError
from hvd.guests import adoption
from hvd.guests.supervisor import Supervisor
from hvd.runner import directory as names
from tests.api.conftest import StartWorld, World, refused, stop
from tests.fakes.backend import FakeBackend
from tests.free_port import free_port

Guest = guest_pb2.Guest


# --- restarts ---


async def test_guests_outlive_the_daemon(start_world: StartWorld) -> None:
    first = await start_world()
    running, paused = await first.run("running"), await first.run("paused", labels={"a": "b"})
    await first.guests.PauseGuest(guest_pb2.PauseGuestRequest(name=paused.name))
    ended_away, gone_away, stopped = await first.run("ended"), await first.run("gone"), await first.create("stopped")
    await stop(first)
    fakes = first.backend.guests
    assert all(fake.process.poll() is None for fake in fakes.values())
    await fakes[ended_away.uid].end("EXITED", 5)
    await fakes[gone_away.uid].crash()
    second = await start_world(first.backend)
    found = {name: await second.get(guest) for name, guest in {
        "running": running, "paused": paused, "ended": ended_away, "gone": gone_away, "stopped": stopped}.items()}  # fmt: skip
    assert found["running"].state == Guest.RUNNING and found["running"].host_pid == running.host_pid
    assert found["running"].start_time == running.start_time
    assert found["paused"].state == Guest.PAUSED and dict(found["paused"].labels) == {"a": "b"}
    assert (found["ended"].state, found["ended"].reason, found["ended"].exit_code) == (Guest.STOPPED, "EXITED", 5)
    assert (found["gone"].state, found["gone"].reason) == (Guest.FAILED, "RUNNER_CRASHED")
    assert found["stopped"].state == Guest.STOPPED
    await second.guests.ResumeGuest(guest_pb2.ResumeGuestRequest(name=paused.name))
    await fakes[running.uid].end("POWEROFF")
    assert (await second.wait(running)).reason == "POWEROFF"
    assert first.backend.launches == 4
    await stop(second)
    third = await start_world(first.backend)
    assert (await third.get(ended_away)).exit_code == 5


async def test_daemon_that_died_without_a_word(start_world: StartWorld) -> None:
    """Its store may be behind what runs: the runtime directory is the truth."""
    first = await start_world()
    guest = await first.create()
    await first.daemon.store.close()  # from now on nothing is kept, as if it had been killed
    await first.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    await first.channel.close()
    with pytest.raises(HvdError):
        await first.daemon.supervisor._store.put([guest])
    first.stopped = True  # type: ignore[attr-defined]
    await first.daemon.server.stop()
    first.daemon.supervisor._behind._writer.cancel()  # type: ignore[union-attr]
    second = await start_world(first.backend)
    assert (await second.get(guest)).state == Guest.RUNNING


async def test_lost_store_is_made_up_for_by_the_runtime_directory(start_world: StartWorld, tmp_path: Path) -> None:
    first = await start_world()
    guest = await first.run("survivor", labels={"keep": "me"})
    await stop(first)
    for file in (tmp_path / "state").glob("hvd.sqlite*"):
        file.unlink()
    second = await start_world(first.backend)
    found = await second.get(guest)
    assert (found.state, found.uid, dict(found.labels)) == (Guest.RUNNING, guest.uid, {"keep": "me"})


async def test_odd_guests_never_stop_the_daemon(start_world: StartWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "ADOPT_SECONDS", 1.0)
    first = await start_world()
    hung, torn, good = await first.run("hung"), await first.run("torn"), await first.run("good")
    other = await first.run("other-backend")
    await stop(first)
    (tmp_path / "run/guests" / torn.uid / names.PID).write_text('{"pid": ')
    (tmp_path / "run/guests" / torn.uid / names.EXIT).write_text("[]")
    (tmp_path / "run/guests/nonsense").mkdir()
    (tmp_path / "run/guests/stray.deleted").mkdir()
    import sqlite3

    with sqlite3.connect(tmp_path / "state/hvd.sqlite") as db:
        db.execute("INSERT INTO guests VALUES ('u', 'guests/garbled', X'ffffff')")
        body = Guest.FromString(db.execute("SELECT message FROM guests WHERE uid = ?", (other.uid,)).fetchone()[0])
        body.backend = "of-yesterday"
        db.execute("UPDATE guests SET message = ? WHERE uid = ?", (body.SerializeToString(), other.uid))
    db.close()

    class Backend(FakeBackend):
        async def adopt(self, directory: Path) -> Any:
            if directory.name == hung.uid:
                await asyncio.sleep(3600)
            return await super().adopt(directory)

    backend = Backend()
    backend.guests = first.backend.guests
    began = time.monotonic()
    second = await start_world(backend)
    assert time.monotonic() - began < 60
    assert (await second.get(good)).state == Guest.RUNNING
    found = await second.get(hung)
    assert (found.state, found.reason) == (Guest.LOST, "RUNNER_TIMEOUT")
    assert (await second.get(torn)).state == Guest.LOST
    assert (await second.get(other)).state == Guest.LOST
    assert not (tmp_path / "run/guests/stray.deleted").exists()
    info = await second.system.GetInfo(system_pb2.GetInfoRequest())
    problems = [finding.message for finding in info.findings if finding.level == system_pb2.Finding.PROBLEM]
    assert any("garbled" in problem for problem in problems) and any("nonsense" in problem for problem in problems)
    # It must not run twice: start is refused while the old process lives, kill ends it.
    error = await refused(second.guests.StartGuest(guest_pb2.StartGuestRequest(name=hung.name)))
    assert error.reason == "GUEST_WRONG_STATE" and "hvctl kill" in error.help
    await second.guests.KillGuest(guest_pb2.KillGuestRequest(name=hung.name))
    assert backend.guests[hung.uid].process.wait(60) == -signal.SIGKILL
    started = await second.guests.StartGuest(guest_pb2.StartGuestRequest(name=hung.name))
    assert started.state == Guest.RUNNING


async def test_guests_of_an_earlier_boot_are_lost(start_world: StartWorld, tmp_path: Path) -> None:
    first = await start_world()
    guest = await first.run()
    policy = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ALWAYS)
    kept_up = await first.run("b", restart_policy=policy)
    await stop(first)
    for each in (guest, kept_up):
        await first.backend.guests.pop(each.uid).crash()
        file = tmp_path / "run/guests" / each.uid / names.PID
        file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "another"}))
    second = await start_world(first.backend)
    found = await second.get(guest)
    assert (found.state, found.reason) == (Guest.LOST, "HOST_REBOOTED")
    assert (await second.wait(kept_up, Guest.RUNNING)).restart_count == 1


async def test_stop_that_the_daemons_end_cut_short_is_finished_by_the_next(start_world: StartWorld) -> None:
    first = await start_world(stop_grace=0.2)
    guest = await first.run(append="stubborn")
    request = guest_pb2.StopGuestRequest(name=guest.name)
    request.grace_period.seconds = 60
    stopping = asyncio.ensure_future(first.guests.StopGuest(request))
    await first.wait(guest, Guest.STOPPING)
    began = time.monotonic()
    closing = asyncio.create_task(first.daemon.close())
    assert (await refused(stopping)).reason == "SHUTTING_DOWN"
    await closing
    assert time.monotonic() - began < 30  # not the grace period
    first.stopped = True  # type: ignore[attr-defined]
    second = await start_world(first.backend, stop_grace=0.2)
    assert (await second.wait(guest)).reason == "KILLED"


async def test_start_under_way_is_seen_through(start_world: StartWorld) -> None:
    first = await start_world()
    guest = await first.create(append="slow=0.5")
    starting = asyncio.ensure_future(first.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name)))
    await first.wait(guest, Guest.STARTING)
    await first.daemon.close()
    first.stopped = True  # type: ignore[attr-defined]
    assert (await starting).state == Guest.RUNNING
    second = await start_world(first.backend)
    assert (await second.get(guest)).state == Guest.RUNNING and first.backend.launches == 1


async def test_fifty_guests_are_adopted_at_once(start_world: StartWorld) -> None:
    first = await start_world()
    guests = await asyncio.gather(*(first.run(f"g{number}") for number in range(50)))
    await stop(first)
    under_way, all_of_them = 0, asyncio.Event()

    class Backend(FakeBackend):
        async def adopt(self, directory: Path) -> Any:
            """None is adopted until all are under way."""
            nonlocal under_way
            under_way += 1
            if under_way == len(guests):
                all_of_them.set()
            await all_of_them.wait()
            return await super().adopt(directory)

    backend = Backend()
    backend.guests = first.backend.guests
    second = await start_world(backend)
    listed = await second.guests.ListGuests(guest_pb2.ListGuestsRequest())
    assert [guest.state for guest in listed.guests] == [Guest.RUNNING] * 50
    assert {guest.uid for guest in listed.guests} == {guest.uid for guest in guests}


async def test_a_guest_that_is_made_while_others_are_adopted_is_left_alone(start_world: StartWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon serves before: what it makes and starts itself must not be called off as a start that an earlier one died in."""
    made: list[guest_pb2.Guest] = []

    async def meanwhile(supervisor: Supervisor) -> None:
        request = guest_pb2.CreateGuestRequest(guest_id="new", guest=Guest(backend="fake"))
        request.guest.machine.kernel = kernel
        made.append(await supervisor.create(request))
        made[0].state = Guest.STARTING

    world = await start_world()
    kernel, backend = world.kernel, world.backend
    await stop(world)
    monkeypatch.setattr(Supervisor, "_adopt_strangers", meanwhile)
    world = await start_world(backend)
    assert (await world.get(made[0])).state == Guest.STARTING
    assert not world.daemon.supervisor.oddities


# --- errors, roles, health ---


async def test_full_disk_is_told_and_survived(start_world: StartWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd.guests.write_behind.STORE_AGAIN_SECONDS", 0.1)
    world = await start_world()
    guest = await world.create("a")
    full = "PRAGMA max_page_count=1"  # sqlite raises it to what is used: no further page can be had
    run = world.daemon.store._run
    await run(lambda: world.daemon.store._db().execute(full).fetchone())
    big = {f"label{number}": "x" * 1000 for number in range(60)}
    error = await refused(world.create("b", labels=big))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
    assert error.metadata["directory"] == str(world.config.state_dir)
    asked = guest_pb2.UpdateGuestRequest(guest=Guest(name=guest.name, labels=big))
    assert (await refused(world.guests.UpdateGuest(asked))).reason == "DISK_FULL"
    assert not (await world.get(guest)).labels
    # What is merely observed goes on, is told by doctor, and is kept once there is room.
    with pytest.MonkeyPatch.context() as patch:
        put = world.daemon.store.put

        async def refuse(guests: Any) -> None:
            raise HvdError("DISK_FULL", directory="/state", what="the store")

        patch.setattr(world.daemon.store, "put", refuse)
        assert (await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))).state == Guest.RUNNING
        await finding_of_the_store(world, True)
        patch.setattr(world.daemon.store, "put", put)
        await finding_of_the_store(world, False)
    await run(lambda: world.daemon.store._db().execute("PRAGMA max_page_count=1000000").fetchone())
    assert (await world.daemon.store.load()).guests[0].state == Guest.RUNNING
    await world.create("b", labels=big)


async def test_a_start_is_kept_once_before_it_is_one(start_world: StartWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await start_world()
    guest = await world.create("a")
    await asyncio.sleep(0.2)  # what was written behind
    written: list[int] = []
    put, launch = world.daemon.store.put, world.backend.launch

    async def write(guests: Any) -> None:
        states = [guest.state for guest in guests]
        await put(guests)
        written.extend(states)

    async def begin(*arguments: Any) -> Any:
        await asyncio.sleep(0.2)
        assert written == [Guest.STARTING]
        return await launch(*arguments)

    monkeypatch.setattr(world.daemon.store, "put", write)
    monkeypatch.setattr(world.backend, "launch", begin)
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    async with asyncio.timeout(60):
        while written != [Guest.STARTING, Guest.RUNNING]:
            await asyncio.sleep(0.02)


async def test_what_was_to_be_kept_for_one_that_was_called_off_is_written_behind(start_world: StartWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await start_world()
    await world.create("a")
    begun, behind = asyncio.Event(), asyncio.Event()

    async def write(guests: Any) -> None:
        names = [guest.name for guest in guests]
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        if names == ["guests/a"]:
            behind.set()

    supervisor = world.daemon.supervisor
    monkeypatch.setattr(world.daemon.store, "put", write)
    keeping = asyncio.ensure_future(supervisor.keep(supervisor.get("guests/a")))
    async with asyncio.timeout(60):
        await begun.wait()
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
        await behind.wait()


async def finding_of_the_store(world: World, wanted: bool) -> None:
    """Wait until doctor finds something about it, or nothing any more."""
    async with asyncio.timeout(60):
        while True:
            info = await world.system.GetInfo(system_pb2.GetInfoRequest())
            if any(finding.subject == "store" for finding in info.findings) == wanted:
                return
            await asyncio.sleep(0.02)


async def test_unexpected_exceptions_are_internal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.daemon.supervisor, "page", lambda *_: 1 / 0)
    error = await refused(world.guests.ListGuests(guest_pb2.ListGuestsRequest()))
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL") and "ZeroDivisionError" in error.metadata["problem"]
    await world.create()


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_error_makes_a_status(reason: str) -> None:
    import string

    entry = REASONS[reason]
    fields = {name for text in (entry.message, entry.help) for _, name, _, _ in string.Formatter().parse(text) if name}
    error = HvdError(reason, **dict.fromkeys(fields, "ä" * 5000))
    status = errors.to_status(error)
    assert len(status.SerializeToString()) < 8192 + 1024 * 10
    assert errors._status_code(status.code).name == entry.code
    assert len(reason) <= 63 and entry.help


async def test_roles(world: World) -> None:
    guest = await world.create()
    allowed: dict[str, set[str]] = {}
    for role, name in roles.SOCKETS.items():
        async with grpc.aio.insecure_channel(world.socket(name)) as channel:
            other = World(world.config, world.backend, world.daemon, channel, world.kernel)
            calls = {
                "list": other.guests.ListGuests(guest_pb2.ListGuestsRequest()),
                "start": other.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name)),
                "info": other.system.GetInfo(system_pb2.GetInfoRequest()),
            }
            for verb, call in calls.items():
                try:
                    await call
                    allowed.setdefault(role, set()).add(verb)
                except grpc.aio.AioRpcError as error:
                    assert error.code() == grpc.StatusCode.PERMISSION_DENIED and role in (error.details() or "")
    everything = {"list", "start", "info"}
    assert allowed == {
        "admin": everything,
        "operate": everything,
        "view": everything - {"start"},
        "trace": everything - {"start"},
    }


async def test_viewers_look_but_do_not_type(world: World) -> None:
    guest = await world.run()
    async with grpc.aio.insecure_channel(world.socket("hvd-view.sock")) as channel:
        other = World(world.config, world.backend, world.daemon, channel, world.kernel)
        for read_only in (True, False):
            call = other.guests.AttachConsole()
            await call.write(guest_pb2.AttachConsoleRequest(setup={"name": guest.name, "read_only": read_only}))
            if read_only:
                assert (await call.read()).WhichOneof("frame") == "attached"
                call.cancel()
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_every_method_has_a_permission() -> None:
    from hvapi.v1 import image_pb2, inspect_pb2, metrics_pb2, trace_pb2

    for module in (guest_pb2, image_pb2, inspect_pb2, metrics_pb2, system_pb2, trace_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"/{service.full_name}/{method.name}" in roles.METHODS
    assert roles.permission_of("/hvd.v1.GuestService/Unknown") is roles.Permission.ADMIN


def certificates(directory: Path) -> None:
    """A certificate authority, the daemon's certificate, and clients with and without a role."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    names = {"server": "IP:127.0.0.1", "admin": "URI:hvd:role:admin", "plain": "DNS:client"}
    for name, alternative in names.items():
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (directory / "extensions").write_text(f"subjectAltName={alternative}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", "extensions", "-out", f"{name}.pem")  # fmt: skip


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command to make certificates")
async def test_tcp_takes_clients_with_certificates_in_their_role(start_world: StartWorld, tmp_path: Path) -> None:
    certificates(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    world = await start_world(
        listen=(f"unix://{tmp_path / 'run/hvd.sock'}", address),
        tls_cert=tmp_path / "server.pem", tls_key=tmp_path / "server.key", tls_client_ca=tmp_path / "ca.pem",
    )  # fmt: skip
    guest = await world.create()
    start = guest_pb2.StartGuestRequest(name=guest.name)
    codes = {}
    for client in ("admin", "plain", "none"):
        key, chain = (
            (tmp_path / f"{client}{ending}").read_bytes() if client != "none" else None for ending in (".key", ".pem")
        )
        credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes(), key, chain)
        async with grpc.aio.secure_channel(address, credentials) as channel:
            other = World(world.config, world.backend, world.daemon, channel, world.kernel)
            try:
                await other.guests.StartGuest(start, timeout=60)
                codes[client] = "OK"
            except grpc.aio.AioRpcError as error:
                codes[client] = error.code().name
    assert codes == {"admin": "OK", "plain": "PERMISSION_DENIED", "none": "UNAVAILABLE"}


async def test_metrics_are_served_where_info_says(start_world: StartWorld) -> None:
    world = await start_world(metrics_listen="127.0.0.1:0")
    await world.run("counted")
    info = await world.system.GetInfo(system_pb2.GetInfoRequest())
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(info.metrics_address, timeout=60).read().decode())
    assert 'hvd_guest_info{backend="fake",guest="counted"' in page
    assert 'hvd_operation_duration_seconds_count{code="OK",method="hvd.v1.GuestService/StartGuest"} 1.0' in page


def test_roles_of_certificates() -> None:
    for alternative_names, role in (
        ([], "view"), ([b"example.org"], "view"), ([b"hvd:role:king"], "view"), ([b"a", b"hvd:role:admin"], "admin"),
        ([b"hvd:role:admin", b"hvd:role:trace"], "trace"),
    ):  # fmt: skip
        assert roles.role_of_certificate({"x509_subject_alternative_name": alternative_names}) == role


async def test_health_and_reflection(world: World) -> None:
    health: Any = health_pb2_grpc.HealthStub(world.channel)
    for service in ("", "hvd.v1.GuestService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(world.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in reflection.ServerReflectionInfo(iter([asked])):
        listed = {service.name for service in answer.list_services_response.service}
        assert "hvd.v1.GuestService" in listed and "grpc.health.v1.Health" in listed
        break
    unknown = world.channel.unary_unary("/hvd.v1.GuestService/Dance")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unknown(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_not_serving_until_guests_are_adopted(start_world: StartWorld) -> None:
    first = await start_world()
    await first.run()
    await stop(first)
    gate = asyncio.Event()

    class Backend(FakeBackend):
        async def adopt(self, directory: Path) -> Any:
            await gate.wait()
            return await super().adopt(directory)

    backend = Backend()
    backend.guests = first.backend.guests
    starting = asyncio.create_task(start_world(backend))
    async with grpc.aio.insecure_channel(first.socket()) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest()
        answer = await health.Check(asked, wait_for_ready=True, timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.set()
        await starting
        assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING


async def test_info_and_backends(world: World) -> None:
    info = await world.system.GetInfo(system_pb2.GetInfoRequest())
    assert (
        info.pid == os.getpid() and info.host_memory_bytes > 1 << 26 and info.state_dir == str(world.config.state_dir)
    )
    assert "backend fake" in {finding.subject for finding in info.findings}
    (backend,) = (await world.system.ListBackends(system_pb2.ListBackendsRequest())).backends
    assert (backend.name, backend.available, [engine.available for engine in backend.engines]) == (
        "backends/fake",
        True,
        [True, False],
    )
    assert world.backend.probes == 1
