"""What a guest is made of on the command line: the options of run and create, and the guest that comes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from hvctl.output import document, is_document, print_document
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id, image_name
from hvctl.settings import Settings, say
from hvctl.values import ADDRESS, CARD, DISK, FILE, LABEL, RESTART, SIZE
from hvctl.verbs.container_options import CONTAINER_OPTIONS, container_of, limits_of

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2, image_pb2

    from hvctl.sdk.blobs import Path

FORMATS = ("table", "json", "jsonl", "yaml", "name")
# Below this an upload is over before anybody has read how far it is.
PROGRESS_BYTES = 16 << 20

_SPEC_OPTIONS = [
    click.option("--backend", metavar="B", help="Kind of virtualisation; default: the best fitting one."),
    click.option("--engine", metavar="E", help="Way of executing within the backend."),
    click.option("--name", metavar="N", help="Name; default: the daemon makes one up."),
    click.option("--image", metavar="I", help="Image with the kernel and its defaults."),
    click.option("--kernel", type=FILE, metavar="F", help="Kernel file."),
    click.option("--initrd", type=FILE, metavar="F", help="Initial RAM disk."),
    click.option("--append", metavar="S", help="Kernel command line; added to the image's."),
    click.option("--symbols", type=FILE, metavar="F", help="ELF file with the kernel's symbols."),
    click.option("--disk", "disks", type=DISK, multiple=True, metavar="IMAGE[,ro][,bus=ide|virtio][,size=S]",
                 help="Disk of an image, or blank with size=S alone; may be repeated."),
    click.option("--cdrom", "cdroms", metavar="IMAGE", multiple=True, help="CD-ROM of an image; may be repeated."),
    click.option("--boot", type=click.Choice(["kernel", "disk", "cdrom"]), help="Default: the kernel, if there is one."),
    click.option("--flat", type=ADDRESS, metavar="ADDRESS", help="Load address and entry of a flat binary."),
    click.option("--memory", type=SIZE, metavar="SIZE", help="RAM: 64M, 1G, bytes."),
    click.option("--cpus", type=click.FloatRange(min=0.01), metavar="N", help="Virtual CPUs; of a container CPUs' worth of time."),
    click.option("--network", "networks", type=CARD, multiple=True, metavar="N[,mac=M][,ip=A]",
                 help="Network card on network N, user or none; may be repeated."),
    click.option("--label", "labels", type=LABEL, multiple=True, help="Label; may be repeated."),
    click.option("--restart", type=RESTART, metavar="POLICY", help="never, always, on-failure or on-failure:N."),
    click.option("--autostart", is_flag=True, help="Start it whenever the host is started anew."),
    click.option("--on-reset", type=click.Choice(["stop", "restart"]), help="What a reset or triple fault does."),
    *CONTAINER_OPTIONS,
    click.argument("args", nargs=-1, metavar="[GUEST ARGS]..."),
]  # fmt: skip


def spec_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SPEC_OPTIONS):
        function = option(function)
    return function


def make(settings: Settings, spec: dict[str, Any]) -> guest_pb2.Guest:
    """Makes the guest, and uploads the files that the daemon has not; says which backend was chosen when that was left open."""
    client = settings.client  # it connects while messages are imported and files are read
    from hvapi.v1 import guest_pb2

    from hvctl.sdk.blobs import file_blob
    from hvctl.sdk.guest_message import guest_message

    restart = spec["restart"]
    policy = None
    if restart is not None:
        mode = guest_pb2.RestartPolicy.Mode.Value(restart[0])
        policy = guest_pb2.RestartPolicy(mode=mode, max_retries=restart[1])
    disks = [
        guest_pb2.Disk(
            image=image_name(disk.image),
            mode=guest_pb2.Disk.READ_ONLY if disk.read_only else guest_pb2.Disk.MODE_UNSPECIFIED,
            bus=guest_pb2.Disk.Bus.Value(disk.bus.upper() or "BUS_UNSPECIFIED"),
            cdrom=disk.cdrom,
            size_bytes=disk.size_bytes,
        )
        for disk in spec["disks"]
    ]
    disks += [guest_pb2.Disk(image=image_name(name), cdrom=True) for name in spec["cdroms"]]
    limits, cpus = limits_of(spec), int(spec["cpus"] or 0)
    if spec["cpus"] and cpus != spec["cpus"]:  # parts of a CPU: only a container can have them
        limits = limits or guest_pb2.Limits()
        limits.cpus, cpus = spec["cpus"], 0
    files = [spec[what] or "" for what in ("kernel", "initrd", "symbols")]
    infos = [file_blob(path) if path else None for path in files]
    kernel, initrd, symbols = ("" if info is None else info.digest for info in infos)
    message = guest_message(
        backend=spec["backend"] or "",
        engine=spec["engine"] or "",
        image=spec["image"] or "",
        kernel_digest=kernel,
        initrd_digest=initrd,
        symbols_digest=symbols,
        append=spec["append"] or "",
        memory_bytes=spec["memory"] or 0,
        cpus=cpus,
        flat_load_address=spec["flat"] or 0,
        args=spec["args"],
        disks=disks,
        networks=spec["networks"],
        boot=spec["boot"] or "",
        labels=dict(spec["labels"]),
        on_reset=spec["on_reset"] or "",
        restart=policy,
        autostart=spec["autostart"],
        container=container_of(spec),
        limits=limits,
    )
    name = guest_id(spec["name"] or "")
    try:  # usually the daemon has them; otherwise it says so
        made = client.create_guest(guest_id=name, guest=message)
    except HvctlError as error:
        if error.reason != "BLOB_NOT_FOUND":
            raise
        upload(settings, [path for path in files if path], known=[info for info in infos if info is not None])
        made = client.create_guest(guest_id=name, guest=message)
    if not spec["backend"]:
        say(f"backend {made.backend}: {made.backend_reason or 'the daemon chose it'}")
    return made


def upload(settings: Settings, paths: Sequence[str], *, is_large: bool = False, known: Sequence[image_pb2.BlobInfo] = ()) -> list[str]:
    """The files' digests, once the daemon has them; a long upload shows on a terminal how far it is. is_large: disks
    or the like, which no guest has to load into its memory. known: of each, what file_blob() says, if it has been asked."""
    from hvctl.sdk import blobs

    most = blobs.MOST_DISK_BYTES if is_large else blobs.MOST_LOADED_BYTES
    if not sys.stderr.isatty():
        return settings.client.upload_files(paths, most=most, known=known)
    shown = False

    def progress(path: Path, sent: int, size: int) -> None:
        nonlocal shown
        if size >= PROGRESS_BYTES:
            shown = True
            click.echo(f"\ruploading {path}: {sent * 100 // size}%", err=True, nl=False)

    try:
        return settings.client.upload_files(paths, progress, most=most, known=known)
    finally:
        if shown:
            click.echo("", err=True)


def print_made(settings: Settings, guest: guest_pb2.Guest) -> None:
    if is_document(settings.output):
        print_document(settings.output, document(guest))
    else:
        click.echo(guest.name if settings.output == "name" else guest_id(guest.name))
