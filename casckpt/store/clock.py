"""Wall clock and boot clock. No rule that keeps data safe reads either (format.md, Retention)."""

from __future__ import annotations

import functools
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
    """Tell whether `grace_s` has passed by the wall clock and, within a boot, the boot clock."""
    grace_ns = int(grace_s * 1e9)
    if time.time_ns() - wall_ns < grace_ns:
        return False
    return boot != boot_id() or boot_ns() - since_boot_ns >= grace_ns
