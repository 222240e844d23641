"""How the bytes of one record get small: layouts, predictors, coders. Only importer of zstandard.

Numbers are coded as byte planes, each plane raw, constant, zstd or an entropy stream, of the chunk
or of its difference to a base; other bytes by zstd, with a base as its dictionary where that pays
(docs/format.md, section 6). An encoding that is not at least 3 % smaller than raw is not kept,
since reading raw is faster.
"""

from __future__ import annotations

import mmap
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
# A plane is coded where that leaves less than this share of it. Mantissas measure 0.96 to 1: at
# level balanced they are left raw, as reading raw is several times faster.
_PLANE_BELOW = {"balanced": 0.96, "small": 0.995}
# Planes with hardly any entropy, the upper ones of differences, are left to zstd, which skips what
# does not change: twice to six times as fast for 0.05 to 0.8 % of the plane (ADR 0005). Level small
# tries both, and the fast search too: level 9 takes three times as long for the chunk, for nothing.
_FEW_BITS = 0.2
# FORMAT: zstd takes no dictionary that is shorter than 8 bytes; below this there is little in it.
_DICTIONARY_LEAST_BYTES = 64
_LINK_BYTES = 32
_LONG_LOG = 18
# Trees of boosters against trees: level 3 leaves 1.05 of what zstd leaves of the whole, 6 1.01 at
# half the speed, 9 0.99 at a quarter.
_DICTIONARY_LEVEL = {"balanced": 6, "small": 12}
# A delta must promise this much before it is worth a second record at every restore.
_DELTA_BELOW = 0.97
# What zstd makes of a few pieces of a plane tells whether it is worth the whole: on differences of
# weights it takes five times as long as the entropy coder, and loses by 40 % or wins by 15 to 25.
_TRIAL_PIECES = 8
_TRIAL_PIECE_BYTES = 4 * layout.KIB
_TRIAL_BELOW = 1.15
_PLANE = struct.Struct("<BI")
_PLANES_HEAD_BYTES = 2
_LARGE_BYTES = 2 * layout.MIB

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


def _dictionary_compressor(length: int, base: Buffer, level: str) -> zstandard.ZstdCompressor:
    """Return a compressor for a chunk of `length` bytes whose matches reach back into `base`."""
    window_log = max(12, (length + len(base)).bit_length())
    # Tables that hold what they index: in smaller ones a place far back in the base has been
    # overwritten by the time it is looked for. For long chunks that takes too long to fill: level 3
    # finds most of it in tables of 2^19.
    is_long = window_log > _LONG_LOG and level != "small"
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3 if is_long else _DICTIONARY_LEVEL[level],
        source_size=length,
        dict_size=len(base),
        window_log=window_log,
        hash_log=min(window_log, 19) if is_long else window_log,
        chain_log=min(window_log, 19) if is_long else window_log,
        write_content_size=1,
        write_checksum=0,
        write_dict_id=0,
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(base), compression_params=parameters)


def _with_dictionary(base: Buffer) -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(_dictionary(base), max_window_size=1 << 27)


def _dictionary(base: Buffer) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def is_large(length: int) -> bool:
    """Tell whether a chunk is longer than this program cuts all but a few.

    The memory of such a one is not kept, and one at a time is decoded: a store of chunks that swell
    to the longest must not take a worker's eight buffers times the number of workers.
    """
    return length > _LARGE_BYTES


def scratch(name: str, length: int) -> memoryview:
    """Return a per-thread buffer of `length` bytes, reused from chunk to chunk unless large."""
    if is_large(length):
        # Pages of its own: the allocator would keep what it gave out once.
        try:
            return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as exc:
            raise MemoryError(f"no {length} bytes for a chunk") from exc
    table: dict[str, bytearray] = _local.__dict__.setdefault("scratch", {})
    buffer = table.get(name)
    if buffer is None or len(buffer) < length:
        buffer = table[name] = bytearray(max(length, layout.GRID_BYTES))
    return memoryview(buffer)[:length]


def _decompress(data: Buffer, length: int, base: Buffer | None = None) -> bytes:
    """Return exactly `length` bytes, or Corrupt; never allocates more than was announced."""
    decompressor = _local.__dict__.get("decompressor") if base is None else _with_dictionary(base)
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


def _swells(stored: int, logical: int) -> bool:
    """Tell whether a body is so much larger than its stored form that it is taken for a bomb."""
    return logical > max(layout.BODY_FREE_BYTES, stored * layout.BODY_SWELLS_AT_MOST)


def encode_body(body: bytes) -> Encoded:
    """Encode the body of a list, manifest, fact or snapshot."""
    if len(body) >= 64:
        packed = _compressor("plain").compress(body)
        if len(packed) < _KEEP_BELOW * len(body) and not _swells(len(packed), len(body)):
            return Encoded(layout.ENCODING_ZSTD, packed)
    return Encoded(layout.ENCODING_RAW, body)


def decode_body(encoding: int, payload: Buffer, logical: int) -> bytes:
    """Return the body of a list, manifest, fact or snapshot record."""
    if encoding == layout.ENCODING_RAW:
        if len(payload) != logical:
            raise Corrupt("damaged record", "its lengths disagree")
        return bytes(payload)
    if encoding == layout.ENCODING_ZSTD:
        if _swells(len(payload), logical):
            raise Corrupt("damaged record", f"{len(payload)} bytes that swell to {logical}")
        return _decompress(payload, logical)
    raise NewerFormat("a record in an encoding this version does not know", f"encoding {encoding}")


def encode_chunk(
    chunk: Buffer,
    item_size: int,
    level: str,
    base: Buffer | None = None,
    dictionary_below: float = _DELTA_BELOW,
) -> Encoded:
    """Return the encoding of a chunk at `level`, against `base` if there is one; never over raw.

    Args:
        chunk: the logical bytes; any length up to 16 MiB.
        item_size: bytes per item of the array the chunk is cut from; 1 for opaque bytes.
        level: fast, balanced or small.
        base: bytes of the base chunk, of numbers as long as `chunk`; the caller has checked its id.
        dictionary_below: of other bytes, what a base must leave of their length without it.
    """
    length = len(chunk)
    raw = Encoded(layout.ENCODING_RAW, chunk if length else b"")
    # Level fast writes what it has not seen before as it is: on two cores the disk keeps up with
    # hashing, and with no coder (ADR 0006).
    if length == 0 or level == "fast":
        return raw
    limit = int(_KEEP_BELOW * length)
    width = plane_width(item_size)
    if width > 1 and length >= 4 * width:
        payload = _encode_planes(chunk, base, width, level)
        planes = Encoded(layout.ENCODING_PLANES, payload, base is not None)
        return planes if len(payload) <= limit else raw
    packed = _compressor("plain small" if level == "small" else "plain").compress(chunk)
    best = Encoded(layout.ENCODING_ZSTD, packed) if len(packed) <= limit else raw
    if width == 1 and base is not None and len(base) >= _DICTIONARY_LEAST_BYTES:
        packed = _dictionary_compressor(length, base, level).compress(chunk)
        if len(packed) + _LINK_BYTES <= dictionary_below * len(best.payload):
            best = Encoded(layout.ENCODING_DICTIONARY, packed, uses_base=True)
    return best


def delta_pays(chunk: Buffer, base: Buffer, item_size: int) -> bool:
    """Tell from samples whether the difference to `base` is likely to code shorter than `chunk`.

    The order-0 entropy of the planes decides, which the entropy coder reaches to within a percent.
    Of bytes that are no numbers nothing can be told before they are coded.
    """
    width = plane_width(item_size)
    if width == 1:
        return True
    if len(chunk) != len(base):
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
        leave_bits=_FEW_BITS if level == "balanced" else 0.0,
    )
    if not any(map(_is_for_zstd, infos)):
        return out[:length]
    return _with_zstd(out[:length], infos, planes, level)


def _with_zstd(
    payload: memoryview, infos: list[native.PlaneInfo], planes: memoryview, level: str
) -> memoryview:
    """Pack planes by zstd where that makes them smaller, in place; return the shorter payload."""
    count = len(planes) // len(infos)
    at = _PLANES_HEAD_BYTES
    for index, info in enumerate(infos):
        method, length = info.method, info.length
        body: Buffer = payload[info.offset : info.offset + length]
        plane = planes[index * count : (index + 1) * count]
        if _is_for_zstd(info) and (
            level == "small" or method == native.PLANE_RAW or _may_win(plane, length / count)
        ):
            searches = level == "small" and info.bits >= _FEW_BITS
            packed = _compressor("plane small" if searches else "plane").compress(plane)
            if len(packed) < min(length, _PLANE_BELOW[level] * count):
                method, length, body = native.PLANE_ZSTD, len(packed), packed
        # ORDER: what stands in front has not grown, so nothing is written over before it is read
        _PLANE.pack_into(payload, at, method, length)
        at += _PLANE.size
        payload[at : at + length] = body
        at += length
    tail = payload[infos[-1].offset + infos[-1].length :]
    payload[at : at + len(tail)] = tail
    return payload[: at + len(tail)]


def _is_for_zstd(info: native.PlaneInfo) -> bool:
    return info.is_structured or (info.method == native.PLANE_ENTROPY and info.bits < _FEW_BITS)


def _may_win(plane: memoryview, entropy: float) -> bool:
    """Tell from pieces whether zstd is likely to leave less of a plane than the entropy coder.

    `entropy` is the share that the entropy coder has left of it.
    """
    step = len(plane) // _TRIAL_PIECES
    if step < 2 * _TRIAL_PIECE_BYTES:
        return True
    start = (step - _TRIAL_PIECE_BYTES) // 2
    pieces = b"".join(
        plane[at : at + _TRIAL_PIECE_BYTES] for at in range(start, step * _TRIAL_PIECES, step)
    )
    return len(_compressor("plane").compress(pieces)) < _TRIAL_BELOW * entropy * len(pieces)


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
    elif encoding == layout.ENCODING_DICTIONARY:
        if base is None:
            raise Corrupt("damaged record", "its base is missing")
        native.copy(destination, _decompress(payload, len(destination), base))
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
        planes = scratch("planes", len(destination))
        unpacked: dict[int, memoryview] = {}
        for index, info in enumerate(infos):
            if info.method == native.PLANE_ZSTD:
                # One at a time: of two that are kept, the pages are new each time, and cost as
                # much as decoding does.
                unpacked[index] = planes[index * count : (index + 1) * count]
                packed = view[info.offset : info.offset + info.length]
                native.copy(unpacked[index], _decompress(packed, count))
        native.decode_planes(payload, base, destination, planes, unpacked)
    except native.UnknownLayout as exc:
        raise NewerFormat("planes in a way this version does not know", str(exc)) from exc
    except ValueError as exc:
        raise Corrupt("damaged record", f"its planes: {exc}") from exc
