"""The options that every verb takes, in any position, and the click classes that carry them.

Nothing here or in a verb's module may import grpc or protobuf at its top: help and completion load these modules.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from hvctl.sdk.errors import HvctlError
from hvctl.values import SECONDS

if TYPE_CHECKING:
    from hvctl.sdk import Client

TLS_OPTIONS = {"ca": "Authority of the daemon's certificate", "cert": "Your certificate", "key": "Its private key"}
DOCUMENTS = ("table", "wide", "json", "jsonl", "yaml", "name")
EVERY_FORMAT = (*DOCUMENTS, "text", "perfetto", "records")


class Settings:
    """What the common options said, and the client made of it."""

    def __init__(self, output: str = "table", ends: bool = False) -> None:
        """ends: the process ends with the command. So does its connection then, which is begun before the first call."""
        self.output = output
        self.endpoint: str | None = None
        self.tls_ca: str | None = None
        self.tls_cert: str | None = None
        self.tls_key: str | None = None
        self.timeout: float | None = None
        self.no_color = False
        self._ends = ends
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Made on first use: here grpc is imported."""
        if self._client is None:
            # Its own log lines are no output of ours; errors arrive as exceptions.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            from hvctl.sdk import Client
            from hvctl.sdk.client import DEFAULT_TIMEOUT
            from hvctl.sdk.endpoint import TlsFiles

            tls = TlsFiles(self.tls_ca, self.tls_cert, self.tls_key)
            self._client = Client(self.endpoint, timeout=self.timeout or DEFAULT_TIMEOUT, tls=tls)
            if self._ends:
                _connect(self._client)
        return self._client

    def close(self) -> None:
        if self._client is not None and not self._ends:
            self._client.close()

    @property
    def color(self) -> bool:
        """https://no-color.org, and no colour off a terminal."""
        plain = self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return not plain and sys.stdout.isatty()

    @property
    def live(self) -> bool:
        """Whether a view may redraw itself."""
        return self.output in ("table", "wide") and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _connect(client: Client) -> None:
    """Begins to, while the messages of the first call are imported. Whatever is wrong with it, that call will tell."""
    import grpc

    def told(state: grpc.ChannelConnectivity) -> None:
        if state not in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
            channel.unsubscribe(told)

    with contextlib.suppress(HvctlError):
        channel = client.channel
        channel.subscribe(told, try_to_connect=True)


def say(text: str) -> None:
    """To people: stderr, never mixed with results."""
    click.echo(f"hvctl: {text}", err=True)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Settings), param.name, value)


def _help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Of click's own option the text is looked up in translations whenever a command is read."""
    if value and not ctx.resilient_parsing:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def common_options(formats: Sequence[str], timeout_help: str) -> list[click.Parameter]:
    """Fresh ones for each command: what is given last wins, before or after the verb."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember, "default": None}
    return [
        click.Option(["-o", "--output"], type=click.Choice(formats), help="Form of the result.", **shared),
        click.Option(
            ["--endpoint"], metavar="ENDPOINT", help="unix:///path or host:port; default $HVD_ENDPOINT.", **shared
        ),
        *(
            click.Option([f"--tls-{what}"], metavar="FILE", help=f"{about} (PEM), for host:port; default $HVD_TLS_{what.upper()}.", **shared)
            for what, about in TLS_OPTIONS.items()
        ),
        click.Option(["--timeout"], type=SECONDS, metavar="S", help=timeout_help, **shared),
        click.Option(["--no-color"], is_flag=True, flag_value=True, type=bool, help="No colours.", **shared),
        click.Option(["-h", "--help"], is_flag=True, is_eager=True, expose_value=False, callback=_help, help="Show this message and exit."),
    ]


GIVE_UP = "Give up after so long (exit code 124)."


class _Formatter(click.HelpFormatter):
    """Asks the terminal itself how wide it is: shutil, with all its archives, would take longer than the help."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:
        super().__init__(indent_increment, width or max(min(_columns(), max_width or 80) - 2, 50))


def _columns() -> int:
    """As shutil.get_terminal_size."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


class Context(click.Context):
    formatter_class = _Formatter


class PipeClosed(Exception):
    """Whoever read our output has gone."""


class VerbCommand(click.Command):
    """A verb with the common options. rpcs and short_help are filled in from the table of verbs when it is loaded."""

    context_class = Context

    def __init__(
        self, *args: Any, formats: Sequence[str] = DOCUMENTS, timeout_help: str = GIVE_UP, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs | {"add_help_option": False})
        self.formats = formats
        self.params += common_options(formats, timeout_help)
        self.rpcs: tuple[str, ...] = ()

    def invoke(self, ctx: click.Context) -> Any:
        output = ctx.ensure_object(Settings).output
        # "table" is the default and means: for people.
        if output not in self.formats and output != "table":
            raise click.UsageError(
                f"{ctx.command_path} has no output form '{output}'; it has: {', '.join(self.formats)}", ctx
            )
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would end with 1, as if something had failed.
            raise PipeClosed from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.rpcs:
            formatter.write_paragraph()
            formatter.write_text(f"API: {', '.join(self.rpcs)}")


def verb(
    *, formats: Sequence[str] = DOCUMENTS, timeout_help: str = GIVE_UP, **kwargs: Any
) -> Callable[[Callable[..., int | None]], VerbCommand]:
    """Makes a function that takes Settings first a verb. It returns the exit code; None = 0."""

    def decorate(function: Callable[..., int | None]) -> VerbCommand:
        command = click.command(cls=VerbCommand, formats=formats, timeout_help=timeout_help, **kwargs)
        return command(click.pass_obj(function))

    return decorate
