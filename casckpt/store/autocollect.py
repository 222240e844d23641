"""Automatic collection: a gc in a child process when enough is likely to be dead.

Training moves checkpoints to the trash and replaces rolling ones; nobody should have to run gc by
hand for that. After a commit, and on close, a process looks at a few numbers of the index, and at
most every ten minutes, or five seconds where the store has doubled, starts
`python -m casckpt.store.autocollect STORE`. A collector waits for
nobody, so training does not notice; what is busy or fails is left to the next.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from casckpt.errors import CasckptError
from casckpt.programs import command_of, environment_of
from casckpt.store import clock, layout, rows
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

INTERVAL_S: Final = 600.0
SOON_S: Final = 5.0
_SAVE_S: Final = 2.0
LEAST_BYTES: Final = 256 * layout.MIB
SHARE: Final = 0.2
"""Of the registered bytes: below this a collection rewrites more than it frees."""

SOON_SHARE: Final = 0.5
"""A store that has doubled since is worth looking at sooner: what is new pays for the look."""

_children: list[subprocess.Popen[bytes]] = []


def is_due(tx: Transaction, now_ns: int) -> bool:
    """Tell whether a collection is worth starting.

    It is if the last one was ten minutes ago, something was removed since or waits in the trash
    past its grace, and the bytes registered since then, all of which may be dead, exceed 256 MiB
    and a fifth of the store; after five seconds, if they exceed half of it. It is once an hour, if
    only the trash waits.
    """
    since_s = clock.age_s(now_ns, tx.number("gc_at"))
    if since_s < SOON_S or tx.number("rebuilt"):
        return False
    trashed_ns = tx.number("trash_since")
    waits = bool(trashed_ns) and clock.age_s(now_ns, trashed_ns) > layout.GRACE_S
    if not waits and not tx.number("removed_roots"):
        return False
    if waits and since_s > layout.GRACE_S:
        return True
    registered = sum(rows.PackRow.decode(value).size for _, value in tx.scan("packs"))
    grown = registered - tx.number("marked_bytes")
    share = SHARE if since_s >= INTERVAL_S else SOON_SHARE
    return grown > max(LEAST_BYTES, share * registered)


def start_if_due(shared: SharedStore) -> bool:
    """Start a collection in a child process if it is time for one; return whether it was."""
    _children[:] = [child for child in _children if child.poll() is None]
    if _children:
        return False
    with shared.environment.read() as tx:
        if not is_due(tx, time.time_ns()):
            return False
    command = command_of("casckpt.store.autocollect", str(shared.path))
    # A session of its own: Ctrl+C in the terminal of the training is not meant for it.
    with contextlib.suppress(OSError):
        _children.append(
            subprocess.Popen(
                command,
                env=environment_of(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        return True
    return False


def main(path: Path) -> int:
    """Collect once, at the lowest priority; return the exit code."""
    from casckpt.store.repository import Repository

    os.nice(19)
    try:
        with Repository.open(path) as repository:
            if repository.gc().waiting_packs:
                # Saves in flight may rely on what was condemned; soon they are over.
                time.sleep(_SAVE_S)
                repository.gc()
    except CasckptError as exc:
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
