"""What the delete of every kind of resource does with many names."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from hvctl import failures
from hvctl.output import is_document, print_document
from hvctl.sdk.errors import HvctlError
from hvctl.settings import Settings


def delete_each(
    settings: Settings, names: Iterable[str], delete: Callable[[str], object], short: Callable[[str], str]
) -> int:
    """Deletes every one, in spite of failures, and prints the name of each that is gone: for people as short() has it.
    Returns the first failure's exit code."""
    code = failures.OK
    for name in names:
        try:
            delete(name)
        except HvctlError as error:
            failures.report(error, settings.output)
            code = code or failures.exit_code(error)
        else:
            if not is_document(settings.output):
                click.echo(name if settings.output == "name" else short(name))
    if is_document(settings.output) and code == failures.OK:
        print_document(settings.output, {})  # google.protobuf.Empty
    return code
