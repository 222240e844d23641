"""Whole chunks to payloads of the encoding `planes` and back, in one call each.

A payload is `predictor u8 | width | 0x80, u8`, then per plane `method u8 | length u32 | body`, then
the odd bytes (docs/format.md, section 6). Methods: raw, constant, zstd (left to the caller, who has
a zstd), entropy coder. The GIL is released during each call; scratch memory is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from casckpt.native._binding import check, ffi, lib, readable, writable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

PLANE_RAW: int = lib.CAS_METHOD_RAW
PLANE_CONSTANT: int = lib.CAS_METHOD_CONSTANT
PLANE_ZSTD: int = lib.CAS_METHOD_ZSTD
PLANE_ENTROPY: int = lib.CAS_METHOD_ENTROPY

# What `out` of `encode_planes` must have beyond the chunk (casckpt.h).
SLACK_BYTES = 2048
# What `scratch` of `delta_estimate` must have (casckpt.h).
SAMPLES_BYTES = 3 * 65536
_PLANES_MAX = 8
_PREDICTORS = {"sub": lib.CAS_PREDICT_SUB, "xor": lib.CAS_PREDICT_XOR}


class PlaneInfo(NamedTuple):
    """One plane of a payload: its body is `payload[offset : offset + length]`.

    `bits` (order-0 entropy of samples, per byte) and `is_structured` (samples repeat more than an
    order-0 coder can use, so zstd may win, or the plane was left to it) are known only of planes
    that coding was tried for.
    """

    method: int
    offset: int
    length: int
    bits: float
    is_structured: bool


class UnknownLayout(ValueError):
    """A payload names a layout or method that this version does not know."""


def encode_planes(
    src: Buffer,
    base: Buffer | None,
    width: int,
    out: Buffer,
    scratch: Buffer,
    *,
    predictor: str = "sub",
    coded: int = 0xFF,
    keep_below: float = 1.0,
    leave_bits: float = 0.0,
) -> tuple[int, list[PlaneInfo]]:
    """Write the payload of a chunk to `out`; return its length and what became of each plane.

    Args:
        src: the chunk, at most 64 MiB.
        base: a chunk of the same length to take the difference to, or None.
        width: bytes per item, 2, 4 or 8.
        out: at least `SLACK_BYTES` longer than `src`, as coders need room.
        scratch: exactly as long as `src`; holds the planes one after the other on return.
        predictor: sub or xor, how the difference to `base` is taken.
        coded: bit p set: the entropy coder is tried on plane p, plane 0 being the topmost.
        keep_below: share of a plane that its coded form must not pass.
        leave_bits: a plane of a lower order-0 entropy, in bits per byte, is left raw and called
            structured: a coder that skips runs is several times as fast there.
    """
    source, target, planes = readable(src), writable(out), writable(scratch)
    parent = ffi.NULL if base is None else readable(base)
    kind = lib.CAS_PREDICT_NONE if base is None else _PREDICTORS[predictor]
    infos, length = ffi.new(f"cas_plane[{_PLANES_MAX}]"), ffi.new("size_t *")
    status = lib.cas_chunk_encode(
        *(kind, width, source, len(source), parent, 0 if base is None else len(parent)),
        *(coded, int(keep_below * 65536), int(leave_bits * 65536)),
        *(planes, len(planes), target, len(target)),
        *(infos, _PLANES_MAX, length),
    )
    check(status, f"chunk of {len(source)} bytes, width {width}")
    return length[0], _infos(infos, width)


def delta_estimate(src: Buffer, base: Buffer, width: int, scratch: Buffer) -> tuple[float, float]:
    """Return the order-0 entropy in bits per byte, of chunk and of difference, from samples.

    Both are split into planes, as `encode_planes` does; the mean over the planes is returned.
    `scratch` has `SAMPLES_BYTES` or more.
    """
    source, parent, work = readable(src), readable(base), writable(scratch)
    plain, delta = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    status = lib.cas_delta_estimate(
        *(width, source, len(source), parent, len(parent), work, len(work), plain, delta)
    )
    check(status, f"chunk of {len(source)} bytes, base {len(parent)}, width {width}")
    return plain[0] / 65536, delta[0] / 65536


def parse_planes(payload: Buffer, chunk_bytes: int) -> tuple[int, list[PlaneInfo]]:
    """Return the predictor (0 none, 1 sub, 2 xor) and the planes of a payload.

    Raises:
        UnknownLayout: a layout or method of a newer version.
        ValueError: this is no payload of a chunk of `chunk_bytes`.
    """
    source = readable(payload)
    predictor, width, tail = ffi.new("int32_t *"), ffi.new("uint32_t *"), ffi.new("size_t *")
    infos = ffi.new(f"cas_plane[{_PLANES_MAX}]")
    _check_data(
        lib.cas_chunk_parse(
            *(source, len(source), chunk_bytes, predictor, width, infos, _PLANES_MAX, tail)
        )
    )
    return predictor[0], _infos(infos, width[0])


def decode_planes(
    payload: Buffer,
    base: Buffer | None,
    out: Buffer,
    scratch: Buffer,
    unpacked: Mapping[int, Buffer] | None = None,
) -> None:
    """Fill `out` from a payload that stands for exactly that many bytes.

    Args:
        payload: as `encode_planes` wrote it, planes packed by zstd put in by the caller.
        base: the base chunk, if the payload has a predictor.
        out: as long as the chunk.
        scratch: as long as the chunk.
        unpacked: the planes whose method is zstd, unpacked, by number.

    Raises:
        UnknownLayout: a layout or method of a newer version.
        ValueError: it does not decode to that length, or base or a plane is missing; `out` is
            undefined.
    """
    source, target, planes = readable(payload), writable(out), writable(scratch)
    views = {number: readable(plane) for number, plane in (unpacked or {}).items()}
    given = ffi.new(f"uint8_t *[{_PLANES_MAX}]")
    width = source[1] & 0x7F if len(source) > 1 else 1
    for number, view in views.items():
        if len(view) != len(target) // max(width, 1):
            raise ValueError(f"plane {number} has {len(view)} bytes of a chunk of {len(target)}")
        given[number] = view
    parent = ffi.NULL if base is None else readable(base)
    parent_len = 0 if base is None else len(parent)
    _check_data(
        lib.cas_chunk_decode(
            *(source, len(source), parent, parent_len, given, _PLANES_MAX),
            *(planes, len(planes), target, len(target)),
        )
    )


def _infos(infos: Any, width: int) -> list[PlaneInfo]:
    return [
        PlaneInfo(p.method, p.offset, p.len, p.bits_q16 / 65536, bool(p.structured))
        for p in infos[0:width]
    ]


def _check_data(status: int) -> None:
    if status == lib.CAS_ERR_NEWER:
        raise UnknownLayout("planes in a layout or method of a newer version")
    check(status, "payload of planes")
