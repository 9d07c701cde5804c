"""Manifests, indexes and configurations of the OCI image specification (and Docker's of the same shape): what of them counts
for a container. Everything in them is checked: a registry may say anything."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hvapi.v1 import image_pb2

from hvd.errors import HvdError

INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# The largest that registries have to take ("Pushing Manifests").
MOST_DOCUMENT_BYTES: Final = 4 << 20
MOST_LAYERS: Final = 127
_LAYER = re.compile(r"application/vnd\.(oci\.image\.layer\.v1\.tar|docker\.image\.rootfs\.diff\.tar)([.+](gzip|zstd))?")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[\[\]{}]")
_DEEP: Final = 64
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLATFORM: Final = ("linux", "amd64")


@dataclass(frozen=True, slots=True)
class Descriptor:
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]  # the lowest first, each once


def document(content: bytes, what: str) -> dict[str, Any]:
    """what: "the index of debian:12", for people. Raises HvdError MANIFEST_INVALID."""
    try:
        if content.count(b"[") + content.count(b"{") > _DEEP and _depth(content) > _DEEP:
            raise ValueError("nested too deep")
        read = json.loads(content)
    except ValueError as error:
        raise _invalid(what, f"it is no JSON ({str(error)[:80]})") from None
    if not isinstance(read, dict):
        raise _invalid(what, "it is no JSON object")
    return read


def _depth(content: bytes) -> int:
    """Of JSON's lists and objects. Python's parser has a limit, but what it meets there it does not always survive."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_TEXT.sub(b"", content)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def is_index(read: Mapping[str, Any], media_type: str) -> bool:
    return (read.get("mediaType") or media_type) in INDEXES or ("manifests" in read and "layers" not in read)


def of_platform(index: Mapping[str, Any], what: str) -> Descriptor:
    """The manifest for this kind of machine. Raises HvdError MANIFEST_INVALID, PLATFORM_MISSING."""
    known = []
    for entry in _list(index, "manifests", what):
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(platform, dict):
            platform = {}
        found = (platform.get("os"), platform.get("architecture"))
        if found == _PLATFORM:
            return _descriptor(entry, what)
        known.append("/".join(str(each)[:20] for each in found))
    raise HvdError("PLATFORM_MISSING", what=what, known=", ".join(known[:10]) or "nothing")


def manifest(read: Mapping[str, Any], what: str) -> Manifest:
    """Raises HvdError MANIFEST_INVALID."""
    if read.get("schemaVersion") != 2:
        raise _invalid(what, f"its schemaVersion is {str(read.get('schemaVersion'))[:20]}, not 2")
    layers: dict[str, Descriptor] = {}
    for entry in _list(read, "layers", what):
        descriptor = _descriptor(entry, what)
        if not _LAYER.fullmatch(str(entry.get("mediaType"))):
            raise _invalid(
                what, f"a layer is {str(entry.get('mediaType'))[:100]}, not a tar, plain or packed by gzip or zstd"
            )
        # What a layer adds and hides, it adds and hides where it stands highest: overlay takes a folder only once.
        layers.pop(descriptor.digest, None)
        layers[descriptor.digest] = descriptor
    if not 0 < len(layers) <= MOST_LAYERS:
        raise _invalid(what, f"it has {len(layers)} layers, not 1 to {MOST_LAYERS}")
    config = _descriptor(read.get("config"), what)
    if config.size > MOST_DOCUMENT_BYTES:
        raise _invalid(what, f"its configuration would have {config.size} bytes")
    return Manifest(config, tuple(layers.values()))


def rootfs_config(read: Mapping[str, Any], what: str) -> image_pb2.RootfsConfig:
    """Raises HvdError MANIFEST_INVALID, PLATFORM_MISSING."""
    platform = (read.get("os"), read.get("architecture"))
    if platform != _PLATFORM:
        raise HvdError("PLATFORM_MISSING", what=what, known="/".join(str(each)[:20] for each in platform))
    config = read.get("config") or {}
    if not isinstance(config, dict):
        raise _invalid(what, "config is no JSON object")
    made = image_pb2.RootfsConfig(
        entrypoint=_texts(config, "Entrypoint", what),
        command=_texts(config, "Cmd", what),
        working_directory=_text(config, "WorkingDir", what),
        user=_text(config, "User", what),
    )
    for variable in _texts(config, "Env", what):
        name, equals, value = variable.partition("=")
        if name and equals:
            made.env[name] = value
    stop = _text(config, "StopSignal", what)
    with_number = signal.Signals(int(stop)).name if stop.isdecimal() and len(stop) < 4 and int(stop) in set(signal.Signals) else stop
    # SIGRTMIN+3 and the like, which the API does not have: the default is better than no image.
    made.stop_signal = with_number if with_number in signal.Signals.__members__ else ""
    return made


def _descriptor(entry: Any, what: str) -> Descriptor:
    digest, size = (entry.get("digest"), entry.get("size")) if isinstance(entry, dict) else (None, None)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _invalid(what, f"{str(digest)[:100]} is no sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise _invalid(what, f"{digest} has no size")
    return Descriptor(digest, size)


def _list(read: Mapping[str, Any], name: str, what: str) -> list[Any]:
    found = read.get(name)
    if not isinstance(found, list):
        raise _invalid(what, f"it has no list of {name}")
    return found


def _text(config: Mapping[str, Any], name: str, what: str) -> str:
    found = config.get(name) or ""
    if not isinstance(found, str) or "\0" in found or not found.isprintable():
        raise _invalid(what, f"config.{name} is no text")
    return found


def _texts(config: Mapping[str, Any], name: str, what: str) -> list[str]:
    found = config.get(name) or []
    if not isinstance(found, list) or not all(isinstance(each, str) and "\0" not in each for each in found):
        raise _invalid(what, f"config.{name} is no list of texts")
    try:
        "".join(found).encode()
    except UnicodeEncodeError:
        raise _invalid(what, f"config.{name} is no Unicode") from None
    return found


def _invalid(what: str, problem: str) -> HvdError:
    return HvdError("MANIFEST_INVALID", what=what, problem=problem)
