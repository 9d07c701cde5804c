"""OCI image layouts (image-layout.md of the OCI image specification): a folder or tar with oci-layout, index.json and blobs/."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hvapi.v1 import image_pb2

from hvctl.sdk.errors import HvctlError

_PLATFORM: Final = ("linux", "amd64")
_MOST_DOCUMENT_BYTES: Final = 4 << 20
_MOST_NESTED: Final = 8
_MEMBER = re.compile(r"(\./)?(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAYER = re.compile(r"application/vnd\.(oci\.image\.layer\.v1\.tar|docker\.image\.rootfs\.diff\.tar)([.+](gzip|zstd))?")


@dataclass(frozen=True, slots=True)
class Layout:
    layers: tuple[Path, ...]  # files, the lowest first
    digests: tuple[str, ...]  # of the layers, as the manifest says
    config: image_pb2.RootfsConfig


def is_layout(source: str) -> bool:
    """Raises nothing: what cannot be read is none."""
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, "oci-layout")) and os.path.isfile(os.path.join(source, "index.json"))
    try:
        with tarfile.open(source) as archive:
            # Whole layouts have only members like these; a root file system shows at once that it is none.
            for member in archive:
                if not member.isdir() and not _MEMBER.fullmatch(member.name) and member.name != "manifest.json":
                    return False
                if member.name.removeprefix("./") == "oci-layout":
                    return True
    except (OSError, tarfile.TarError, EOFError):
        pass
    return False


def read(source: str, scratch: Path) -> Layout:
    """scratch: a folder for what a tar holds. Raises HvctlError LAYOUT_INVALID, FILE_UNREADABLE."""
    try:
        folder = Path(source)
        if not folder.is_dir():
            _unpack(source, scratch)
            folder = scratch
        return _Reader(folder, source).read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise HvctlError.local("FILE_UNREADABLE", path=source, problem=error) from error


def _unpack(source: str, scratch: Path) -> None:
    """Only what a layout consists of, under names of our own."""
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isreg() and _MEMBER.fullmatch(member.name):
                target = scratch / member.name.removeprefix("./")
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)


class _Reader:
    def __init__(self, folder: Path, source: str) -> None:
        self._folder = folder
        self._source = source

    def read(self) -> Layout:
        index = self._document(self._folder / "index.json", "index.json")
        for _ in range(_MOST_NESTED):
            if "manifests" not in index:
                break
            index = self._described(self._chosen(index), "a manifest")
        else:
            raise self._invalid("its indexes go round in circles")
        layers: dict[str, Path] = {}
        for entry in self._list(index, "layers"):
            kind = entry.get("mediaType") if isinstance(entry, dict) else None
            if not isinstance(kind, str) or not _LAYER.fullmatch(kind):
                raise self._invalid(f"a layer is {str(kind)[:100]}, not a tar, plain or packed by gzip or zstd")
            digest, path = self._blob(entry)
            layers.pop(digest, None)  # one that is there twice counts where it stands highest
            layers[digest] = path
        if not layers:
            raise self._invalid("its manifest has no layers")
        config = self._described(index.get("config"), "the configuration")
        return Layout(tuple(layers.values()), tuple(layers), rootfs_config(config, self._source))

    def _chosen(self, index: Mapping[str, Any]) -> Any:
        """The only manifest, or the one for this kind of machine."""
        entries = self._list(index, "manifests")
        known = []
        for entry in entries:
            platform = entry.get("platform") if isinstance(entry, dict) else None
            if not isinstance(platform, dict):
                platform = {}
            if not platform and len(entries) == 1:
                return entry
            found = (platform.get("os"), platform.get("architecture"))
            if found == _PLATFORM:
                return entry
            known.append("/".join(str(each)[:20] for each in found))
        raise self._invalid(f"it has nothing for linux/amd64, only {', '.join(known[:10]) or 'nothing'}")

    def _described(self, entry: Any, what: str) -> dict[str, Any]:
        return self._document(self._blob(entry)[1], what)

    def _blob(self, entry: Any) -> tuple[str, Path]:
        """What a descriptor describes; the content is right."""
        digest, size = (entry.get("digest"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise self._invalid(f"{str(digest)[:100]} is no sha256 digest")
        path = self._folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
        if not path.is_file():
            raise self._invalid(f"blob {digest} is missing")
        with path.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != digest or path.stat().st_size != size:
            raise self._invalid(f"blob {digest} has {path.stat().st_size} bytes with digest {found}, not {size}")
        return digest, path

    def _document(self, path: Path, what: str) -> dict[str, Any]:
        with path.open("rb") as file:
            content = file.read(_MOST_DOCUMENT_BYTES + 1)
        try:
            if len(content) > _MOST_DOCUMENT_BYTES:
                raise ValueError("it is too large")
            read = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._invalid(f"{what} is no JSON ({error})") from error
        if not isinstance(read, dict):
            raise self._invalid(f"{what} is no JSON object")
        return read

    def _list(self, read: Mapping[str, Any], name: str) -> list[Any]:
        found = read.get(name)
        if not isinstance(found, list):
            raise self._invalid(f"there is no list of {name}")
        return found

    def _invalid(self, problem: str) -> HvctlError:
        return _invalid(self._source, problem)


def rootfs_config(read: Mapping[str, Any], source: str) -> image_pb2.RootfsConfig:
    """Of an image's configuration (config.md). Raises HvctlError LAYOUT_INVALID."""
    platform = (read.get("os"), read.get("architecture"))
    if platform != _PLATFORM:
        raise _invalid(source, f"it is for {'/'.join(str(each)[:20] for each in platform)}, not linux/amd64")
    config = read.get("config") or {}
    stop = str(config.get("StopSignal") or "") if isinstance(config, dict) else ""
    if stop.isdecimal() and len(stop) < 4 and int(stop) in set(signal.Signals):
        stop = signal.Signals(int(stop)).name
    try:
        return image_pb2.RootfsConfig(
            entrypoint=config.get("Entrypoint") or [],
            command=config.get("Cmd") or [],
            env=dict(each.split("=", 1) for each in config.get("Env") or []),
            working_directory=config.get("WorkingDir") or "",
            user=config.get("User") or "",
            stop_signal=stop if stop in signal.Signals.__members__ else "",
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid(source, f"its configuration is not what it should be ({error})") from error


def _invalid(source: str, problem: str) -> HvctlError:
    return HvctlError.local("LAYOUT_INVALID", path=source, problem=problem)
