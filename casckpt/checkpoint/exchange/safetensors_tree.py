"""State trees in safetensors files, alone or in a folder beside their description.

A file that casckpt wrote has the description of the tree in its metadata and gives the tree back
exactly. Any other file gives a dict of its tensors by name, as safetensors itself does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import IO, Any, Final

from casckpt.checkpoint.exchange import safetensors
from casckpt.checkpoint.exchange.atomic import new_folder
from casckpt.checkpoint.exchange.dtypes import SAFETENSORS_NAMES
from casckpt.checkpoint.exchange.packed import TensorFile, pack, unpack
from casckpt.checkpoint.exchange.refusals import damaged, unreadable
from casckpt.checkpoint.exchange.tensors import StridedView, Tensors
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.manifest import Manifest

TENSORS_FILE: Final = "state.safetensors"
TREE_FILE: Final = "tree.json"
_TREE_KEY: Final = "casckpt"
_TREE_FILE_MAX_BYTES: Final = 1 << 30
_TAKEN: Final = frozenset({"__metadata__"})
_DTYPES: Final = frozenset(SAFETENSORS_NAMES)

_logger = logging.getLogger("casckpt")


def read(
    file: IO[bytes],
    size: int,
    path: str,
    tensors: Tensors,
    options: RestoreOptions,
) -> Any:
    """Return the state tree of a safetensors file.

    Args:
        file: at its start.
        size: bytes in it.
        path: for messages.
        tensors: makes the tensors of a file that casckpt did not write.
        options: for the leaves of a file that casckpt wrote.

    Raises:
        Corrupt: if it is malformed.
        BadRequest: if it has a dtype that casckpt does not know.
    """
    header = safetensors.read_header(file, size, path)
    if _TREE_KEY in header.metadata:
        return unpack(header.metadata[_TREE_KEY], _tensor_file(file, header, path), options)
    dropped = sorted(set(header.metadata) - {"format"})
    if dropped:
        _logger.info("%s: metadata left out: %s", path, ascii(", ".join(dropped)[:200]))
    state: dict[str, Any] = {}
    # By name, not by offset: the order a reader of the names expects to see.
    for place in sorted(header.tensors, key=lambda place: place.name):
        data = bytearray(place.length)
        _fill(file, place, memoryview(data), path)
        view = StridedView(place.dtype, 0, place.shape, _c_strides(place.shape))
        state[place.name] = tensors.strided(tensors.storage(data), view)
    return state


def write(state: object, file: IO[bytes], about: Manifest | None = None) -> None:
    """Write a state tree; every tensor is there under its dotted path, shared ones repeated.

    Args:
        state: a state tree.
        file: written from its position on.
        about: manifest of the checkpoint, whose facts are kept in the metadata.
    """
    packed, text = pack(state, _DTYPES, about=about, repeat_shared=True, taken=_TAKEN)
    safetensors.write(file, packed, {_TREE_KEY: text, "format": "pt"})


def write_tree(state: object, folder: Path, about: Manifest | None = None) -> None:
    """Write a state tree as a new folder of `state.safetensors` and `tree.json`.

    The folder appears whole or not at all. `read_tree` gives the same tree back exactly; shared
    memory is written once.

    Raises:
        BadLeaf: if the state holds something that cannot be stored.
        BadRequest: if the folder is there already and not empty.
    """
    packed, text = pack(state, _DTYPES, about=about, taken=_TAKEN)
    with new_folder(folder) as part:
        with (part / TENSORS_FILE).open("xb") as file:
            safetensors.write(file, packed, {})
        (part / TREE_FILE).write_text(text + "\n", encoding="ascii")


def read_tree(folder: Path, options: RestoreOptions) -> Any:
    """Return the state tree of a folder that `write_tree` made.

    Raises:
        BadRequest: if the folder is none of these.
        Corrupt: if its files do not fit each other.
    """
    path = str(folder)
    tree_file = folder / TREE_FILE
    if not tree_file.is_file() or not (folder / TENSORS_FILE).is_file():
        raise unreadable(
            path,
            f"it is a folder without {TENSORS_FILE} and {TREE_FILE}",
            "to keep any folder as files, use save_files",
        )
    if tree_file.stat().st_size > _TREE_FILE_MAX_BYTES:
        raise damaged(path, f"{TREE_FILE} is larger than {_TREE_FILE_MAX_BYTES} bytes")
    text = tree_file.read_bytes()
    with (folder / TENSORS_FILE).open("rb") as file:
        size = (folder / TENSORS_FILE).stat().st_size
        header = safetensors.read_header(file, size, path)
        return unpack(text, _tensor_file(file, header, path), options)


def _tensor_file(file: IO[bytes], header: safetensors.Header, path: str) -> TensorFile:
    places = {place.name: place for place in header.tensors}
    return TensorFile(
        path,
        _DTYPES,
        {name: place.length for name, place in places.items()},
        lambda name, dest: _fill(file, places[name], dest, path),
    )


def _fill(file: IO[bytes], place: safetensors.TensorPlace, dest: memoryview, path: str) -> None:
    file.seek(place.offset)
    if file.readinto(dest) != place.length:  # type: ignore[attr-defined]
        raise damaged(path, "it became shorter while it was read")


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
