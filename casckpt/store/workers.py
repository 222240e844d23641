"""The threads that code, read and seal."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Workers(ThreadPoolExecutor):
    """A pool that works in the caller's thread once the interpreter ends, and begins no thread.

    So a save, or a restore, in a function that `atexit` calls is slower, and done.
    """

    _is_closed = False

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Have a worker call `fn`; return what will hold its result."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as exc:
            # Its own threads close a pool when the interpreter ends, and it says no more than that.
            if self._is_closed or "shutdown" not in str(exc):
                raise
        done: Future[_Result] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            done.set_exception(exc)
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and wait for what there is; not an error twice."""
        self._is_closed = True
        super().shutdown(wait, cancel_futures=cancel_futures)
