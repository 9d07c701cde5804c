"""Kinds of virtualisation, one folder each; nothing elsewhere lists them.

A folder NAME has backend.py with BACKEND, which the daemon finds here, and for virtual machines vcpu.py with create(), which the runner
imports by name: without this package's daemon side, whose imports a runner must not pay for.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a runner imports a backend's vcpu module, and must not pay for asyncio and protobuf
    from hvd.backends.contract import Backend


@functools.cache
def all_backends() -> dict[str, Backend]:
    """Every backend of this build by name, available here or not."""
    found: dict[str, Backend] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            backend: Backend = importlib.import_module(f"{__name__}.{module.name}.backend").BACKEND
            found[backend.name] = backend
    return found
