"""Images of containers through the real daemon and the real client: pulled, imported as an OCI layout, built."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import tarfile
from pathlib import Path

import pytest
from oci import (
    LOGIN,
    Certificates,
    FakeRegistry,
    OciImage,
    auth_file,
    digest_of,
    docker_registry,
    layer,
    push,
    send,
    tree,
    zstd,
)
from real_daemon import BIN, RealDaemon, wait_for
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


def test_pull_by_https_from_a_private_authority_with_a_login(image: OciImage, tmp_path: Path) -> None:
    """By the daemon's settings, which are read anew for each pull; what is wrong with them is told at once."""
    try:
        certificates = Certificates.make(tmp_path)
        logins = auth_file(tmp_path / "auth.json")
        with docker_registry(tmp_path, certificates, login=True) as host:
            push(host, "private/box", "v1", image, certificates.ca, LOGIN)
            with RealDaemon("--registry-ca", str(certificates.ca), "--registry-auth-file", str(logins)) as daemon:
                assert refusal(daemon, "image", "pull", f"{host}/private/box:v1") == "REGISTRY_DENIED"
                auth_file(logins, **{host: LOGIN})
                assert "layer 3 of 3" in daemon.ok("image", "pull", f"{host}/private/box:v1").stderr
                assert LOGIN.partition(":")[2] not in daemon.log()
            with RealDaemon() as daemon:
                assert refusal(daemon, "image", "pull", f"{host}/private/box:v1") == "REGISTRY_UNREACHABLE"
    except FileNotFoundError:
        pytest.skip("docker-registry or openssl is not installed")
    wrong = subprocess.run([str(BIN / "hvd"), "--state-dir", str(tmp_path / "s"), "--runtime-dir", str(tmp_path / "r"), "--registry-ca", str(logins)],
                           capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert wrong.returncode and "registry-ca" in wrong.stderr and "Traceback" not in wrong.stderr, wrong.stderr


def test_a_pull_that_is_interrupted(box: RealDaemon, root: Path) -> None:  # noqa: F811
    image = OciImage((tree(root), "+gzip"), (layer(("once", b"interrupted")), ""))
    registry = FakeRegistry(image)

    def stall(request: object) -> None:
        send(request, b"x", length=1 << 20)  # type: ignore[arg-type]
        registry.ended.wait(60)

    registry.answers[f"/v2/box/blobs/{image.layers[1]}"] = stall
    try:
        child = box.spawn("image", "pull", registry.reference, "--name", "never")
        wait_for(lambda: any(image.layers[1] in path for path, _ in registry.requests), "the request for layer 2")
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


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
def test_import_of_a_layout(box: RealDaemon, image: OciImage, tmp_path: Path, form: str, index: bool) -> None:  # noqa: F811
    image.index = index
    source = image.layout(tmp_path / "layout")
    if form != "folder":
        source = tmp_path / f"layout.{form}"
        with tarfile.open(source, "w:gz" if form == "tar.gz" else "w") as archive:
            archive.add(tmp_path / "layout", ".")
    box.ok("image", "import", "laid-out", str(source))
    check(box, "laid-out")
    listed = json.loads(box.ok("image", "list", "-o", "json").stdout)["images"]
    assert [each["layers"] for each in listed if each["name"] == "images/laid-out"] == [image.layers]
    box.ok("image", "delete", "laid-out")


def saved(image: OciImage, packed: bool, damaged: str = "") -> bytes:
    """What `docker save` makes of an image."""
    archive = io.BytesIO()
    layers = [(f"{digest.removeprefix('sha256:')}/layer.tar", image.plain[digest]) for digest in image.layers]
    config = json.loads(image.blobs[image.manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"] = [digest_of(content) for _, content in layers]
    entry = {"Config": "c.json", "RepoTags": ["box:1"], "Layers": [name for name, _ in layers]}
    manifest: object = [entry, entry] if damaged == "two" else [{**entry, "Layers": ["../" + entry["Layers"][0]]} if damaged == "name" else entry]
    if damaged == "digest":
        config["rootfs"]["diff_ids"].reverse()
    with tarfile.open(fileobj=archive, mode="w:gz" if packed else "w") as made:
        for name, content in (*layers, ("c.json", json.dumps(config).encode()), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
            if name.endswith("layer.tar"):  # as older ones write a layer that they have already written
                link = tarfile.TarInfo(name.replace("/layer.tar", "/again.tar"))
                link.type, link.linkname = tarfile.SYMTYPE, "layer.tar"
                made.addfile(link)
    return archive.getvalue()


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.zst"])
def test_import_of_what_docker_saved(box: RealDaemon, image: OciImage, tmp_path: Path, form: str) -> None:  # noqa: F811
    content = saved(image, form == "tar.gz")
    file = tmp_path / f"saved.{form}"
    file.write_bytes(zstd(content) if form == "tar.zst" else content)
    box.ok("image", "import", "saved", str(file))
    check(box, "saved")
    box.ok("image", "delete", "saved")


@pytest.mark.parametrize("damaged", ["two", "name", "digest"])
def test_bad_archives_of_docker(box: RealDaemon, image: OciImage, tmp_path: Path, damaged: str) -> None:  # noqa: F811
    file = tmp_path / "saved.tar"
    file.write_bytes(saved(image, False, damaged))
    assert refusal(box, "image", "import", "bad", str(file)) == "LAYOUT_INVALID"


@pytest.mark.parametrize("how", ["gz", "xz", "bz2", "zst"])
def test_import_of_a_packed_root(box: RealDaemon, root: Path, tmp_path: Path, how: str) -> None:  # noqa: F811
    content, file = tree(root), tmp_path / f"root.tar.{how}"
    pack = {"gz": gzip.compress, "xz": lambda data: lzma.compress(data, preset=0), "bz2": bz2.compress, "zst": zstd}[how]
    file.write_bytes(pack(content))
    box.ok("image", "import", "packed", str(file))
    assert box.ok("run", "--rm", "--image", "packed", "--", "echo", "unpacked").stdout == "unpacked\n"
    box.ok("image", "delete", "packed")


def refusal(box: RealDaemon, *words: str) -> str:  # noqa: F811
    refused = box.hvctl(*words, "-o", "json")
    assert refused.returncode, refused.stderr
    return str(json.loads(refused.stderr[refused.stderr.index("{") :])["error"]["reason"])


def test_bad_layouts(box: RealDaemon, tmp_path: Path) -> None:  # noqa: F811
    def fresh(name: str) -> Path:
        return OciImage((layer(("a", name.encode())), "")).layout(tmp_path / name)

    changed = fresh("changed")
    for blob in (changed / "blobs" / "sha256").iterdir():
        blob.write_bytes(b"{" + blob.read_bytes())
    missing = fresh("missing")
    next((missing / "blobs" / "sha256").iterdir()).unlink()
    nonsense = fresh("nonsense")
    (nonsense / "index.json").write_text("[" * 1000)
    escaping = fresh("escaping")
    (escaping / "index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:../../../../etc/passwd", "size": 1}]}))
    outside = OciImage((layer(("../../escaped", b"x")), "+gzip")).layout(tmp_path / "outside")
    for folder in (changed, missing, nonsense, escaping):
        assert refusal(box, "image", "import", "bad", str(folder)) == "LAYOUT_INVALID"
    assert refusal(box, "image", "import", "bad", str(outside)) == "ARCHIVE_UNSAFE"
    assert "images/bad" not in box.ok("image", "list", "-o", "name").stdout


def test_building_busybox(box: RealDaemon) -> None:  # noqa: F811
    box.ok("image", "build", "busybox", "--name", "built")
    assert box.ok("run", "--rm", "--image", "built", "--", "sh", "-c", "ls /bin | grep -c . && id -un").stdout.endswith("root\n")
    box.ok("image", "delete", "built")
    assert refusal(box, "image", "build", "busybox", "--suite", "trixie") == "FIELD_INVALID"
    assert refusal(box, "image", "build", "debian", "--suite", "potato") == "FIELD_INVALID"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_distributions_under_one_kernel(box: RealDaemon) -> None:  # noqa: F811
    """Two of Debian's releases and busybox at the same time."""
    suites = ("bookworm", "trixie")
    for suite in suites:
        box.ok("image", "build", "debian", "--suite", suite)
    release, kernel = ". /etc/os-release; echo $VERSION_CODENAME", "cat /proc/sys/kernel/random/boot_id"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for suite in suites:
        box.ok("run", "-d", "--name", suite, "--image", f"debian-{suite}", "--", "bash", "-c", f"{release}; {kernel}; exec sleep 1000")
    box.ok("run", "-d", "--name", "small", "--image", "box", "--", "sh", "-c", f"echo small; {kernel}; exec sleep 1000")
    logs = {name: box.wait_logs(name, boot).split() for name in (*suites, "small")}
    assert [logs[name][0] for name in logs] == [*suites, "small"]
    assert {lines[1] for lines in logs.values()} == {boot}
    assert [guest["state"] for guest in box.listed().values()] == ["RUNNING"] * 3


def test_an_image_of_many_layers(box: RealDaemon, root: Path, tmp_path: Path) -> None:  # noqa: F811
    """More than mount(2) has room for by their names; the highest counts."""
    layers = [(layer(("which", str(number).encode()), (f"file-{number}", b"")), "") for number in range(99)]
    source = OciImage((tree(root), ""), *layers).layout(tmp_path / "layout")
    box.ok("image", "import", "many", str(source))
    assert box.ok("run", "--rm", "--image", "many", "--", "sh", "-c", "cat /which; ls / | grep -c file-").stdout == "9899\n"
    box.ok("image", "delete", "many")
