"""The C core again in plain Python: slow, short, and the oracle of the tests.

Written from the papers, not from the C. Names follow the functions they check.

Source: the BLAKE3 paper, chapter 2; Xia et al., FastCDC (USENIX ATC 2016), chapter 3.
"""

from __future__ import annotations

import math
import struct
from collections import Counter

_MASK = 0xFFFFFFFF
_IV = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
    0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip
_START, _END, _PARENT, _ROOT, _KEYED, _CONTEXT, _MATERIAL = 1, 2, 4, 8, 16, 32, 64
_Words = tuple[int, ...]


def _rotate_right(word: int, bits: int) -> int:
    return (word >> bits | word << (32 - bits)) & _MASK


def _compress(value: _Words, block: bytes, counter: int, flags: int) -> _Words:
    """Return the 16 output words of one block; a short block is padded with zeros."""
    message = struct.unpack("<16I", block.ljust(64, b"\0"))
    v = [*value, *_IV[:4], counter & _MASK, counter >> 32 & _MASK, len(block), flags]
    for _ in range(7):
        for number, (a, b, c, d) in enumerate(_COLUMNS_AND_DIAGONALS):
            for word, for_d, for_b in ((2 * number, 16, 12), (2 * number + 1, 8, 7)):
                v[a] = (v[a] + v[b] + message[word]) & _MASK
                v[d] = _rotate_right(v[d] ^ v[a], for_d)
                v[c] = (v[c] + v[d]) & _MASK
                v[b] = _rotate_right(v[b] ^ v[c], for_b)
        message = tuple(message[i] for i in _PERMUTATION)
    return tuple(v[i] ^ v[i + 8] for i in range(8)) + tuple(v[i + 8] ^ value[i] for i in range(8))


_Node = tuple[_Words, bytes, int, int]


def _tree(data: bytes, key: _Words, mode: int, first_chunk: int) -> _Node:
    """Return the last, still open compression of the subtree over `data`."""
    if len(data) <= 1024:
        value, flags = key, mode | _START
        while len(data) > 64:
            value, data = _compress(value, data[:64], first_chunk, flags)[:8], data[64:]
            flags = mode
        return value, data, first_chunk, flags | _END
    chunks_left = 1 << ((len(data) - 1) // 1024).bit_length() - 1
    halves = data[: 1024 * chunks_left], data[1024 * chunks_left :]
    left = _compress(*_tree(halves[0], key, mode, first_chunk))
    right = _compress(*_tree(halves[1], key, mode, first_chunk + chunks_left))
    return key, struct.pack("<16I", *left[:8], *right[:8]), 0, mode | _PARENT


def _root(data: bytes, key: _Words, mode: int, out_len: int) -> bytes:
    value, block, _, flags = _tree(data, key, mode, 0)
    out = b""
    for counter in range(-(-out_len // 64)):
        out += struct.pack("<16I", *_compress(value, block, counter, flags | _ROOT))
    return out[:out_len]


def blake3(data: bytes, out_len: int = 32) -> bytes:
    """Return the BLAKE3 hash of `data`."""
    return _root(data, _IV, 0, out_len)


def keyed(key: bytes, data: bytes, out_len: int = 32) -> bytes:
    """Return the keyed hash of `data` under a 32-byte key."""
    return _root(data, struct.unpack("<8I", key), _KEYED, out_len)


def derive_key(context: str, data: bytes, out_len: int = 32) -> bytes:
    """Return key material derived from `data` for `context`."""
    key = struct.unpack("<8I", _root(context.encode(), _IV, _CONTEXT, 32))
    return _root(data, key, _MATERIAL, out_len)


def gear_table() -> list[int]:
    """Return the 256 words of the Gear table."""
    return list(struct.unpack("<256Q", derive_key("casckpt gear v1", b"", 2048)))


def cut_points(data: bytes, *, min_bytes: int, avg_bytes: int, max_bytes: int) -> list[int]:
    """Return chunk ends; each candidate's hash is computed from its 64 bytes alone."""
    gear = gear_table()
    bits = avg_bytes.bit_length() - 1
    ends, start = [], 0
    while start < len(data):
        length = min(min_bytes, len(data) - start)
        while start + length < len(data) and length < max_bytes:
            window = data[start + length - 64 : start + length]
            hashed = sum(gear[byte] << (63 - i) for i, byte in enumerate(window)) % 2**64
            if hashed >> (64 - (bits + 2 if length < avg_bytes else bits - 2)) == 0:
                break
            length += 1
        start += length
        ends.append(start)
    return ends


def _items(data: bytes, width: int, rotate: bool) -> list[int]:
    top = 8 * width - 1
    whole = len(data) // width * width
    items = [int.from_bytes(data[at : at + width], "little") for at in range(0, whole, width)]
    return [(x << 1 | x >> top) % 2 ** (top + 1) for x in items] if rotate else items


def _planes(items: list[int], width: int, tail: bytes) -> bytes:
    shifts = range(8 * (width - 1), -1, -8)
    return b"".join(bytes(x >> shift & 255 for x in items) for shift in shifts) + tail


def _tail(data: bytes, width: int) -> bytes:
    return data[len(data) // width * width :]


def split_planes(src: bytes, width: int, rotate: bool) -> bytes:
    """Return the planes of `src`, most significant first, then the bytes that are no item."""
    return _planes(_items(src, width, rotate), width, _tail(src, width))


def sub_split(src: bytes, base: bytes, width: int, rotate: bool) -> bytes:
    """Return the planes of zigzag(src - base)."""
    modulus = 2 ** (8 * width)
    zigzag = []
    for x, b in zip(_items(src, width, rotate), _items(base, width, rotate), strict=True):
        signed = (x - b + modulus // 2) % modulus - modulus // 2
        zigzag.append(2 * signed if signed >= 0 else -2 * signed - 1)
    return _planes(zigzag, width, _tail(src, width))


def xor_split(src: bytes, base: bytes, width: int, rotate: bool) -> bytes:
    """Return the planes of src ^ base."""
    pairs = zip(_items(src, width, rotate), _items(base, width, rotate), strict=True)
    return _planes([x ^ b for x, b in pairs], width, _tail(src, width))


def histogram(data: bytes) -> list[int]:
    """Return how often each byte value occurs."""
    counts = Counter(data)
    return [counts[value] for value in range(256)]


def entropy_bits(data: bytes) -> float:
    """Return the order-0 entropy in bits per byte."""
    counts = Counter(data).values()
    return -sum(n / len(data) * math.log2(n / len(data)) for n in counts) + 0.0


def is_constant(data: bytes) -> bool:
    """Tell whether all bytes are equal."""
    return len(set(data)) < 2
