"""System calls that Python does not have, of the jail."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Any, Final

from hvd.errors import HvdError

_CAPABILITY_DROP: Final = 24  # linux/prctl.h


class Libc:
    """System calls that raise."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(None, use_errno=True)
        self._lib.syscall.restype = ctypes.c_long
        self._lib.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

    def __call__(self, name: str, *arguments: Any) -> int:
        """Raises HvdError RUNNER_START_FAILED."""
        result = int(getattr(self._lib, name)(*arguments))
        if result < 0:
            raise _refused(name)
        return result

    def prctl(self, option: int, *arguments: int) -> None:
        self("prctl", option, *(*arguments, 0, 0, 0, 0)[:4])

    def mount(self, source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
        self("mount", *(text.encode() for text in (source, target, kind)), ctypes.c_ulong(flags), data.encode())

    def drop_bounding(self, capabilities: Iterable[int]) -> None:
        """Some forty, one by one: of what a start takes, this loop is a part."""
        prctl = self._lib.prctl
        for capability in capabilities:
            if prctl(_CAPABILITY_DROP, capability, 0, 0, 0) != 0:
                raise _refused("prctl")


def _refused(call: str) -> HvdError:
    problem = f"its jail cannot be made ({call}: {os.strerror(ctypes.get_errno())}); the setting jail=off does without"
    return HvdError("RUNNER_START_FAILED", problem=problem, log="runner.log in the guest's directory")


def failed(what: str, error: Exception) -> HvdError:
    """Of a jail."""
    return HvdError("RUNNER_START_FAILED", problem=f"its jail cannot be made ({what}: {error})", log="runner.log in the guest's directory")
