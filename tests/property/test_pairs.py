"""Any pair of a base and a target: what is coded against the base comes back bit for bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt.store import codec, layout

# Bits that arithmetic would not keep: quiet and signalling NaNs with payloads, infinities, zeros,
# numbers below the normal ones, the ends of integers.
_PATTERNS = {
    1: (0x00, 0x01, 0x7F, 0x80, 0xFF),
    2: (0x0000, 0x8000, 0x7C01, 0xFE55, 0x7FC1, 0xFF81, 0x0001, 0x7FFF, 0xFFFF),
    4: (0x0, 0x80000000, 0x7FC00001, 0xFF800001, 0x7F800000, 0x1, 0x7FFFFFFF, 0xFFFFFFFF),
    8: (0x0, 1 << 63, 0xFFF8DEADBEEF0001, 0x7FF0000000000001, 0x1, (1 << 63) - 1, (1 << 64) - 1),
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, bytes, bytes]:
    """Return a width and two arrays of equal length: far apart, near, equal here and there."""
    width = draw(st.sampled_from(sorted(_PATTERNS)))
    length = draw(st.sampled_from((1, 2, 3, 5, 64, 1000, 5000, 20_000)))
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    word = np.dtype(f"u{width}")
    base = source.integers(0, 2 ** (8 * width), length, word, endpoint=False)
    if draw(st.booleans()) and width > 1:
        values = source.normal(0, 0.02, length).astype(f"f{width}")
        base = values.view(word)
    near = draw(st.sampled_from((0, 1, 3, 8 * width)))
    noise = source.integers(0, 2**near, length, np.uint64, endpoint=False).astype(word)
    with np.errstate(over="ignore"):
        target = base + noise if draw(st.booleans()) else base ^ noise
    same = source.random(length) < draw(st.sampled_from((0.0, 0.5, 0.99)))
    target = np.where(same, base, target).astype(word)
    for array in (base, target):
        places = source.integers(0, length, min(length, 40))
        array[places] = source.choice(np.array(_PATTERNS[width], word), len(places))
    return width, base.tobytes(), target.tobytes()


@settings(max_examples=200, deadline=None)
@given(pairs(), st.sampled_from(("balanced", "small")))
def test_a_target_comes_back_from_its_base(pair: tuple[int, bytes, bytes], level: str) -> None:
    width, base, target = pair
    encoded = codec.encode_chunk(target, width, level, base)
    assert len(encoded.payload) <= len(target)
    payload, out = bytes(encoded.payload), bytearray(len(target))
    codec.decode_chunk(
        encoded.encoding, payload, memoryview(out), base if encoded.uses_base else None
    )
    assert out == target
    # An estimate must be made for any pair, and decides nothing about correctness.
    assert codec.delta_pays(target, base, width) in (True, False)
    if encoded.encoding == layout.ENCODING_PLANES and encoded.uses_base and base != target:
        back = bytearray(len(target))
        codec.decode_chunk(encoded.encoding, payload, memoryview(back), target)
        assert back != target, "the base has no part in what is decoded"


@settings(max_examples=60, deadline=None)
@given(pairs(), st.integers(2, 6))
def test_a_chain_of_differences_comes_back(pair: tuple[int, bytes, bytes], links: int) -> None:
    width, base, target = pair
    versions = [base, target, *(target[::-1] if link % 2 else base for link in range(links - 2))]
    stored = []
    for below, version in zip([None, *versions], versions, strict=False):
        encoded = codec.encode_chunk(version, width, "balanced", below)
        stored.append((encoded.encoding, bytes(encoded.payload), encoded.uses_base))
    decoded: bytes | None = None
    for (encoding, payload, uses_base), version in zip(stored, versions, strict=True):
        out = bytearray(len(version))
        codec.decode_chunk(encoding, payload, memoryview(out), decoded if uses_base else None)
        decoded = bytes(out)
        assert decoded == version
