"""cp."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from hvctl.output import document, is_document, print_document
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, verb

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

STREAM = "-"


@verb(formats=("text", "json", "jsonl", "yaml"), timeout_help="Give up after so long (exit code 124).")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--archive", "-a", is_flag=True, help="Keep the numbers of users and groups.")
@click.option("--follow-link", "-L", is_flag=True, help="A link as SOURCE is followed; others stay links.")
def cp(settings: Settings, source: str, target: str, archive: bool, follow_link: bool) -> None:
    """Copies a file or folder into a container (LOCAL GUEST:PATH) or out of it (GUEST:PATH LOCAL), running or not.

    An existing folder as TARGET gets it; otherwise it becomes TARGET. FOLDER/. is what is in a folder. - as LOCAL is a
    tar on standard input, which is unpacked into the folder PATH, or on standard output. A local path with a colon
    in it is written ./a:b.
    """
    of, to = _in_guest(source), _in_guest(target)
    if of and to:
        raise click.UsageError("from guest to guest in two steps: hvctl cp A:/path - | hvctl cp - B:/folder")
    if to:
        _copy_in(settings, source, *to, archive, follow_link)
    elif of:
        _copy_out(settings, *of, target, archive, follow_link)
    else:
        raise click.UsageError("neither SOURCE nor TARGET is in a guest: write GUEST:PATH")


def _in_guest(word: str) -> tuple[str, str] | None:
    """Its name and the absolute path; None = a local path."""
    guest, colon, path = word.partition(":")
    if not colon or not guest or word.startswith(("/", ".")):
        return None
    return guest_name(guest), path if path.startswith("/") else f"/{path}"


def _copy_in(settings: Settings, source: str, name: str, path: str, archive: bool, follow_link: bool) -> None:
    from hvctl.sdk.copying import archive_of, pieces_of

    is_stream = source == STREAM
    chunks = pieces_of(sys.stdin.buffer) if is_stream else archive_of(source, follow_link)
    answer = settings.client.copy_in(
        name, path, chunks, place=not is_stream, keep_owners=archive or is_stream, timeout=settings.timeout
    )
    if is_document(settings.output):
        print_document(settings.output, document(answer))


def _copy_out(settings: Settings, name: str, path: str, target: str, archive: bool, follow_link: bool) -> None:
    from hvctl.sdk.copying import unpack
    from hvctl.terminal import STDOUT, write_all

    if target == STREAM and sys.stdout.isatty():
        raise click.UsageError("a tar is nothing for a terminal: name a file, or pipe it")
    with settings.client.copy_out(name=name, path=path, follow_link=follow_link, timeout=settings.timeout) as responses:
        first = next(responses, None)
        if first is None or first.WhichOneof("frame") != "info":
            raise HvctlError.local("NOT_EXPLAINED", problem="the copy did not begin as it should")
        chunks = _chunks(responses)
        if target != STREAM:
            unpack(first.info, chunks, target, archive)
            if is_document(settings.output):
                print_document(settings.output, document(first.info))
            return
        for chunk in chunks:
            write_all(STDOUT, chunk)


def _chunks(responses: Iterator[guest_pb2.CopyOutResponse]) -> Iterator[bytes]:
    return (response.chunk for response in responses)
