"""image list, import, build, delete."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from hvctl import failures
from hvctl.output import Column, document, is_document, print_document, print_items
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id, image_id, image_name
from hvctl.settings import Settings, verb
from hvctl.values import FILE, LABEL, SIZE, size_text
from hvctl.verbs.deleting import delete_each

if TYPE_CHECKING:
    from hvapi.v1 import image_pb2

FORMATS = ("table", "json", "jsonl", "yaml", "name")
KINDS = ("kernel", "initrd", "disk", "cdrom", "rootfs")

COLUMNS: list[Column[image_pb2.Image]] = [
    Column("NAME", lambda i: image_id(i.name)),
    Column("KIND", lambda i: i.kind),
    Column("ARCH", lambda i: i.arch or "-"),
    Column("SIZE", lambda i: size_text(i.size_bytes), right=True),
    Column("USED BY", lambda i: " ".join(guest_id(name) for name in i.used_by) or "-"),
    Column("MEMORY", lambda i: size_text(i.memory_bytes) if i.memory_bytes else "-", wide=True, right=True),
    Column("COMMAND LINE", lambda i: i.append or "-", wide=True),
    Column("KERNEL", lambda i: i.kernel[:19] or "-", wide=True),
    Column("DISK", lambda i: (i.disk or i.rootfs)[:19] or "-", wide=True),
    Column("DESCRIPTION", lambda i: i.description),
]


def _print_image(settings: Settings, image: image_pb2.Image) -> None:
    if is_document(settings.output):
        print_document(settings.output, document(image))
    else:
        click.echo(image.name if settings.output == "name" else image_id(image.name))


@verb()
def list_images(settings: Settings) -> None:
    """Lists images."""
    from hvapi.v1 import image_pb2

    everything = image_pb2.ListImagesResponse()
    token = ""
    while True:
        page = settings.client.list_images(page_token=token)
        everything.images.extend(page.images)
        token = page.next_page_token
        if not token:
            break
    print_items(settings, everything, everything.images, COLUMNS, lambda image: image.name)


@verb(formats=FORMATS)
@click.argument("name")
@click.argument("source", required=False, metavar="[FILE|FOLDER]")
@click.option("--kind", type=click.Choice(KINDS), help="What it is; default: what it looks like.")
@click.option("--as", "as_", type=click.Choice(["disk"]), help="Of a folder or tar file: make a disk with ext4.")
@click.option("--size", type=SIZE, help="Size of that disk; default: what the files take, and some room.")
@click.option("--kernel", type=FILE, metavar="F", help="Kernel file.")
@click.option("--initrd", type=FILE, metavar="F", help="Initial RAM disk.")
@click.option("--symbols", type=FILE, metavar="F", help="ELF file with the kernel's symbols.")
@click.option("--append", default="", metavar="S", help="Default kernel command line.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Default RAM of its guests.")
@click.option("--arch", type=click.Choice(["i386", "x86_64"]), help="Of its guests; for people.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="Label; may be repeated.")
@click.option("--description", default="", metavar="S", help="For people.")
def import_(settings: Settings, name: str, source: str | None, **options: Any) -> None:
    """Makes an image NAME of a file or folder: a kernel, an initial RAM disk, a disk, a CD-ROM, a root file system.

    With a kernel go --initrd, --symbols and --append; with a disk may go a --kernel that boots from it.
    """
    from hvctl.importing import import_image

    image = import_image(settings, image_id(name), source, options)
    _print_image(settings, image)


@verb(formats=FORMATS)
@click.argument("recipe")
@click.option("--name", metavar="N", help="Name of the image; default: the recipe's.")
@click.option("--arch", type=click.Choice(["i386", "x86_64"]), help="Default: the recipe's.")
@click.option("--suite", metavar="S", help="Of debian: a root for containers of bookworm, trixie or bullseye.")
@click.option("--force", is_flag=True, help="Build although it is cached.")
def build(settings: Settings, recipe: str, name: str | None, arch: str | None, suite: str | None, force: bool) -> int:
    """Builds an image by one of the daemon's recipes (linux, linux-pv, debian, busybox), and shows how far it is."""
    frames = settings.client.build_image(
        recipe=recipe,
        image_id=image_id(name or ""),
        arch=arch or "",
        force=force,
        options={"suite": suite} if suite else {},
        timeout=settings.timeout,
    )
    return _follow(settings, frames, f"the build of {recipe}")


@verb(formats=FORMATS)
@click.argument("reference")
@click.option("--name", metavar="N", help="Name of the image; default: made from the reference.")
@click.option("--insecure", is_flag=True, help="Speak plain HTTP; to loopback addresses it is spoken anyway.")
def pull(settings: Settings, reference: str, name: str | None, insecure: bool) -> int:
    """Fetches an image for containers from a registry: REFERENCE is as in debian:bookworm or 127.0.0.1:5000/box@sha256:..."""
    frames = settings.client.pull_image(
        reference=reference, image_id=image_id(name or ""), insecure=insecure, timeout=settings.timeout
    )
    return _follow(settings, frames, f"the pull of {reference}")


def _follow(settings: Settings, frames: Any, what: str) -> int:
    """Progress on stderr, then the image."""
    progress = _Progress()
    image = None
    try:
        with frames:
            for frame in frames:
                if frame.WhichOneof("frame") == "progress":
                    progress.show(frame.progress)
                elif frame.WhichOneof("frame") == "image":
                    image = frame.image
    finally:
        progress.end()
    if image is None:
        raise HvctlError.local("NOT_EXPLAINED", problem=f"{what} ended without an image")
    _print_image(settings, image)
    return failures.OK


class _Progress:
    """On stderr: one line that changes on a terminal, otherwise a line per step and per tenth of it."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = ("", -1)
        self._width = 0

    def show(self, progress: image_pb2.BuildProgress) -> None:
        percent = "" if progress.fraction < 0 else f" {progress.fraction * 100:.0f}%"
        text = f"{progress.step}{percent} {progress.message}".rstrip()
        if self._live:
            click.echo(f"\r{text[:100]:<{self._width}}", err=True, nl=False)
            self._width = min(len(text), 100)
            return
        mark = (progress.step, int(progress.fraction * 10))
        if mark != self._last:
            self._last = mark
            click.echo(text, err=True)

    def end(self) -> None:
        if self._live and self._width:
            click.echo("", err=True)


@verb(formats=FORMATS)
@click.argument("name", nargs=-1, required=True)
@click.option("--allow-missing", is_flag=True, help="It is no failure when there is no such image.")
def delete(settings: Settings, name: tuple[str, ...], allow_missing: bool) -> int:
    """Deletes images that no guest needs."""
    return delete_each(
        settings,
        (image_name(word) for word in name),
        lambda image: settings.client.delete_image(name=image, allow_missing=allow_missing),
        image_id,
    )
