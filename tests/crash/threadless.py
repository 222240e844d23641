"""The store without threads of its own: for those who look at what a fault has left.

A look does one thing at a time, and handing each piece of it to a pool costs more than the piece.
What a fault strikes keeps its threads: only children that look switch them off.
"""

from __future__ import annotations

import threading
from typing import Any

from casckpt.store import workers
from casckpt.store.index_writer import IndexWriter

_execute = IndexWriter._execute


def switch_off() -> None:
    """Let every store of this process work in the thread that calls it, from now on."""
    # As at the end of the interpreter: what is handed to a pool is done before `submit` returns.
    vars(workers)["_threads"] = lambda count, name: None
    # Whoever asks is the writer's thread, so jobs are never handed over.
    asking = property(lambda writer: threading.current_thread(), lambda writer, thread: None)
    one_at_a_time = threading.RLock()  # a training has a thread that saves, all the same

    def execute(writer: IndexWriter, batch: Any) -> None:
        with one_at_a_time:
            _execute(writer, batch)

    for name, value in (("_thread", asking), ("_execute", execute)):
        setattr(IndexWriter, name, value)
