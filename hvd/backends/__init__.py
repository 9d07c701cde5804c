"""Kinds of virtualisation, one folder each; nothing elsewhere lists them. docs/add-a-backend.md walks through adding one.

A folder NAME has backend.py with BACKEND, which the daemon finds here, and for virtual machines vcpu.py with create(), which the runner
imports by name: without this package's daemon side, whose imports a runner must not pay for.

Folders outside of the project are found, too: in the directories that HVD_BACKEND_PATH names, in the form of PATH.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a runner imports a backend's vcpu module, and must not pay for asyncio and protobuf
    from hvd.backends.contract import Backend

PATH_VARIABLE = "HVD_BACKEND_PATH"
__path__ += [directory for directory in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if directory]


@functools.cache
def all_backends() -> dict[str, Backend]:
    """Every backend of this build by name, available here or not."""
    found: dict[str, Backend] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            backend: Backend = importlib.import_module(f"{__name__}.{module.name}.backend").BACKEND
            found[backend.name] = backend
    return found
