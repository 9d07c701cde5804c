"""Whatever JSON a registry sends, it is taken or refused with a reason."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oci import OciImage, layer

from hvd.errors import HvdError
from hvd.images import manifest, reference

NAMES = (
    *("schemaVersion", "mediaType", "layers", "config", "manifests", "digest", "size"),
    *("platform", "os", "architecture", "Cmd", "Env", "User", "StopSignal"),
)
RIGHT = ("linux", "amd64", 2, "sha256:" + "0" * 64, "application/vnd.oci.image.layer.v1.tar+gzip", "9" * 5000)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(RIGHT)
ANY = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner), max_leaves=30)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), ANY)
READERS: tuple[Callable[..., Any], ...] = (manifest.manifest, manifest.of_platform, manifest.rootfs_config)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS)
def test_any_object(read: dict[str, Any]) -> None:
    manifest.is_index(read, "")
    for reader in READERS:
        with contextlib.suppress(HvdError):
            reader(read, "it")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(("config", "layers", "schemaVersion")), ANY)
def test_one_part_of_a_right_manifest(part: str, value: Any) -> None:
    right = OciImage((layer(("a", b"")), "")).manifest
    with contextlib.suppress(HvdError):
        manifest.manifest({**right, part: value}, "it")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY)
def test_any_configuration(config: Any) -> None:
    with contextlib.suppress(HvdError):
        manifest.rootfs_config({"os": "linux", "architecture": "amd64", "config": config}, "it")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | ANY.map(lambda read: json.dumps(read).encode()))
def test_any_bytes(content: bytes) -> None:
    with contextlib.suppress(HvdError):
        manifest.document(content, "it")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.text("abz09./:@-_[]"))
def test_any_reference(text: str) -> None:
    with contextlib.suppress(HvdError):
        parsed = reference.parse(text)
        assert reference.parse(str(parsed)) == parsed
