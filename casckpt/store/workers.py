"""The threads that code and read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Workers(ThreadPoolExecutor):
    """A pool that works in the caller's thread once the interpreter ends, and begins no thread.

    So a save, or a restore, in a function that `atexit` calls is slower, and done.
    """

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Have a worker call `fn`; return what will hold its result."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as exc:
            if "interpreter shutdown" not in str(exc):
                raise
        done: Future[_Result] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            done.set_exception(exc)
        return done
