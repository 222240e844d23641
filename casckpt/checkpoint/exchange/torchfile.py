"""torch's files and plain pickles, read without torch and without unpickling.

A file of torch >= 1.6 is a zip archive: `PREFIX/data.pkl` holds the tree, `PREFIX/data/KEY` the
bytes of each storage. Before, it was a sequence of pickles (magic number, protocol, system,
tree, keys) followed by the storages. Both pickles name storages by persistent ids:

    ("storage", torch.FloatStorage, key, device, count)                       in a zip
    ("storage", torch.FloatStorage, key, device, count, view or None)         before

Source: torch/serialization.py (`_save`, `_legacy_save`).
"""

from __future__ import annotations

import io
import logging
import struct
from typing import IO, Any, Final

from casckpt.checkpoint.exchange import foreign
from casckpt.checkpoint.exchange.archive import Archive
from casckpt.checkpoint.exchange.arrays import array_table
from casckpt.checkpoint.exchange.dtypes import ITEM_BYTES, swap_bytes
from casckpt.checkpoint.exchange.joblibfile import joblib_table
from casckpt.checkpoint.exchange.machine import Machine
from casckpt.checkpoint.exchange.plain import Notes, lookup_key, plain_table
from casckpt.checkpoint.exchange.refusals import allowed_bytes, damaged, refused, unreadable
from casckpt.checkpoint.exchange.resolve import Resolver
from casckpt.checkpoint.exchange.storages import Memory, StorageNode, TorchNames
from casckpt.checkpoint.exchange.streams import stream_table
from casckpt.checkpoint.exchange.symbols import Symbol
from casckpt.checkpoint.exchange.tensors import Tensors

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001
_NESTED_MAX: Final = 2

_logger = logging.getLogger("casckpt")


class PickleReader:
    """Reads pickles of one file, with the storages they name.

    Args:
        path: for messages.
        file_bytes: size of the file, which bounds what it may expand to.
        tensors: makes the leaves.
    """

    def __init__(self, path: str, file_bytes: int, tensors: Tensors, depth: int = 0) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._tensors = tensors
        self._depth = depth
        self._nested_bytes = 0
        self._notes = Notes()
        names = TorchNames(path, tensors, self._notes, self._load_nested, allowed_bytes(file_bytes))
        self._has_foreign = False
        arrays = array_table(path, lambda: self._has_foreign)
        self._table = (
            plain_table(self._notes) | arrays | joblib_table(path) | stream_table() | names.table()
        )
        self._memories: dict[str, Memory] = {}
        self._views: dict[str, StorageNode] = {}

    def read_archive(self, archive: Archive) -> Any:
        """Return the state tree of a zip archive written by torch.save."""
        name = self._tree_record(archive.names)
        prefix = name.removesuffix("data.pkl")
        order = self._byte_order(archive, prefix)
        nodes: dict[str, StorageNode] = {}

        def persistent(identifier: Any) -> StorageNode:
            dtype, key, count = self._storage_of(identifier, (5,))
            width = ITEM_BYTES[dtype]
            record = f"{prefix}data/{key}"

            def read() -> bytearray:
                data = archive.read(record)
                return data if order == "little" else swap_bytes(data, dtype)

            if key not in self._memories:
                self._memories[key] = Memory(archive.size(record), read)
            memory = self._memories[key]
            if memory.length != count * width:
                raise ValueError(f"a storage of {count} items has {memory.length} bytes")
            return nodes.setdefault(f"{key} {dtype}", StorageNode(memory, dtype, 0, count))

        data = bytes(archive.read(name))
        machine = Machine(io.BytesIO(data), self._find, len(data), self._path, persistent)
        return self._resolve(machine.load())

    def read_pickle(self, file: IO[bytes], end: int) -> Any:
        """Return the state tree of a plain pickle, or of a torch file from before 1.6."""
        return self._resolve(self._load_pickle(file, end))

    def _load_pickle(self, file: IO[bytes], end: int) -> Any:
        machine = Machine(file, self._find, end, self._path, self._legacy_storage)
        value = machine.load()
        if type(value) is not int or value != LEGACY_MAGIC or file.tell() >= end:
            return value
        protocol, system, tree, keys = (machine.load() for _ in range(4))
        if protocol != _LEGACY_PROTOCOL:
            raise damaged(self._path, "an unknown version of torch's old format")
        if type(system) is not dict or system.get("little_endian") is not True:
            raise unreadable(
                self._path, "it was written on a big-endian machine", "save it again with torch"
            )
        self._place_storages(file, end, keys)
        return tree

    def _place_storages(self, file: IO[bytes], end: int, keys: Any) -> None:
        if type(keys) is not list:
            raise damaged(self._path, "it has no list of storages")
        for key in keys:
            memory = self._memories.get(key) if type(key) is str else None
            head = file.read(8)
            if memory is None or len(head) != 8:
                raise damaged(self._path, "its list of storages does not fit what it holds")
            start = file.tell()
            (count,) = struct.unpack("<q", head)
            width = ITEM_BYTES[self._views[key].dtype]
            if count * width != memory.length or start + memory.length > end:
                raise damaged(self._path, f"a storage of {count} items does not fit the file")
            memory.read = _reader(file, start, memory.length)
            file.seek(memory.length, 1)

    def _legacy_storage(self, identifier: Any) -> StorageNode:
        dtype, key, count = self._storage_of(identifier, (5, 6))
        if key not in self._memories:
            self._memories[key] = Memory(count * ITEM_BYTES[dtype], None)
            self._views[key] = StorageNode(self._memories[key], dtype, 0, count)
        root = self._views[key]
        if root.dtype != dtype:
            raise ValueError("a storage with two dtypes")
        view = identifier[5] if len(identifier) == 6 else None
        if view is None:
            return root
        _, offset, size = view
        if type(offset) is not int or type(size) is not int:
            raise ValueError("a view of a storage without numbers")
        return StorageNode(root.memory, dtype, offset * ITEM_BYTES[dtype], size)

    def _storage_of(self, identifier: Any, lengths: tuple[int, ...]) -> tuple[str, str, int]:
        if type(identifier) is not tuple or len(identifier) not in lengths:
            raise ValueError("an object outside the pickle that is no storage")
        word, symbol, key, _, count = identifier[:5]
        if word != "storage" or not isinstance(symbol, Symbol):
            raise ValueError("an object outside the pickle that is no storage")
        if symbol.value == "quantized":
            raise unreadable(
                self._path, "it holds a quantized tensor", "dequantize() it before it is saved"
            )
        if not symbol.name.startswith("storage ") or type(key) is not str:
            raise ValueError("a storage of an unknown kind")
        if type(count) is not int or not 0 <= count < 1 << 62:
            raise ValueError("a storage of no size")
        return str(symbol.value), key, count

    def _find(self, module: str, name: str) -> Symbol:
        found = self._table.get(lookup_key(module, name))
        if found is None and (found := foreign.symbol(module, name, self._path)) is not None:
            self._table[module, name] = found
            self._has_foreign = True
        if found is None:
            whole = module.partition(".")[0] == "torch" or ".nn." in module
            raise refused(
                self._path,
                f"{module}.{name}",
                "save plain values where it was written: torch.save(model.state_dict(), ...)"
                if whole
                else "",
            )
        return found

    def _load_nested(self, data: bytes) -> Any:
        # Honest pickles hold each storage once; a forged one could load the same a million times.
        self._nested_bytes += len(data)
        if self._depth >= _NESTED_MAX or self._nested_bytes > self._file_bytes:
            raise ValueError("torch files nested too deep, or too often")
        inner = PickleReader(self._path, len(data), self._tensors, self._depth + 1)
        return inner._load_pickle(io.BytesIO(data), len(data))

    def _resolve(self, value: Any) -> Any:
        state = Resolver(self._path, self._file_bytes, self._notes)(value)
        for text, count in sorted(self._notes.items()):
            _logger.info("%s: %s%s", self._path, text, f" ({count} times)" if count > 1 else "")
        return state

    def _tree_record(self, names: list[str]) -> str:
        found = [name for name in names if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise damaged(self._path, f"it has {len(found)} records data.pkl instead of one")
        prefix = found[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in names or f"{prefix}code/" in names:
            raise unreadable(
                self._path,
                "it is a TorchScript archive, which holds code",
                "save the values where it was written: torch.save(model.state_dict(), ...)",
            )
        return found[0]

    def _byte_order(self, archive: Archive, prefix: str) -> str:
        name = f"{prefix}byteorder"
        if name not in archive.names:
            return "little"
        order = bytes(archive.read(name)).decode("ascii", "replace").strip()
        if order not in ("little", "big"):
            raise damaged(self._path, "its byte order is neither little nor big")
        return order


def _reader(file: IO[bytes], start: int, length: int) -> Any:
    def read() -> bytearray:
        data = bytearray(length)
        file.seek(start)
        filled = file.readinto(data)  # type: ignore[attr-defined]
        if filled != length:
            raise ValueError("a storage that ends too early")
        return data

    return read
