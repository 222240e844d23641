"""The threads that code, read and seal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Workers(Executor):
    """A pool of threads that works in the caller's where none can be begun.

    So a save, or a restore, in a function that `atexit` calls, or where a limit of threads is
    reached, is slower, and done.
    """

    def __init__(self, count: int, name: str) -> None:
        """Make a pool of at most `count` threads, which are called NAME_0, NAME_1 ..."""
        self._threads = _threads(count, name)
        self._is_closed = False

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Have a worker call `fn`; return what will hold its result."""
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        work = _Work(partial(fn, *args, **kwargs))
        future = work.future
        try:
            if self._threads is None:
                work()
            else:
                self._threads.submit(work)
        except RuntimeError:
            # The interpreter ends, or begins no more threads. What was queued before that was
            # seen may be taken by another: one of the two does it.
            work()
        try:
            return future
        finally:
            del work, future  # no frame of its error's traceback may name it (see reading.py)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and wait for what there is, always all of it; not an error twice."""
        self._is_closed = True
        if self._threads is not None:
            self._threads.shutdown(wait)


class _Work:
    """A call that is made once, by whoever comes first, and what will hold its result."""

    __slots__ = ("_call", "_claim", "future")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._claim = threading.Lock()
        self.future: Future[Any] = Future()  # none any more once it is made

    def __call__(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        # A pool that could not begin a thread keeps this for ever: it shall hold nothing then.
        future, call = self.future, self._call
        del self.future
        self._call = _nothing
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)
        finally:
            del self, future, call


def _nothing() -> None:
    """Stand for a call that was made: it kept the caller's buffers alive."""


def _threads(count: int, name: str) -> Executor | None:
    """Return a pool of threads, None where the interpreter begins none any more."""
    try:
        # Its module cannot be imported for the first time when the interpreter ends.
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(count, thread_name_prefix=name)
    except RuntimeError:
        return None
