"""How the bytes of one record get small: layouts, predictors and zstd. Only importer of zstandard.

A chunk is coded as the first of these that pays (docs/format.md, section 6): byte planes, each
plane raw, constant or zstd; plain zstd; raw. An encoding that is not at least 3 % smaller than raw
is not kept, since reading raw is faster.
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
_PLANE_RAW, _PLANE_CONSTANT, _PLANE_ZSTD = 0, 1, 2
PREDICTOR_NONE, PREDICTOR_SUB, PREDICTOR_XOR = 0, 1, 2
_ROTATE = 0x80
# A plane above this many bits per byte gives zstd less than it costs: mantissas measure 7.8 to 8.
_HOPELESS_BITS = 7.8
_SAMPLE_WINDOWS, _SAMPLE_BYTES = 8, 4096
_DELTA_WINDOWS = 16
# A delta must promise this much before it is worth a second record at every restore.
_DELTA_BELOW = 0.97
_HEAD = struct.Struct("<BB")
_PLANE = struct.Struct("<BI")

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
    """The stored form of one object's bytes: `parts` concatenated are the payload."""

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
    if length == 0:
        return Encoded(layout.ENCODING_RAW, b"")
    best = Encoded(layout.ENCODING_RAW, chunk)
    limit = int(_KEEP_BELOW * length)
    width = plane_width(item_size)
    if width > 1 and length >= 4 * width:
        predictor = PREDICTOR_NONE if base is None else PREDICTOR_SUB
        payload = _encode_planes(chunk, base, width, predictor, level, limit)
        if payload is not None:
            best = Encoded(layout.ENCODING_PLANES, payload, base is not None)
    elif level != "fast":
        packed = _compressor("plain small" if level == "small" else "plain").compress(chunk)
        if len(packed) <= limit:
            best = Encoded(layout.ENCODING_ZSTD, packed)
    return best


def delta_pays(chunk: Buffer, base: Buffer, item_size: int) -> bool:
    """Tell from samples whether the difference to `base` is likely to code shorter than `chunk`.

    Sixteen windows of 4 KiB are split into planes both ways; their order-0 entropy decides.
    """
    width = plane_width(item_size)
    if width == 1 or len(chunk) != len(base):
        return False
    new, old = _windows(chunk), _windows(base)
    plain, delta = bytearray(len(new)), bytearray(len(new))
    native.split_planes(new, plain, width, True)
    native.sub_split(new, old, delta, width, True)
    return _planes_bits(delta, width) < _DELTA_BELOW * _planes_bits(plain, width)


def _windows(data: Buffer) -> bytes:
    """Return windows spread evenly over a chunk, on bounds of its items."""
    view = memoryview(data)
    if len(view) <= _DELTA_WINDOWS * _SAMPLE_BYTES:
        return bytes(view)
    stride = len(view) // _DELTA_WINDOWS // 8 * 8
    return b"".join(
        view[at : at + _SAMPLE_BYTES] for at in range(0, stride * _DELTA_WINDOWS, stride)
    )


def _planes_bits(planes: bytearray, width: int) -> float:
    count = len(planes) // width
    return sum(
        native.entropy_bits(memoryview(planes)[at * count : (at + 1) * count])
        for at in range(width)
    )


def _encode_planes(
    chunk: Buffer, base: Buffer | None, width: int, predictor: int, level: str, limit: int
) -> bytes | None:
    """Return the payload of encoding `planes`, or None if it is longer than `limit`."""
    planes = scratch("planes", len(chunk))
    if predictor == PREDICTOR_SUB and base is not None:
        native.sub_split(chunk, base, planes, width, True)
    else:
        native.split_planes(chunk, planes, width, True)
    count = len(chunk) // width
    out: list[Buffer] = [_HEAD.pack(predictor, width | _ROTATE)]
    total = len(out[0])
    for index in range(width):
        plane = planes[index * count : (index + 1) * count]
        # Level fast looks at the exponent plane only; the rest goes out as it is.
        method, body = (
            _encode_plane(plane, level) if level != "fast" or index == 0 else (_PLANE_RAW, plane)
        )
        out += (_PLANE.pack(method, len(body)), body)
        total += _PLANE.size + len(body)
        if total > limit and index == width - 1:
            return None
    tail = planes[count * width :]
    out.append(tail)
    if total + len(tail) > limit:
        return None
    return b"".join(out)


def _encode_plane(plane: memoryview, level: str) -> tuple[int, Buffer]:
    if native.is_constant(plane):
        return _PLANE_CONSTANT, bytes(plane[:1])
    if _sampled_bits(plane) > _HOPELESS_BITS:
        return _PLANE_RAW, plane
    packed = _compressor("plane small" if level == "small" else "plane").compress(plane)
    return (_PLANE_ZSTD, packed) if len(packed) < _KEEP_BELOW * len(plane) else (_PLANE_RAW, plane)


def _sampled_bits(plane: memoryview) -> float:
    """Return the order-0 entropy in bits per byte of windows spread over the plane."""
    if len(plane) <= _SAMPLE_WINDOWS * _SAMPLE_BYTES:
        return 0.0 if len(plane) < 4096 else native.entropy_bits(plane)
    stride = len(plane) // _SAMPLE_WINDOWS
    sample = b"".join(
        plane[at : at + _SAMPLE_BYTES] for at in range(0, stride * _SAMPLE_WINDOWS, stride)
    )
    return native.entropy_bits(sample)


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
    view = memoryview(payload)
    if len(view) < _HEAD.size:
        raise Corrupt("damaged record", "its planes are cut off")
    predictor, shape = _HEAD.unpack_from(view)
    width = shape & ~_ROTATE
    if width not in (2, 4, 8) or predictor > PREDICTOR_XOR or not shape & _ROTATE:
        raise NewerFormat("a record in a layout this version does not know", f"layout {shape:#x}")
    if predictor != PREDICTOR_NONE and (base is None or len(base) != len(destination)):
        raise Corrupt("damaged record", "its base is missing or has another length")
    count = len(destination) // width
    planes = scratch("planes", len(destination))
    at = _HEAD.size
    for index in range(width):
        if len(view) < at + _PLANE.size:
            raise Corrupt("damaged record", "its planes are cut off")
        method, stored = _PLANE.unpack_from(view, at)
        at += _PLANE.size
        body = view[at : at + stored]
        at += stored
        plane = planes[index * count : (index + 1) * count]
        if len(body) != stored:
            raise Corrupt("damaged record", "its planes are cut off")
        _decode_plane(method, body, plane)
    tail = view[at:]
    if len(tail) != len(destination) - count * width:
        raise Corrupt("damaged record", "its tail has another length")
    planes[count * width :] = tail
    if predictor == PREDICTOR_NONE:
        native.join_planes(planes, destination, width, True)
    elif base is not None and predictor == PREDICTOR_SUB:
        native.sub_join(planes, base, destination, width, True)
    elif base is not None:
        native.xor_join(planes, base, destination, width, True)


def _decode_plane(method: int, body: memoryview, plane: memoryview) -> None:
    if method == _PLANE_RAW:
        if len(body) != len(plane):
            raise Corrupt("damaged record", "a plane has another length")
        plane[:] = body
    elif method == _PLANE_CONSTANT:
        if len(body) != 1:
            raise Corrupt("damaged record", "a constant plane has another length")
        plane[:] = bytes(body) * len(plane)
    elif method == _PLANE_ZSTD:
        plane[:] = _decompress(body, len(plane))
    else:
        raise NewerFormat("a plane coded in a way this version does not know", f"method {method}")
