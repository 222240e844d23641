"""Where messages go: the logger `casckpt`, on stderr unless the program configured logging."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("casckpt")


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at that moment, while no one else listens."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, unless handlers of the root logger get it too."""
        if logging.getLogger().handlers or sys.stderr is None:
            return
        try:
            sys.stderr.write(f"casckpt: {self.format(record)}\n")
        except (OSError, ValueError):
            self.handleError(record)


def _as_configured(record: logging.LogRecord) -> bool:
    """Return whether the program's own level lets a message through."""
    root = logging.getLogger()
    return not root.handlers or record.levelno >= root.level


def use_stderr() -> None:
    """Show messages from INFO on, once; nothing if the program has set up this logger.

    Called when a store is opened. A program that configures logging later is obeyed from then
    on: its handlers and the level of its root logger count.
    """
    if logger.handlers or logger.level != logging.NOTSET:
        return
    logger.addHandler(_Stderr())
    logger.addFilter(_as_configured)
    logger.setLevel(logging.INFO)
