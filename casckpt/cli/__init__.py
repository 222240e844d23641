"""The command line: one module per command, imported when that command is called.

`main` is the entry point of the `casckpt` script and of `python -m casckpt`. Start-up is part of
the contract (`ls` of 10,000 checkpoints answers in 150 ms), so nothing here or in `root` imports
numpy, rich or any module of the store before a command asks for it.
"""

from __future__ import annotations

import gc as memory  # `casckpt.cli.gc`, once imported, is an attribute of this package
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: what follows the program's name; None takes it from `sys.argv`.
    """
    # A list of ten thousand checkpoints is no garbage, but makes the collector look for some again
    # and again: an eighth of the time of `ls`.
    memory.set_threshold(100_000, 20, 20)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from casckpt.cli.root import run

        code = run(words)
    except KeyboardInterrupt:  # while importing: no command has begun
        code = 130
    # What is left goes with the process; freeing it object by object would only be waited for.
    memory.freeze()
    sys.exit(code)
