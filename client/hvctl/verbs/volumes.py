"""volume create, list, show, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hvctl.output import Column, document, is_document, print_document, print_items, print_table
from hvctl.sdk.names import guest_id, volume_id, volume_name
from hvctl.settings import Settings, verb
from hvctl.verbs.deleting import delete_each
from hvctl.verbs.listing import ROWS, rows_of

if TYPE_CHECKING:
    from hvapi.v1 import volume_pb2

FORMATS = ("table", "json", "jsonl", "yaml", "name")

COLUMNS: list[Column[volume_pb2.Volume]] = [
    Column("NAME", lambda v: volume_id(v.name)),
    Column("USED BY", lambda v: ", ".join(map(guest_id, v.used_by)) or "-"),
    Column("PATH", lambda v: v.path, wide=True),
]


@verb(formats=FORMATS)
@click.argument("name")
def create(settings: Settings, name: str) -> None:
    """Makes an empty volume; a container that names one with --volume makes it, too."""
    made = settings.client.create_volume(volume_id=volume_id(name))
    if is_document(settings.output):
        print_document(settings.output, document(made))
    else:
        click.echo(made.name if settings.output == "name" else volume_id(made.name))


@verb()
def list_volumes(settings: Settings) -> None:
    """Lists volumes, and the guests that name them."""
    from hvapi.v1 import volume_pb2

    everything = volume_pb2.ListVolumesResponse()
    token = ""
    while True:
        page = settings.client.list_volumes(page_token=token)
        everything.volumes.extend(page.volumes)
        token = page.next_page_token
        if not token:
            break
    print_items(settings, everything, everything.volumes, COLUMNS, lambda volume: volume.name)


@verb(formats=FORMATS)
@click.argument("name")
def show(settings: Settings, name: str) -> None:
    """Shows a volume, and what it takes on disk."""
    volume = settings.client.get_volume(name=volume_name(name))
    if is_document(settings.output):
        print_document(settings.output, document(volume))
    elif settings.output == "name":
        click.echo(volume.name)
    else:
        print_table(settings, rows_of(volume), ROWS)


@verb(formats=FORMATS)
@click.argument("name", nargs=-1, required=True)
@click.option("--allow-missing", is_flag=True, help="It is no failure when there is no such volume.")
def delete(settings: Settings, name: tuple[str, ...], allow_missing: bool) -> int:
    """Deletes volumes with all that is in them. One that a guest names, running or not, stays."""
    return delete_each(
        settings,
        (volume_name(word) for word in name),
        lambda volume: settings.client.delete_volume(name=volume, allow_missing=allow_missing),
        volume_id,
    )
