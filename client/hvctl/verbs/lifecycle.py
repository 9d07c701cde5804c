"""start, stop, kill, pause, resume, reset, update, delete, wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from hvctl import failures
from hvctl.output import colored, document, is_document, print_document, printable
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id, guest_name
from hvctl.settings import Settings, verb
from hvctl.values import LABEL, RESTART
from hvctl.verbs.container_options import limit_options
from hvctl.verbs.deleting import delete_each

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

FORMATS = ("table", "json", "jsonl", "yaml", "name")
# What the daemon may need beyond a grace period or a wait to answer.
ANSWER_SECONDS = 30.0

guests_argument = click.argument("guest", nargs=-1, required=True)


def each(settings: Settings, guests: Sequence[str], act: Callable[[str], guest_pb2.Guest]) -> int:
    """Does it to every guest, in spite of failures, and prints what became of them. Returns the first failure's exit
    code."""
    done: list[guest_pb2.Guest] = []
    code = failures.OK
    for guest in guests:
        try:
            done.append(act(guest_name(guest)))
        except HvctlError as error:
            failures.report(error, settings.output)
            code = code or failures.exit_code(error)
            if failures.exit_code(error) == failures.UNREACHABLE:
                break  # it would be the same for the others
    if is_document(settings.output) and done:
        documents = [document(guest) for guest in done]
        print_document(settings.output, documents[0] if len(guests) == 1 else {"guests": documents})
    elif done:
        for became in done:
            print_guest(settings, became)
    return code


def print_guest(settings: Settings, guest: guest_pb2.Guest) -> None:
    """One line: what it is now."""
    from hvapi.v1 import guest_pb2

    if settings.output == "name":
        click.echo(guest.name)
        return
    state = guest_pb2.Guest.State.Name(guest.state)
    words = [guest_id(guest.name), colored(state) if settings.color else state]
    if guest.reason:
        words.append(guest.reason)
    if guest.HasField("exit_code"):
        words.append(str(guest.exit_code))
    click.echo(printable(" ".join(words)) if not settings.color else " ".join(words))


@verb(formats=FORMATS)
@guests_argument
@click.option("--paused", is_flag=True, help="Load them, but stay before the first instruction.")
def start(settings: Settings, guest: tuple[str, ...], paused: bool) -> int:
    """Starts guests. Starting one that runs changes nothing."""
    return each(settings, guest, lambda name: settings.client.start_guest(name=name, paused=paused))


@verb(formats=FORMATS, timeout_help="Kill them after so long; default: the daemon's.")
@guests_argument
def stop(settings: Settings, guest: tuple[str, ...]) -> int:
    """Asks guests to end (the power button, where they can hear it), and kills them after --timeout."""
    from hvapi.v1 import guest_pb2

    def act(name: str) -> guest_pb2.Guest:
        request = guest_pb2.StopGuestRequest(name=name)
        if settings.timeout is None:
            return settings.client.stop_guest(request)
        request.grace_period.FromNanoseconds(round(settings.timeout * 1e9))
        return settings.client.stop_guest(request, timeout=settings.timeout + ANSWER_SECONDS)

    return each(settings, guest, act)


@verb(formats=FORMATS)
@guests_argument
@click.option("--signal", "-s", metavar="SIG", help="Only this signal, to a container's first process: HUP, SIGHUP.")
def kill(settings: Settings, guest: tuple[str, ...], signal: str | None) -> int:
    """Ends guests at once, or sends containers a signal."""
    name_of = f"SIG{signal.upper().removeprefix('SIG')}" if signal else ""
    return each(settings, guest, lambda name: settings.client.kill_guest(name=name, signal=name_of))


@verb(formats=FORMATS)
@guests_argument
def pause(settings: Settings, guest: tuple[str, ...]) -> int:
    """Lets guests stand still; their clock stands too."""
    return each(settings, guest, lambda name: settings.client.pause_guest(name=name))


@verb(formats=FORMATS)
@guests_argument
def resume(settings: Settings, guest: tuple[str, ...]) -> int:
    """Lets paused guests go on."""
    return each(settings, guest, lambda name: settings.client.resume_guest(name=name))


@verb(formats=FORMATS)
@guests_argument
def reset(settings: Settings, guest: tuple[str, ...]) -> int:
    """Presses the reset button: the guests boot anew."""
    return each(settings, guest, lambda name: settings.client.reset_guest(name=name))


@verb(formats=FORMATS)
@click.argument("guest")
@click.option("--label", "labels", type=LABEL, multiple=True, help="Set this label; may be repeated.")
@click.option("--remove-label", "removed", metavar="KEY", multiple=True, help="Remove this label; may be repeated.")
@click.option("--restart", type=RESTART, metavar="POLICY", help="never, always, on-failure or on-failure:N.")
@click.option("--autostart/--no-autostart", default=None, help="Start it whenever the host is started anew.")
@click.option("--on-reset", type=click.Choice(["stop", "restart"]), help="What a reset or triple fault does.")
@limit_options
def update(
    settings: Settings,
    guest: str,
    labels: tuple[tuple[str, str], ...],
    removed: tuple[str, ...],
    restart: tuple[str, int] | None,
    autostart: bool | None,
    on_reset: str | None,
    **limits: float | None,
) -> int:
    """Changes a guest's labels, restart policy, start with the host, what a reset does, or a container's limits while it runs."""
    wanted = {field: value for field, value in limits.items() if value is not None}
    if not (labels or removed or restart or on_reset or wanted or autostart is not None):
        raise click.UsageError("nothing to change: give --label, --remove-label, --restart, --autostart, --on-reset or a limit")
    from google.protobuf import field_mask_pb2
    from hvapi.v1 import guest_pb2

    def act(name: str) -> guest_pb2.Guest:
        changed = guest_pb2.Guest(name=name)
        paths = []
        if labels or removed or wanted:
            present = settings.client.get_guest(name=name)
            # Labels and limits are replaced as a whole; the etag keeps us from undoing somebody else's change.
            changed.etag = present.etag
        if wanted:
            changed.limits.CopyFrom(present.limits)
            for field, value in wanted.items():
                setattr(changed.limits, field, value)
            paths.append("limits")
        if labels or removed:
            kept = {key: value for key, value in present.labels.items() if key not in removed}
            changed.labels.update(kept | dict(labels))
            paths.append("labels")
        if restart is not None:
            changed.restart_policy.mode = guest_pb2.RestartPolicy.Mode.Value(restart[0])
            changed.restart_policy.max_retries = restart[1]
            paths.append("restart_policy")
        if autostart is not None:
            changed.autostart = autostart
            paths.append("autostart")
        if on_reset is not None:
            changed.on_reset = guest_pb2.Guest.OnReset.Value(on_reset.upper())
            paths.append("on_reset")
        return settings.client.update_guest(guest=changed, update_mask=field_mask_pb2.FieldMask(paths=paths))

    return each(settings, [guest], act)


@verb(formats=FORMATS)
@guests_argument
@click.option("--force", is_flag=True, help="Kill them first if they run.")
@click.option("--allow-missing", is_flag=True, help="It is no failure when there is no such guest.")
def delete(settings: Settings, guest: tuple[str, ...], force: bool, allow_missing: bool) -> int:
    """Deletes guests with their logs."""
    return delete_each(
        settings,
        (guest_name(word) for word in guest),
        lambda name: settings.client.delete_guest(name=name, force=force, allow_missing=allow_missing),
        guest_id,
    )


# Lower case for people; "ended" is any of stopped, failed, lost.
WAIT_STATES = ("ended", "running", "paused", "stopped", "failed", "lost", "starting", "stopping")


@verb(formats=FORMATS, timeout_help="Wait no longer (exit code 124); default: for ever.")
@guests_argument
@click.option(
    "--for", "states", type=click.Choice(WAIT_STATES), multiple=True, help="State; may be repeated. Default: ended."
)
def wait(settings: Settings, guest: tuple[str, ...], states: tuple[str, ...]) -> int:
    """Waits until every guest has ended, or reached one of the states given."""
    from hvapi.v1 import guest_pb2

    end = None if settings.timeout is None else time.monotonic() + settings.timeout
    wanted = [guest_pb2.Guest.State.Value(state.upper()) for state in states if state != "ended"]
    if "ended" in states and wanted:
        wanted += [guest_pb2.Guest.STOPPED, guest_pb2.Guest.FAILED, guest_pb2.Guest.LOST]

    def act(name: str) -> guest_pb2.Guest:
        request = guest_pb2.WaitGuestRequest(name=name, states=wanted)
        if end is None:
            return settings.client.wait_guest(request)
        left = max(0.001, end - time.monotonic())
        # The daemon's own answer says in which state the guest still is; the deadline is for a daemon that hangs.
        request.timeout.FromMilliseconds(math.ceil(left * 1000))
        return settings.client.wait_guest(request, timeout=left + ANSWER_SECONDS)

    return each(settings, guest, act)
