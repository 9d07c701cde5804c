"""Verbs, states and ends of guests over the API."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest
from hvapi.v1 import guest_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd.runner import directory as names
from tests.api.conftest import StartWorld, World, refused
from tests.fakes.backend import FakeBackend

Guest = guest_pb2.Guest


def request(world: World, name: str, **machine: object) -> guest_pb2.CreateGuestRequest:
    made = guest_pb2.CreateGuestRequest(guest_id=name)
    made.guest.machine.CopyFrom(guest_pb2.MachineConfig(kernel=world.kernel, **machine))
    return made


async def test_life_of_a_guest(world: World) -> None:
    guest = await world.create("web-1", labels={"tier": "front"})
    assert (guest.name, guest.state, guest.backend, guest.engine) == ("guests/web-1", Guest.STOPPED, "fake", "plain")
    assert guest.uid and guest.etag and guest.backend_reason and "pause" in guest.capabilities
    assert guest.machine.memory_bytes == 128 << 20 and guest.machine.cpus == 1
    name = guest.name
    running = await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=name))
    assert running.state == Guest.RUNNING and running.host_pid and running.start_time.seconds
    assert (await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=name))).host_pid == running.host_pid
    assert world.backend.launches == 1
    for _ in range(2):
        assert (await world.guests.PauseGuest(guest_pb2.PauseGuestRequest(name=name))).state == Guest.PAUSED
    for _ in range(2):
        assert (await world.guests.ResumeGuest(guest_pb2.ResumeGuestRequest(name=name))).state == Guest.RUNNING
    await world.guests.ResetGuest(guest_pb2.ResetGuestRequest(name=name))
    assert world.fake(guest).status.resets == 1
    for _ in range(2):
        stopped = await world.guests.StopGuest(guest_pb2.StopGuestRequest(name=name))
        assert (stopped.state, stopped.reason, stopped.exit_code, stopped.host_pid) == (Guest.STOPPED, "POWEROFF", 0, 0)
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=name))
    assert not world.daemon.supervisor.directory(guest.uid).exists()
    assert (await refused(world.get(guest))).reason == "GUEST_NOT_FOUND"
    assert (await refused(world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=name)))).code == "NOT_FOUND"
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=name, allow_missing=True))


@pytest.mark.parametrize(("reason", "state"), [item for item in names.ENDS.items() if item[0] != "RUNNER_CRASHED"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_how_ends_map_to_states(world: World, reason: str, state: str, at_once: bool) -> None:
    code = 3 if reason == "EXITED" else None
    guest = await world.run(append=f"end={reason}:3" if at_once and code else f"end={reason}" if at_once else "")
    if not at_once:
        await world.fake(guest).end(reason, code)
    ended = await world.wait(guest)
    assert (Guest.State.Name(ended.state), ended.reason) == (state, reason)
    assert ended.HasField("exit_code") == (state == "STOPPED")
    assert ended.exit_code == (code or 0)
    assert 0 < ended.start_time.ToNanoseconds() <= ended.end_time.ToNanoseconds()


async def test_runner_crash_has_failed_and_startable(world: World) -> None:
    guest = await world.run()
    await world.fake(guest).crash()
    failed = await world.wait(guest)
    assert (failed.state, failed.reason) == (Guest.FAILED, "RUNNER_CRASHED")
    assert (await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))).state == Guest.RUNNING


@pytest.mark.parametrize(("script", "least"), [("deaf", 0.0), ("stubborn", 0.3)])
async def test_stop_kills_what_does_not_end(world: World, script: str, least: float) -> None:
    guest = await world.run(append=script)
    began = asyncio.get_running_loop().time()
    stop = guest_pb2.StopGuestRequest(name=guest.name)
    stop.grace_period.FromMilliseconds(300)
    stopped = await world.guests.StopGuest(stop)
    assert (stopped.state, stopped.reason) == (Guest.STOPPED, "KILLED")
    assert least <= asyncio.get_running_loop().time() - began < 30


async def test_kill_cuts_a_stop_short_and_busy_verbs_are_refused(world: World) -> None:
    guest = await world.run(append="stubborn")
    stop = guest_pb2.StopGuestRequest(name=guest.name)
    stop.grace_period.seconds = 60
    stopping = asyncio.ensure_future(world.guests.StopGuest(stop))
    await world.wait(guest, Guest.STOPPING)
    for call in (
        world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name)),
        world.guests.PauseGuest(guest_pb2.PauseGuestRequest(name=guest.name)),
    ):
        busy = await refused(call)
        assert (busy.code, busy.reason) == ("ABORTED", "GUEST_BUSY")
    assert (await world.guests.KillGuest(guest_pb2.KillGuestRequest(name=guest.name))).reason == "KILLED"
    assert (await asyncio.wait_for(stopping, 50)).state == Guest.STOPPED


async def test_client_that_leaves_in_the_middle_of_a_verb(world: World) -> None:
    guest = await world.create(append="held")
    starting = world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    await world.wait(guest, Guest.STARTING)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert (await world.get(guest)).state == Guest.STARTING
    world.backend.go_on.set()
    assert (await world.wait(guest, Guest.RUNNING)).host_pid
    assert world.backend.launches == 1


async def test_parallel_starts_launch_once(world: World) -> None:
    guest = await world.create(append="slow=0.1")
    start = guest_pb2.StartGuestRequest(name=guest.name)
    answers = await asyncio.gather(*(world.guests.StartGuest(start) for _ in range(10)))
    assert {answer.state for answer in answers} == {Guest.RUNNING}
    assert world.backend.launches == 1


async def test_failed_start_says_why_in_error_and_state(world: World) -> None:
    guest = await world.create(append="refuse=RUNNER_START_FAILED")
    error = await refused(world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name)))
    assert (error.code, error.reason, error.metadata["problem"]) == ("INTERNAL", "RUNNER_START_FAILED", "scripted")
    failed = await world.get(guest)
    assert (failed.state, failed.reason) == (Guest.FAILED, "RUNNER_START_FAILED")
    assert "scripted" in failed.status_message


async def test_wrong_states(world: World) -> None:
    guest = await world.create()
    for call in (
        world.guests.PauseGuest(guest_pb2.PauseGuestRequest(name=guest.name)),
        world.guests.ResetGuest(guest_pb2.ResetGuestRequest(name=guest.name)),
    ):
        error = await refused(call)
        assert (error.code, error.reason, error.metadata["state"]) == (
            "FAILED_PRECONDITION",
            "GUEST_WRONG_STATE",
            "STOPPED",
        )
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    error = await refused(world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name)))
    assert error.reason == "GUEST_WRONG_STATE"
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name, force=True))
    assert world.fake(guest).process.poll() is not None


async def test_start_paused(world: World) -> None:
    guest = await world.create()
    paused = await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name, paused=True))
    assert paused.state == Guest.PAUSED


async def test_request_id(world: World) -> None:
    asked = request(world, "a")
    asked.request_id = str(uuid.uuid4())
    first, again = await asyncio.gather(world.guests.CreateGuest(asked), world.guests.CreateGuest(asked))
    assert first.uid == again.uid
    asked.guest.labels["x"] = "y"
    assert (await refused(world.guests.CreateGuest(asked))).reason == "REQUEST_ID_REUSED"
    asked.request_id = "me again"
    assert (await refused(world.guests.CreateGuest(asked))).reason == "FIELD_INVALID"
    unnamed = request(world, "")
    unnamed.request_id = str(uuid.uuid4())
    made = [await world.guests.CreateGuest(unnamed) for _ in range(2)]
    assert made[0].name == made[1].name


@pytest.mark.parametrize("name", ["A", "a" * 64, "a/b", "../x", "-a", "a-", "a b", "ä", "a\n", "."])
async def test_bad_names(world: World, name: str) -> None:
    error = await refused(world.guests.CreateGuest(request(world, name)))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "NAME_INVALID")


async def test_name_taken(world: World) -> None:
    await world.create("a")
    error = await refused(world.create("a"))
    assert (error.code, error.reason, error.metadata["name"]) == ("ALREADY_EXISTS", "NAME_TAKEN", "a")
    assert error.help in error.message


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        (1, "MEMORY_TOO_SMALL"),
        (-4096, "MEMORY_TOO_SMALL"),
        ((1 << 20) + 1, "MEMORY_ALIGNMENT"),
        (1 << 60, "MEMORY_TOO_LARGE"),
    ],
)
async def test_bad_memory(world: World, memory: int, reason: str) -> None:
    error = await refused(world.guests.CreateGuest(request(world, "a", memory_bytes=memory)))
    assert (error.reason, error.metadata["memory"]) == (reason, str(memory))


async def test_other_bad_requests(world: World) -> None:
    blob = "sha256:" + "0" * 64
    for asked, reason in (
        (guest_pb2.CreateGuestRequest(guest_id="a"), "KERNEL_MISSING"),
        (guest_pb2.CreateGuestRequest(guest_id="a", guest=Guest(machine={"kernel": blob})), "BLOB_NOT_FOUND"),
        (
            guest_pb2.CreateGuestRequest(guest_id="a", guest=Guest(machine={"kernel": "../../etc/passwd"})),
            "DIGEST_INVALID",
        ),
        (guest_pb2.CreateGuestRequest(guest_id="a", guest=Guest(image="images/none")), "IMAGE_NOT_FOUND"),
        (request(world, "a", cpus=-1), "FIELD_INVALID"),
        (request(world, "a", append="x\0y"), "FIELD_INVALID"),
    ):
        assert (await refused(world.guests.CreateGuest(asked))).reason == reason
    for backend, engine, reason in (
        ("vax", "", "BACKEND_UNKNOWN"),
        ("", "warp", "ENGINE_UNKNOWN"),
        ("fake", "broken", "BACKEND_UNAVAILABLE"),
    ):
        asked = request(world, "a")
        asked.guest.backend, asked.guest.engine = backend, engine
        assert (await refused(world.guests.CreateGuest(asked))).reason == reason
    assert not list(world.daemon.supervisor)


async def test_limit_and_validate_only(start_world: StartWorld) -> None:
    world = await start_world(max_guests=1)
    dry = request(world, "a")
    dry.validate_only = True
    assert (await world.guests.CreateGuest(dry)).backend == "fake"
    await world.create("a")
    assert (await refused(world.guests.CreateGuest(dry))).reason == "NAME_TAKEN"
    assert (await refused(world.create("b"))).reason == "TOO_MANY_GUESTS"


async def test_backend_choice(start_world: StartWorld) -> None:
    from hvd.backends.contract import Availability

    away = FakeBackend(name="away", preference=9, available=Availability(False, "no /dev/fast", "load the module"))
    picky = FakeBackend(name="picky", preference=5)
    picky.refuse_all = "IMAGE_FORMAT"
    world = await start_world(others=(away, picky))
    guest = await world.create("a")
    assert guest.backend == "fake"
    assert "away" in guest.backend_reason and "/dev/fast" in guest.backend_reason and "picky" in guest.backend_reason
    world.backend.refuse_all = "IMAGE_FORMAT"
    assert (await refused(world.create("b"))).reason == "IMAGE_FORMAT"
    world.backend.available = Availability(False, "gone", "bring it back")
    error = await refused(world.create("b", backend="away"))
    assert (error.reason, error.metadata["remedy"]) == ("BACKEND_UNAVAILABLE", "load the module")


async def test_update(world: World) -> None:
    guest = await world.create(labels={"a": "1"})

    def update(paths: list[str], **fields: object) -> object:
        asked = guest_pb2.UpdateGuestRequest(guest=Guest(name=guest.name, **fields))
        asked.update_mask.paths.extend(paths)
        return world.guests.UpdateGuest(asked)

    changed = await update(["labels"], labels={"b": "2"}, on_reset=Guest.RESTART)
    assert dict(changed.labels) == {"b": "2"} and changed.on_reset == Guest.STOP and changed.etag != guest.etag
    assert (await update([], on_reset=Guest.RESTART)).on_reset == Guest.RESTART
    assert dict((await update(["labels"])).labels) == {}
    assert (await refused(update(["machine.memory_bytes"]))).reason == "FIELD_IMMUTABLE"
    assert (await refused(update(["colour"]))).reason == "FIELD_INVALID"
    assert (await refused(update(["labels"], labels={"": "x"}))).reason == "FIELD_INVALID"
    assert (await refused(update(["labels"], etag=guest.etag))).reason == "ETAG_MISMATCH"


async def test_pages_and_labels(world: World) -> None:
    for number in range(7):
        await world.create(f"g{number}", labels={"odd": str(number % 2)})
    found, token = [], ""
    while True:
        page = await world.guests.ListGuests(guest_pb2.ListGuestsRequest(page_size=3, page_token=token))
        found += [guest.name for guest in page.guests]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"guests/g{number}" for number in range(7)]
    odd = await world.guests.ListGuests(guest_pb2.ListGuestsRequest(labels={"odd": "1"}))
    assert [guest.name for guest in odd.guests] == ["guests/g1", "guests/g3", "guests/g5"]
    for token in ("x", "YWZ0ZXI", "ä", "eA=="):
        error = await refused(world.guests.ListGuests(guest_pb2.ListGuestsRequest(page_token=token)))
        assert error.reason == "PAGE_TOKEN_INVALID"


async def test_wait(world: World) -> None:
    guest = await world.run()
    error = await refused(world.wait(guest, Guest.PAUSED, seconds=0))
    assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "WAIT_TIMED_OUT")
    waiting = asyncio.ensure_future(world.wait(guest))
    await world.fake(guest).end("EXITED", 7)
    assert (await waiting).exit_code == 7
    deleted = asyncio.ensure_future(refused(world.wait(guest, Guest.RUNNING)))
    await asyncio.sleep(0.05)
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    assert (await deleted).reason == "GUEST_NOT_FOUND"


async def test_restart_policy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd.guests.restart.LEAST_SECONDS", 0.05)
    policy = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ON_FAILURE, max_retries=2)
    guest = await world.run(restart_policy=policy)
    watch = world.guests.WatchGuests(guest_pb2.WatchGuestsRequest(changes_only=True))
    await watch.initial_metadata()

    async def seen(state: Guest.State) -> Guest:
        """However shortly."""
        while (event := await asyncio.wait_for(watch.read(), 60)).guest.state != state:
            pass
        return event.guest

    for count in (1, 2):
        await world.fake(guest).end("EXITED", 1)
        assert [c.type for c in (await seen(Guest.STOPPED)).conditions] == ["RESTART_PENDING"]
        again = await seen(Guest.RUNNING)
        assert again.restart_count == count and not again.conditions
    watch.cancel()
    await world.fake(guest).end("EXITED", 1)
    ended = await world.wait(guest)
    assert [c.type for c in ended.conditions] == ["RESTART_GIVEN_UP"]
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    await world.fake(guest).end("EXITED", 0)
    assert not (await world.wait(guest)).conditions


async def test_stopping_by_hand_beats_the_restart_policy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd.guests.restart.LEAST_SECONDS", 1.0)  # longer than a loaded host takes to answer
    always = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ALWAYS)
    guest = await world.run(restart_policy=always)
    await world.guests.StopGuest(guest_pb2.StopGuestRequest(name=guest.name))
    assert (await world.get(guest)).state == Guest.STOPPED
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    await world.fake(guest).end("POWEROFF")
    await world.guests.KillGuest(guest_pb2.KillGuestRequest(name=guest.name))
    await asyncio.sleep(1.2)
    ended = await world.get(guest)
    assert ended.state == Guest.STOPPED and not ended.conditions
    assert world.backend.launches == 2


async def test_losing_log_is_a_condition(world: World) -> None:
    guest = await world.run()
    await world.fake(guest).set(log_error="No space left on device")
    async with asyncio.timeout(60):
        while not (found := await world.get(guest)).conditions:
            await asyncio.sleep(0.01)
    condition = found.conditions[0]
    assert condition.type == "LOG_LOSING" and "No space" in condition.message


VERBS = ("start", "stop", "kill", "pause", "resume", "reset", "end", "crash")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verbs=st.lists(st.sampled_from(VERBS), max_size=12), script=st.sampled_from(["", "deaf", "stubborn"]))
async def test_any_order_of_verbs_keeps_the_machine_sound(world: World, verbs: list[str], script: str) -> None:
    """All at once: each answers or refuses with a reason of its own, and the state at the end is what the guest's
    process says.
    """
    guest = await world.create(f"g{uuid.uuid4().hex[:12]}", append=script)

    async def verb(word: str) -> None:
        if word in ("end", "crash"):
            fake = world.backend.guests.get(guest.uid)
            if fake is not None:
                await (fake.end("EXITED", 1) if word == "end" else fake.crash())
            return
        method = getattr(world.guests, f"{word.capitalize()}Guest")
        asked = getattr(guest_pb2, f"{word.capitalize()}GuestRequest")(name=guest.name)
        if word == "stop":
            asked.grace_period.FromMilliseconds(10)
        try:
            await method(asked, timeout=60)
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED), error

    await asyncio.gather(*(verb(word) for word in verbs))
    if "crash" not in verbs:
        await world.guests.KillGuest(guest_pb2.KillGuestRequest(name=guest.name), timeout=60)
    state = (await world.get(guest)).state
    fake = world.backend.guests.get(guest.uid)
    if fake is None or fake.process.poll() is not None:
        state = (await world.wait(guest)).state
        assert state in (Guest.STOPPED, Guest.FAILED, Guest.LOST)
    else:
        assert state in (Guest.RUNNING, Guest.PAUSED)
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name, force=True), timeout=60)
