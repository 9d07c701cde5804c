"""Archives of `docker save` and `podman save`: a tar with manifest.json, a configuration and a tar for each layer
(image/spec/v1.2.md of moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format")."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any, Final

from hvctl.layout import Layout, rootfs_config
from hvctl.sdk.errors import HvctlError

MANIFEST: Final = "manifest.json"
_MOST_DOCUMENT_BYTES: Final = 4 << 20
_MOST_LAYERS: Final = 127
_GZIP: Final = b"\x1f\x8b"
# What programs that write them call their members; a root file system shows at once that it is none.
_MEMBER: Final = re.compile(r"(\./)?(repositories|oci-layout|[^/]+\.json|blobs(/.*)?|(sha256:)?[0-9a-f]{64}(\.tar(\.gz)?|/.*)?)")


def is_archive(source: str) -> bool:
    """Raises nothing: what cannot be read is none."""
    try:
        if not tarfile.is_tarfile(source):
            return False
        with tarfile.open(source) as archive:
            for member in archive:
                if not _MEMBER.fullmatch(member.name):
                    return False
                if member.name == MANIFEST and member.isreg():
                    return isinstance(_document(archive, MANIFEST), list)
    except (OSError, tarfile.TarError, EOFError, ValueError, LookupError, RecursionError):
        pass
    return False


def read(source: str, scratch: Path) -> Layout:
    """scratch: a folder for the layers. Raises HvctlError LAYOUT_INVALID, FILE_UNREADABLE."""
    try:
        with tarfile.open(source) as archive:
            images = _document(archive, MANIFEST)
            if len(images) != 1:
                raise ValueError(f"it holds {len(images)} images; save one of them")
            layers, config = images[0]["Layers"], _document(archive, str(images[0]["Config"]))
            diff_ids = config["rootfs"]["diff_ids"]
            if not 0 < len(layers) == len(diff_ids) <= _MOST_LAYERS:
                raise ValueError(f"it has {len(layers)} layers and {len(diff_ids)} digests for them, not 1 to {_MOST_LAYERS}")
            found: dict[str, Path] = {}
            for number, (name, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
                digest = _unpack(archive, str(name), scratch / str(number), str(diff_id))
                found.pop(digest, None)  # one that is there twice counts where it stands highest
                found[digest] = scratch / str(number)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise HvctlError.local("FILE_UNREADABLE", path=source, problem=error) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{error} is missing" if isinstance(error, LookupError) else str(error)
        raise HvctlError.local("LAYOUT_INVALID", path=source, problem=problem[:300]) from error
    return Layout(tuple(found.values()), tuple(found), rootfs_config(config, source))


def _document(archive: tarfile.TarFile, name: str) -> Any:
    """Raises ValueError, KeyError, RecursionError, OSError."""
    with _content(archive, name) as file:
        content = file.read(_MOST_DOCUMENT_BYTES + 1)
    if len(content) > _MOST_DOCUMENT_BYTES:
        raise ValueError(f"{name} is too large")
    return json.loads(content)


def _content(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """Of a file of the archive, behind links within it. Raises ValueError, KeyError, RecursionError."""
    content = archive.extractfile(name)
    if content is None:
        raise ValueError(f"{name} is no file")
    return content


def _unpack(archive: tarfile.TarFile, name: str, target: Path, diff_id: str) -> str:
    """Its digest as it is. diff_id: of the tar, unpacked. Raises ValueError, KeyError, OSError, EOFError."""
    with _content(archive, name) as content, target.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    with target.open("rb") as file:
        digest = found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        file.seek(0)
        if found != diff_id and file.read(2) == _GZIP:
            file.seek(0)
            with gzip.open(file) as plain:
                total = hashlib.sha256()
                while block := plain.read(1 << 20):
                    total.update(block)
            found = f"sha256:{total.hexdigest()}"
    if found != diff_id:
        raise ValueError(f"layer {name} has digest {found}, not {diff_id}")
    return digest
