"""Open files of the file system: read in ranges, written whole."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from types import TracebackType
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
    or it is never closed, nothing is committed.

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
        self._file.close()

    def close(self) -> None:
        """End writing, and commit unless a transaction will."""
        if self.closed:
            return
        super().close()
        if self.autocommit:
            self.commit()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; half a file is not committed."""
        if error is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        """Forget a file that nobody closed: it may be half written."""
        if not self.closed:
            logger.warning("%s was never closed, and is not saved", self.path)
            self.discard()
            super().close()
