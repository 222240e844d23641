"""Samplers of Optuna that draw for a trial what they drew for it before a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from casckpt.adapters import missing_extra

try:
    import optuna
except ModuleNotFoundError as exc:
    raise missing_extra("optuna") from exc

from optuna.distributions import distribution_to_json, json_to_distribution

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

SamplerOf = Callable[[int], optuna.samplers.BaseSampler]
"""Seed to sampler."""

_RELATIVE: Final = "casckpt:relative"


class PerTrialSampler(optuna.samplers.BaseSampler):
    """Asks a sampler of each trial's own.

    Args:
        make: seed to sampler.
        seed: of the study.
    """

    def __init__(self, make: SamplerOf, seed: int) -> None:
        self._make = make
        self._seed = seed
        self._samplers: dict[int, optuna.samplers.BaseSampler] = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass on, unless the trial goes on in another process: then it was done."""
        if _RELATIVE not in trial.system_attrs:
            self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is sampled together; as it was, if the trial goes on."""
        stored = trial.system_attrs.get(_RELATIVE)
        if stored is not None:
            return {name: json_to_distribution(text) for name, (_, text) in stored.items()}
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return what was sampled together, and keep it: a sampler may count its calls."""
        stored = trial.system_attrs.get(_RELATIVE)
        if stored is not None:
            return {
                name: search_space[name].to_external_repr(value)
                for name, (value, _) in stored.items()
            }
        sampled = self._of(trial).sample_relative(study, trial, search_space)
        study._storage.set_trial_system_attr(
            trial._trial_id,
            _RELATIVE,
            {
                name: [
                    search_space[name].to_internal_repr(value),
                    distribution_to_json(search_space[name]),
                ]
                for name, value in sampled.items()
            },
        )
        return sampled

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one parameter, by a seed of its own: those before it may be stored already."""
        inner = self._make(seed_of(self._seed, trial.number, param_name))
        if isinstance(inner, optuna.samplers.GridSampler):
            inner = self._of(trial)
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Pass on, and forget the trial's sampler."""
        self._of(trial).after_trial(study, trial, state, values)
        self._samplers.pop(trial.number, None)

    def reseed_rng(self) -> None:
        """Do nothing: seeds come from numbers of trials."""

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        found = self._samplers.get(trial.number)
        if found is None:
            found = self._make(seed_of(self._seed, trial.number))
            if isinstance(found, optuna.samplers.GridSampler):
                # Its seed orders the grid, and a trial keeps its number in that order.
                found = self._make(seed_of(self._seed, 0))
            self._samplers[trial.number] = found
        return found


def seed_of(seed: int, number: int, name: str = "") -> int:
    """Return the seed of a trial, or of one parameter of it: 31 bits."""
    digest = hashlib.sha256(f"casckpt trial {seed} {number} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
