"""The order-0 entropy coder: few bits for frequent bytes, nothing for their order.

For byte planes, whose bytes are far from evenly distributed but hardly depend on each other. A
stream stands for a length that the caller keeps. Streams are the same on every machine and kernel.

Source: Duda, arXiv 1311.2540, section 3 (rANS); the stream is specified in docs/format.md, section
6, and `reference` decodes it in plain Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casckpt.native._binding import check, ffi, lib, readable, writable

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Head, states and slack of a stream, beside its words (casckpt.h); a word is 2 bytes, one per byte.
_MOST_OVERHEAD_BYTES = 705


def entropy_encode(src: Buffer) -> bytes:
    """Return the stream of `src`, of at most 64 MiB."""
    source = readable(src)
    out = bytearray(_MOST_OVERHEAD_BYTES + 2 * len(source))
    length = ffi.new("size_t *")
    target = writable(out)
    check(lib.cas_entropy_encode(source, len(source), target, len(target), length), "entropy coder")
    return bytes(memoryview(out)[: length[0]])


def entropy_decode(stream: Buffer, out: Buffer) -> None:
    """Fill `out` from a stream that stands for exactly that many bytes.

    Raises:
        ValueError: the stream does not decode to that length; `out` is undefined.
    """
    source, target = readable(stream), writable(out)
    check(lib.cas_entropy_decode(source, len(source), target, len(target)), "entropy coder")
