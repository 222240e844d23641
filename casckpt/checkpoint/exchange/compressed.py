"""Files compressed as a whole, as joblib and `gzip.open` leave pickles: zlib, gzip, bz2, xz.

Source: joblib/compressor.py, for which compressions there are.
"""

from __future__ import annotations

import zlib
from typing import IO, Any, Final

from casckpt.checkpoint.exchange.refusals import allowed_bytes, damaged, unreadable

_BLOCK_BYTES: Final = 1 << 20
_LZMA_MEMORY_BYTES: Final = 256 << 20
"""xz's strongest preset takes 65 MiB to unpack; a header can ask for 4 GiB."""

_ZLIB: Final = (b"\x1f\x8b\x08", b"x\x01", b"x^", b"x\x9c", b"x\xda")
_BZ2: Final = (b"BZh",)
_LZMA: Final = (b"\xfd7zXZ\0", b"\x5d\0\0")
_LZ4: Final = (b"\x04\x22\x4d\x18",)


def is_compressed(head: bytes) -> bool:
    """Return whether a file begins as a compressed one may."""
    return head.startswith((*_ZLIB, *_BZ2, *_LZMA, *_LZ4))


def unpack(file: IO[bytes], size: int, path: str) -> bytes:
    """Return what is in a compressed file.

    Args:
        file: at its beginning; one for which `is_compressed` is true.
        size: its length.
        path: for messages.

    Raises:
        BadRequest: it is compressed with lz4, for which Python has nothing.
        Corrupt: it is damaged, or would expand beyond measure.
    """
    block = file.read(_BLOCK_BYTES)
    limit = allowed_bytes(size)
    found = bytearray()
    engine, error = _engine(block, path)
    try:
        while block and not engine.eof:
            found += engine.decompress(block, limit - len(found) + 1)
            if len(found) > limit:
                raise damaged(path, f"it expands beyond {limit} bytes from a file of {size}")
            block = file.read(_BLOCK_BYTES)
    except error as exc:
        raise damaged(path, f"it cannot be unpacked: {str(exc)[:100]!a}") from exc
    if not engine.eof:
        raise damaged(path, "it ends too early")
    return bytes(found)


def _engine(head: bytes, path: str) -> tuple[Any, type[Exception]]:
    """Return what unpacks a file that begins so, and the error it has for damaged ones."""
    # Imported here: not every Python is built with all of them.
    if head.startswith(_BZ2):
        import bz2

        return bz2.BZ2Decompressor(), OSError
    if head.startswith(_LZMA):
        import lzma

        return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES), lzma.LZMAError
    if head.startswith(_LZ4):
        raise unreadable(path, "it is compressed with lz4", "unpack it first: lz4 -d")
    return zlib.decompressobj(47), zlib.error  # either header, that of zlib or that of gzip
