"""gdb: the real debugger on a guest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hvctl import failures
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, verb
from hvctl.values import HOST_PORT

if TYPE_CHECKING:
    from hvctl.sdk import Client, DebugSession


@verb(formats=("text",), timeout_help="End the session after so long.")
@click.argument("guest")
@click.argument("arguments", nargs=-1, metavar="[-- GDB ARGS...]", type=click.UNPROCESSED)
@click.option(
    "--symbols", type=click.Path(path_type=Path), metavar="F", help="ELF file with symbols; default: the guest's own."
)
@click.option("--no-symbols", is_flag=True, help="Do without the guest's own symbols.")
@click.option(
    "--architecture",
    type=click.Choice(["i386", "x86-64", "i8086"]),
    help="What gdb shall see; default: that of the symbols, otherwise what the guest executes now.",
)
@click.option("--stdio", is_flag=True, help="Speak gdb's remote protocol on stdin and stdout instead.")
@click.option(
    "--port",
    type=HOST_PORT,
    metavar="HOST:PORT",
    help="Speak it on a TCP port instead; whoever connects owns the guest.",
)
@click.option("--gdb", "program", default="gdb", metavar="PROGRAM", help="Which gdb; default: gdb.")
def gdb(
    settings: Settings,
    guest: str,
    arguments: tuple[str, ...],
    symbols: Path | None,
    no_symbols: bool,
    architecture: str | None,
    stdio: bool,
    port: tuple[str, int] | None,
    program: str,
) -> int:
    """Starts gdb on a guest, which stops; when gdb leaves, the guest goes on. What follows -- is gdb's:

    \b
        hvctl gdb web-1 -- -ex 'break start_kernel'
        hvctl gdb web-1 -- -batch -ex 'info registers'

    `monitor help` in gdb lists what the guest's own monitor knows. Ends with gdb's exit code.
    """
    from hvctl import debugging

    if stdio and port is not None:
        raise click.UsageError("--stdio and --port exclude each other")
    if (stdio or port is not None) and arguments:
        raise click.UsageError("arguments for gdb go with neither --stdio nor --port")
    if symbols is not None and no_symbols:
        raise click.UsageError("--symbols and --no-symbols exclude each other")
    name, client = guest_name(guest), settings.client
    if symbols is None and not no_symbols and (digest := _own_symbols(client, name)):
        symbols = debugging.cached_symbols(client, digest)
    wanted = "i386:x86-64" if architecture == "x86-64" else architecture or ""
    if not wanted and symbols is not None:
        wanted = debugging.architecture_of(symbols)

    def connect() -> DebugSession:
        return client.debug(name, architecture=wanted, timeout=settings.timeout)

    if stdio:
        debugging.over_stdio(connect)
        return failures.OK
    if port is not None:
        debugging.over_tcp(connect, *port)
        return failures.OK
    return debugging.run_gdb(program, connect, symbols, arguments)


def _own_symbols(client: Client, name: str) -> str:
    """Digest of the guest's symbols, or of its image's; empty when it has none."""
    from hvctl.sdk.errors import HvctlError

    guest = client.get_guest(name=name)
    if guest.machine.symbols or not guest.image:
        return guest.machine.symbols
    try:
        return client.get_image(name=guest.image).symbols
    except HvctlError as error:
        if error.code == "NOT_FOUND":  # deleted meanwhile
            return ""
        raise
