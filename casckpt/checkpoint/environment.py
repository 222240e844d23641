"""Facts about the machine that a manifest keeps: an allow-list, never environment variables."""

from __future__ import annotations

import platform
import sys
from typing import Any, Final

_LIBRARIES: Final = ("numpy", "torch", "xgboost", "lightgbm", "optuna", "sklearn", "lightning")
"""Libraries whose version can change what a resumed run computes."""


def environment_facts() -> dict[str, str]:
    """Return versions, platform and device names of this process.

    Only libraries that the program has imported are named; nothing is imported to ask.
    """
    facts = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in ("casckpt", *_LIBRARIES):
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            # A plain str: torch has a class of its own, which is not what is read back.
            facts[name] = str(version)
    device = _device_name(sys.modules.get("torch"))
    if device:
        facts["device"] = device
    return facts


def _device_name(torch: Any) -> str:
    if torch is None:
        return ""
    try:
        # is_initialized: asking a CUDA that the program does not use would create a context.
        if torch.cuda.is_initialized():
            count = torch.cuda.device_count()
            return f"{count} x {torch.cuda.get_device_name()}"
    except (AttributeError, RuntimeError, AssertionError):
        return ""
    return "cpu"
