"""Wall clock and boot clock. No rule that keeps data safe (format.md, section 13) reads either."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path


@functools.cache
def boot_id() -> bytes:
    """Return 16 bytes that name this boot of the machine; zeros where it has no name."""
    try:
        return bytes.fromhex(
            Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "").strip()
        )
    except (OSError, ValueError):
        return bytes(16)


def boot_ns() -> int:
    """Return nanoseconds since boot, time asleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def grace_is_over(wall_ns: int, since_boot_ns: int, boot: bytes, grace_s: float) -> bool:
    """Tell whether `grace_s` has passed since a moment: by the boot clock while that runs."""
    return _age_ns(wall_ns, since_boot_ns, boot) >= int(grace_s * 1e9)


def is_ahead(wall_ns: int, since_boot_ns: int, boot: bytes) -> bool:
    """Tell whether a moment lies ahead of now: the clock was wrong then, or is."""
    return _age_ns(wall_ns, since_boot_ns, boot) < 0


def _age_ns(wall_ns: int, since_boot_ns: int, boot: bytes) -> int:
    # Somebody may set the wall clock, forth and back; the boot clock only runs on.
    if boot == boot_id():
        return boot_ns() - since_boot_ns
    return time.time_ns() - wall_ns


def age_s(now_ns: int, wall_ns: int) -> float:
    """Return the seconds since a moment of the wall clock; without end if it is still to come.

    The clock was set back since: how long ago it was nobody knows, and "just now" would last
    until the clock is there.
    """
    return (now_ns - wall_ns) / 1e9 if wall_ns <= now_ns else math.inf
