"""Bytes coded with other bytes as their dictionary."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt.errors import Corrupt
from casckpt.store import codec, layout
from tests.unit.store.test_codec import round_trip


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 200))
def test_bytes_against_bytes_that_share_much_come_back(base, new, at, drop):
    data = base[:at] + new + base[at + drop :]
    for level in codec.LEVELS:
        round_trip(data, 1, level, base)


def test_a_base_of_any_length_makes_opaque_bytes_small():
    noise = os.urandom(300_000)
    for data, base, new in (
        (noise[:5000], noise, 0),
        (noise, noise[:200_000] + noise[250_000:], 50_000),
        (noise[1000:1100] * 3, noise, 0),
    ):
        encoded = round_trip(data, 1, "balanced", base)
        assert encoded.uses_base
        assert encoded.encoding == layout.ENCODING_DICTIONARY
        assert len(encoded.payload) < new + 300
    assert not round_trip(noise[:5000], 1, "balanced", noise[5000:]).uses_base
    assert not round_trip(noise[:5000], 1, "fast", noise).uses_base


def test_a_base_must_pay_as_much_as_is_asked():
    text = b"".join(b"%d,%d\n" % (i, i * i) for i in range(2000))
    base, data = text[:10_000], text[6_000:16_000]
    near = codec.encode_chunk(data, 1, "balanced", base)
    assert near.encoding == layout.ENCODING_DICTIONARY
    far = codec.encode_chunk(data, 1, "balanced", base, 0.25)
    assert far.encoding == layout.ENCODING_ZSTD
    assert len(near.payload) > 0.25 * len(far.payload)


def test_damaged_dictionary_frames_are_corrupt_and_write_nowhere_else():
    base = os.urandom(3000)
    data = base[500:] + b"new"
    payload = bytes(codec.encode_chunk(data, 1, "balanced", base).payload)
    out = bytearray(len(data))
    with pytest.raises(Corrupt, match="base is missing"):
        codec.decode_chunk(layout.ENCODING_DICTIONARY, payload, memoryview(out), None)
    with pytest.raises(Corrupt, match="another length"):
        codec.decode_chunk(layout.ENCODING_DICTIONARY, payload, memoryview(out)[1:], base)
    for at in range(len(payload)):
        for bit in (1, 128):
            hostile = bytearray(payload)
            hostile[at] ^= bit
            with contextlib.suppress(Corrupt):
                codec.decode_chunk(layout.ENCODING_DICTIONARY, hostile, memoryview(out), base)
        with pytest.raises(Corrupt):
            codec.decode_chunk(layout.ENCODING_DICTIONARY, payload[:at], memoryview(out), base)
    with contextlib.suppress(Corrupt):
        codec.decode_chunk(layout.ENCODING_DICTIONARY, payload, memoryview(out), base[:600])
