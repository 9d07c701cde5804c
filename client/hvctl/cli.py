"""The command line: finds the verb in the table, loads its module only, and turns whatever happens into an exit
code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import click

from hvctl import failures
from hvctl.sdk.errors import HvctlError
from hvctl.settings import (
    EVERY_FORMAT,
    GIVE_UP,
    TLS_OPTIONS,
    Context,
    PipeClosed,
    Settings,
    VerbCommand,
    common_options,
)
from hvctl.verbs import VERBS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class VerbGroup(click.Group):
    """The verbs whose names begin with prefix, from the table; a verb's module is imported when the verb is used."""

    context_class = Context

    def __init__(self, prefix: str = "", default: VerbCommand | None = None, **kwargs: Any) -> None:
        """default: takes the words when the first of them is no verb of the group; its options must come behind the group's name."""
        # Options of the default one are not known here: they are left to it.
        super().__init__(context_settings={"ignore_unknown_options": default is not None}, add_help_option=False, **kwargs)
        self._default = default
        self.params += common_options(EVERY_FORMAT, GIVE_UP)
        own = {name.removeprefix(prefix): row for name, row in VERBS.items() if name.startswith(prefix)}
        self._verbs = {name: row for name, row in own.items() if " " not in name}
        self._aliases = {alias: name for name, row in self._verbs.items() for alias in row.aliases}
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self._aliases.get(cmd_name, cmd_name)
        row = self._verbs.get(name)
        if row is None:
            return None
        prefix = f"{self._prefix}{name} "
        if not row.home:
            return VerbGroup(prefix, name=name, help=row.help)
        module, _, function = row.home.partition(":")
        command: VerbCommand = getattr(importlib.import_module(f"hvctl.verbs.{module}"), function)
        command.name, command.short_help, command.rpcs = name, row.help, row.rpcs
        if any(other.startswith(prefix) for other in VERBS):
            return VerbGroup(prefix, command, name=name, help=row.help)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self._default is not None and name not in self._verbs and name not in self._aliases:
            return self.name, self._default, args
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, [*self._verbs, *self._aliases], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"there is no verb '{name}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self._default is not None:
            pieces = [*self._default.collect_usage_pieces(ctx), "| VERB ..."]
            formatter.write_usage(ctx.command_path, " ".join(pieces))
        else:
            super().format_usage(ctx, formatter)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        command = self._default
        (super().format_help_text if command is None else command.format_help_text)(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self._default is not None:
            self._default.format_options(ctx, formatter)
            self.format_commands(ctx, formatter)
        else:
            super().format_options(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        command = self._default
        (super().format_epilog if command is None else command.format_epilog)(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        own = super().shell_complete(ctx, incomplete)
        if self._default is None:
            return own
        words = [param for param in self._default.params if isinstance(param, click.Argument)] if not incomplete.startswith("-") else []
        return [*own, *self._default.shell_complete(ctx, incomplete), *(item for param in words for item in param.shell_complete(ctx, incomplete))]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, so that help imports no verb."""
        with formatter.section("Verbs"):
            formatter.write_dl([("|".join((name, *row.aliases)), row.help) for name, row in self._verbs.items()])


def root() -> VerbGroup:
    return VerbGroup(
        name="hvctl",
        help="Runs guests under every kind of virtualisation that hvd offers, and shows what crosses between guest "
        "and hypervisor.",
        epilog="Options may stand anywhere. `hvctl VERB --help` describes a verb.",
    )


# Signals that asked hvctl to end.
_signals: list[int] = []
_raised = False
# Between two looks at a thread that is inside of a library.
_TICK_SECONDS = 0.005
_seen: tuple[CodeType, int] | None = None


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP clean up as Ctrl-C does: raw terminals are restored, `run --rm` removes its guest.

    An exception in the middle of threading.Condition releases locks that are another thread's, and the next call never ends. In there, and
    in grpc, it is raised where the thread waits: where it is found twice.

    Once: what cleans up then is not disturbed by what comes after the first, a SIGHUP that follows a SIGTERM or another SIGHUP. Who presses
    Ctrl-C again means it.
    """
    global _raised, _seen
    if number != signal.SIGALRM:
        _signals.append(number)
        if _raised and number != signal.SIGINT:
            return
    if frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in ("threading", "grpc"):
        here = (frame.f_code, frame.f_lasti)
        if here != _seen or frame.f_code is threading.Condition._acquire_restore.__code__:  # type: ignore[attr-defined]
            _seen = here
            signal.signal(signal.SIGALRM, _terminate)
            signal.setitimer(signal.ITIMER_REAL, _TICK_SECONDS)
            return
    _seen = None
    _raised = True
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def _on_signals(action: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs hvctl with these arguments and returns the exit code; without any, with sys.argv's, and ends the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    in_main_thread = arguments is None
    settings = Settings(output=_wanted_form(words), ends=in_main_thread)
    if sys.stdout is None:  # the caller closed it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the process
    if in_main_thread:
        _on_signals(_terminate)
    try:
        code = _run(words, settings)
        if in_main_thread:
            _on_signals(signal.SIG_IGN)  # it is over
    except BaseException:
        if not _signals:
            raise
        _on_signals(signal.SIG_IGN)
        code = failures.INTERRUPTED
    if (terminal := sys.modules.get("hvctl.terminal")) is not None:
        terminal.restore()  # whatever kept it from being restored
    if in_main_thread:
        # Threads of grpc and destructors have nothing left to do that would be worth their 50 ms.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(words: list[str], settings: Settings) -> int:
    failed = failures.RUN_FAILED if _is_run(words) else None
    try:
        result = root().main(words, prog_name="hvctl", obj=settings, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else failures.OK
    except UnicodeEncodeError as error:
        if error.encoding == "utf-8":
            # An argument's odd bytes (as surrogates, PEP 383) on their way into a message; paths may have them.
            invalid = HvctlError.local("TEXT_INVALID", text=ascii(error.object))
        else:
            invalid = HvctlError.local("FILE_UNWRITABLE", path="stdout", problem=error)
        return _failed(invalid, settings, failed)
    except HvctlError as error:
        return _failed(error, settings, failed)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return failures.USAGE
    except click.UsageError as error:
        failures.report(failures.from_usage(error), settings.output)
        return failed or failures.USAGE
    except (KeyboardInterrupt, click.Abort):
        return failures.INTERRUPTED
    except (PipeClosed, BrokenPipeError):
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failures.PIPE_CLOSED
    except OSError as error:
        # What else fails says so itself; the rest is a result on its way out, to a full disk for one.
        unwritten = HvctlError.local("FILE_UNWRITABLE", path=error.filename or "stdout", problem=error.strerror)
        return _failed(unwritten, settings, failed)
    finally:
        settings.close()


def _failed(error: HvctlError, settings: Settings, code: int | None) -> int:
    """Tells of it. An interrupt may hit the insides of a library, which makes a failure of it: it is still nothing but
    an interrupt."""
    if _signals:
        return failures.INTERRUPTED
    failures.report(error, settings.output)
    return code or failures.exit_code(error)


def _wanted_form(words: list[str]) -> str:
    """The -o of a command line that may turn out to be wrong before click reaches it: errors follow it as well."""
    for index, word in enumerate(words):
        if word == "--":
            break
        if word in ("-o", "--output") and index + 1 < len(words):
            value = words[index + 1]
        elif word.startswith("--output="):
            value = word.removeprefix("--output=")
        elif word.startswith("-o") and not word.startswith("--"):
            value = word[2:]
        else:
            continue
        if value in EVERY_FORMAT:
            return value
    return "table"


def _is_run(words: list[str]) -> bool:
    """Whether the verb is run: its first word that is no option and no option's value."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("-o", "--output", "--endpoint", "--timeout", *(f"--tls-{what}" for what in TLS_OPTIONS)):
            skip = True
        elif not word.startswith("-"):
            return word == "run"
    return False


if __name__ == "__main__":
    sys.exit(main())
