"""What holds for the package as a whole: every RPC is there, endpoints are read rightly, nothing heavy or of the daemon is imported."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2, image_pb2, inspect_pb2, metrics_pb2, network_pb2, system_pb2, trace_pb2, volume_pb2
from hvctl.sdk import Client, Endpoint, HvctlError, default_endpoint
from hvctl.sdk.calls import ClientStream, ServerStream, Unary, channel_options, table
from hvctl.verbs import VERBS

PACKAGE = Path(importlib.util.find_spec("hvctl.cli").origin).parent  # type: ignore[union-attr,arg-type]
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (guest_pb2, image_pb2, inspect_pb2, metrics_pb2, network_pb2, system_pb2, trace_pb2, volume_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_the_table_of_calls_is_the_api() -> None:
    assert {call.path for call in table()} == set(METHODS)


@pytest.mark.parametrize("call", list(table()), ids=lambda call: call.method)
def test_each_call_has_the_types_and_the_shape_of_the_api(call: Unary) -> None:  # type: ignore[type-arg]
    method = METHODS[call.path]
    assert call.request.DESCRIPTOR.full_name == method.input_type.full_name
    assert call.response.DESCRIPTOR.full_name == method.output_type.full_name
    shape = {(False, False): Unary, (False, True): ServerStream}.get(
        (method.client_streaming, method.server_streaming), ClientStream
    )
    assert isinstance(call, shape)


def test_only_idempotent_calls_are_retried() -> None:
    config = json.loads(dict(channel_options())["grpc.service_config"])
    (entry,) = config["methodConfig"]
    retried = {name["method"] for name in entry["name"]}
    assert {"GetGuest", "CreateGuest"} <= retried
    assert not retried & {"ReadMemory", "WatchGuests", "GetLogs"}, "streams are begun again by the SDK: gRPC loses them"
    assert not retried & {"StartGuest", "ResetGuest", "DeleteGuest", "WriteMemory", "AttachConsole", "UploadBlob"}
    assert entry["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_every_verb_names_rpcs_that_exist() -> None:
    known = {path.rpartition("/")[2] for path in METHODS}
    for name, row in VERBS.items():
        assert set(row.rpcs) <= known, name
    assert {rpc for row in VERBS.values() for rpc in row.rpcs} == known


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_client_never_imports_the_daemon(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        for name in names:
            assert name.split(".")[0] not in ("hvd", "unicorn", "structlog", "prometheus_client")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["mem", "read", "--help"], ["version"], ["completion", "bash"], ["lits"]],
    ids=" ".join,
)
def test_help_completion_and_version_import_neither_grpc_nor_protobuf(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hvctl", *words], capture_output=True, text=True, timeout=30
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "hvctl.cli" in imported
    assert not {name for name in imported if name.split(".")[0] in ("grpc", "google", "rich", "yaml")}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_verbs_and_options_without_grpc(shell: str) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "hvctl", "completion", shell], capture_output=True, text=True, timeout=30
    )
    assert script.returncode == 0 and "_HVCTL_COMPLETE" in script.stdout
    asked = {
        "bash": {"COMP_WORDS": "hvctl pa", "COMP_CWORD": "1"},
        "zsh": {"COMP_WORDS": "hvctl pa", "COMP_CWORD": "1"},
        "fish": {"COMP_WORDS": "hvctl pa", "COMP_CWORD": "pa"},
    }[shell]
    code = "import sys; from hvctl.cli import main; sys.argv[0] = 'hvctl'\ntry: main([])\nfinally: assert 'grpc' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"_HVCTL_COMPLETE": f"{shell}_complete"} | asked,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "pause" in done.stdout, done.stderr
    assert "resume" not in done.stdout


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/hvd/hvd.sock", "unix:/run/hvd/hvd.sock"),
        ("unix:/run/hvd.sock", "unix:/run/hvd.sock"),
        ("host.example:7443", "dns:///host.example:7443"),
        ("[::1]:7443", "dns:///[::1]:7443"),
    ],
)
def test_endpoints(address: str, target: str) -> None:
    assert Endpoint(address).target() == target


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix://", "unix://rel/x", "host", "host:", ":1", "host:0", "http://h:1"]
)
def test_bad_endpoints(address: str) -> None:
    with pytest.raises(HvctlError) as caught:
        Endpoint(address)
    assert caught.value.reason == "ENDPOINT_INVALID"


def test_a_path_longer_than_sun_path_is_reached(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    endpoint = Endpoint(f"unix://{directory}/hvd.sock")
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as viewer:
            path = endpoint.target().removeprefix("unix:")
            server.bind(path)
            server.listen()
            viewer.connect(path)
        assert (directory / "hvd.sock").is_socket()
    finally:
        endpoint.close()


def test_default_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_endpoint({"HVD_ENDPOINT": "unix:///x"}) == "unix:///x"
    monkeypatch.setattr("hvctl.sdk.endpoint.SYSTEM_SOCKET", "/nonexistent/hvd.sock")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_endpoint({"XDG_RUNTIME_DIR": "/run/user/7"}) == "unix:///run/user/7/hvd/hvd.sock"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_endpoint({}) == "unix:///nonexistent/hvd.sock"


def test_tcp_without_certificates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HVD_TLS_CA", "HVD_TLS_CERT", "HVD_TLS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with Client("localhost:1") as client, pytest.raises(HvctlError) as caught:
        client.get_info()
    assert caught.value.reason == "TLS_FILES_MISSING"
    assert caught.value.metadata["missing"] == "HVD_TLS_CA"


def test_diagnosis_of_a_dead_socket(tmp_path: Path) -> None:
    path = tmp_path / "hvd.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    with Client(f"unix://{path}") as client, pytest.raises(HvctlError) as caught:
        client.get_info(timeout=10)
    assert "nobody listens" in caught.value.message


def test_the_documentation_names_every_verb() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hvctl.md").read_text()
    for name, row in VERBS.items():
        assert not row.home or f"`{name}" in text, name
