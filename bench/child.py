"""Run one function in this process and print its result as JSON: the far end of `run_child`."""

from __future__ import annotations

import importlib
import json
import sys


def main() -> None:
    """Call `MODULE:FUNCTION` with the keyword arguments given as JSON."""
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
