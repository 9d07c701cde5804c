"""snapshot, restore, clone, and snapshots list, delete, export, import."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from hvctl.output import Column, document, is_document, print_document, print_items
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id, guest_name, snapshot_name
from hvctl.settings import Settings, verb
from hvctl.values import FILE, size_text
from hvctl.verbs.deleting import delete_each
from hvctl.verbs.lifecycle import print_guest

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

FORMATS = ("table", "json", "jsonl", "yaml", "name")


def short(name: str) -> str:
    """guests/web-1/snapshots/before -> web-1/before"""
    return name.removeprefix("guests/").replace("/snapshots/", "/")


COLUMNS: list[Column[guest_pb2.Snapshot]] = [
    Column("SNAPSHOT", lambda s: short(s.name)),
    Column("BACKEND", lambda s: s.backend),
    Column("MEMORY", lambda s: size_text(s.memory_bytes), right=True),
    Column("SIZE", lambda s: size_text(s.size_bytes), right=True),
    Column("TAKEN", lambda s: s.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")),
    Column("VCPU", lambda s: s.vcpu_format, wide=True),
    Column("UID", lambda s: s.uid, wide=True),
    Column("DESCRIPTION", lambda s: s.description or "-"),
]


def _print(settings: Settings, snapshot: guest_pb2.Snapshot) -> None:
    if is_document(settings.output):
        print_document(settings.output, document(snapshot))
    else:
        click.echo(snapshot.name if settings.output == "name" else short(snapshot.name))


def _print_guest(settings: Settings, guest: guest_pb2.Guest) -> None:
    if is_document(settings.output):
        print_document(settings.output, document(guest))
    else:
        print_guest(settings, guest)


@verb(formats=FORMATS)
@click.argument("guest")
@click.argument("name", required=False, default="")
@click.option("--description", default="", metavar="S", help="For people.")
def snapshot(settings: Settings, guest: str, name: str, description: str) -> None:
    """Saves the whole machine: memory, processor, devices, clock, disks. The guest goes on; one that is paused stays so."""
    made = settings.client.snapshot_guest(
        name=guest_name(guest), snapshot_id=name, description=description, timeout=settings.timeout
    )
    _print(settings, made)


@verb(formats=FORMATS)
@click.argument("guest")
@click.argument("name")
@click.option("--backend", default="", metavar="B", help="Another backend that can go on with it.")
@click.option("--paused", is_flag=True, help="Leave it paused.")
def restore(settings: Settings, guest: str, name: str, backend: str, paused: bool) -> None:
    """Puts GUEST back to where snapshot NAME was taken; ends it first if it runs. NAME may be OTHER/NAME: of another guest."""
    from_ = snapshot_name(name if "/" in name else f"{guest_id(guest_name(guest))}/{name}")
    became = settings.client.restore_guest(
        snapshot=from_, name=guest_name(guest), backend=backend, paused=paused, timeout=settings.timeout
    )
    _print_guest(settings, became)


@verb(formats=FORMATS)
@click.argument("source", metavar="GUEST[/SNAPSHOT]")
@click.argument("new", required=False, default="")
def clone(settings: Settings, source: str, new: str) -> None:
    """Makes NEW, a guest with an identity of its own: from a snapshot, or from what GUEST is now, which pauses shortly."""
    where = source.removeprefix("guests/")
    name = snapshot_name(where) if "/" in where else guest_name(where)
    _print_guest(
        settings, settings.client.clone_guest(source=name, guest_id=guest_id(new), timeout=settings.timeout)
    )


@verb()
@click.argument("guest", required=False, default="")
def list_snapshots(settings: Settings, guest: str) -> None:
    """Lists the snapshots of GUEST, or of all guests."""
    from hvapi.v1 import guest_pb2

    everything = guest_pb2.ListSnapshotsResponse()
    token = ""
    while True:
        page = settings.client.list_snapshots(parent=guest_name(guest or "-"), page_token=token)
        everything.snapshots.extend(page.snapshots)
        token = page.next_page_token
        if not token:
            break
    print_items(settings, everything, everything.snapshots, COLUMNS, lambda found: found.name)


@verb(formats=FORMATS)
@click.argument("snapshot", nargs=-1, required=True, metavar="GUEST/NAME...")
@click.option("--allow-missing", is_flag=True, help="It is no failure when there is no such snapshot.")
def delete(settings: Settings, snapshot: tuple[str, ...], allow_missing: bool) -> int:
    """Deletes snapshots."""
    return delete_each(
        settings,
        (snapshot_name(word) for word in snapshot),
        lambda name: settings.client.delete_snapshot(name=name, allow_missing=allow_missing),
        short,
    )


@verb(formats=("table",))
@click.argument("saved", metavar="GUEST/NAME")
@click.argument("file", type=FILE, metavar="FILE")
def export(settings: Settings, saved: str, file: str) -> None:
    """Writes a snapshot, with the kernel and the disk images that it needs, to a file; "-" is stdout."""
    if file == "-":
        with settings.client.export_snapshot(name=snapshot_name(saved), timeout=settings.timeout) as chunks:
            for response in chunks:
                sys.stdout.buffer.write(response.chunk)
        return
    settings.client.export_snapshot_file(snapshot_name(saved), file, timeout=settings.timeout)


@verb(formats=FORMATS)
@click.argument("file", type=FILE, metavar="FILE")
@click.argument("snapshot", required=False, default="", metavar="[GUEST[/NAME]]")
def import_(settings: Settings, file: str, snapshot: str) -> None:
    """Takes a snapshot from a file that `snapshots export` wrote. GUEST is made, stopped, if there is none; default: the
    names that it had."""
    guest, _, name = snapshot.removeprefix("guests/").replace("/snapshots/", "/").partition("/")
    if not os.path.isfile(file):
        raise HvctlError.local("FILE_UNREADABLE", path=file, problem="it is no regular file")
    made = settings.client.import_snapshot(
        file, parent=guest_name(guest) if guest else "", snapshot_id=name, timeout=settings.timeout
    )
    _print(settings, made)
