"""Open files of the file system: read in ranges, written whole."""

from __future__ import annotations

import inspect
import io
import sys
import tempfile
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from casckpt.adapters import missing_extra
from casckpt.checkpoint.file_places import PlacedFile
from casckpt.checkpoint.file_reading import StoredFile
from casckpt.logs import logger

try:
    from fsspec.spec import AbstractBufferedFile
except ModuleNotFoundError as exc:
    raise missing_extra("fsspec") from exc


class ReadFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file as it was when it was opened, whatever is put in its place meanwhile."""

    def __init__(self, fs: Any, path: str, placed: PlacedFile, **options: Any) -> None:
        super().__init__(fs, path, "rb", **options)
        self._file = placed.file

    def _fetch_range(self, start: int, end: int) -> bytes:
        data = bytearray(max(0, min(end, self.size) - start))
        self._file.read(start, memoryview(data))
        return bytes(data)


class WriteFile(io.RawIOBase):
    """A file being written, in a temporary place that vanishes with the process.

    Closing it commits it, or leaves that to the transaction it is in. If its `with` block raises,
    or it is never closed, nothing is committed. Wrappers (fsspec's OpenFile, text, compression)
    call plain `close()` even then, so closing it while an error is handled commits nothing either,
    unless that error was there already when it was opened.

    Args:
        put: commits the file at a path.
        path: its name, for messages.
        mode: as it was opened.
        autocommit: whether closing commits.
        start: what it begins with.
    """

    def __init__(
        self,
        put: Callable[[str], None],
        path: str,
        mode: str,
        autocommit: bool,
        start: StoredFile | None,
    ) -> None:
        self._put = put
        self.path = path
        self.mode = mode
        self.autocommit = autocommit
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close and discard
        self._is_over = False
        self._is_abandoned = False
        self._error_before = sys.exc_info()[1]
        if start is not None:
            start.copy_to(self._file)

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes."""
        return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to another place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off, or lengthen it."""
        return self._file.truncate(size)

    def fileno(self) -> int:
        """Return the descriptor of the temporary file."""
        return self._file.fileno()

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        if not self._file.closed:
            self._file.flush()

    def commit(self) -> None:
        """Put the file into the store; durable when this returns."""
        if self._is_over:
            return
        self._file.flush()
        try:
            self._put(f"/proc/self/fd/{self._file.fileno()}")
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget the file."""
        self._is_over = True
        self._error_before = None  # it holds frames, and what is in them
        self._file.close()

    def close(self) -> None:
        """End writing, and commit unless a transaction will, or the file may be half written."""
        if self.closed:
            return
        error = sys.exc_info()[1]
        if self._is_abandoned:
            self._forget("was never closed")
        elif error is not None and error is not self._error_before and not _is_of_caller(error):
            self._forget(f"was closed because of {type(error).__name__}")
        self._close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; half a file is not committed."""
        if error is not None:
            self.discard()
        if not self.closed:
            self._close()

    def __del__(self) -> None:
        """Forget a file that nobody closed: it may be half written."""
        if not self.closed:
            self._forget("was never closed")
            super().close()

    def _dealloc_warn(self, source: Any) -> None:
        """Take note that a wrapper is closing the file because it is garbage."""
        self._is_abandoned = True

    def _close(self) -> None:
        super().close()
        if self.autocommit:
            self.commit()

    def _forget(self, why: str) -> None:
        if not self._is_over:
            logger.warning("%s %s, and is not saved", self.path, why)
            self.discard()


def _is_of_caller(error: BaseException) -> bool:
    """Return whether an error is handled by who called a generator, which itself has none."""
    handler = None if error.__traceback__ is None else error.__traceback__.tb_frame
    frame: FrameType | None = sys._getframe(1)
    in_generator = False
    while frame is not None and frame is not handler:
        in_generator = in_generator or bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        frame = frame.f_back
    return in_generator and frame is not None
