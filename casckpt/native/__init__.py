"""The Python face of the C core: bytes in, bytes out (floor 1).

BLAKE3, content-defined chunking, plane and delta filters, the entropy coder, byte statistics and
the id set of gc mark. Inputs are any contiguous buffers, used without a copy; the GIL is released
during each call into C. Nothing here knows files or objects of ours. `reference` and
`reference_entropy` hold the same functions in slow pure Python, as the oracle of the tests.
"""

from __future__ import annotations

from casckpt.native.chunking import Chunker, cut_points
from casckpt.native.chunks import (
    PLANE_CONSTANT,
    PLANE_ENTROPY,
    PLANE_RAW,
    PLANE_ZSTD,
    SAMPLES_BYTES,
    SLACK_BYTES,
    PlaneInfo,
    UnknownLayout,
    decode_planes,
    delta_estimate,
    encode_planes,
    parse_planes,
)
from casckpt.native.entropy import entropy_decode, entropy_encode
from casckpt.native.filters import (
    copy,
    entropy_bits,
    equal,
    equal_and_hash,
    histogram,
    is_constant,
    join_planes,
    join_planes_from,
    plane_histograms,
    split_planes,
    sub_join,
    sub_join_from,
    sub_split,
    xor_join,
    xor_join_from,
    xor_split,
)
from casckpt.native.hashing import ID_SIZE, Hasher, IdContext, blake3, derive_key, keyed
from casckpt.native.kernels import prove as _prove
from casckpt.native.prefix_set import PrefixSet

__all__ = [
    "ID_SIZE",
    "PLANE_CONSTANT",
    "PLANE_ENTROPY",
    "PLANE_RAW",
    "PLANE_ZSTD",
    "SAMPLES_BYTES",
    "SLACK_BYTES",
    "Chunker",
    "Hasher",
    "IdContext",
    "PlaneInfo",
    "PrefixSet",
    "UnknownLayout",
    "blake3",
    "copy",
    "cut_points",
    "decode_planes",
    "delta_estimate",
    "derive_key",
    "encode_planes",
    "entropy_bits",
    "entropy_decode",
    "entropy_encode",
    "equal",
    "equal_and_hash",
    "histogram",
    "is_constant",
    "join_planes",
    "join_planes_from",
    "keyed",
    "parse_planes",
    "plane_histograms",
    "split_planes",
    "sub_join",
    "sub_join_from",
    "sub_split",
    "xor_join",
    "xor_join_from",
    "xor_split",
]

_prove()
