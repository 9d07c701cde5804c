"""Making an image of files: `hvctl image import`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from hvapi.v1 import image_pb2

from hvctl import docker_archive, layout, rootfs
from hvctl.filekind import HEAD_BYTES, check_raw, kind_of
from hvctl.sdk.errors import HvctlError
from hvctl.settings import Settings, say
from hvctl.verbs.making import upload

# Kind -> the field of an image that its file becomes.
FIELD = {"kernel": "kernel", "initrd": "initrd", "disk": "disk", "cdrom": "disk", "rootfs": "rootfs"}
# Blobs that are no disks are read into memory, or unpacked.
LARGE = ("disk", "rootfs")


def import_image(
    settings: Settings, identifier: str, source: str | None, options: Mapping[str, Any]
) -> image_pb2.Image:
    """options: of the verb. Raises HvctlError, click.UsageError."""
    files: dict[str, str] = {what: options[what] for what in ("kernel", "initrd", "symbols") if options[what]}
    with tempfile.TemporaryDirectory(prefix="hvctl-") as directory:
        if source is not None:
            source = rootfs.without_zstd(source, Path(directory) / "zstd")
            if options["kind"] in (None, "rootfs") and not options["as_"] and (found := _layout_of(source, Path(directory))):
                return _import_layout(settings, identifier, found, files, options)
        if source is None:
            if options["kind"] or options["as_"] or options["size"]:
                raise click.UsageError("--kind, --as and --size need a FILE or a FOLDER")
            kind = next((what for what in ("kernel", "initrd") if what in files), "")
            if not kind:
                raise click.UsageError("of what? Give a FILE or a FOLDER, or --kernel")
        else:
            kind, file = _prepare(source, options, Path(directory))
            if FIELD[kind] in files:
                raise click.UsageError(f"{source} is the {kind} already: leave --{FIELD[kind]} out")
            files[FIELD[kind]] = file
        if "kernel" in files and kind == "initrd":
            kind = "kernel"
        digests = {what: upload(settings, [file], is_large=what in LARGE)[0] for what, file in files.items()}
    image = image_pb2.Image(
        kind=kind,
        append=options["append"],
        memory_bytes=options["memory"] or 0,
        arch=options["arch"] or "",
        labels=dict(options["labels"]),
        description=options["description"],
    )
    for what, digest in digests.items():
        setattr(image, what, digest)
    return settings.client.create_image(image_id=identifier, image=image)


def _layout_of(source: str, scratch: Path) -> layout.Layout | None:
    """None = it is another thing than an image in layers. Raises HvctlError."""
    if layout.is_layout(source):
        return layout.read(source, scratch)
    return docker_archive.read(source, scratch) if docker_archive.is_archive(source) else None


def _import_layout(
    settings: Settings, identifier: str, found: layout.Layout, files: Mapping[str, str], options: Mapping[str, Any]
) -> image_pb2.Image:
    if files or options["append"] or options["size"]:
        raise click.UsageError("an image in layers is a container's: --kernel, --initrd, --append and --size do not go with it")
    upload(settings, [str(file) for file in found.layers], is_large=True)
    image = image_pb2.Image(
        kind="rootfs",
        layers=found.digests,
        config=found.config,
        memory_bytes=options["memory"] or 0,
        arch=options["arch"] or "x86_64",
        labels=dict(options["labels"]),
        description=options["description"],
    )
    return settings.client.create_image(image_id=identifier, image=image)


def _prepare(source: str, options: Mapping[str, Any], directory: Path) -> tuple[str, str]:
    """(kind, the file to be uploaded), made in the directory if it is another than the source."""
    kind = options["kind"] or kind_of(source)
    made = directory / "made"
    is_folder = Path(source).is_dir()
    if is_folder and kind not in ("rootfs", "disk"):
        raise click.UsageError(f"a folder can be a rootfs or a disk, not a {kind}")
    if options["as_"] == "disk" or (is_folder and kind == "disk"):
        if not is_folder and kind != "rootfs":
            raise click.UsageError(f"--as disk makes a disk of a folder or a tar file; {source} is a {kind}")
        with made.open("wb") as plain:
            unpacked = not is_folder and rootfs.unpacked_tar(source, plain)
        disk = directory / "disk"
        rootfs.make_disk(str(made) if unpacked else source, disk, options["size"] or 0)
        return "disk", str(disk)
    if options["size"]:
        raise click.UsageError(
            "--size needs --as disk; the size of a guest's disk is --disk IMAGE,size=S of `hvctl run`"
        )
    if kind == "rootfs":
        if not is_folder:
            with made.open("wb") as plain:
                unpacked = rootfs.unpacked_tar(source, plain)
            return kind, str(made) if unpacked else source
        try:
            with made.open("wb") as archive:
                left_out = rootfs.pack(source, archive)
        except OSError as error:
            free = shutil.disk_usage(directory).free
            problem = f"{error.strerror}; {free} bytes are free"
            raise HvctlError.local("FILE_UNWRITABLE", path=made, problem=problem) from error
        if left_out:
            say(f"left out, being devices or sockets: {', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}")
        return kind, str(made)
    if kind == "disk" and options["kind"]:
        _check_disk(source)
    return kind, source


def _check_disk(source: str) -> None:
    """What --kind says is believed, but not that a qcow2 file is raw: better said before the upload than after."""
    try:
        with open(source, "rb") as file:
            check_raw(source, file.read(HEAD_BYTES))
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise HvctlError.local("FILE_UNREADABLE", path=source, problem=problem) from error
