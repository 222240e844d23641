"""The threads that code, read and seal."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Workers(Executor):
    """A pool of threads that works in the caller's once the interpreter ends, and begins none.

    So a save, or a restore, in a function that `atexit` calls is slower, and done.
    """

    def __init__(self, count: int, name: str) -> None:
        """Make a pool of at most `count` threads, which are called NAME_0, NAME_1 ..."""
        self._threads = _threads(count, name)
        self._is_closed = False

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Have a worker call `fn`; return what will hold its result."""
        if self._threads is not None:
            try:
                return self._threads.submit(fn, *args, **kwargs)
            except RuntimeError as exc:
                # Its own threads close a pool when the interpreter ends, and it says no more.
                if self._is_closed or "shutdown" not in str(exc):
                    raise
        elif self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        done: Future[_Result] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            done.set_exception(exc)
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and wait for what there is; not an error twice."""
        self._is_closed = True
        if self._threads is not None:
            self._threads.shutdown(wait, cancel_futures=cancel_futures)


def _threads(count: int, name: str) -> Executor | None:
    """Return a pool of threads, None where the interpreter begins none any more."""
    try:
        # Its module cannot be imported for the first time when the interpreter ends.
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(count, thread_name_prefix=name)
    except RuntimeError:
        return None
