"""numpy's files: one array (.npy), or a zip of them (.npz); never with pickled objects.

A .npz that casckpt wrote has the description of the tree in a record of its own and gives the
tree back exactly; numpy.load sees every array under its dotted path. dtypes that numpy has only
with ml_dtypes are stored as unsigned integers of the same width.

Source: numpy/lib/format.py, which specifies versions 1.0 to 3.0.
"""

from __future__ import annotations

import ast
import io
import math
import warnings
import zipfile
from typing import IO, Any, Final

from casckpt.checkpoint.exchange.archive import Archive
from casckpt.checkpoint.exchange.arrays import shape_of
from casckpt.checkpoint.exchange.dtypes import ITEM_BYTES
from casckpt.checkpoint.exchange.packed import PackedTensor, TensorFile, pack, unpack
from casckpt.checkpoint.exchange.refusals import damaged, refused, shown
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.manifest import Manifest

MAGIC: Final = b"\x93NUMPY"
_TREE_RECORD: Final = "__casckpt__.npy"
_HEADER_MAX_BYTES: Final = 10_000  # numpy's own limit for files that are not trusted
_UNSIGNED: Final = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
_DTYPES: Final = frozenset(ITEM_BYTES) - {"complex32"}


def read_npy(data: bytearray, path: str, name: str = "the array") -> Any:
    """Return the array in the bytes of a .npy file, over the same memory.

    Raises:
        PickleRefused: if it holds Python objects.
        Corrupt: if it is malformed, or claims more elements than it has.
    """
    import numpy as np

    try:
        start, header = read_header(data)
        dtype = np.lib.format.descr_to_dtype(header["descr"])
        shape = shape_of(header["shape"])
        fortran = bool(header["fortran_order"])
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as exc:
        raise damaged(path, f"{shown(name)} has a malformed header: {shown(exc)}") from exc
    if dtype.hasobject:
        raise refused(path, "an array of Python objects")
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise damaged(path, f"the shape of {shown(name)} does not fit its {len(data)} bytes")
    if len(data) == start:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, data, start, order="F" if fortran else "C")


def read_npz(archive: Archive, path: str, options: RestoreOptions) -> Any:
    """Return the arrays of a .npz file by name, or the state tree that casckpt wrote there.

    Raises:
        PickleRefused: if an array holds Python objects.
        Corrupt: if it is malformed.
    """
    if _TREE_RECORD in archive.names:
        arrays = {
            name.removesuffix(".npy"): read_npy(archive.read(name), path, name)
            for name in archive.names
        }

        def load(name: str, dest: memoryview) -> None:
            import numpy as np

            flat: Any = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
            dest[:] = memoryview(flat)

        text = arrays.pop(_TREE_RECORD.removesuffix(".npy")).tobytes()
        lengths = {name: int(array.nbytes) for name, array in arrays.items()}
        return unpack(text, TensorFile(path, _DTYPES, lengths, load), options)
    return {
        name.removesuffix(".npy"): read_npy(archive.read(name), path, name)
        for name in archive.names
    }


def write(state: object, file: IO[bytes], about: Manifest | None = None) -> None:
    """Write a state tree as .npz, uncompressed; shared arrays are repeated.

    Args:
        state: a state tree.
        file: written from its position on.
        about: manifest of the checkpoint, whose facts are kept with the description.
    """
    import numpy as np

    taken = frozenset({_TREE_RECORD.removesuffix(".npy")})
    packed, text = pack(
        state, _DTYPES, about=about, repeat_shared=True, taken=taken, safe_names=True
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_record(archive, _TREE_RECORD, np.frombuffer(text.encode("ascii"), np.uint8))
        for tensor in packed:
            _write_record(archive, f"{tensor.name}.npy", _array_of(tensor))


def _array_of(tensor: PackedTensor) -> Any:
    import numpy as np

    plain = tensor.dtype
    if plain == "bfloat16" or plain.startswith("float8_"):
        plain = _UNSIGNED[ITEM_BYTES[plain]]
    dtype = np.dtype(plain).newbyteorder("<")
    if not tensor.length:
        return np.empty(tensor.shape, dtype)
    return np.frombuffer(tensor.read(), dtype).reshape(tensor.shape)


def _write_record(archive: zipfile.ZipFile, name: str, array: Any) -> None:
    import numpy as np

    # A fixed date: equal states give equal files.
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    with archive.open(info, "w", force_zip64=True) as record:
        np.lib.format.write_array(record, array, allow_pickle=False)


def read_header(data: bytearray) -> tuple[int, dict[str, Any]]:
    """Return where the data of a .npy file starts, and the fields of its header, unchecked.

    Raises:
        ValueError, SyntaxError: if it has no sound header.
    """
    file = io.BytesIO(memoryview(data)[: _HEADER_MAX_BYTES + 12])
    if file.read(6) != MAGIC:
        raise ValueError("no magic number")
    version = tuple(file.read(2))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError("an unknown version")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    text = file.read(length)
    if length > _HEADER_MAX_BYTES or len(text) != length:
        raise ValueError(f"{length} bytes long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Odd literals warn; they are refused right below.
        header = ast.literal_eval(text.decode("utf-8" if version == (3, 0) else "latin-1"))
    if type(header) is not dict or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("other fields than descr, fortran_order and shape")
    return file.tell(), header
