"""K-fold: a child run for each fold, skipped when finished, begun anew if its split is new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from casckpt.errors import BadRequest
from casckpt.training import randomness
from casckpt.training.fingerprints.values import Fingerprinter

if TYPE_CHECKING:
    from casckpt.training.guards import MismatchPolicy
    from casckpt.training.run import Run

_OWN = ("data.split", "data.given")


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation.

    Attributes:
        number: from 1 on.
        train: indices to train on, as the splitter gave them.
        test: indices to test on.
        run: the child run "NAME/fold-NUMBER"; it is finished when the body of the loop ends.
    """

    number: int
    train: Any
    test: Any
    run: Run


def run_folds(run: Run, splitter: Any, x: Any, y: Any, groups: Any) -> Iterator[Fold]:
    """Yield the folds that are not finished; see `Run.folds`."""
    splits = _splits(splitter, x, y, groups)
    run.expect("fold-*", len(splits))
    policy = _policy(run._policy)
    # Of a dataset that has no fingerprint its type counts.
    given = Fingerprinter(lenient=True).of((x, y, groups), "the data of folds").hex()
    for number, (train, test) in enumerate(splits, 1):
        run.check_stop()
        digest = Fingerprinter().of((train, test), f"the split of fold {number}").hex()
        data = {"split": digest, "given": given}
        child = run.child(f"fold-{number}", data=data, on_mismatch=policy)
        if child.finished:
            # The next fold draws what it would have drawn behind this one.
            _, extra = child._position()
            randomness.restore(extra.of_rank(run._peers.rank, run._peers.size).streams)
        else:
            run._part_done = False
            # What comes after its loop belongs to the fold: only the end of the body finishes it.
            child._in_body = True
            try:
                yield Fold(number, train, test, child)
            except GeneratorExit:
                # Left by break: whatever the body had got to, it did not come to its end.
                child._broken = True
                child.close()
                raise
            if child._call_reason() is not None:
                child.close()
                return
            child._in_body = False
            child.finish()
        child.close()
        run.note_progress("folds", number, len(splits))
    run._part_done = True


def _splits(splitter: Any, x: Any, y: Any, groups: Any) -> list[tuple[Any, Any]]:
    split = getattr(splitter, "split", None)
    if callable(split):
        # Splitters of other libraries than scikit-learn need not take groups.
        found = split(x, y) if groups is None else split(x, y, groups)
    elif isinstance(splitter, Iterable):
        found = splitter
    else:
        raise BadRequest(
            f"a {type(splitter).__name__} cannot split",
            "it needs split(X, y, groups), or to be a list of (train, test)",
            "pass KFold(5, shuffle=True, random_state=0), or your own splits",
        )
    return [(train, test) for train, test in found]


def _policy(policy: MismatchPolicy) -> MismatchPolicy:
    """Return the parent's actions, but a fold of another split, or other data, begins anew."""
    rest = policy if isinstance(policy, Mapping) else {"env.*": policy, "*": policy}
    if isinstance(policy, str) and policy != "allow":
        rest = {"env.*": "warn", "*": policy}
    return cast("MismatchPolicy", {**dict.fromkeys(_OWN, "restart"), **rest})
