"""A stage: work through many items, each done once, whatever ends the process in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from casckpt import native
from casckpt.errors import BadRequest
from casckpt.training.results import check_numbers
from casckpt.training.stages import rows as stage_rows
from casckpt.training.stages.items import Items, key_text
from casckpt.training.stages.ledger import Ledger

if TYPE_CHECKING:
    from casckpt.training.results import Number
    from casckpt.training.run import Run
    from casckpt.training.stages.lazy_results import Results


class Stage:
    """Work over items, made by `run.stage`; iterate over it, or call `map`.

    Thread safe, but one thread iterates. `done` may be called from any.

    Attributes:
        name: its name.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        items: Any,
        *,
        key: Callable[[Any], Any] | None = None,
        uses: Any = None,
        version: str = "1",
        save_every: int = 1,
        shared: bool = False,
    ) -> None:
        """Prepare; see `Run.stage`. Items are looked at when the stage is first used."""
        self.name = stage_rows.check_name(name)
        if isinstance(save_every, bool) or not isinstance(save_every, int) or save_every < 1:
            raise BadRequest(f"save_every={save_every!r}", "it is a number of items from 1 on")
        self._run = run
        self._ledger = Ledger(
            run,
            self.name,
            Items(items, key, f"stage {name}"),
            uses=uses,
            version=str(version),
            save_every=save_every,
            shared=shared,
        )

    # ---- what there is

    @property
    def total(self) -> int:
        """How many units of work there are: items, equal ones counted once."""
        return len(self._ledger.plan())

    @property
    def done_count(self) -> int:
        """How many of them have a durable result, from all sessions."""
        return self._ledger.done_count

    @property
    def totals(self) -> dict[str, Number]:
        """Sums of the numbers given to `done`, from all sessions, exact in any order."""
        return self._ledger.sums().totals()

    @property
    def means(self) -> dict[str, float]:
        """Means of the numbers given to `done`, over the results that have them."""
        return self._ledger.sums().means()

    def __len__(self) -> int:
        """Return `total`."""
        return self.total

    def __repr__(self) -> str:
        """Return the name."""
        return f"<casckpt.Stage {self.name} of {self._run.name}>"

    def seed(self, key: Any, base: int = 0) -> int:
        """Return a seed for an item: always the same, and another one for another key.

        Args:
            key: the item's key.
            base: the experiment's seed, if it is to count.

        Returns:
            A number from 0 to 2**32 - 1, what every generator takes.
        """
        name = key_text(key)
        name = repr(key) if name is None else name
        text = f"seed\0{self.name}\0{int(base)}\0{name}".encode("utf-8", "surrogatepass")
        return int.from_bytes(native.blake3(text)[:4], "little")

    # ---- work

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield (key, item) of the items that are not done, those included that failed earlier.

        Between items it looks for a request to stop. What was said to be done is written when
        the loop ends, is left, or stops.

        Raises:
            BadRequest: an item has no fingerprint, or two different ones have the same key.
            RunBusy: another live process trains the run.
            Stopped: after a request to stop.
        """
        ledger = self._ledger
        waiting = ledger.pending()
        if not waiting:
            ledger.ended()
            return
        with self._run._watching():
            ledger.begin()
            try:
                for number in waiting:
                    if ledger.must_end():
                        return
                    if not ledger.is_taken(number):
                        unit, item = ledger.unit(number)
                        yield unit.key, item
            except GeneratorExit:
                self._run._broken = True  # by a break: the stage is not at its end
                raise
            finally:
                ledger.flush()
            self._run._broken = False
            ledger.ended()

    def done(self, key: Any, result: Any = None, **numbers: Number) -> None:
        """Keep the result of an item; durable when this returns, with `save_every` in groups.

        If another process has done a shared item meanwhile, its result stays.

        Args:
            key: the key that was yielded.
            result: what a state may be: arrays, tensors, numbers, text, containers.
            numbers: add up in `totals` and `means`, such as tokens=31.

        Raises:
            BadRequest: there is no such key, or it is done already.
            BadLeaf: the result cannot be stored; the item is not done.
            NoSpace: the disk is full; nothing that was durable is lost, and what was not is
                written with the next group.
        """
        ledger = self._ledger
        checked = check_numbers(numbers, self.name) if numbers else numbers
        ledger.put(ledger.number(key), result, checked)
        ledger.flush_if_due()

    def failed(self, key: Any, error: BaseException | str) -> None:
        """Note that an item failed; the next session tries it again, or this one until `done`.

        Args:
            key: the key that was yielded.
            error: why, for `errors`.

        Raises:
            BadRequest: there is no such key, or it is done already.
        """
        self._ledger.put_failure(self._ledger.number(key), error)
        self._ledger.flush_if_due()

    def map(
        self,
        fn: Callable[..., Any],
        *,
        batch_size: int | None = None,
        pass_key: bool = False,
        workers: int = 1,
        retry: Mapping[type[BaseException], int] | None = None,
        per_second: float | None = None,
        on_error: Literal["raise", "keep"] = "raise",
    ) -> Results:
        """Call a function for every item that is not done, and return all results in order.

        A kill at any moment repeats at most max(workers, save_every) calls: those that were
        begun and whose results were not durable. They are as soon as `save_every` items wait,
        however many of them a call makes. A change of `fn` alone redoes nothing, and is
        warned of; name it in `uses` if it should.

        `run.stop()`, from `fn` or elsewhere, ends it as it ends a loop: calls under way are
        finished and their results kept, no further ones are made, and it returns, whatever
        `on_error` says, with None for items without a result; `run.stopping` tells.

        Args:
            fn: takes an item; with batch_size a list of items, and returns as many results. It
                may return `Result(value, tokens=3)`, in a batch for each or around the list.
            batch_size: items per call; may change between sessions.
            pass_key: call fn(key, item), or fn(keys, items).
            workers: threads that call; 1 calls in this one.
            retry: exception to how often it is tried again, with growing pauses; a Retry-After
                that the exception or its response carries is obeyed, by all workers.
            per_second: calls per second at most, retries included.
            on_error: "raise" works through the rest, then raises; "keep" returns, with None for
                items that failed. Either way they are in `errors` and tried again next time.

        Raises:
            StageFailed: items failed and on_error is "raise"; the results of the others are kept.
            BadLeaf: fn returned what cannot be stored.
            BadRequest: options that make no sense, or another number of results than items.
            RunBusy, Stopped: as the loop over the stage.
        """
        from casckpt.training.stages.mapping import MapOptions, run_map

        options = MapOptions(batch_size, pass_key, workers, retry, per_second, on_error)
        return run_map(self._ledger, fn, options)

    # ---- afterwards

    def results(self) -> Results:
        """Return the results in the order of the items, read one by one when asked for.

        Items that failed give None; equal items the same result.

        Raises:
            BadRequest: items are neither done nor failed.
        """
        return self._ledger.results()

    def errors(self) -> dict[Any, str]:
        """Return why items failed: key to text, without those that were done since."""
        return self._ledger.errors()

    def clear(self) -> None:
        """Forget all results of the stage, old versions too; of a shared one for everybody.

        What other lines have done stays theirs, and is not seen here any more.

        Raises:
            RunBusy: another live process trains the run.
        """
        self._ledger.clear()
