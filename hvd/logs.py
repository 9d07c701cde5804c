"""The daemon's log: structlog to stderr, lines for people or JSON for machines."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import TextIO, cast

import structlog

from hvd import systemd
from hvd.config import Config


class _Unfailing(io.TextIOBase):
    """stderr, but a full disk or a reader that went does not turn a call that was served into a failure."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):  # there is nobody left to tell
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def configure_logging(config: Config) -> None:
    """One line an event; what a call's line has: hvd.api.interceptors."""
    as_json = config.log_format == "json" or (config.log_format == "auto" and systemd.is_journal())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
            # The default shows every local variable: pages of a guest's data for one error.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    if as_json:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Unfailing())),
        cache_logger_on_first_use=True,
    )
    # What libraries say (grpc, asyncio), in the same place.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
