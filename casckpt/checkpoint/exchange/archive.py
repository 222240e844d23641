"""Zip files whose directory is believed only as far as the file bears it out.

zipfile reads the central directory; everything it says is then checked against the size of the
file and against each other before a byte of data is read: no overlaps (the trick of zip bombs),
no two records of one name, no names that climb, no encryption, and no more data in all than
`allowed_bytes`.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import IO, Final

from casckpt.checkpoint.exchange.refusals import allowed_bytes, damaged, shown, too_large

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_READ_BYTES: Final = 1 << 20
RECORDS_MAX: Final = 1_000_000


class Archive:
    """The records of a zip file, read one at a time.

    Args:
        file: seekable, open while the archive is used.
        size: bytes in the file.
        path: for messages.

    Raises:
        Corrupt: if the directory contradicts itself or the file.
    """

    def __init__(self, file: IO[bytes], size: int, path: str) -> None:
        self._file = file
        self._path = path
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                end = archive.start_dir
        except Exception as exc:
            # zipfile answers damage with eight kinds of errors, none documented.
            raise damaged(path, f"not a sound zip file: {shown(exc)}") from exc
        self._check(records, size, end)
        self._records = {record.filename: record for record in records}
        if len(self._records) != len(records):
            raise damaged(path, "two records have the same name")
        # torch writes no checksums at all if asked to (set_crc32_options): zeros everywhere.
        self._has_checksums = any(record.CRC for record in records)

    @property
    def names(self) -> list[str]:
        """Names of the records, in the directory's order."""
        return list(self._records)

    def size(self, name: str) -> int:
        """Return the bytes of data in a record.

        Raises:
            Corrupt: if there is none of that name.
        """
        return self._record(name).file_size

    def read(self, name: str) -> bytearray:
        """Return the data of a record, checked against its checksum.

        Raises:
            Corrupt: if there is none of that name, or it is not what was written.
        """
        record = self._record(name)
        self._file.seek(record.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
            raise self._bad(name, "has no header")
        name_length, extra_length = _LOCAL_HEADER.unpack(header)[-2:]
        self._file.seek(name_length + extra_length, 1)
        data = bytearray(record.file_size)
        if record.compress_type == zipfile.ZIP_STORED:
            filled = self._file.readinto(data)  # type: ignore[attr-defined]
        else:
            filled = self._inflate(record, data)
        if filled != len(data):
            raise self._bad(name, "ends too early")
        if self._has_checksums and zlib.crc32(data) != record.CRC:
            raise self._bad(name, "does not match its checksum")
        return data

    def _inflate(self, record: zipfile.ZipInfo, data: bytearray) -> int:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        left, filled = record.compress_size, 0
        view = memoryview(data)
        try:
            while left and filled <= len(data):
                raw = self._file.read(min(left, _READ_BYTES))
                if not raw:
                    break
                left -= len(raw)
                # One byte more than promised shows that there is more.
                piece = stream.decompress(raw, len(data) - filled + 1)
                if filled + len(piece) > len(data):
                    return filled + len(piece)
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
        except zlib.error as exc:
            raise self._bad(record.filename, "does not decompress") from exc
        return filled

    def _record(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._records[name]
        except KeyError:
            raise damaged(self._path, f"it has no record {shown(name)}") from None

    def _bad(self, name: str, what: str) -> Exception:
        return damaged(self._path, f"the record {shown(name)} {what}")

    def _check(self, records: list[zipfile.ZipInfo], size: int, end: int) -> None:
        if len(records) > RECORDS_MAX:
            raise damaged(self._path, f"it has {len(records)} records; the limit is {RECORDS_MAX}")
        free_from = 0
        total = 0
        for record in sorted(records, key=lambda record: record.header_offset):
            name = record.filename
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                raise self._bad(name, "has a name that leaves the archive")
            if record.flag_bits & _ENCRYPTED or record.compress_type not in _METHODS:
                raise self._bad(name, "is encrypted or compressed in a way casckpt does not read")
            if record.compress_type == zipfile.ZIP_STORED and record.file_size != (
                record.compress_size
            ):
                raise self._bad(name, "is stored with two different sizes")
            if record.header_offset < free_from:
                raise self._bad(name, "overlaps another")
            free_from = record.header_offset + _LOCAL_HEADER.size + record.compress_size
            if free_from > min(end, size):
                raise self._bad(name, "lies beyond the end of the file")
            total += record.file_size
        if total > allowed_bytes(size):
            raise too_large(self._path, total, size)
