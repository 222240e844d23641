"""Reading and writing one file of any known format; a format is told by its first bytes."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from casckpt.checkpoint.exchange import compressed, foreign, safetensors
from casckpt.checkpoint.exchange.atomic import new_file
from casckpt.checkpoint.exchange.refusals import damaged, unreadable
from casckpt.checkpoint.exchange.tensors import NumpyTensors, Tensors
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.manifest import Manifest
from casckpt.errors import BadRequest, OperationFailed

FORMATS: Final = ("safetensors", "torch", "npz", "ubj", "json")
"""What `write_file` writes."""

SUFFIXES: Final = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".ckpt": "torch",
    ".bin": "torch",
    ".npz": "npz",
    ".ubj": "ubj",
    ".json": "json",
}
"""The format a name asks for when `write_file` is given none."""

_READABLE: Final = (
    "casckpt imports safetensors, torch (.pt .pth .ckpt), pickle, joblib, npz, npy, json, ubj, "
    "models of LightGBM, and studies of Optuna in SQLite and journals; "
    "to keep any file as it is, use save_files"
)
_HEAD_BYTES: Final = 64
_ZIP: Final = b"PK"
_NPY: Final = b"\x93NUMPY"
_JSON_STARTS: Final = b'{["-0123456789tfn'
_FOREIGN: Final = (
    ("optuna", (b"SQLite format 3\0", b'{"op_code":', b'{"op_code": ')),
    ("lightgbm", (b"tree\n", b"tree\r\n")),
)
"""How files of frameworks begin that have no other format known here."""
_UBJ_LENGTHS: Final = b"UiIlL"
_PICKLE_SUFFIXES: Final = (".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth")
_PACKED_SUFFIXES: Final = frozenset((".joblib", ".pkl", ".pickle", ".p"))
_ARRAY_SUFFIXES: Final = (".safetensors", ".npz", ".npy")
_TORN_SUFFIXES: Final = (*_PICKLE_SUFFIXES, *_ARRAY_SUFFIXES, ".ckpt", ".ubj")
_PICKLE_STARTS: Final = b"(][}){NIJKMLFGSUTVXcC"
_PICKLE_PROTOCOL_MAX: Final = 5


def read_file(
    path: str | os.PathLike[str],
    *,
    tensors: Tensors | None = None,
    options: RestoreOptions | None = None,
) -> Any:
    """Return the state tree in a file; nothing in it is ever run.

    The format is told by content: safetensors, torch's zip and older files, pickles and those of
    joblib, compressed ones too, .npz, .npy, XGBoost's UBJSON (as bytes), LightGBM's text, Optuna's
    SQLite and journals, JSON; and a folder that `write_tree` made. Files that casckpt wrote as
    safetensors, npz and JSON come back exactly.

    Args:
        path: a file, or a folder that `write_tree` made.
        tensors: makes the leaves of tensor files; numpy arrays without it.
        options: device and so on for files that casckpt wrote; numpy arrays for tensors by
            default if `tensors` is None.

    Returns:
        A new tree over memory of its own.

    Raises:
        BadRequest: if it is no regular file, or of none of these formats.
        PickleRefused: if it names code, or holds Python objects.
        Corrupt: if it contradicts itself, or would expand beyond measure.
        MissingExtra: if a leaf needs a package that is not installed.
        OperationFailed: if it cannot be read.
    """
    from casckpt.checkpoint.exchange import safetensors_tree

    file_path = Path(path)
    name = str(file_path)
    options = options or RestoreOptions(as_numpy=tensors is None)
    maker = tensors or NumpyTensors(name)
    try:
        if file_path.is_dir():
            return safetensors_tree.read_tree(file_path, options)
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(file_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise unreadable(name, "it is no regular file", _READABLE)
            return _read(file, status.st_size, file_path, maker, options)
    except FileNotFoundError as exc:
        raise unreadable(name, "there is no such file", "check the path") from exc
    except OSError as exc:
        raise OperationFailed(
            f"cannot read {name}", exc.strerror or str(exc), "check the file and its disk"
        ) from exc
    except MemoryError as exc:
        raise OperationFailed(
            f"cannot read {name}", "there is not enough memory for it", "use a larger machine"
        ) from exc


def is_known(path: Path) -> bool:
    """Return whether a file begins as one of the formats that are read; text must be named .json.

    Of one that cannot be opened nobody knows; whoever reads it is told why.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True
    if path.suffix.lower() == ".json":
        return True
    return (
        safetensors.looks_like(head, size)
        or head.startswith((_ZIP, _NPY))
        or _is_ubj(head)
        or _is_pickle(head, path)
        or _is_packed(head, path)
        or _foreign_root(head) is not None
        or _is_torn(head, path)
    )


def write_file(
    state: object,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    tensors: Tensors | None = None,
    about: Manifest | None = None,
) -> str:
    """Write a state tree to a file, whole or not at all, and return the format.

    Args:
        state: a state tree.
        path: replaced if it is there.
        format: one of FORMATS; by default what the suffix says.
        tensors: needed for "torch".
        about: manifest of the checkpoint; run, step, metrics and so on are kept in the formats
            that have room for them.

    Raises:
        BadRequest: if the format is unknown, or cannot hold this state.
        BadLeaf: if the state holds something that cannot be stored.
        MissingExtra: if the format needs a package that is not installed.
        NoSpace, OperationFailed: if the system refuses; what was at `path` is untouched.
    """
    file_path = Path(path)
    chosen = format or SUFFIXES.get(file_path.suffix.lower())
    if chosen not in FORMATS:
        raise BadRequest(
            f"cannot export to {file_path}",
            f"{chosen!r} is no format" if chosen else "its name does not say the format",
            f"choose a format: {', '.join(FORMATS)}",
        )
    write = _writer(chosen, state, tensors or NumpyTensors(), about)
    with new_file(file_path) as file:
        write(file)
    return chosen


def _writer(
    format: str, state: object, tensors: Tensors, about: Manifest | None
) -> Callable[[IO[bytes]], None]:
    if format == "torch":
        return lambda file: tensors.save(state, file)
    if format == "ubj":
        data = _only_bytes(state)
        return lambda file: _write_bytes(file, data)
    from casckpt.checkpoint.exchange import jsontree, npz, safetensors_tree

    module: Any = {"safetensors": safetensors_tree, "npz": npz, "json": jsontree}[format]
    return lambda file: module.write(state, file, about)


def _write_bytes(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def _only_bytes(state: object) -> bytes:
    found: list[bytes] = []
    pending = [state]
    while pending and len(found) < 2:
        value = pending.pop()
        if (raw := foreign.raw(value)) is not None:
            found.append(raw)
        elif isinstance(value, bytes | bytearray):
            if _is_ubj(bytes(value[:_HEAD_BYTES])):
                found.append(bytes(value))
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
    if len(found) != 1:
        raise BadRequest(
            "cannot export as ubj",
            f"the state holds {'more than one' if found else 'no'} booster in that format",
            "choose another format",
        )
    return found[0]


def _read(file: IO[bytes], size: int, path: Path, tensors: Tensors, options: RestoreOptions) -> Any:
    from casckpt.checkpoint.exchange import jsontree, npz, safetensors_tree
    from casckpt.checkpoint.exchange.archive import Archive
    from casckpt.checkpoint.exchange.torchfile import PickleReader

    name = str(path)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if _is_packed(head, path):
        data = compressed.unpack(file, size, name)
        file, size, head = io.BytesIO(data), len(data), data[:_HEAD_BYTES]
    if safetensors.looks_like(head, size):
        return safetensors_tree.read(file, size, name, tensors, options)
    if head.startswith(_ZIP):
        archive = Archive(file, size, name)
        if all(record.endswith(".npy") for record in archive.names):
            return npz.read_npz(archive, name, options)
        if any(record.endswith("/data.pkl") for record in archive.names):
            return PickleReader(name, size, tensors).read_archive(archive)
        raise unreadable(name, "it is a zip file of another kind", _READABLE, is_known=False)
    if head.startswith(_NPY):
        return npz.read_npy(_whole(file, size, name), name)
    if _is_ubj(head):
        return bytes(_whole(file, size, name))
    if _is_pickle(head, path):
        return PickleReader(name, size, tensors).read_pickle(file, size)
    if (root := _foreign_root(head)) is not None:
        return foreign.load(root, bytes(_whole(file, size, name)), name)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text and text[0] in _JSON_STARTS:
        return jsontree.read(file, size, name, options)
    if _is_torn(head, path):
        raise damaged(name, "it does not begin as its name says" if head else "it is empty")
    why = "its content is of no format that casckpt knows"
    raise unreadable(name, why, _READABLE, is_known=False)


def _is_ubj(head: bytes) -> bool:
    # An object whose first key has a length marker, where JSON has a quote.
    return len(head) > 2 and head[:1] == b"{" and head[1] in _UBJ_LENGTHS


def _foreign_root(head: bytes) -> str | None:
    return next((root for root, marks in _FOREIGN if head.startswith(marks)), None)


def _is_pickle(head: bytes, path: Path) -> bool:
    if head[:1] == b"\x80":
        return len(head) > 1 and head[1] <= _PICKLE_PROTOCOL_MAX
    # Protocols 0 and 1 have no mark; only a name says so, and then errors say "pickle".
    return path.suffix.lower() in _PICKLE_SUFFIXES and head[:1] != b"" and head[0] in _PICKLE_STARTS


def _is_packed(head: bytes, path: Path) -> bool:
    # The marks are short, and a log may be compressed too: the name has to say that it is a pickle.
    return compressed.is_compressed(head) and not _PACKED_SUFFIXES.isdisjoint(
        suffix.lower() for suffix in path.suffixes
    )


def _is_torn(head: bytes, path: Path) -> bool:
    """Tell whether a file of no known format was one by its name: a full disk, or a crash."""
    suffix = path.suffix.lower()
    return suffix in _ARRAY_SUFFIXES or (suffix in _TORN_SUFFIXES and not head.strip(b"\0"))


def _whole(file: IO[bytes], size: int, path: str) -> bytearray:
    data = bytearray(size)
    if file.readinto(data) != size:  # type: ignore[attr-defined]
        raise damaged(path, "it became shorter while it was read")
    return data
