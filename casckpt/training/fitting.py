"""Whether the state of a loop and its checkpoints fit one another, at a restore and at a save.

A restart makes the state as this start made it, and restores into that. So what the body of a loop
changes about keys and shapes is seen at the save, while there is still somebody to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.into_parts import child_kind, is_array, is_object, is_pure, items_of
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.tree_paths import join
from casckpt.errors import TreeMismatch
from casckpt.logs import logger
from casckpt.training.state import State, is_generator

if TYPE_CHECKING:
    from casckpt.training.run import Run

_SAID_MAX: Final = 3
_STATE: Final = "a State"
_DICT: Final = "a dict"
_ANYTHING: Final = "nothing"
"""None, or an empty container: it takes whatever a checkpoint has."""
# Scalars of numpy are leaves too, and restored as plain values are.
_ARRAYS: Final = frozenset({"ndarray", "Tensor", "Parameter"})


def fill(run: Run, checkpoint: Checkpoint, tree: Any) -> None:
    """Fill a loop's state; of a model whose new structure was allowed, what fits.

    Keys of a dict that only the checkpoint has are added, as a State takes parts: the body of the
    loop may have made them.

    Raises:
        TreeMismatch: the state does not fit; nothing was touched.
    """
    try:
        run.store.restore(checkpoint, into=tree, strict=run._strict)
    except TreeMismatch as exc:
        if _takes_more(run, checkpoint, tree, exc):
            return
        if not run._strict:
            exc.hint = "nothing of it fits the new model: begin anew with resume='never'"
        elif exc.hint == TreeMismatch.default_hint:
            exc.hint = _hint(checkpoint, is_of_loop=bool(run._position()[1].loop))
        raise


def _takes_more(run: Run, checkpoint: Checkpoint, tree: Any, error: TreeMismatch) -> bool:
    """Restore into a dict with the keys that it lacks; False if more than that does not fit."""
    found = error.details
    added: list[str] = found["extra"]
    if found["missing"] or found["wrong"] or any("." in key for key in added):
        return False
    if type(tree) is not dict:
        return False
    tree.update(dict.fromkeys(added))  # None takes whatever the checkpoint has
    try:
        run.store.restore(checkpoint, into=tree)
    except BaseException as exc:
        for key in added:
            del tree[key]
        if isinstance(exc, TreeMismatch):
            return False  # a key that only reads like these
        raise
    logger.warning(
        "%s: %s is in %s and not in the state given; it is taken from there",
        *(run.name, ", ".join(added), checkpoint.ref),
    )
    return True


def _hint(checkpoint: Checkpoint, *, is_of_loop: bool) -> str:
    if is_of_loop:
        return (
            f"make the state with the keys and shapes of {checkpoint.ref} before the loop begins"
            " (`casckpt show` lists them), or begin anew with resume='never'"
        )
    return (
        f"no loop saved {checkpoint.ref}: begin anew with resume='never', and save what is no"
        " loop's with a name: run.save(state, name='predictions')"
    )


class Outline:
    """What a restore compares of a state, as the program made it.

    Args:
        run: name of the run.
        state: the state, before anything was restored into it.
    """

    def __init__(self, run: str, state: Any) -> None:
        self._run = run
        self._begun = dict(_facts(state, ""))
        self._saves = 0
        self._has_said = False

    def check(self, state: Any) -> None:
        """Say once if what is saved now would not fit the state that a restart makes."""
        self._saves += 1
        # A look at every value of long lists takes time: at the first save, the 2nd, 4th, 8th ...
        if self._has_said or self._saves & (self._saves - 1):
            return
        changed = list(_changes(self._begun, dict(_facts(state, ""))))
        if not changed:
            return
        self._has_said = True
        logger.warning(
            "%s CANNOT GO ON FROM ITS SAVES: the state that a restart makes will not fit: %s; make"
            " it before the loop with the keys and shapes it will have, or keep what grows in a"
            " list",
            *(self._run, "; ".join(changed[:_SAID_MAX])),
        )


def _facts(target: Any, path: str, *, is_part: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (path, what a restore compares); the rules are those of `checkpoint/into.py`."""
    if getattr(target, "casckpt_into", None) == "parts":
        yield path, _STATE
        for name, part in target.state_dict().items():
            yield from _facts(part, join(path, name), is_part=True)
        return
    kind = None if is_object(target) else child_kind(target)
    items = [] if kind is None else items_of(target)
    if target is None or (kind is not None and not items):
        yield path, _ANYTHING
    elif is_object(target):
        yield path, "an object"
    elif is_array(target) and type(target).__name__ in _ARRAYS:
        yield path, f"shape {tuple(target.shape)} of {target.dtype}"
    elif kind is None or ((is_part or isinstance(target, list)) and is_pure(target)):
        yield path, "plain values"
    else:
        yield path, _DICT if kind == "dict" else f"{len(items)} items"
        for key, part in items:
            yield from _facts(part, join(path, key))


def _changes(begun: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    """Yield what a restart's state would not take."""
    wrong: list[str] = []
    for path, fact in begun.items():
        if any(path.startswith(f"{above}.") for above in wrong) or fact == _ANYTHING:
            continue
        found = now.get(path)
        if found != fact and not (found == _ANYTHING and fact == "plain values"):
            wrong.append(path)
            yield f"{path or 'all'}: {fact} before, {found or 'nothing'} now"
    for path in now:
        above = path.rpartition(".")[0]
        # A dict at the root takes more keys (`fill`), and so does a State.
        if path not in begun and above and begun.get(above) == _DICT:
            yield f"{path}: added"


def say_other(run: Run, before: Any, state: Any) -> None:
    """Say that a loop goes on from another one's state, where it was given one of its own.

    A run has one state. A second model would take the weights of the first, and be done.

    Args:
        run: whose loops they are.
        before: the state of the loop that came to its end.
        state: that of the one that begins.
    """
    own, other = ({id(part) for part in _filled(one)} for one in (before, state))
    if run._peers.leads and before is not state and own.isdisjoint(other):
        logger.warning(
            "%s: this state goes on from that of the loop before, which came to its end; train"
            " what is another in a run of its own: run.child(NAME) or store.run(NAME)",
            run.name,
        )


def _filled(state: Any) -> Iterator[Any]:
    """Yield the state and its parts, without those that are plain values."""
    yield state
    parts = state._parts.values() if isinstance(state, State) else dict(items_of(state)).values()
    for part in parts:
        if is_array(part) or is_object(part) or is_generator(part) or isinstance(part, dict | list):
            yield part
