"""Datasets that segments of a training write to, and that their owner gets back as they were.

LightGBM goes on from a model by writing its predictions into `init_score` of every Dataset, over
what stood there, and leaves them there. So the next training on that Dataset would begin from the
predictions of this one, and a score of the owner's would count in the first segment only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightgbm


@contextlib.contextmanager
def lent(datasets: Iterable[lightgbm.Dataset]) -> Iterator[None]:
    """Let segments add their predictions to the owner's scores; put those back in the end.

    Args:
        datasets: of training and validation; the same one may be there more than once.
    """
    by_id: dict[int, _Lent] = {}
    with contextlib.ExitStack() as stack:
        for one in datasets:
            if id(one) not in by_id:
                by_id[id(one)] = _Lent(one, by_id)
                stack.callback(by_id[id(one)].give_back)
        yield


class _Lent:
    """A Dataset in the time of a training; LightGBM calls it for the scores to begin from."""

    def __init__(self, data: lightgbm.Dataset, all_lent: dict[int, _Lent]) -> None:
        self._data, self._all = data, all_lent
        self._predictor = data._predictor  # left by a training of the owner's own
        self._attribute = data.init_score
        self._was_made = data._handle is not None
        self._was_called = False
        self._given: Any = None
        self._score: Any = None
        self._rounds = 0
        # There is no other place where predictions and a score of one's own could be added.
        vars(data)["_set_init_score_by_predictor"] = self

    def __call__(self, predictor: Any, data: Any, used_indices: Any = None) -> lightgbm.Dataset:
        """Set the scores to begin from, in place of the Dataset's method of that name.

        Args:
            predictor: the model so far; None for what LightGBM does at the beginning of a training
                if a Dataset has the predictions of another one.
            data: the features.
            used_indices: of a Dataset that is a part of another: which rows.
        """
        mine = self._data
        if not self._was_called:
            self._was_called, self._given = True, self._owners()
            self._score = self._base()
        if predictor is None or self._score is None:
            self._by_lightgbm(predictor, data, used_indices)
            return mine
        # Tree by tree, as an uninterrupted training adds them: another order of adding rounds
        # otherwise. Trees that are there never change.
        rounds: int = predictor.current_iteration()
        for at in range(self._rounds, rounds):
            self._by_lightgbm(_Round(predictor, at), data, used_indices)
            self._score = self._score + mine.get_field("init_score")
        self._rounds = rounds
        mine.set_init_score(self._score)
        return mine

    def give_back(self) -> None:
        """Let the Dataset be as it was."""
        mine = self._data
        del mine._set_init_score_by_predictor
        has_changed = self._was_called or mine._predictor is not self._predictor
        mine._predictor = self._predictor
        if not has_changed:
            return
        if self._parent is not None:
            mine._free_handle()  # made from rows that had predictions already
            mine.init_score = self._attribute
        elif self._was_called:
            mine.init_score = self._given
            if mine._handle is not None:
                mine.set_field("init_score", self._given)

    @property
    def _parent(self) -> _Lent | None:
        """The Dataset of which this one was made a part since, with the scores of its rows."""
        if self._was_made or self._data.used_indices is None:
            return None
        return self._all.get(id(self._data.reference))

    def _owners(self) -> Any:
        """Return the score that the owner has set; None if there is none."""
        parent = self._parent
        if parent is None:
            return self._data.get_init_score()
        whole = parent._given if parent._was_called else parent._data.get_init_score()
        return None if whole is None else parent._plain(whole)[self._data.used_indices]

    def _base(self) -> Any:
        """Return the score that the first round begins from, as an array."""
        if self._given is None:
            return None
        plain = self._plain(self._given)
        # Predictions of another training: LightGBM makes zeros of them, so it is done here too.
        is_left_over = self._predictor is not None and self._was_made
        return plain * 0.0 if is_left_over else plain

    def _plain(self, score: Any) -> Any:
        """Return a score as LightGBM understands it, by rows, and by classes if there are some."""
        before = self._data.get_field("init_score")
        self._data.set_field("init_score", score)
        plain = self._data.get_field("init_score")
        self._data.set_field("init_score", before)
        return plain

    def _by_lightgbm(self, predictor: Any, data: Any, used_indices: Any) -> None:
        method = type(self._data)._set_init_score_by_predictor
        method(self._data, predictor=predictor, data=data, used_indices=used_indices)


class _Round:
    """A model of one round of a model, as far as scores need one."""

    def __init__(self, predictor: Any, at: int) -> None:
        self._predictor, self._at = predictor, at
        self.num_class: int = predictor.num_class

    def predict(self, **options: Any) -> Any:
        """Return what this round adds."""
        return self._predictor.predict(start_iteration=self._at, num_iteration=1, **options)
