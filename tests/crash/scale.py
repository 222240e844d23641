"""A store in small, and children that do the same thing twice.

With the real limits a save of 100 KB is one chunk in one pack in one transaction. Here it is many,
so that a small store goes through every path that a large one does, in milliseconds.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import sys
from types import ModuleType

import casckpt.checkpoint
import casckpt.native
import casckpt.store
import casckpt.training
from casckpt import api
from casckpt.checkpoint import handle
from casckpt.errors import Corrupt
from casckpt.store import compaction, layout, opening, pack_writer, saving, walk
from tests.crash import shim

KIB = layout.KIB


def shrink() -> None:
    """Scale the limits of this process down; what is on disk stays a store of the same format."""
    _set(
        layout,
        GRID_BYTES=16 * KIB,
        PACK_SEAL_BYTES=96 * KIB,
        ONE_TRANSACTION_ROWS=6,
        TRANSACTION_MAX_ROWS=12,
        BALLAST_MIN_BYTES=64 * KIB,
        BALLAST_MAX_BYTES=64 * KIB,
    )
    _set(saving, _UNIT_BYTES=32 * KIB)
    _set(pack_writer, _RESERVE_BYTES=8 * KIB, _TAIL_BYTES=8 * KIB)
    _set(compaction, SMALL_COUNT=6)
    # Without torch an import makes numpy arrays, and a child needs no second to load it.
    _set(api, _tensors=lambda required=False: None)
    _set(opening, walk_index=walk_in_a_fork)
    # Whoever finds a store half made waits for its maker; where the maker failed, for nothing.
    _set(handle, _MAKING_WAIT_S=2.0)
    # What a child would import anew each time is imported here once; where memory fails in a child,
    # Python would miscompile it, or crash.
    for package in (casckpt.store, casckpt.checkpoint, casckpt.native, casckpt.training):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)


def _set(module: ModuleType, **values: object) -> None:
    """Replace what a module has under these names; one that it has no more is an error."""
    names = vars(module)
    for name, value in values.items():
        if name not in names:
            raise AttributeError(f"{module.__name__} has no {name}")
        names[name] = value


def repeatable(label: str) -> None:
    """Draw all names of this process from a generator, so that a point means the same again."""
    source = random.Random(label)
    vars(os)["urandom"] = source.randbytes


def walk_here() -> None:
    """Read an index in the process that opens it: for children that damage alone could kill.

    Nothing but damage from outside makes an index kill its reader, so there a signal is a finding.
    """
    vars(opening)["walk_index"] = walk.walk


def fork_to_walk() -> None:
    """Read an index in a fork, as the product does in a child."""
    vars(opening)["walk_index"] = walk_in_a_fork


def walk_in_a_fork(index: object) -> None:
    """As `opening.walk_index`, without the 100 ms of a new interpreter."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 13
        shim.disarm()
        try:
            walk.walk(index)  # type: ignore[arg-type]
            status = 0
        except Corrupt as exc:
            os.write(writing, (exc.why or exc.what).encode()[:500])
        except BaseException as exc:
            os.write(writing, repr(exc).encode()[:500])
            status = 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    said = os.read(reading, 500).decode()
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise Corrupt("the index is damaged", said or f"reading it ended with status {status}")
