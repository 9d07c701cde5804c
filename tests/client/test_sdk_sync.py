"""The synchronous SDK, call by call, on grpcio-testing's channel: what it sends, and what it makes of each answer."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
import pytest
from fake_daemon import FakeDaemon
from google.protobuf import any_pb2, empty_pb2
from google.rpc import error_details_pb2, status_pb2
from hvapi.v1 import guest_pb2, image_pb2
from hvctl.sdk import Client, HvctlError
from hvctl.sdk.calls import MOST_ATTEMPTS

SERVICES = guest_pb2.DESCRIPTOR.services_by_name
GUEST = SERVICES["GuestService"]
IMAGE = image_pb2.DESCRIPTOR.services_by_name["ImageService"]


@pytest.fixture
def channel() -> Any:
    descriptors = [GUEST, IMAGE]
    return grpc_testing.channel(descriptors, grpc_testing.strict_real_time())


@pytest.fixture
def client(channel: Any) -> Client:
    return Client("unix:///not-used", channel=channel)


@pytest.fixture
def background() -> Iterator[futures.ThreadPoolExecutor]:
    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        yield pool


def test_fields_become_the_request(client: Client, channel: Any, background: Any) -> None:
    answer = background.submit(client.get_guest, name="guests/a")
    _, request, rpc = channel.take_unary_unary(GUEST.methods_by_name["GetGuest"])
    rpc.terminate(guest_pb2.Guest(name="guests/a", uid="u"), (), grpc.StatusCode.OK, "")
    assert request == guest_pb2.GetGuestRequest(name="guests/a")
    assert answer.result(60).uid == "u"


def test_request_and_fields_exclude_each_other(client: Client) -> None:
    with pytest.raises(TypeError, match="not both"):
        client.get_guest(guest_pb2.GetGuestRequest(name="a"), name="b")


def test_creation_gets_a_request_id_and_leaves_the_callers_message_alone(
    client: Client, channel: Any, background: Any
) -> None:
    mine = guest_pb2.CreateGuestRequest(guest_id="a")
    answer = background.submit(client.create_guest, mine)
    _, request, rpc = channel.take_unary_unary(GUEST.methods_by_name["CreateGuest"])
    rpc.terminate(guest_pb2.Guest(), (), grpc.StatusCode.OK, "")
    answer.result(60)
    assert uuid.UUID(request.request_id).version == 4
    assert mine.request_id == ""


def trailer(reason: str, message: str, help: str, code: grpc.StatusCode) -> tuple[tuple[str, bytes], ...]:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in (
        error_details_pb2.ErrorInfo(reason=reason, domain="hvd", metadata={"name": "a"}),
        error_details_pb2.Help(links=[error_details_pb2.Help.Link(description=help)]),
    ):
        box = any_pb2.Any()
        box.Pack(detail)
        status.details.append(box)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def test_error_info_becomes_the_error(client: Client, channel: Any, background: Any) -> None:
    answer = background.submit(client.get_guest, name="guests/a")
    _, _, rpc = channel.take_unary_unary(GUEST.methods_by_name["GetGuest"])
    code, text = grpc.StatusCode.NOT_FOUND, "there is no guest 'a'; `hvctl list` shows them"
    rpc.terminate(None, trailer("GUEST_NOT_FOUND", text, "`hvctl list` shows them", code), code, text)
    with pytest.raises(HvctlError) as caught:
        answer.result(60)
    error = caught.value
    assert (error.code, error.reason, error.metadata) == ("NOT_FOUND", "GUEST_NOT_FOUND", {"name": "a"})
    assert (error.message, error.help) == ("there is no guest 'a'", "`hvctl list` shows them")
    assert str(error) == text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "TIMED_OUT"),
        (grpc.StatusCode.UNIMPLEMENTED, "CALL_UNKNOWN"),
        (grpc.StatusCode.UNAVAILABLE, "DAEMON_UNREACHABLE"),
        (grpc.StatusCode.INTERNAL, "NOT_EXPLAINED"),
    ],
)
def test_errors_without_error_info(
    client: Client, channel: Any, background: Any, code: grpc.StatusCode, reason: str
) -> None:
    answer = background.submit(client.get_guest, name="guests/a")
    _, _, rpc = channel.take_unary_unary(GUEST.methods_by_name["GetGuest"])
    rpc.terminate(None, (), code, "what happened")
    with pytest.raises(HvctlError) as caught:
        answer.result(60)
    assert (caught.value.reason, caught.value.code) == (reason, code.name)
    assert caught.value.help


def test_pages_are_turned(client: Client, channel: Any, background: Any) -> None:
    answer = background.submit(lambda: [guest.name for guest in client.guests({"k": "v"})])
    pages = [(["a", "b"], "t1"), (["c"], "")]
    tokens = []
    for names, token in pages:
        _, request, rpc = channel.take_unary_unary(GUEST.methods_by_name["ListGuests"])
        tokens.append(request.page_token)
        assert request.labels == {"k": "v"}
        guests = [guest_pb2.Guest(name=name) for name in names]
        rpc.terminate(guest_pb2.ListGuestsResponse(guests=guests, next_page_token=token), (), grpc.StatusCode.OK, "")
    assert answer.result(60) == ["a", "b", "c"]
    assert tokens == ["", "t1"]


def test_watch_goes_on_after_a_break_where_it_was(client: Client, channel: Any, background: Any) -> None:
    seen: queue.Queue[str] = queue.Queue()

    def watch() -> None:
        for event in client.watch():
            seen.put(event.message)

    answer = background.submit(watch)
    method = GUEST.methods_by_name["WatchGuests"]
    _, request, rpc = channel.take_unary_stream(method)
    assert request.resume_token == ""
    rpc.send_response(guest_pb2.GuestEvent(resume_token="7", message="one"))
    assert seen.get(timeout=60) == "one"  # the testing channel drops what is not read when the call ends
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "the daemon restarts")
    _, request, rpc = channel.take_unary_stream(method)
    assert request.resume_token == "7"
    rpc.terminate((), grpc.StatusCode.OUT_OF_RANGE, "too old")
    _, request, rpc = channel.take_unary_stream(method)
    assert request.resume_token == ""
    rpc.send_response(guest_pb2.GuestEvent(resume_token="9", message="two"))
    assert seen.get(timeout=60) == "two"
    rpc.terminate((), grpc.StatusCode.OK, "")
    answer.result(60)


def test_a_watch_that_cannot_begin_fails(client: Client, channel: Any, background: Any) -> None:
    answer = background.submit(lambda: list(client.watch()))
    for _ in range(MOST_ATTEMPTS):
        _, _, rpc = channel.take_unary_stream(GUEST.methods_by_name["WatchGuests"])
        rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "nobody there")
    with pytest.raises(HvctlError) as caught:
        answer.result(60)
    assert caught.value.code == "UNAVAILABLE"


def test_a_stream_is_begun_again_before_its_first_response_only(client: Client, channel: Any, background: Any) -> None:
    method = GUEST.methods_by_name["GetLogs"]
    seen: queue.Queue[guest_pb2.GetLogsResponse] = queue.Queue()

    def read() -> None:
        for response in client.get_logs(name="guests/a"):
            seen.put(response)

    answer = background.submit(read)
    _, first, rpc = channel.take_unary_stream(method)
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "for a moment")
    _, second, rpc = channel.take_unary_stream(method)
    assert first == second
    rpc.send_response(guest_pb2.GetLogsResponse())
    seen.get(timeout=60)  # the testing channel drops what is not read when the call ends
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "in the middle")
    with pytest.raises(HvctlError) as caught:
        answer.result(60)
    assert caught.value.reason == "DAEMON_UNREACHABLE"


def test_a_stream_that_changes_something_is_not_begun_again(client: Client, channel: Any, background: Any) -> None:
    answer = background.submit(lambda: list(client.build_image()))
    _, _, rpc = channel.take_unary_stream(IMAGE.methods_by_name["BuildImage"])
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "nobody there")
    with pytest.raises(HvctlError):
        answer.result(60)


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_stream_that_must_not_be_silent_is_ended(daemon: FakeDaemon, pieces: int) -> None:
    with Client(daemon.endpoint, timeout=1.0) as client:
        client.create_guest(guest_id="a", timeout=30)
        daemon.silent_after = pieces
        with pytest.raises(HvctlError) as caught, client.read_memory(name="guests/a", address=0, length=2000) as responses:
            for _ in responses:
                pass
    assert caught.value.reason == "TIMED_OUT"


def test_a_stream_that_follows_may_be_silent(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, timeout=0.1) as client, client.watch_guests() as events:
        assert next(events).type == guest_pb2.GuestEvent.BOOKMARK
        creation = threading.Timer(1.0, client.create_guest, kwargs={"guest_id": "a", "timeout": 30})
        creation.start()
        assert next(events).guest.name == "guests/a"
        creation.join()


def test_upload_sends_the_digest_first_then_chunks(
    client: Client, channel: Any, background: Any, tmp_path: Path
) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"x" * ((1 << 20) + 5))
    told: list[tuple[int, int]] = []
    answer = background.submit(client.upload_file, file, lambda sent, size: told.append((sent, size)))
    _, request, rpc = channel.take_unary_unary(IMAGE.methods_by_name["FindBlobs"])
    digest = request.digests[0]
    rpc.terminate(image_pb2.FindBlobsResponse(), (), grpc.StatusCode.OK, "")
    _, upload = channel.take_stream_unary(IMAGE.methods_by_name["UploadBlob"])
    first = upload.take_request()
    assert (first.info.digest, first.info.size_bytes) == (digest, (1 << 20) + 5)
    assert [len(upload.take_request().chunk), len(upload.take_request().chunk)] == [1 << 20, 5]
    upload.requests_closed()
    upload.terminate(image_pb2.UploadBlobResponse(digest=digest), (), grpc.StatusCode.OK, "")
    assert answer.result(60) == digest
    assert told[-1] == ((1 << 20) + 5, (1 << 20) + 5)


def test_upload_of_a_known_blob_sends_nothing(client: Client, channel: Any, background: Any, tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"")
    answer = background.submit(client.upload_file, file)
    _, request, rpc = channel.take_unary_unary(IMAGE.methods_by_name["FindBlobs"])
    rpc.terminate(image_pb2.FindBlobsResponse(digests=request.digests), (), grpc.StatusCode.OK, "")
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert answer.result(60) == empty


def test_several_files_are_asked_for_at_once_and_sent_once(client: Client, channel: Any, background: Any, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("kernel", "initrd", "again")]
    for file, data in zip(files, (b"k", b"i", b"i"), strict=True):
        file.write_bytes(data)
    answer = background.submit(client.upload_files, files)
    _, request, rpc = channel.take_unary_unary(IMAGE.methods_by_name["FindBlobs"])
    kernel, initrd, again = request.digests
    assert initrd == again
    rpc.terminate(image_pb2.FindBlobsResponse(digests=[kernel]), (), grpc.StatusCode.OK, "")
    _, upload = channel.take_stream_unary(IMAGE.methods_by_name["UploadBlob"])
    assert upload.take_request().info.digest == initrd
    assert upload.take_request().chunk == b"i"
    upload.requests_closed()
    upload.terminate(image_pb2.UploadBlobResponse(digest=initrd), (), grpc.StatusCode.OK, "")
    assert answer.result(60) == [kernel, initrd, again]
    assert client.upload_files([]) == []


def test_an_unreadable_file_is_an_error_of_ours(client: Client, tmp_path: Path) -> None:
    with pytest.raises(HvctlError) as caught:
        client.upload_file(tmp_path / "absent")
    assert caught.value.reason == "FILE_UNREADABLE"


def test_console_frames(client: Client, channel: Any, background: Any) -> None:
    console = client.console("guests/a", replay_bytes=10, size=(24, 80))
    _, rpc = channel.take_stream_stream(GUEST.methods_by_name["AttachConsole"])
    setup = rpc.take_request().setup
    assert (setup.name, setup.replay_bytes, setup.size.rows, setup.size.columns) == ("guests/a", 10, 24, 80)
    console.write(b"ls\n")
    console.resize(50, 132)
    assert rpc.take_request().input == b"ls\n"
    assert rpc.take_request().size.columns == 132
    rpc.send_response(guest_pb2.AttachConsoleResponse(attached=empty_pb2.Empty()))
    rpc.send_response(guest_pb2.AttachConsoleResponse(output=b"one"))
    rpc.send_response(guest_pb2.AttachConsoleResponse(skipped_bytes=3))
    rpc.send_response(guest_pb2.AttachConsoleResponse(output=b"two"))
    rpc.send_response(guest_pb2.AttachConsoleResponse(ended=guest_pb2.Guest(exit_code=3)))
    assert list(console) == [b"one", b"two"]
    assert console.ended is not None
    assert (console.ended.exit_code, console.skipped_bytes) == (3, 3)
    console.close()
