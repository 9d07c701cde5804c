"""Images of containers through the real daemon and the real client: pulled, imported as an OCI layout, built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oci import FakeRegistry, OciImage, docker_registry, layer, push, send, tree
from real_daemon import RealDaemon
from test_containers import box, root  # noqa: F401

CONFIG = {"Entrypoint": ["sh", "-c"], "Cmd": ["cat /hello; ls /; ls /opaque; pwd; echo $A"], "Env": ["A=from the image"], "WorkingDir": "/srv"}


@pytest.fixture(scope="module")
def image(root: Path) -> OciImage:  # noqa: F811
    """Of three layers: files that are removed, a folder that is made opaque, one that is replaced by a file."""
    base = tree(root)
    middle = layer(
        ("hello", b"below\n"), ("gone", b"x"), ("gone-folder", None), ("gone-folder/file", b"x"), ("back", b"below\n"),
        ("opaque", None), ("opaque/below", b"x"), ("turned", None), ("turned/below", b"x"),
    )  # fmt: skip
    upper = layer(
        ("hello", b"above\n"), (".wh.gone", b""), (".wh.gone-folder", b""), (".wh.back", b""), ("back", b"again\n"),
        ("opaque", None), ("opaque/.wh..wh..opq", b""), ("opaque/above", b"x"), (".wh.turned", b""), ("turned", b"a file\n"),
    )  # fmt: skip
    return OciImage((base, ""), (middle, "+gzip"), (upper, "+zstd"), config=CONFIG)


def check(box: RealDaemon, name: str) -> None:  # noqa: F811
    """A container of the image is as its layers say."""
    done = box.hvctl("run", "--rm", "--image", name)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[0] == "above" and lines[-3:-1] == ["/srv", "from the image"] and "below" not in lines, lines
    assert {"above", "back", "turned", "opaque", "bin"} <= set(lines) and not {"gone", "gone-folder"} & set(lines), lines
    assert box.ok("run", "--rm", "--image", name, "--", "cat /back /turned").stdout == "again\na file\n"


def test_pull_from_debians_registry_and_run(box: RealDaemon, image: OciImage, tmp_path: Path) -> None:  # noqa: F811
    try:
        with docker_registry(tmp_path) as host:
            push(host, "some/layered", "v1", image)
            done = box.ok("image", "pull", f"{host}/some/layered:v1")
            assert done.stdout == "layered-v1\n" and "layer 3 of 3" in done.stderr
            assert box.ok("image", "pull", f"{host}/some/layered:v1", "--name", "other", "-o", "name").stdout == "images/other\n"
    except FileNotFoundError:
        pytest.skip("docker-registry is not installed")
    check(box, "layered-v1")
    # Layers that another image has stay.
    box.ok("image", "delete", "layered-v1")
    check(box, "other")
    box.ok("image", "delete", "other")


def test_a_pull_that_is_interrupted(box: RealDaemon, root: Path) -> None:  # noqa: F811
    image = OciImage((tree(root), "+gzip"), (layer(("once", b"interrupted")), ""))
    registry = FakeRegistry(image)

    def stall(request: object) -> None:
        send(request, b"x", length=1 << 20)  # type: ignore[arg-type]
        registry.ended.wait(60)

    registry.answers[f"/v2/box/blobs/{image.layers[1]}"] = stall
    try:
        child = box.spawn("image", "pull", registry.reference, "--name", "never")
        child.wait_err("layer 2 of 2")
        assert child.interrupt() == 130
        assert "images/never" not in box.ok("image", "list", "-o", "name").stdout
        registry.answers.clear()
        registry.requests.clear()
        box.ok("image", "pull", registry.reference, "--name", "now")
    finally:
        registry.close()
    assert not [path for path, _ in registry.requests if image.layers[0] in path]
    assert box.ok("run", "--rm", "--image", "now", "--", "cat", "/once").stdout == "interrupted"
    box.ok("image", "delete", "now")


def test_a_bad_registry_is_told(box: RealDaemon) -> None:  # noqa: F811
    image = OciImage((layer(("a", b"")), ""), config={"Cmd": ["unique"]})
    registry = FakeRegistry(image)
    registry.answers[f"/v2/box/blobs/{image.manifest['config']['digest']}"] = lambda request: send(request, b"lies")
    try:
        refused = box.hvctl("image", "pull", registry.reference, "--name", "bad", "-o", "json")
    finally:
        registry.close()
    assert refused.returncode == 1 and json.loads(refused.stderr[refused.stderr.index("{") :])["error"]["reason"] == "REGISTRY_CONTENT"
    assert box.hvctl("image", "pull", "NO NAME").returncode == 1
