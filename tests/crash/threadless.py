"""The store without threads of its own: for those who look at what a fault has left.

A look does one thing at a time, and handing each piece of it to a pool costs more than the piece.
What a fault strikes keeps its threads: only children that look switch them off.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from casckpt.store import own_packs
from casckpt.store.index_writer import IndexWriter

_execute = IndexWriter._execute


class Here(concurrent.futures.Executor):
    """Carries out what it is given before `submit` returns."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        """Take what a pool of threads takes."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **how: Any) -> Any:
        """Return a future that is done."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(work(*given, **how))
        except BaseException as exc:
            done.set_exception(exc)
        return done


def switch_off() -> None:
    """Let every store of this process work in the thread that calls it, from now on."""
    vars(concurrent.futures)["ThreadPoolExecutor"] = Here
    vars(own_packs)["ThreadPoolExecutor"] = Here
    # Whoever asks is the writer's thread, so jobs are never handed over.
    asking = property(lambda writer: threading.current_thread(), lambda writer, thread: None)
    one_at_a_time = threading.RLock()  # a training has a thread that saves, all the same

    def execute(writer: IndexWriter, batch: Any) -> None:
        with one_at_a_time:
            _execute(writer, batch)

    for name, value in (("_thread", asking), ("_execute", execute)):
        setattr(IndexWriter, name, value)
