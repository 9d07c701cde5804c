"""Registries behind HTTPS with a certificate of a private authority, and those that want a login."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from oci import LOGIN, Certificates, FakeRegistry, OciImage, auth_file, docker_registry, layer, push, send
from test_pull import Puller

from hvd.errors import HvdError
from hvd.images import reference
from hvd.images.registry_access import RegistryAccess


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    try:
        return Certificates.make(tmp_path_factory.mktemp("certificates"))
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make certificates")


@pytest.fixture
async def puller(tmp_path: Path) -> AsyncIterator[Puller]:
    made = Puller(tmp_path / "daemon")
    yield made
    made.catalog.close()


@pytest.fixture
def image() -> OciImage:
    return OciImage((layer(("a", b"one")), "+gzip"))


async def test_https_of_a_private_authority(puller: Puller, image: OciImage, certificates: Certificates) -> None:
    registry = FakeRegistry(image, certificates.server())
    try:
        error = await puller.refused(registry.reference)
        assert error.reason == "REGISTRY_UNREACHABLE" and "CERTIFICATE_VERIFY_FAILED" in str(error) and not registry.requests
        puller.access = RegistryAccess((certificates.ca,))
        made = await puller.pull(registry.reference)
        assert list(made.layers) == image.layers
        with pytest.raises(HvdError) as caught:  # another name than the certificate's
            await puller.pull(registry.reference.replace("127.0.0.1", "localhost"), "other")
        assert caught.value.reason == "REGISTRY_UNREACHABLE" and "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
    finally:
        registry.close()


async def test_what_https_answers_is_not_followed_to_http(puller: Puller, image: OciImage, certificates: Certificates) -> None:
    plain, registry = FakeRegistry(image), FakeRegistry(image, certificates.server())
    puller.access = RegistryAccess((certificates.ca,))
    registry.answers["/v2/box/blobs/"] = lambda request: send(request, b"", status=307, headers={"Location": f"http://{plain.host}{request.path}"})
    try:
        assert (await puller.refused(registry.reference)).reason == "REGISTRY_ANSWER" and not plain.requests
    finally:
        registry.close()
        plain.close()


async def test_a_registry_that_is_said_to_speak_plain_http(puller: Puller, image: OciImage, certificates: Certificates) -> None:
    plain, registry = FakeRegistry(image), FakeRegistry(image, certificates.server())
    puller.access = RegistryAccess((), frozenset((plain.host, registry.host)))
    try:
        await puller.pull(plain.reference)
        with pytest.raises(HvdError) as caught:
            await puller.pull(registry.reference, "other")
        assert caught.value.reason in ("REGISTRY_ANSWER", "REGISTRY_UNREACHABLE")  # it speaks no plain HTTP
        assert RegistryAccess((), frozenset(("quay.io",))).is_insecure(reference.parse("quay.io/a/b"))
        assert not RegistryAccess((), frozenset(("quay.io",))).is_insecure(reference.parse("quay.io:80/a/b"))
    finally:
        registry.close()
        plain.close()


@pytest.mark.parametrize("token", ["", "secret"])
async def test_a_login(puller: Puller, image: OciImage, tmp_path: Path, token: str) -> None:
    """By itself (RFC 7617), or for a token."""
    registry = FakeRegistry(image)
    registry.basic, registry.token = LOGIN, token
    try:
        assert (await puller.refused(registry.reference)).reason == "REGISTRY_DENIED"
        puller.access = RegistryAccess(auth_file=auth_file(tmp_path / "auth", **{registry.host: "user:wrong"}))
        error = await puller.refused(registry.reference)
        assert error.reason == "REGISTRY_DENIED" and "wrong" not in str(error)
        auth_file(tmp_path / "auth", **{registry.host: LOGIN, "elsewhere.example": "not:me"})
        await puller.pull(registry.reference)
    finally:
        registry.close()


async def test_a_login_is_for_its_registry_alone(puller: Puller, image: OciImage, tmp_path: Path) -> None:
    store, registry = FakeRegistry(image), FakeRegistry(image)
    registry.basic = LOGIN
    registry.answers["/v2/box/blobs/"] = lambda request: send(request, b"", status=307, headers={"Location": f"http://{store.host}{request.path}"})
    puller.access = RegistryAccess(auth_file=auth_file(tmp_path / "auth", **{registry.host: LOGIN}))
    try:
        await puller.pull(registry.reference)
        assert store.requests and not [said for _, said in store.requests if said]
    finally:
        store.close()
        registry.close()


async def test_a_token_that_expires_is_fetched_again(puller: Puller, image: OciImage) -> None:
    registry = FakeRegistry(image)
    registry.token = "first"

    def expire(request: object) -> None:
        registry.token = "second"
        registry.answers.clear()
        registry.serve(request)  # type: ignore[arg-type]

    registry.answers[f"/v2/box/blobs/{image.layers[0]}"] = expire
    try:
        await puller.pull(registry.reference)
        assert [said for path, said in registry.requests if path.endswith(image.layers[0])] == ["Bearer first", "Bearer second"]
    finally:
        registry.close()


BAD_ENTRIES = ['{"auth": "no base64!"}', '{"auth": "bm9jb2xvbg=="}', "{}", '{"auth": 1}', "[]", '{"username": "u"}']
BAD_FILES = ["", "{", "[]", "{}", '{"auths": 1}', "[" * 100_000, *(f'{{"auths": {{"HOST": {entry}}}}}' for entry in BAD_ENTRIES)]


@pytest.mark.parametrize("text", BAD_FILES)
async def test_bad_files_of_logins(puller: Puller, image: OciImage, tmp_path: Path, text: str) -> None:
    registry = FakeRegistry(image)
    registry.basic = LOGIN
    file = tmp_path / "auth"
    file.write_text(text.replace("HOST", registry.host))
    puller.access = RegistryAccess(auth_file=file)
    try:
        assert (await puller.refused(registry.reference)).reason == "CONFIG_INVALID"
        file.unlink()
        assert (await puller.refused(registry.reference)).reason == "CONFIG_INVALID"
    finally:
        registry.close()


async def test_plain_http_elsewhere_gets_no_login(tmp_path: Path) -> None:
    from hvd.images.registry import Registry

    wanted = reference.parse("registry.example/box:1")
    access = RegistryAccess(auth_file=auth_file(tmp_path / "auth", **{"registry.example": LOGIN}))
    registry = Registry(wanted, True, access)
    registry._base = "http://registry.example/v2/box"
    with pytest.raises(HvdError) as caught:
        registry._authenticate('Basic realm="x"')
    assert caught.value.reason == "REGISTRY_DENIED"
    trusted = Registry(wanted, False, RegistryAccess((), frozenset(("registry.example",)), access.auth_file))
    trusted._base = registry._base
    assert trusted._authenticate('Basic realm="x"').startswith("Basic ")


def test_no_certificates(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(HvdError) as caught:
            RegistryAccess((path,)).tls()
        assert (caught.value.reason, caught.value.metadata["setting"]) == ("CONFIG_INVALID", "registry-ca")
    (tmp_path / "empty").touch()
    with pytest.raises(HvdError):
        RegistryAccess((tmp_path / "empty",)).tls()


async def test_debians_registry_with_https_and_a_login(puller: Puller, image: OciImage, certificates: Certificates, tmp_path: Path) -> None:
    try:
        with docker_registry(tmp_path, certificates, login=True) as host:
            push(host, "some/box", "v1", image, certificates.ca, LOGIN)
            puller.access = RegistryAccess((certificates.ca,))
            assert (await puller.refused(f"{host}/some/box:v1")).reason == "REGISTRY_DENIED"
            puller.access = RegistryAccess((certificates.ca,), frozenset(), auth_file(tmp_path / "auth", **{host: LOGIN}))
            assert list((await puller.pull(f"{host}/some/box:v1")).layers) == image.layers
    except FileNotFoundError:
        pytest.skip("docker-registry is not installed")
