"""The `writer` lock: whoever may make LMDB take its own mutex of writers holds it.

LMDB waits for that mutex without end and without a word, so a process that stands still inside a
transaction would hang every other. This lock is waited for with a limit, and its holder is named.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from casckpt.errors import CasckptError, StoreBusy
from casckpt.store import files, layout, lock_files

_log = logging.getLogger("casckpt")
_dice = random.SystemRandom()  # never the generator that the user's training draws from
_REPORT_AFTER_S = 10.0
# Commits wait longer than openers: what they hold would have to be saved again.
WRITE_WAIT_S = 600.0
OPEN_WAIT_S = 75.0


class WriterLock:
    """The lock of one process on one store; one thread at a time may hold it.

    It is waited for outside the gate, so that a fork never hangs on a transaction of others.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / layout.WRITER_FILE
        self._descriptor = -1

    @contextlib.contextmanager
    def held(self, what: str, wait_s: float) -> Iterator[None]:
        """Hold the lock for the length of a `with`.

        Args:
            what: what cannot be done without it, for the error.
            wait_s: how long to wait for another process.

        Raises:
            StoreBusy: another process has held it for longer than that.
        """
        self._take(what, wait_s)
        try:
            yield
        finally:
            files.release_lock(self._descriptor)

    def _take(self, what: str, wait_s: float) -> None:
        if self._descriptor < 0:
            self._descriptor = lock_files.open_to_lock(self._path, os.O_RDWR | os.O_CREAT)
        began = time.monotonic()
        reported = False
        while not files.try_lock(self._descriptor, exclusive=True):
            waited = time.monotonic() - began
            if waited > _REPORT_AFTER_S and not reported:
                reported = True
                _log.warning("waiting for the index: %s writes to it", self._holder())
            if waited > wait_s:
                raise StoreBusy(
                    what,
                    f"{self._holder()} has held the index for {waited:.0f} s",
                    "end that process if it is stopped; nothing of yours was lost",
                )
            time.sleep(_dice.uniform(0.0002, 0.002))
        # Only a name for whoever waits: on a full disk the transaction itself may still find room.
        with contextlib.suppress(CasckptError):
            files.write_at(self._descriptor, f"{os.getpid()}\n".ljust(24).encode(), 0, self._path)

    def _holder(self) -> str:
        text = files.read_at(self._descriptor, 24, 0, self._path).decode("ascii", "replace").strip()
        return f"process {text}" if text else "another process"

    def close(self) -> None:
        """Close the descriptor; in the child of a fork this leaves the parent's lock alone."""
        if self._descriptor >= 0:
            lock_files.close_lock(self._descriptor)
            self._descriptor = -1
