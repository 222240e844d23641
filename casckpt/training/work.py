"""The calls of a Run that do work unit by unit: stages, cached values, folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from casckpt.errors import BadRequest
from casckpt.training.runbase import RunBase

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.training.folds import Fold
    from casckpt.training.opening import Opened
    from casckpt.training.run import Run
    from casckpt.training.stages.ledger import Ledger
    from casckpt.training.stages.stage import Stage


class RunWork(RunBase):
    """Work whose unit is an item, a value or a fold."""

    def __init__(self, store: Store, name: str, opened: Opened) -> None:
        """Stand for a run; see `RunBase`."""
        super().__init__(store, name, opened)
        self._holding: set[Ledger] = set()

    def stage(
        self,
        name: str,
        items: Any,
        *,
        key: Callable[[Any], Any] | None = None,
        uses: Any = None,
        version: str = "1",
        save_every: int = 1,
        shared: bool = False,
    ) -> Stage:
        """Return a stage: work over items, each of which is done once.

        An item is done again when its content, `uses`, `version`, its key or the stage's name is
        another; the rest stays. Going back to the old settings finds the old results.

        Args:
            name: its name in the run.
            items: a mapping of key to item, a sequence, or any iterable. A Path means its
                content, a str text; see `casckpt.fingerprint`.
            key: gives an item's key, unique and a str, int or path. None for the mapping's key;
                an item that is one of these is its own; else its fingerprint.
            uses: what results depend on besides: settings, functions, files; as in
                `casckpt.fingerprint`.
            version: change it to do everything again.
            save_every: items whose results become durable together; a kill repeats at most so
                many.
            shared: share results with all runs of the store, for as long as nobody clears them.

        Raises:
            BadRequest: options that make no sense.
        """
        from casckpt.training.stages.stage import Stage

        self._alone(f"the stage {name!r}")
        return Stage(
            cast("Run", self),
            name,
            items,
            key=key,
            uses=uses,
            version=version,
            save_every=save_every,
            shared=shared,
        )

    def cached(
        self, name: str, fn: Callable[..., Any], *args: Any, version: str = "1", **kwargs: Any
    ) -> Any:
        """Return `fn(*args, **kwargs)`, computed once in a store and loaded from then on.

        It is computed again when the function's source, or that of what it calls in its package,
        an argument (the content of a Path) or the version is another; every value stays until
        `casckpt cache rm`.

        Args:
            name: for messages and listings; part of what identifies the value.
            fn: returns what a state may be.
            args: its arguments, as in `casckpt.fingerprint`.
            version: change it to compute anew.
            kwargs: more arguments.

        Raises:
            BadRequest: an argument, or what the function closes over, has no fingerprint.
            BadLeaf: the value cannot be stored.
        """
        from casckpt.training.cached import run_cached

        if not callable(fn):
            raise BadRequest(
                f"cached({name!r:.60}, {fn!r:.60})",
                "it takes a function and the arguments to call it with",
                "pass cached(NAME, FUNCTION, *ARGUMENTS)",
            )

        def compute() -> Any:
            return run_cached(cast("Run", self), name, fn, args, kwargs, version)

        if self._peers.size == 1:
            return compute()
        made: list[Any] = []
        # The first process computes, the others load what it has stored.
        self._peers.lead(lambda: made.append(compute()))
        return made[0] if made else compute()

    def folds(
        self,
        splitter: Any,
        X: Any,
        y: Any = None,
        groups: Any = None,
    ) -> Iterator[Fold]:
        """Yield the folds that are not finished, each with a run of its own below this one.

        A fold is finished when the body of the loop ends; `children("fold-*")` tells how all of
        them did. A fold whose split or data are others than before begins anew: give splitters
        a random_state. Of what no fingerprint can be taken of, such as a dataset, the type counts.

        Args:
            splitter: has `split(X, y, groups)`, as in scikit-learn; or pairs (train, test).
            X: the samples, for the splitter.
            y: their targets, for the splitter.
            groups: their groups, for the splitter.

        Raises:
            BadRequest: it cannot split.
            RunBusy: another live process trains a fold.
            Stopped: after a request to stop.
        """
        from casckpt.training.folds import run_folds

        return run_folds(cast("Run", self), splitter, X, y, groups)

    def _settle(self) -> None:
        # ORDER: first what stages hold back, so that an error of a save cannot keep it from disk
        try:
            for ledger in list(self._holding):
                ledger.flush()
        finally:
            super()._settle()
