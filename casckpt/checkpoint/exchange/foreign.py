"""Where frameworks say how to read what they have written: names in pickles, files of their own.

Nothing of a framework is imported before a file asks for it. A reader module may have

    symbol(module, name, path)   what a name in a pickle means; None if it is not allowed
    load(data, path)             the object in a file of the framework's own format
    raw(value)                   the bytes of an object in that format, or None
    run_state(value, every)      (state, step) as the adapter's training continues it, or None
"""

from __future__ import annotations

import importlib
import json
import subprocess
from typing import Any, Final

from casckpt.checkpoint.exchange.refusals import damaged
from casckpt.checkpoint.exchange.symbols import Symbol
from casckpt.checkpoint.leaves import root_of
from casckpt.programs import command_of, environment_of

_TRIAL_S: Final = 120.0

_lazy: dict[str, str] = {}


class Several(dict[str, Any]):
    """The objects of one file that holds more than one, by their names."""


def register_lazy(root: str, module: str) -> None:
    """Name the module that reads what a framework has written."""
    _lazy[root] = module


def symbol(module: str, name: str, path: str) -> Symbol | None:
    """Return what a framework says a name in a pickle means; None if nobody knows it.

    Raises:
        MissingExtra: the framework is not installed.
    """
    root = module.partition(".")[0]
    find = getattr(_reader(root), "symbol", None)
    found: Symbol | None = None if find is None else find(module, name, path)
    return found


def load(root: str, data: bytes, path: str) -> Any:
    """Return the object in a file of a framework's own format.

    Raises:
        Corrupt: the framework cannot read it.
        MissingExtra: the framework is not installed.
    """
    return _reader(root).load(data, path)


def raw(value: Any) -> bytes | None:
    """Return the bytes of a framework's object in its own format; None for other values."""
    found = getattr(_reader(root_of(value)), "raw", None)
    return None if found is None else found(value)


def run_state(value: Any, every: int | None) -> tuple[Any, int] | None:
    """Return an imported object as the state of a run that goes on with it, and its step.

    Args:
        value: the object, or a dict of it and parameters.
        every: steps between the files of a pile, None for a single one.
    """
    inner = value["booster"] if type(value) is dict and "booster" in value else value
    found = getattr(_reader(root_of(inner)), "run_state", None)
    return None if found is None else found(value, every)


def try_in_child(module: str, data: bytes, path: str) -> None:
    """Load hostile bytes in another process first: parsers in C++ die of what they did not expect.

    Args:
        module: has `trial(data)`.
        data: what is to be loaded.
        path: for messages.

    Raises:
        Corrupt: the process died, took too long or refused.
    """
    try:
        child = subprocess.run(
            command_of("casckpt.checkpoint.exchange.trial", module),
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment_of(OMP_NUM_THREADS="1"),
            timeout=_TRIAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise damaged(path, "the framework does not come to an end with it") from exc
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = json.dumps(last[0][:200]) if last and child.returncode > 0 else "its reader died"
        raise damaged(path, f"the framework cannot read it: {why}")


def _reader(root: str | None) -> Any:
    return importlib.import_module(_lazy[root]) if root in _lazy else None
