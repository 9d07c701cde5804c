"""The options that every verb takes, in any position, and the click classes that carry them.

Nothing here or in a verb's module may import grpc or protobuf at its top: help and completion load these modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from hvctl.values import SECONDS

if TYPE_CHECKING:
    from hvctl.sdk import Client

TLS_OPTIONS = {"ca": "Authority of the daemon's certificate", "cert": "Your certificate", "key": "Its private key"}
DOCUMENTS = ("table", "wide", "json", "jsonl", "yaml", "name")
EVERY_FORMAT = (*DOCUMENTS, "text", "perfetto", "records")


class Settings:
    """What the common options said, and the client made of it."""

    def __init__(self, output: str = "table") -> None:
        self.output = output
        self.endpoint: str | None = None
        self.tls_ca: str | None = None
        self.tls_cert: str | None = None
        self.tls_key: str | None = None
        self.timeout: float | None = None
        self.no_color = False
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
        return self._client

    def close(self) -> None:
        if self._client is not None:
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


def say(text: str) -> None:
    """To people: stderr, never mixed with results."""
    click.echo(f"hvctl: {text}", err=True)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Settings), param.name, value)


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
    ]


GIVE_UP = "Give up after so long (exit code 124)."
CONTEXT = {"help_option_names": ["-h", "--help"]}


class PipeClosed(Exception):
    """Whoever read our output has gone."""


class VerbCommand(click.Command):
    """A verb with the common options. rpcs and short_help are filled in from the table of verbs when it is loaded."""

    def __init__(
        self, *args: Any, formats: Sequence[str] = DOCUMENTS, timeout_help: str = GIVE_UP, **kwargs: Any
    ) -> None:
        kwargs.setdefault("context_settings", CONTEXT)
        super().__init__(*args, **kwargs)
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
