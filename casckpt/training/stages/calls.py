"""Calls that may fail: tries and pauses, what a server asks for, at most so many a second."""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from casckpt.errors import BadRequest
from casckpt.logs import logger

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
"""Pauses double from the first to the longest, each shortened at random by up to a half, so that
workers that failed together do not come back together."""

_LOOK_EVERY_S: Final = 0.1
_TELL_ABOVE_S: Final = 30.0

Retry = Mapping[type[BaseException], int]


class Cancelled(Exception):
    """The call was given up before it was made, since the run is to stop."""


class Pace:
    """When the next call may be made, for all workers together. Thread safe.

    Args:
        per_second: calls per second at most; None for no limit.
        should_stop: whether waiting is to be given up.
    """

    def __init__(self, per_second: float | None, should_stop: Callable[[], bool]) -> None:
        self._gap_s = 0.0 if per_second is None else 1.0 / per_second
        self._should_stop = should_stop
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._held_until_s = 0.0
        self._cancelled = threading.Event()
        # Its own: the program's generators must not depend on how often a server was busy.
        self._random = random.Random()

    def cancel(self) -> None:
        """Wake and give up everybody who waits."""
        self._cancelled.set()

    def wait_turn(self) -> None:
        """Return when a call may be made.

        Raises:
            Cancelled: the run is to stop.
        """
        while True:
            with self._lock:
                now_s = time.monotonic()
                if self._held_until_s <= now_s:
                    at_s = max(now_s, self._next_s)
                    self._next_s = at_s + self._gap_s
                    break
                until_s = self._held_until_s
            self._sleep_until(until_s)
        self._sleep_until(at_s)

    def hold(self, seconds: float) -> None:
        """Let nobody call for so long: the server has asked for it."""
        with self._lock:
            self._held_until_s = max(self._held_until_s, time.monotonic() + seconds)

    def pause(self, attempt: int) -> None:
        """Wait before the next try of one call; `attempt` counts from 0.

        Raises:
            Cancelled: the run is to stop.
        """
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 16))
        self._sleep_until(time.monotonic() + longest * self._random.uniform(0.5, 1.0))

    def _sleep_until(self, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            if self._cancelled.wait(min(left_s, _LOOK_EVERY_S)) or self._should_stop():
                raise Cancelled
        if self._cancelled.is_set():
            raise Cancelled


def call(function: Callable[[], Any], retry: Retry, pace: Pace) -> Any:
    """Call a function at its turn, again as often as `retry` allows for what it raises.

    Raises:
        Cancelled: the run is to stop, and the call was not made, or not again.
        BaseException: what the last try raised.
    """
    tries: dict[type[BaseException], int] = {}
    while True:
        pace.wait_turn()
        try:
            return function()
        except Exception as exc:
            kind = next((kind for kind in retry if isinstance(exc, kind)), None)
            if kind is None or tries.get(kind, 0) >= retry[kind]:
                raise
            attempt = tries[kind] = tries.get(kind, 0) + 1
            asked_s = retry_after_s(exc)
            logger.debug("try %d of %d failed: %s", attempt, retry[kind] + 1, exc)
        if asked_s is None:
            pace.pause(attempt - 1)
        else:
            if asked_s > _TELL_ABOVE_S:
                logger.warning("the server asks for a pause of %.0f s", asked_s)
            pace.hold(asked_s)


def retry_after_s(error: BaseException) -> float | None:
    """Return the pause that an error asks for; None if it does not.

    Looked for in `error.retry_after`, `error.headers` (urllib) and `error.response.headers`
    (requests, httpx and what is built on them): seconds, or a date.

    Source: RFC 9110, section 10.2.3.
    """
    value = getattr(error, "retry_after", None)
    for holder in (error, getattr(error, "response", None)):
        headers: Any = getattr(holder, "headers", None)
        if value is None and hasattr(headers, "get"):
            value = headers.get("Retry-After") or headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            then = email.utils.parsedate_to_datetime(str(value))
        except ValueError:
            return None
        seconds = then.timestamp() - time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def check_retry(retry: Any) -> Retry:
    """Return how often to try what again.

    Raises:
        BadRequest: it is no mapping of exceptions to numbers from 0 on.
    """
    if retry is None:
        return {}
    if isinstance(retry, Mapping) and all(
        isinstance(kind, type)
        and issubclass(kind, Exception)
        and isinstance(times, int)
        and times >= 0
        for kind, times in retry.items()
    ):
        return retry
    raise BadRequest(
        f"retry={retry!r:.80}", "it says what to try again how often", "retry={TimeoutError: 5}"
    )
