"""Which instruction set the C core uses.

The best one the processor can run is chosen on first use. Choosing another is for tests and
measurements: all give the same bytes, the portable one is the definition. The choice holds for all
threads of the process.
"""

from __future__ import annotations

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
