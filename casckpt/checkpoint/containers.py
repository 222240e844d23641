"""Where the tensors lie inside files of known formats: torch's zips, safetensors, npz, npy, HDF5.

A file that is cut there shares the bytes of its tensors with state trees and with other files, and
each tensor is coded as what it is. What a file says is only used to choose where to cut: whatever
it claims, the pieces in order are the file, so nothing here can change what comes back.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Final

from casckpt.checkpoint.encode import GROUPED_BELOW_BYTES
from casckpt.checkpoint.exchange import safetensors
from casckpt.checkpoint.exchange.dtypes import ITEM_BYTES
from casckpt.checkpoint.torch_storages import storage_dtypes

CUT_FROM_BYTES: Final = GROUPED_BELOW_BYTES
"""Shorter tensors stay in the bytes around them: in a state tree they share blobs as well."""

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_NPY_MAGIC: Final = b"\x93NUMPY"
_HEAD_BYTES: Final = 64
_NAME_MAX: Final = 1000
_NPY_HEAD_BYTES: Final = 16 * 1024
_PICKLE_MAX_BYTES: Final = 16 << 20
"""Pickles above this hold long Python lists; walking them would take longer than it gains."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One tensor in a file.

    Attributes:
        name: as the container calls it.
        offset: where its bytes start in the file.
        length: how many there are.
        dtype: a name of `ITEM_BYTES`.
        shape: lengths of the axes; their product is the number of items.
        order: "C" or "F".
    """

    name: str
    offset: int
    length: int
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    order: str = "C"


def find_cuts(file: IO[bytes], size: int) -> list[Cut]:
    """Return the tensors of a file that are worth a blob of their own, in the file's order.

    Args:
        file: seekable and readable.
        size: bytes in it.

    Returns:
        Cuts that do not overlap and lie inside the file, with names of which no two are the
        same; none for a file of no known format, or one that is malformed.
    """
    if size < CUT_FROM_BYTES:
        return []
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    find = _finder(head, size)
    if find is None:
        return []
    try:
        found = list(find(file, size))
    except Exception:
        # zipfile, h5py and numpy answer damage with many kinds of errors, few of them documented.
        # It only looks like one. Kept whole it comes back all the same.
        return []
    return _usable(found, size)


def _finder(head: bytes, size: int) -> Callable[[IO[bytes], int], Iterable[Cut]] | None:
    if safetensors.looks_like(head, size):
        return _safetensors
    if head.startswith(_LOCAL_SIGNATURE):
        return _zip
    if head.startswith(_NPY_MAGIC):
        return lambda file, size: _npy(file, 0, size, "array")
    if head.startswith(_HDF5_SIGNATURE):
        return _hdf5
    return None


def _usable(found: Iterable[Cut], size: int) -> list[Cut]:
    """Return cuts that can be made, whatever the file claimed."""
    usable: list[Cut] = []
    names: set[str] = set()
    end = 0
    for cut in sorted(found, key=lambda cut: cut.offset):
        fits = end <= cut.offset <= cut.offset + cut.length <= size
        if not fits or cut.length < CUT_FROM_BYTES or cut.name in names:
            continue
        if len(cut.name) > _NAME_MAX:
            continue
        if math.prod(cut.shape) * ITEM_BYTES.get(cut.dtype, 0) != cut.length:
            cut = Cut(cut.name, cut.offset, cut.length, "uint8", (cut.length,))
        usable.append(cut)
        names.add(cut.name)
        end = cut.offset + cut.length
    return usable


def _safetensors(file: IO[bytes], size: int) -> Iterator[Cut]:
    file.seek(0)
    for place in safetensors.read_header(file, size, "").tensors:
        yield Cut(place.name, place.offset, place.length, place.dtype, place.shape)


def _zip(file: IO[bytes], size: int) -> Iterator[Cut]:
    """Yield the records that are stored as they are; those of torch and numpy with their dtype."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        dtypes = _dtypes_in(archive, records)
    for record in records:
        stored = record.compress_type == zipfile.ZIP_STORED
        if not stored or record.file_size < CUT_FROM_BYTES:
            continue
        file.seek(record.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
            continue
        start = record.header_offset + len(header) + sum(_LOCAL_HEADER.unpack(header)[-2:])
        if record.filename.endswith(".npy"):
            yield from _npy(file, start, record.file_size, record.filename.removesuffix(".npy"))
            continue
        # The first folder of torch's archives is the name of the file they were saved to.
        name = record.filename.partition("/")[2] or record.filename
        dtype = dtypes.get(name.removeprefix("data/"), "uint8")
        count = record.file_size // ITEM_BYTES[dtype]
        yield Cut(name, start, record.file_size, dtype, (count,))


def _dtypes_in(archive: zipfile.ZipFile, records: Iterable[zipfile.ZipInfo]) -> dict[str, str]:
    """Return the dtype of each storage of a torch archive by its key; empty for other zips."""
    for record in records:
        if record.filename.endswith("/data.pkl") and record.file_size <= _PICKLE_MAX_BYTES:
            return storage_dtypes(archive.read(record))
    return {}


def _npy(file: IO[bytes], start: int, length: int, name: str) -> Iterator[Cut]:
    """Yield the array of a .npy file that lies at `start` of another."""
    import numpy as np

    from casckpt.checkpoint.exchange.npz import read_header

    file.seek(start)
    head = bytearray(file.read(min(length, _NPY_HEAD_BYTES)))
    skip, header = read_header(head)
    dtype = np.lib.format.descr_to_dtype(header["descr"])
    shape = tuple(int(axis) for axis in header["shape"])
    order = "F" if header["fortran_order"] else "C"
    if dtype.name not in ITEM_BYTES or not dtype.isnative:
        yield Cut(name, start + skip, length - skip, "uint8", (length - skip,))
    else:
        yield Cut(name, start + skip, length - skip, dtype.name, shape, order)


def _hdf5(file: IO[bytes], size: int) -> Iterator[Cut]:
    """Yield the datasets that lie in one piece; without h5py none."""
    try:
        import h5py
    except ModuleNotFoundError:
        return
    file.seek(0)
    found: list[Cut] = []

    def visit(name: str, one: object) -> None:
        if isinstance(one, h5py.Dataset) and one.chunks is None:
            offset = one.id.get_offset()
            if offset is not None:
                dtype = one.dtype.name if one.dtype.isnative else ""
                shape = tuple(one.shape or ())
                length = one.id.get_storage_size()
                found.append(
                    Cut(name, offset, length, dtype, shape)
                    if dtype in ITEM_BYTES
                    else Cut(name, offset, length, "uint8", (length,))
                )

    with closing(h5py.File(_Unclosed(file), "r")) as root:
        root.visititems(visit)
    yield from found


class _Unclosed(io.RawIOBase):
    """The file as h5py may use it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readinto(self, buffer: object) -> int:
        filled: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        return filled

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
