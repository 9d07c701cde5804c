"""create."""

from __future__ import annotations

from typing import Any

from hvctl.settings import Settings, verb
from hvctl.verbs.making import FORMATS, make, print_made, spec_options


@verb(formats=FORMATS)
@spec_options
def create(settings: Settings, **spec: Any) -> None:
    """Makes a guest, stopped, and prints its name. `hvctl start` starts it."""
    print_made(settings, make(settings, spec))
