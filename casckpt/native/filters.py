"""Reversible filters that make numbers compressible, and the byte statistics to judge them.

Planes: items of `width` bytes (2, 4 or 8, little-endian) are written as `width` planes of floor(len
/ width) bytes. Plane 0 holds the most significant byte of every item. The len % width bytes that
are no whole item follow the planes unchanged. With `rotate`, each item is first rotated left by one
bit: the sign moves to the bottom, and the top byte of a bf16 or fp32 number is its whole exponent.

Against a base (same length, same rotation): `sub` takes the wrap-around difference of the bit
patterns and folds its sign into the lowest bit (zigzag: 0 -1 1 -2 becomes 0 1 2 3); `xor` takes the
exclusive or as it is. Both are bijections for every bit pattern, NaN and infinities included.

`out` is the caller's, writable, of the source's length, and shares no memory with the inputs;
ValueError otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casckpt.native._binding import check, ffi, lib, readable, writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from casckpt.native.hashing import IdContext


def _run(
    call: Any,
    predictor: int,
    src: Buffer,
    base: Buffer | None,
    out: Buffer,
    width: int,
    rotate: bool,
) -> None:
    if width not in (2, 4, 8):
        raise ValueError(f"width must be 2, 4 or 8, got {width}")
    source, target = readable(src), writable(out)
    parent = ffi.NULL if base is None else readable(base)
    parent_len = 0 if base is None else len(parent)
    status = call(
        predictor, width, int(rotate), source, len(source), parent, parent_len, target, len(target)
    )
    check(
        status,
        f"planes of width {width}: {len(source)} bytes in, base {parent_len}, out {len(target)}",
    )


def split_planes(src: Buffer, out: Buffer, width: int, rotate: bool) -> None:
    """Write the planes of `src` to `out`."""
    _run(lib.cas_planes_split, lib.CAS_PREDICT_NONE, src, None, out, width, rotate)


def join_planes(planes: Buffer, out: Buffer, width: int, rotate: bool) -> None:
    """Undo `split_planes` with the same `width` and `rotate`."""
    _run(lib.cas_planes_join, lib.CAS_PREDICT_NONE, planes, None, out, width, rotate)


def sub_split(src: Buffer, base: Buffer, out: Buffer, width: int, rotate: bool) -> None:
    """Write the planes of zigzag(src - base) to `out`."""
    _run(lib.cas_planes_split, lib.CAS_PREDICT_SUB, src, base, out, width, rotate)


def sub_join(planes: Buffer, base: Buffer, out: Buffer, width: int, rotate: bool) -> None:
    """Undo `sub_split` with the same `base`, `width` and `rotate`."""
    _run(lib.cas_planes_join, lib.CAS_PREDICT_SUB, planes, base, out, width, rotate)


def xor_split(src: Buffer, base: Buffer, out: Buffer, width: int, rotate: bool) -> None:
    """Write the planes of src ^ base to `out`."""
    _run(lib.cas_planes_split, lib.CAS_PREDICT_XOR, src, base, out, width, rotate)


def xor_join(planes: Buffer, base: Buffer, out: Buffer, width: int, rotate: bool) -> None:
    """Undo `xor_split` with the same `base`, `width` and `rotate`."""
    _run(lib.cas_planes_join, lib.CAS_PREDICT_XOR, planes, base, out, width, rotate)


def _run_from(
    predictor: int,
    planes: Sequence[Buffer],
    tail: Buffer,
    base: Buffer | None,
    out: Buffer,
    width: int,
    rotate: bool,
) -> None:
    if width not in (2, 4, 8) or len(planes) != width:
        raise ValueError(f"width must be 2, 4 or 8, got {width} and {len(planes)} planes")
    target, last = writable(out), readable(tail)
    views = [readable(plane) for plane in planes]
    length = len(target) // width
    if any(len(view) != length for view in views):
        raise ValueError(f"a plane for {len(target)} bytes must be of {length}")
    parent = ffi.NULL if base is None else readable(base)
    parent_len = 0 if base is None else len(parent)
    pointers = ffi.new("uint8_t *[]", views)
    status = lib.cas_planes_join_from(
        *(predictor, width, int(rotate), pointers, length, last, len(last)),
        *(parent, parent_len, target, len(target)),
    )
    check(
        status, f"planes of width {width}: tail {len(last)}, base {parent_len}, out {len(target)}"
    )


def join_planes_from(
    planes: Sequence[Buffer], tail: Buffer, out: Buffer, width: int, rotate: bool
) -> None:
    """Undo `split_planes`, each plane taken from where it is and the odd bytes from `tail`."""
    _run_from(lib.CAS_PREDICT_NONE, planes, tail, None, out, width, rotate)


def sub_join_from(
    planes: Sequence[Buffer], tail: Buffer, base: Buffer, out: Buffer, width: int, rotate: bool
) -> None:
    """Undo `sub_split` in the same way."""
    _run_from(lib.CAS_PREDICT_SUB, planes, tail, base, out, width, rotate)


def xor_join_from(
    planes: Sequence[Buffer], tail: Buffer, base: Buffer, out: Buffer, width: int, rotate: bool
) -> None:
    """Undo `xor_split` in the same way."""
    _run_from(lib.CAS_PREDICT_XOR, planes, tail, base, out, width, rotate)


def histogram(data: Buffer) -> list[int]:
    """Return how often each of the 256 byte values occurs."""
    view = readable(data)
    counts = ffi.new("uint64_t[256]")
    check(lib.cas_histogram(view, len(view), counts, 256), "histogram")
    return list(ffi.unpack(counts, 256))


def plane_histograms(planes: Buffer, item_count: int, width: int) -> list[list[int]]:
    """Return one histogram per plane of a plane buffer, plane 0 first; tail bytes are left out.

    Raises:
        ValueError: when `planes` is shorter than `item_count * width`.
    """
    view = memoryview(planes).cast("B")
    if item_count < 0 or len(view) < item_count * width:
        raise ValueError(f"{len(view)} bytes do not hold {width} planes of {item_count}")
    return [histogram(view[p * item_count : (p + 1) * item_count]) for p in range(width)]


def entropy_bits(data: Buffer) -> float:
    """Return the order-0 entropy in bits per byte (0.0 to 8.0); 0.0 for no data.

    Source: Shannon, "A Mathematical Theory of Communication" (1948), section 6.
    """
    view = readable(data)
    bits = ffi.new("double *")
    check(lib.cas_entropy(view, len(view), bits), "entropy")
    return float(bits[0])


def is_constant(data: Buffer) -> bool:
    """Tell whether all bytes are equal; true for no data."""
    view = readable(data)
    constant = ffi.new("int32_t *")
    check(lib.cas_is_constant(view, len(view), constant), "is_constant")
    return bool(constant[0])


def equal_and_hash(context: IdContext, a: Buffer, b: Buffer) -> tuple[bool, bytes]:
    """Return whether `a` and `b` hold the same bytes, and the id of `a`, in one pass over memory.

    Buffers of different length are not equal; that is no error.
    """
    left, right = readable(a), readable(b)
    equal = ffi.new("int32_t *")
    out = ffi.new("uint8_t[32]")
    call = lib.cas_equal_and_hash
    status = call(*context.mode_and_key, left, len(left), right, len(right), equal, out, len(out))
    check(status, "equal_and_hash")
    return bool(equal[0]), bytes(ffi.buffer(out))


def equal(a: Buffer, b: Buffer) -> bool:
    """Return whether `a` and `b` hold the same bytes; the GIL is released meanwhile."""
    left, right = readable(a), readable(b)
    same = ffi.new("int32_t *")
    check(lib.cas_equal(left, len(left), right, len(right), same), "equal")
    return bool(same[0])


def copy(dst: Buffer, src: Buffer) -> None:
    """Copy `src` over `dst` of the same length, without holding the GIL."""
    target, source = writable(dst), readable(src)
    check(lib.cas_copy(target, len(target), source, len(source)), "copy")
