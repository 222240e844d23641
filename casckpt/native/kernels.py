"""Which instruction set the C core uses.

The best one the processor can run is chosen on first use. Choosing another is for tests and
measurements: all give the same bytes, the portable one is the definition. The choice holds for all
threads of the process.
"""

from __future__ import annotations

import contextlib

from casckpt.native import chunking, entropy, filters, hashing
from casckpt.native._binding import check, lib

_NUMBERS: dict[str, int] = {
    "portable": lib.CAS_KERNEL_PORTABLE,
    "sse41": lib.CAS_KERNEL_SSE41,
    "avx2": lib.CAS_KERNEL_AVX2,
    "avx512": lib.CAS_KERNEL_AVX512,
    "neon": lib.CAS_KERNEL_NEON,
}


def active() -> str:
    """Return the name of the kernel in use."""
    number = lib.cas_kernel_active()
    return next(name for name, value in _NUMBERS.items() if value == number)


def available() -> list[str]:
    """Return the kernels this processor can run, the portable one first."""
    return [name for name, value in _NUMBERS.items() if lib.cas_kernel_available(value)]


def use(name: str) -> None:
    """Use kernel `name` from now on.

    Raises:
        ValueError: when there is no such kernel, or this processor cannot run it; nothing changed.
    """
    if name not in _NUMBERS:
        raise ValueError(f"no kernel {name!r}; there are {', '.join(_NUMBERS)}")
    check(lib.cas_kernel_use(_NUMBERS[name]), f"kernel {name}")


def prove() -> str:
    """Check the active kernel against the portable one, and leave what differs; return its name.

    Run once when the package is loaded, in under a millisecond. A kernel is chosen by what
    the processor says of itself, and a wrong one would give chunks wrong names for ever, or code
    them as nobody else decodes them: a fault of the processor, the compiler or the kernel must show
    here, as slowness, and not there.
    """
    chosen = active()
    use("portable")
    expected = _sample()
    for name in dict.fromkeys((chosen, *reversed(available()))):
        use(name)
        with contextlib.suppress(ValueError):  # what it has coded itself does not decode
            if _sample() == expected:
                break
        import logging

        logging.getLogger("casckpt").warning(
            "the %s kernel gives wrong bytes on this processor and is not used", name
        )
    return active()


def _sample() -> list[bytes]:
    """Return what the kernels make of fixed inputs that reach every lane and tail."""
    # Sixteen BLAKE3 chunks fill the widest kernel; the rest is its tail.
    data = hashing.derive_key("casckpt kernel proof v1", b"", 18_000)
    results = hashing.IdContext("casckpt kernel proof v1").hash_many([data, data[:3000], b""])
    # Each of the four lanes of the scan finds cuts in these bytes.
    ends = chunking.cut_points(data, min_bytes=64, avg_bytes=1024, max_bytes=2048)
    results.append(repr(ends).encode())
    one, two = data[:2053], data[3:2053] + b"\xff\x80\x00"
    out, back = bytearray(len(one)), bytearray(len(one))
    for width in (2, 4, 8):
        for split, join in (
            (filters.sub_split, filters.sub_join),
            (filters.xor_split, filters.xor_join),
        ):
            split(one, two, out, width, True)
            join(out, two, back, width, True)
            results += [bytes(out), bytes(back)]
        filters.split_planes(one, out, width, True)
        filters.join_planes(out, back, width, True)
        results += [bytes(out), bytes(back)]
    # With no value that is common, and with one, which has a way of its own.
    for plane in (one, one.translate(_MOSTLY_ZERO)):
        stream = entropy.entropy_encode(plane)
        entropy.entropy_decode(stream, back)
        results += [stream, bytes(back)]
    return results


_MOSTLY_ZERO = bytes(value if value < 32 else 0 for value in range(256))
