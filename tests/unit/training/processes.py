"""Other processes that work on a run of ours."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def elsewhere(code, *arguments, wait=True):
    """Run code in another process."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        out, errors = process.communicate(timeout=60)
        return process.returncode, out, errors
    return process


HOLD = """
    import sys, casckpt
    store = casckpt.open(sys.argv[1])
    with store.run(sys.argv[2]) as run:
        for epoch in run.epochs(3, {"n": 0}):
            if epoch == 2:
                print("here", flush=True)
                sys.stdin.readline() if len(sys.argv) < 4 else sys.exit(0)
                import time
                # In short pieces: a signal just before a sleep begins waits for its end.
                for _ in range(1200):
                    time.sleep(0.05)
"""
