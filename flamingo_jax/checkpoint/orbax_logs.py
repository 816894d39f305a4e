"""Keeps the tracebacks of orbax's threads off the terminal.

orbax, asyncio and the garbage collector print an error of a thread or of a coroutine with hundreds
of lines. orbax raises it in the caller too, who reports it in one line. --verbosity=1 shows all.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from absl import logging as absl_logging


def drop_tracebacks() -> None:
    """Drops what orbax and asyncio log with a traceback, from now on; to be called once."""
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_Filter())
    # orbax does not start all that it planned
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    report = sys.unraisablehook

    def report_others(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)  # of a coroutine
        # after an error nobody waits for the other arrays: one traceback of TensorStore for each
        theirs = "/orbax/" in getattr(code, "co_filename", "") or (
            str(found.exc_value) == "Event loop is closed"
        )
        if _all_is_asked_for() or not theirs:
            report(found)

    sys.unraisablehook = report_others


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        is_theirs = record.name == "asyncio" or "/orbax/" in record.pathname
        return _all_is_asked_for() or not (is_theirs and record.exc_info)


def _all_is_asked_for() -> bool:
    return absl_logging.get_verbosity() >= absl_logging.DEBUG
