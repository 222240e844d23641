"""Load the bytes on stdin and leave with status 0: `python -m casckpt.checkpoint.exchange.trial M`.

Run as a child by `foreign.try_in_child`; `M.trial(data)` does it, or dies of it.
"""

from __future__ import annotations

import importlib
import resource
import sys
from typing import Final

_MEMORY_BYTES: Final = 32 << 30

if __name__ == "__main__":
    # A forged count must not take the machine down; threads' stacks are counted too.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        importlib.import_module(sys.argv[1]).trial(sys.stdin.buffer.read())
    except Exception as exc:
        text = str(exc).strip().splitlines()
        sys.stderr.write(f"{type(exc).__name__}: {text[0] if text else ''}\n")
        sys.exit(13)
