"""completion: click makes the scripts from the same parser that reads the command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hvctl.settings import Settings, verb


@verb(formats=("text",))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(settings: Settings, shell: str) -> None:
    """Prints a completion script. For bash:

    eval "$(hvctl completion bash)"
    """
    from hvctl.cli import root

    script = get_completion_class(shell)
    assert script is not None, "click has all three"
    click.echo(script(root(), {}, "hvctl", "_HVCTL_COMPLETE").source())
