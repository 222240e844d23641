"""A store as a file system: `casckpt://RUN/PATH` wherever fsspec is understood.

Lightning's ModelCheckpoint, torch.save and torch.load, torch.distributed.checkpoint and pandas
write and read their own files through it; in the store these are cut at their tensors and shared.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from casckpt.adapters import missing_extra
from casckpt.adapters.fsspec_files import ReadFile, WriteFile
from casckpt.checkpoint.file_places import FilePlaces, PlacedFile, open_files
from casckpt.checkpoint.places import default_store, is_store
from casckpt.errors import BadRef, NotFound

try:
    from fsspec.spec import AbstractFileSystem
except ModuleNotFoundError as exc:
    raise missing_extra("fsspec") from exc

_MARKS: Final = frozenset("@~")


# Open stores of file systems that are gone; the next call of any other closes them.
_left: deque[dict[Path, FilePlaces]] = deque()


class CasckptFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Files in a store. `casckpt://RUN/PATH`; the slashes of a nested run are written as colons.

    A file appears whole when it is closed, or when its transaction ends, and is durable then; a
    kill leaves the file that was there before. What it replaces goes to the trash. Folders are
    where files are: one that is empty lasts as long as the process. `casckpt://RUN@SEL/PATH` reads
    the files of one checkpoint.

    Args:
        store: folder of the store; by default CASCKPT_STORE, else the nearest `.casckpt` upward.
        options: of fsspec.
    """

    protocol: ClassVar[str] = "casckpt"
    root_marker: ClassVar[str] = ""

    # Folders made in this process that have no file yet, by store.
    _made: ClassVar[dict[Path, set[str]]] = {}

    def __init__(self, store: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(store=store, **options)
        self._given = None if store is None else Path(store).expanduser()
        self._handles: dict[Path, FilePlaces] = {}
        # Not at exit: the store has its own end there. Nor at once: Python collects garbage in the
        # middle of anything, also where the locks are held that closing takes.
        weakref.finalize(self, _left.append, self._handles).atexit = False

    def close(self) -> None:
        """Let go of the store; the next call opens it again."""
        _close_all(self._handles)

    # ---- what there is

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Return what is in a folder, or the one file of that name.

        Raises:
            FileNotFoundError: there is neither.
        """
        path = self._strip_protocol(path)
        here = f"{path}/" if path else ""
        found: dict[str, dict[str, Any]] = {}
        for name, placed in self._below(path):
            first, _, rest = name.removeprefix(here).partition("/")
            child = here + first
            if name == path:
                found = {path: _file_info(path, placed)}
                break
            found[child] = _folder_info(child) if rest else _file_info(child, placed)
        for folder in [*self._folders_below(path), *([] if path else self._runs())]:
            child = here + folder.removeprefix(here).partition("/")[0]
            found.setdefault(child, _folder_info(child))
        if not found and path and path not in self._folders() and not self._is_run(path):
            raise FileNotFoundError(path)
        return [found[name] for name in sorted(found)] if detail else sorted(found)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, size, type, times and checkpoint of a file; of a folder that it is one.

        Raises:
            FileNotFoundError: there is neither.
        """
        path = self._strip_protocol(path)
        placed = self._placed(path)
        if placed is not None:
            return _file_info(path, placed)
        if not path or path in self._folders() or self._is_run(path):
            return _folder_info(path)
        if any(True for _ in self._folders_below(path)) or any(True for _ in self._below(path)):
            return _folder_info(path)
        raise FileNotFoundError(path)

    def created(self, path: str) -> Any:
        """Return when a file was put, as a datetime in UTC."""
        return self._file(path).checkpoint.created

    def modified(self, path: str) -> Any:
        """Return the same as `created`: a file never changes, it is replaced."""
        return self.created(path)

    def checksum(self, path: str) -> str:
        """Return a text that changes when the file does."""
        placed = self._file(path)
        return f"{placed.checkpoint.id}/{placed.file.name}"

    ukey = checksum

    # ---- reading

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Return the bytes of a file, or a range of them; negative numbers count from its end."""
        file = self._file(path).file
        low, high, _ = slice(start, end).indices(file.size)
        data = bytearray(max(0, high - low))
        file.read(low, memoryview(data))
        return bytes(data)

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True,
        cache_options: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        path = self._strip_protocol(path)
        if mode == "rb":
            placed = self._file(path)
            return ReadFile(
                self, path, placed, block_size=block_size or "default",
                cache_options=cache_options, size=placed.file.size, **kwargs,
            )  # fmt: skip
        old = self._placed(path)
        self._refuse_write(path)
        if mode == "xb" and old is not None:
            raise FileExistsError(path)
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"mode {mode!r}: files are written whole, with wb, xb or ab")
        start = old.file if old is not None and mode == "ab" else None
        return WriteFile(self._committer(path), path, mode, autocommit, start)

    def _committer(self, path: str) -> Callable[[str], None]:
        def commit(source: str) -> None:
            run, name = _split(path)
            self._handle(write=True).put_file(run, name, source)
            self._folders().discard(path)

        return commit

    # ---- changing

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a folder; without files it lasts as long as the process."""
        path = self._strip_protocol(path)
        if self.exists(path):
            raise FileExistsError(path)
        parent = self._parent(path)
        if not create_parents and parent and not self.isdir(parent):
            raise FileNotFoundError(parent)
        self.makedirs(path, exist_ok=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder and those above it."""
        path = self._strip_protocol(path)
        if self.isfile(path) or (not exist_ok and self.exists(path)):
            raise FileExistsError(path)
        while path:
            self._folders().add(path)
            path = self._parent(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        path = self._strip_protocol(path)
        if self.ls(path, detail=False):
            raise OSError(f"{path} is not empty")
        self._folders().discard(path)

    def _rm(self, path: str) -> None:
        path = self._strip_protocol(path)
        if self._placed(path) is None:
            if not self.isdir(path):
                raise FileNotFoundError(path)
            if not self.ls(path, detail=False):
                self._folders().discard(path)
            return
        run, name = _split(path)
        with _not_found(path):
            self._handle(write=True).remove_file(run, name)
        # What was a folder stays one, as on a disk.
        while path := self._parent(path):
            self._folders().add(path)

    rm_file = _rm

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Move files to the trash; folders only with `recursive`.

        Raises:
            FileNotFoundError: there is nothing of that name.
            IsADirectoryError: it is a folder, and `recursive` is off.
        """
        for one in self.expand_path(path, recursive=recursive, maxdepth=maxdepth)[::-1]:
            if not recursive and self.isdir(one):
                raise IsADirectoryError(one)
            self._rm(one)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file; its bytes are stored once."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(source):
            self.makedirs(target, exist_ok=True)
            return
        placed = self._file(source)
        self._refuse_write(target)
        with WriteFile(self._committer(target), target, "wb", True, placed.file):
            pass

    # ---- names

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return [one.strip("/") for one in stripped] if isinstance(stripped, list) else (
            stripped.strip("/")
        )  # fmt: skip

    def _folders(self) -> set[str]:
        return self._made.setdefault(self._store_path(), set())

    def _folders_below(self, path: str) -> Iterator[str]:
        prefix = f"{path}/" if path else ""
        return (name for name in self._folders() if name.startswith(prefix) and name != path)

    def _store_path(self) -> Path:
        return (self._given or default_store()).absolute()

    def _handle(self, *, write: bool = False) -> FilePlaces:
        """Return the open store; only writing makes one.

        Raises:
            FileNotFoundError: there is none, and nothing is to be written.
        """
        while _left:
            _close_all(_left.popleft())
        path = self._store_path()
        handle = self._handles.get(path)
        if handle is None:
            if not write and not is_store(path):
                raise FileNotFoundError(f"no store at {path}")
            handle = self._handles[path] = open_files(path)
        return handle

    def _files(self, ref: str) -> dict[str, PlacedFile]:
        """Return the files of a run by name; none for what is no run."""
        try:
            return self._handle().files_of(ref.replace(":", "/"))
        except (NotFound, BadRef, FileNotFoundError):
            return {}

    def _placed(self, path: str) -> PlacedFile | None:
        run, _, name = path.partition("/")
        return self._files(run).get(name) if name else None

    def _file(self, path: str) -> PlacedFile:
        path = self._strip_protocol(path)
        placed = self._placed(path)
        if placed is None:
            raise IsADirectoryError(path) if self.isdir(path) else FileNotFoundError(path)
        return placed

    def _is_run(self, path: str) -> bool:
        return "/" not in path and any(name == path for name in self._runs())

    def _runs(self) -> Iterable[str]:
        """Return the runs as names of folders."""
        try:
            return [info.name.replace("/", ":") for info in self._handle().runs()]
        except FileNotFoundError:
            return []

    def _below(self, path: str) -> Iterator[tuple[str, PlacedFile]]:
        """Yield the files below a folder of a run, or the one of that name."""
        if not path:
            return
        run = path.partition("/")[0]
        for name, placed in self._files(run).items():
            whole = f"{run}/{name}"
            if path == run or whole == path or whole.startswith(f"{path}/"):
                yield whole, placed

    def _refuse_write(self, path: str) -> None:
        run, _, name = path.partition("/")
        if not name:
            raise IsADirectoryError(f"{path}: a file needs a run and a name, RUN/NAME")
        if not _MARKS.isdisjoint(run):
            raise PermissionError(f"{run} is what was saved, and cannot be changed")
        if self._placed(path) is None and self.isdir(path):
            raise IsADirectoryError(path)


def _split(path: str) -> tuple[str, str]:
    run, _, name = path.partition("/")
    return run.replace(":", "/"), name


def _file_info(path: str, placed: PlacedFile) -> dict[str, Any]:
    checkpoint = placed.checkpoint
    return {
        "name": path,
        "size": placed.file.size,
        "type": "file",
        "created": checkpoint.created,
        "mtime": checkpoint.created.timestamp(),
        "mode": placed.file.mode,
        "ref": checkpoint.ref,
        "id": checkpoint.id,
    }


def _folder_info(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


@contextmanager
def _not_found(path: str) -> Iterator[None]:
    try:
        yield
    except NotFound as exc:
        raise FileNotFoundError(path) from exc


def _close_all(handles: dict[Path, FilePlaces]) -> None:
    while handles:
        handles.popitem()[1].close()
