"""How the bytes of one record get small: layouts, predictors, coders. Only importer of zstandard.

A chunk is coded as the first of these that pays (docs/format.md, section 6): byte planes, each
plane raw, constant, zstd or an entropy stream; plain zstd; raw. An encoding that is not at least
3 % smaller than raw is not kept, since reading raw is faster.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass

import zstandard

from casckpt import native
from casckpt.errors import Corrupt, NewerFormat
from casckpt.store import layout

Buffer = bytes | bytearray | memoryview

LEVELS = ("fast", "balanced", "small")
_KEEP_BELOW = 0.97
# A plane is coded where that leaves less than this share of it. Mantissas of numbers measure 0.98
# to 1: below 0.97 they are left raw, as reading raw is several times faster.
_PLANE_BELOW = {"balanced": 0.97, "small": 0.995}
# A delta must promise this much before it is worth a second record at every restore.
_DELTA_BELOW = 0.97
_PLANE = struct.Struct("<BI")
_PLANES_HEAD_BYTES = 2

_local = threading.local()


def _parameters(name: str) -> zstandard.ZstdCompressionParameters:
    if name == "plane":
        # Measured on exponent planes: 0.408 instead of level 1's 0.433, and over 3 times faster.
        # The small hash table stays in L1; planes have short-range structure only.
        return zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=18,
            hash_log=6,
            min_match=7,
            target_length=0,
            write_content_size=1,
            write_checksum=0,
        )
    level = {"plain": 3, "plane small": 9, "plain small": 12}[name]
    return zstandard.ZstdCompressionParameters.from_level(
        level, write_content_size=1, write_checksum=0
    )


def _compressor(name: str) -> zstandard.ZstdCompressor:
    table: dict[str, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if name not in table:
        table[name] = zstandard.ZstdCompressor(compression_params=_parameters(name))
    return table[name]


def scratch(name: str, length: int) -> memoryview:
    """Return a per-thread buffer of `length` bytes, reused from chunk to chunk."""
    table: dict[str, bytearray] = _local.__dict__.setdefault("scratch", {})
    buffer = table.get(name)
    if buffer is None or len(buffer) < length:
        buffer = table[name] = bytearray(max(length, layout.GRID_BYTES))
    return memoryview(buffer)[:length]


def _decompress(data: Buffer, length: int) -> bytes:
    """Return exactly `length` bytes, or Corrupt; never allocates more than was announced."""
    decompressor = _local.__dict__.get("decompressor")
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        # A frame that claims another size than the header is damage, or a bomb.
        if zstandard.frame_content_size(data) != length:
            raise Corrupt("damaged record", "its zstd frame announces another length")
        plain: bytes = decompressor.decompress(data, max_output_size=length)
    except zstandard.ZstdError as exc:
        raise Corrupt("damaged record", f"zstd: {exc}") from exc
    if len(plain) != length:
        raise Corrupt("damaged record", "its zstd frame has another length")
    return plain


@dataclass(frozen=True, slots=True)
class Encoded:
    """The stored form of one object's bytes.

    The payload may be the chunk itself or a buffer of this thread: it is valid until the chunk
    changes or this thread encodes the next one.
    """

    encoding: int
    payload: Buffer
    uses_base: bool = False


def plane_width(item_size: int) -> int:
    """Return how many planes items of `item_size` bytes are split into; 1 for none."""
    return item_size if item_size in (2, 4, 8) else 1


def encode_body(body: bytes) -> Encoded:
    """Encode the body of a list, manifest, fact or snapshot."""
    if len(body) >= 64:
        packed = _compressor("plain").compress(body)
        if len(packed) < _KEEP_BELOW * len(body):
            return Encoded(layout.ENCODING_ZSTD, packed)
    return Encoded(layout.ENCODING_RAW, body)


def decode_body(encoding: int, payload: Buffer, logical: int) -> bytes:
    """Return the body of a list, manifest, fact or snapshot record."""
    if encoding == layout.ENCODING_RAW:
        if len(payload) != logical:
            raise Corrupt("damaged record", "its lengths disagree")
        return bytes(payload)
    if encoding == layout.ENCODING_ZSTD:
        return _decompress(payload, logical)
    raise NewerFormat("a record in an encoding this version does not know", f"encoding {encoding}")


def encode_chunk(chunk: Buffer, item_size: int, level: str, base: Buffer | None = None) -> Encoded:
    """Return the encoding of a chunk at `level`, against `base` if there is one; never over raw.

    Args:
        chunk: the logical bytes; any length up to 16 MiB.
        item_size: bytes per item of the array the chunk is cut from; 1 for opaque bytes.
        level: fast, balanced or small.
        base: bytes of the base chunk, as long as `chunk`; the caller has checked its id.
    """
    length = len(chunk)
    # Level fast writes what it has not seen before as it is: on two cores the disk keeps up with
    # hashing, and with no coder (ADR 0006).
    if length == 0 or level == "fast":
        return Encoded(layout.ENCODING_RAW, chunk)
    best = Encoded(layout.ENCODING_RAW, chunk)
    limit = int(_KEEP_BELOW * length)
    width = plane_width(item_size)
    if width > 1 and length >= 4 * width:
        payload = _encode_planes(chunk, base, width, level)
        if len(payload) <= limit:
            best = Encoded(layout.ENCODING_PLANES, payload, base is not None)
    else:
        packed = _compressor("plain small" if level == "small" else "plain").compress(chunk)
        if len(packed) <= limit:
            best = Encoded(layout.ENCODING_ZSTD, packed)
    return best


def delta_pays(chunk: Buffer, base: Buffer, item_size: int) -> bool:
    """Tell from samples whether the difference to `base` is likely to code shorter than `chunk`.

    The order-0 entropy of the planes decides, which the entropy coder reaches to within a percent.
    """
    width = plane_width(item_size)
    if width == 1 or len(chunk) != len(base):
        return False
    plain, delta = native.delta_estimate(
        chunk, base, width, scratch("samples", native.SAMPLES_BYTES)
    )
    return delta < _DELTA_BELOW * plain


def _encode_planes(chunk: Buffer, base: Buffer | None, width: int, level: str) -> memoryview:
    """Return the payload of encoding `planes`, in a buffer of this thread."""
    planes = scratch("planes", len(chunk))
    out = scratch("payload", len(chunk) + native.SLACK_BYTES)
    length, infos = native.encode_planes(
        chunk,
        base,
        width,
        out,
        planes,
        keep_below=_PLANE_BELOW[level],
    )
    if not any(info.is_structured for info in infos):
        return out[:length]
    return _with_zstd(out[:length], infos, planes, level)


def _with_zstd(
    payload: memoryview, infos: list[native.PlaneInfo], planes: memoryview, level: str
) -> memoryview:
    """Return the payload with those planes packed by zstd that get smaller by it."""
    compressor = _compressor("plane small" if level == "small" else "plane")
    count = len(planes) // len(infos)
    parts: list[Buffer] = [payload[:_PLANES_HEAD_BYTES]]
    for index, info in enumerate(infos):
        method, body = info.method, payload[info.offset : info.offset + info.length]
        if info.is_structured:
            packed = compressor.compress(planes[index * count : (index + 1) * count])
            if len(packed) < min(info.length, _PLANE_BELOW[level] * count):
                method, body = native.PLANE_ZSTD, memoryview(packed)
        parts += (_PLANE.pack(method, len(body)), body)
    end = infos[-1].offset + infos[-1].length
    return memoryview(b"".join([*parts, payload[end:]]))


def decode_chunk(
    encoding: int, payload: Buffer, destination: memoryview, base: Buffer | None = None
) -> None:
    """Write the logical bytes of a chunk into `destination`, exactly as long as the chunk.

    Raises:
        Corrupt: the payload does not decode to that many bytes.
        NewerFormat: an encoding, layout or plane method that this program does not know.
    """
    if encoding == layout.ENCODING_RAW:
        if len(payload) != len(destination):
            raise Corrupt("damaged record", "its lengths disagree")
        native.copy(destination, payload)
    elif encoding == layout.ENCODING_ZSTD:
        native.copy(destination, _decompress(payload, len(destination)))
    elif encoding == layout.ENCODING_PLANES:
        _decode_planes(payload, destination, base)
    else:
        raise NewerFormat(
            "a record in an encoding this version does not know", f"encoding {encoding}"
        )


def _decode_planes(payload: Buffer, destination: memoryview, base: Buffer | None) -> None:
    try:
        predictor, infos = native.parse_planes(payload, len(destination))
        if predictor != 0 and (base is None or len(base) != len(destination)):
            raise Corrupt("damaged record", "its base is missing or has another length")
        view = memoryview(payload)
        count = len(destination) // len(infos)
        unpacked = {
            index: _decompress(view[info.offset : info.offset + info.length], count)
            for index, info in enumerate(infos)
            if info.method == native.PLANE_ZSTD
        }
        planes = scratch("planes", len(destination))
        native.decode_planes(payload, base, destination, planes, unpacked)
    except native.UnknownLayout as exc:
        raise NewerFormat("planes in a way this version does not know", str(exc)) from exc
    except ValueError as exc:
        raise Corrupt("damaged record", f"its planes: {exc}") from exc
