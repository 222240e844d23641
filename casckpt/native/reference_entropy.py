"""The entropy coder again in plain Python: slow, short, and the oracle of the tests.

Written from docs/format.md, section 6, with division and remainder where the C core multiplies.

Source: Duda, arXiv 1311.2540, section 3; Giesen, arXiv 1402.3392.
"""

from __future__ import annotations

import struct

_LANES = 32
_LOW = 1 << 15


def read_head(stream: bytes) -> tuple[int, list[int], int]:
    """Return (bits, frequencies, length of the head); ValueError when it is none."""
    if not stream or not 12 <= stream[0] <= 14:
        raise ValueError("no head")
    bits, at = stream[0], 1
    frequencies: list[int] = []
    while len(frequencies) < 256:
        if at + 1 + (stream[at : at + 1] > b"\x7f" or stream[at : at + 1] == b"\0") > len(stream):
            raise ValueError("the head is cut off")
        first = stream[at]
        at += 1
        if 0 < first < 128:
            frequencies.append(first)
            continue
        second = stream[at]
        at += 1
        if first == 0:
            frequencies += [0] * (second + 1)
        else:
            frequencies.append((first & 127) << 8 | second)
            if frequencies[-1] < 128:
                raise ValueError("a frequency in the long form that fits the short one")
    fits = max(frequencies) < 4096 if bits == 12 else 2**bits - max(frequencies) < 4096
    if len(frequencies) != 256 or sum(frequencies) != 2**bits or not fits:
        raise ValueError("the frequencies do not fit")
    return bits, frequencies, at


def _starts(bits: int, frequencies: list[int]) -> list[int]:
    """Return where each value's slots begin: those of the commonest first if bits is above 12."""
    common = frequencies.index(max(frequencies)) if bits > 12 else -1
    starts, at = [0] * 256, frequencies[common] if common >= 0 else 0
    for value, frequency in enumerate(frequencies):
        if value != common:
            starts[value], at = at, at + frequency
    return starts


def entropy_decode(stream: bytes, length: int) -> bytes:
    """Return the `length` bytes a stream stands for; ValueError when it does not."""
    if length == 0 and not stream:
        return b""
    bits, frequencies, at = read_head(stream)
    starts = _starts(bits, frequencies)
    values = [0] * 2**bits
    for value, frequency in enumerate(frequencies):
        values[starts[value] : starts[value] + frequency] = [value] * frequency
    if len(stream) < at + 4 * _LANES or (len(stream) - at) % 2:
        raise ValueError("the stream is cut off")
    states = list(struct.unpack_from(f"<{_LANES}I", stream, at))
    if any(not _LOW <= state < 1 << 31 for state in states):
        raise ValueError("a state is out of range")
    words = iter(struct.unpack(f"<{(len(stream) - at) // 2 - 64}H", stream[at + 4 * _LANES :]))
    out = bytearray()
    for i in range(length):
        quotient, slot = divmod(states[i % _LANES], 2**bits)
        value = values[slot]
        state = frequencies[value] * quotient + slot - starts[value]
        if state < _LOW:
            word = next(words, None)
            if word is None:
                raise ValueError("the words end early")
            state = state << 16 | word
        states[i % _LANES] = state
        out.append(value)
    if next(words, None) is not None or set(states) != {_LOW} or length == 0:
        raise ValueError("the stream does not end where it should")
    return bytes(out)


def entropy_encode(data: bytes, bits: int, frequencies: list[int]) -> bytes:
    """Return states and words of the stream of `data` under the given frequencies, without head."""
    starts = _starts(bits, frequencies)
    states, words = [_LOW] * _LANES, []
    for i in reversed(range(len(data))):
        frequency, state = frequencies[data[i]], states[i % _LANES]
        if state >= frequency << (31 - bits):
            words.append(state & 0xFFFF)
            state >>= 16
        quotient, rest = divmod(state, frequency)
        states[i % _LANES] = (quotient << bits) + starts[data[i]] + rest
    return struct.pack(f"<{_LANES}I{len(words)}H", *states, *reversed(words))
