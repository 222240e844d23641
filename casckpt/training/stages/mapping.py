"""`Stage.map`: calls for all items of a stage, some at once, none twice that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from casckpt.errors import BadRequest, StageFailed
from casckpt.logs import logger
from casckpt.training.fingerprints.values import Fingerprinter
from casckpt.training.results import Number, Result, check_numbers
from casckpt.training.stages.calls import Cancelled, Pace, Retry, call, check_retry

if TYPE_CHECKING:
    from casckpt.training.stages.lazy_results import Results
    from casckpt.training.stages.ledger import Ledger

_LOOK_EVERY_S: Final = 0.2
"""How often a request to stop is looked for while calls are under way."""

_SHOWN: Final = 3

Batch = list[int]
"""Numbers of units that one call works on."""


@dataclass(frozen=True)
class MapOptions:
    """How `map` calls; see there."""

    batch_size: int | None
    pass_key: bool
    workers: int
    retry: Mapping[type[BaseException], int] | None
    per_second: float | None
    on_error: Literal["raise", "keep"]

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is None and name == "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest(f"{name}={value!r}", "it is a number from 1 on")
        if self.on_error not in ("raise", "keep"):
            raise BadRequest(f"on_error={self.on_error!r}", "it is 'raise' or 'keep'")
        if self.per_second is not None and not self.per_second > 0:
            raise BadRequest(f"per_second={self.per_second!r}", "it is a number above 0")
        check_retry(self.retry)


def run_map(ledger: Ledger, fn: Callable[..., Any], options: MapOptions) -> Results:
    """Call `fn` for what is not done; see `Stage.map`."""
    waiting = ledger.pending()
    is_cut = False
    with ledger.run._watching():
        if waiting:
            ledger.begin()
            ledger.note_code(Fingerprinter(lenient=True).of(fn).hex())
            try:
                batches = _batches(waiting, options.batch_size or 1)
                is_cut = _Mapping(ledger, fn, options).run(batches)
            finally:
                ledger.flush()
        ledger.ended()
    if is_cut:
        # As a loop that `run.stop()` ends: no error, and what comes after it is the program's.
        logger.warning(
            "stage %s: run.stop() ended map at %d of %d; it returns None for the others",
            ledger.name,
            ledger.done_count,
            len(ledger.plan()),
        )
        return ledger.results(whole=False)
    errors = ledger.errors()
    if errors and options.on_error == "raise":
        shown = [f"{key!s:.60}: {text:.200}" for key, text in list(errors.items())[:_SHOWN]]
        raise StageFailed(
            f"{len(errors)} of {len(ledger.plan())} items of stage {ledger.name} failed",
            "; ".join(shown),
            stage=ledger.name,
            errors=errors,
        )
    return ledger.results()


def _batches(numbers: Sequence[int], size: int) -> list[Batch]:
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


class _Mapping:
    """One `map` at work."""

    def __init__(self, ledger: Ledger, fn: Callable[..., Any], options: MapOptions) -> None:
        self._ledger = ledger
        self._fn = fn
        self._options = options
        self._retry: Retry = check_retry(options.retry)
        self._open_max = max(options.workers, -(-ledger.save_every // (options.batch_size or 1)))
        self._pace = Pace(options.per_second, lambda: ledger.run.stopping)
        self._unsaved = self._unsaved_items = 0

    def run(self, batches: Sequence[Batch]) -> bool:
        """Work through the batches; on a request to stop, leave with what is finished saved.

        Returns:
            Whether `run.stop()` ended it before all were worked through.
        """
        if self._options.workers == 1:
            return self._run_here(batches)
        return self._run_in_threads(iter(batches))

    def _run_here(self, batches: Sequence[Batch]) -> bool:
        for batch in batches:
            if self._ledger.must_end():
                return True
            numbers = self._left_of(batch)
            if not numbers:
                continue
            outcome = self._attempt(numbers)
            if outcome is None:
                return self._ledger.must_end()
            self._take(numbers, outcome)
            if self._unsaved_items >= self._ledger.save_every:
                self._save()
        return False

    def _run_in_threads(self, batches: Iterator[Batch]) -> bool:
        pool = ThreadPoolExecutor(self._options.workers, thread_name_prefix="casckpt-map")
        running: dict[Future[_Outcome | None], Batch] = {}
        ending = is_cut = False
        leaving: BaseException | None = None
        try:
            while True:
                ending = ending or self._ledger.run.stopping
                if ending:
                    self._pace.cancel()
                while not ending and len(running) + self._unsaved < self._open_max:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    numbers = self._left_of(batch)
                    if numbers:
                        running[pool.submit(self._attempt, numbers)] = numbers
                if not running:
                    break
                for future in wait(running, _LOOK_EVERY_S, FIRST_COMPLETED).done:
                    numbers = running.pop(future)
                    error = future.exception()
                    if error is not None:
                        if not self._ledger.run.stopping:
                            raise error
                        # A child that was asked to stop; others under way may still be saving.
                        ending, leaving = True, leaving or error
                    elif (outcome := future.result()) is not None:
                        self._take(numbers, outcome)
                    else:
                        is_cut = True
                # What is finished but not durable counts as open, and may be all there is.
                is_full = len(running) + self._unsaved >= self._open_max
                is_due = self._unsaved_items >= self._ledger.save_every
                if self._unsaved and (is_due or is_full):
                    self._save()
        finally:
            self._pace.cancel()
            pool.shutdown(wait=False, cancel_futures=True)
        if leaving is not None:
            raise leaving
        return self._ledger.must_end() and (is_cut or next(batches, None) is not None)

    def _left_of(self, batch: Batch) -> Batch:
        return [number for number in batch if not self._ledger.is_taken(number)]

    def _attempt(self, numbers: Batch) -> _Outcome | None:
        """Call for one batch, in whatever thread; None if the run is to stop."""
        pairs = [self._ledger.unit(number) for number in numbers]
        keys, items = [unit.key for unit, _ in pairs], [item for _, item in pairs]
        whole = self._options.batch_size is not None
        arguments: tuple[Any, ...] = (items,) if whole else (items[0],)
        if self._options.pass_key:
            arguments = ((keys if whole else keys[0]), *arguments)
        try:
            value = call(lambda: self._fn(*arguments), self._retry, self._pace)
        except Cancelled:
            return None
        except Exception as exc:
            return _Outcome(error=exc)
        return _Outcome(value)

    def _take(self, numbers: Batch, outcome: _Outcome) -> None:
        """Hand what a call gave to the ledger."""
        self._unsaved += 1
        self._unsaved_items += len(numbers)
        if outcome.error is not None:
            for number in numbers:
                self._ledger.put_failure(number, outcome.error)
            return
        values = self._values(numbers, outcome.value)
        for number, value in zip(numbers, values, strict=True):
            about: dict[str, Number] = {}
            if isinstance(value, Result):
                about = check_numbers(value.numbers, f"stage {self._ledger.name}")
                value = value.value
            self._ledger.put(number, value, about)

    def _values(self, numbers: Batch, value: Any) -> list[Any]:
        """Return what a call gave for each unit of its batch."""
        if self._options.batch_size is None:
            return [value]
        around = value if isinstance(value, Result) else None
        try:
            values = list(value if around is None else around.value)
        except TypeError as exc:
            raise BadRequest(
                f"the function of stage {self._ledger.name} returned a {type(value).__name__}",
                "with batch_size it takes a list of items and returns a list of results",
            ) from exc
        if len(values) != len(numbers):
            raise BadRequest(
                f"the function of stage {self._ledger.name} returned {len(values)} results "
                f"for {len(numbers)} items",
                "with batch_size it returns one result for each item, in their order",
            )
        if around is not None:
            # The numbers are the call's: once in the totals, and one value in the means.
            first = values[0]
            inner = first if isinstance(first, Result) else Result(first)
            values[0] = Result(inner.value, **{**around.numbers, **inner.numbers})
        return values

    def _save(self) -> None:
        self._unsaved = self._unsaved_items = 0
        self._ledger.flush()


@dataclass(frozen=True)
class _Outcome:
    """What a call gave: a value, or an error."""

    value: Any = None
    error: Exception | None = None
